"""What a reader does in the app on a Colab page, by roles and accessible names; what the app is made of is known here alone."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Locator, expect

from tests.browser import fold
from tests.browser.colab.page import Notebook
from tests.browser.lab import PATIENCE

OPEN = "from widgets import Workbench\napp = Workbench({model!r}, state={state!r})\napp"

_SETTLED = """panel => {
  const seen = [...panel.querySelectorAll('.workbench-drawing, progress')].filter((e) => e.checkVisibility());
  return seen.every((e) => e.matches(':has([data-revision], canvas[aria-label])'));
}"""


class App:
    """The app in a new cell of ``book``: opened there, with ``state``, or shown ``again``."""

    def __init__(self, book: Notebook, model: str = "builtin", *, again: bool = False, **state: Any) -> None:
        self.book = book
        book.run("app" if again else OPEN.format(model=model, state=state))
        self.output = book.output
        book.page.locator("iframe").last.scroll_into_view_if_needed()  # what is not in sight is not laid out
        self.panel = self.output.get_by_role("region", name="QLoRA Workbench")
        self.settled()

    def button(self, name: str) -> Locator:
        """The one on screen."""
        return self.panel.get_by_role("button", name=name, exact=True).locator("visible=true")

    def tab(self, name: str) -> None:
        """Opens a tab by its title, and waits until what is in it is drawn."""
        tab = self.panel.get_by_role("tab", name=name, exact=True)
        tab.click()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(self.pages).to_have_count(1)
        expect(self.pages.get_by_role("region").first).to_be_visible()
        self.settled()

    @property
    def pages(self) -> Locator:
        """The tabs' contents that are on screen: one, if all is well."""
        inner = ".widget-tab-contents .widget-tab-contents > *"  # of tabs inside a tab
        return self.panel.locator(f".widget-tab-contents > *:not({inner})").locator("visible=true")

    def settled(self) -> None:
        """Waits until every drawing on screen is drawn, and nothing is still being computed."""
        handle = self.panel.element_handle()
        self._frame.wait_for_function(_SETTLED, arg=handle, timeout=PATIENCE * 1000)

    def until(self, **state: Any) -> None:
        """Waits until the app's state, which the kernel has, holds these values."""
        for name, value in state.items():
            self.book.until(f"app.state[{name!r}]", repr(value))

    def faint(self) -> list[str]:
        """Texts on screen with too little contrast to their ground; a plot's bars are no ground here, nor is a sign a text."""
        found = [fault for fault in fold.faults(self._frame, ()) if fault.startswith("contrast")]
        return [fault for fault in found if "bartext-inside" not in fault and re.search(r"\w", fault.split(" ", 3)[-1])]

    @property
    def _frame(self) -> Any:
        handle = self.panel.element_handle()
        frame = handle.owner_frame() if handle else None
        assert frame is not None
        return frame

    # ------------------------------------------------------------ what the header holds

    def choice(self, name: str) -> Locator:
        """A choice of the header: "Format", "Compare with", "Block size" …"""
        return self.panel.get_by_role("combobox", name=name, exact=True).locator("visible=true").first

    def offered(self, name: str, label: str) -> Locator:
        """A line of such a choice's list, while that is open."""
        lines = self.panel.get_by_role("listbox", name=name, exact=True).get_by_role("option")
        return lines.filter(has=self.output.locator(f"span:text-is('{label}')"))

    def choose(self, name: str, label: str) -> None:
        """Opens a choice and takes one of its lines, by mouse."""
        self.choice(name).click()
        self.offered(name, label).click()

    @property
    def double_quant(self) -> Locator:
        """The switch."""
        return self.panel.get_by_role("checkbox", name="Double quantization").first

    # ------------------------------------------------------------ what the Train tab holds

    def lane(self, name: str) -> Locator:
        """A live drawing of the run on show: Loss, Memory, Paging or Phases."""
        return self.pages.get_by_label(re.compile(f"^(training )?{name}", re.IGNORECASE)).locator("visible=true").first

    def until_steps(self, count: int) -> None:
        """Waits until the run on show has done more steps than that."""
        self.book.until(f"sum(event['k'] == 'step' for event in app.train.run.events()) > {count}", "True")

    # ------------------------------------------------------------ what other tabs hold

    @property
    def map(self) -> Locator:
        """The block map of the Error tab, where keys are heard."""
        return self.pages.get_by_role("application", name="Block map")

    @property
    def slider(self) -> Locator:
        """The handle of the slider in the tab Double quant."""
        return self.pages.get_by_role("slider").first

    @property
    def track(self) -> Locator:
        """What it is moved on, from the smallest value to the largest."""
        return self.pages.locator(".noUi-target").first
