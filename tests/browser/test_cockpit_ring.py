"""What calls the reader back to a run: the page's title while nobody looks, and the colour of an alert in the cockpit's bar."""

from __future__ import annotations

from tests.browser.conftest import Open
from tests.browser.test_cockpit import started


def test_the_page_s_title_rings_while_nobody_looks(open_alone: Open) -> None:
    alone = open_alone(started())
    title = lambda: alone.page.title()  # noqa: E731
    alone.page.evaluate("() => { document.title = 'A notebook'; document.hasFocus = () => false; }")
    alone.drawing.update({}, state="running")  # type: ignore[attr-defined]
    assert title() == "A notebook"
    alone.drawing.update({}, alert="stalled")  # type: ignore[attr-defined]
    assert title() == "! No step for long: a run – A notebook"
    alone.page.wait_for_selector(".wbc-state:text-matches('No step for long')")
    alone.drawing.update({}, alert="")  # type: ignore[attr-defined]
    assert title() == "A notebook"
    alone.drawing.update({}, state="finished", ended=True)  # type: ignore[attr-defined]
    assert title() == "✓ Finished: a run – A notebook"
    alone.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    assert title() == "A notebook"

    # What had ended when it came into view, or ends before the reader's eyes, rings nothing; nor is another's title undone.
    alone.drawing.begin("another", state="")  # type: ignore[attr-defined]
    alone.drawing.update({}, state="failed", ended=True)  # type: ignore[attr-defined]
    assert title() == "A notebook"
    alone.drawing.update({}, state="running", ended=False)  # type: ignore[attr-defined]
    alone.page.evaluate("() => { document.hasFocus = () => true; }")
    alone.drawing.update({}, state="paused", ended=True)  # type: ignore[attr-defined]
    assert title() == "A notebook"
    alone.drawing.update({}, state="running", ended=False)  # type: ignore[attr-defined]
    alone.page.evaluate("() => { document.hasFocus = () => false; }")
    alone.drawing.update({}, state="stopped", ended=True)  # type: ignore[attr-defined]
    alone.page.evaluate("() => { document.title = 'Elsewhere'; window.dispatchEvent(new Event('focus')); }")
    assert title() == "Elsewhere"


def test_two_cockpits_ring_and_the_title_is_the_page_s_own_again(open_alone: Open) -> None:
    alone = open_alone(started())
    alone.page.evaluate("() => { document.title = 'A notebook'; document.hasFocus = () => false; }")
    for alert in ("", "stalled"):
        alone.drawing.update({}, state="running", alert=alert)  # type: ignore[attr-defined]
    other = started()
    alone.beside(other)
    for state in ({"run": "runs/a  spaced <b>", "state": "running"}, {"state": "finished", "ended": True}):
        other.update({}, **state)
    assert alone.page.title() == "✓ Finished: a spaced <b> – ! No step for long: a run – A notebook"
    alone.page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    assert alone.page.title() == "A notebook"
    other.close()


def test_a_stall_is_not_in_the_colour_of_a_run_that_goes_well(open_alone: Open) -> None:
    alone = open_alone(started())
    ink = lambda: alone.page.locator(".wbc-state").evaluate("e => getComputedStyle(e).color")  # noqa: E731
    alone.drawing.update({}, state="running")  # type: ignore[attr-defined]
    alone.page.wait_for_selector(".wbc-state:text-matches('Running')")
    well = ink()
    alone.drawing.update({}, alert="stalled")  # type: ignore[attr-defined]
    alone.page.wait_for_selector(".wbc-state:text-matches('No step for long')")
    stalled = ink()
    assert stalled != well
    alone.drawing.update({}, state="stopped", ended=True, alert="")  # type: ignore[attr-defined]
    alone.page.wait_for_selector(".wbc-state:text-matches('Stopped')")
    assert ink() == stalled, "the colour of what asks for a look"
