"""A table of actions in a real JupyterLab: what the reader has begun to press stays, whatever its row says meanwhile."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook

pytestmark = pytest.mark.slow

CODE = """
from widgets.controls.action_table import ActionTable, Line

def show(loss, *actions):
    table.show([Line("newer", ("newer", loss), actions), Line("older", ("older", "2.0"), ("open",))])

table = ActionTable("Runs", ["run", "loss"], {"watch": "watch", "open": "open"}, numbers=(1,), tick="compare")
pressed = []
table.on_action(lambda action, key: pressed.append([action, key]))
show("–", "open")
table
"""


def test_a_row_that_changes_keeps_its_button_under_the_pointer(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "table.ipynb", CODE)
    lab.open("table.ipynb")
    lab.run_all()
    rows = lab.page.get_by_role("table", name="Runs").locator("tbody tr")
    button = rows.first.get_by_role("button", name="open: newer")
    button.hover()
    lab.page.mouse.down()
    lab.kernel("show('1.5', 'open')")
    rows.first.filter(has_text="1.5").wait_for()
    lab.page.mouse.up()
    lab.knows("pressed", [["open", "newer"]])

    lab.kernel("show('1.4', 'watch')")
    rows.first.get_by_role("button", name="watch: newer").click()
    lab.knows("pressed[1:]", [["watch", "newer"]])
    lab.kernel("table.show([])")
    rows.first.wait_for(state="detached")
