"""A table whose rows can be ticked and acted upon."""

from __future__ import annotations

from widgets.controls.action_table import ActionTable, Line


def test_a_press_is_taken_of_a_row_that_is_there_and_offers_it() -> None:
    pressed: list[tuple[str, str]] = []
    table = ActionTable("Runs", ["run"], {"open": "open", "use": "use settings"}, tick="compare")
    table.on_action(lambda action, key: pressed.append((action, key)))
    table.show([Line("a", ("<b>a</b>",), ("open",)), Line("b", ("b",), ("open", "use"))])
    for message in ({"action": "open", "key": "a"}, {"action": "use", "key": "a"}, {"action": "open", "key": "gone"}, {}):
        table._handle_custom_msg(message, [])
    assert pressed == [("open", "a")]
    assert table.lines[0]["cells"] == ["<b>a</b>"], "text, which the page puts in as text"
    table.close()
    table.close()


def test_rows_that_are_still_there_stay_ticked() -> None:
    table = ActionTable("Runs", ["run"], {"open": "open"}, tick="compare")
    lines = [Line(key, (key,), ("open",)) for key in "abc"]
    table.show(lines)
    table.ticked = ["c", "a"]
    table.show(lines[1:])
    assert table.ticked == ["c"]
    table.close()
