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
  const seen = [...panel.querySelectorAll('[role=figure], .wb-progress progress')].filter((e) => e.checkVisibility());
  return seen.every((e) => e.getAttribute('role') === 'figure' && e.getAttribute('aria-label') && e.dataset.revision);
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
        return self.panel.locator(".widget-tab-contents > *").locator("visible=true")

    def settled(self) -> None:
        """Waits until every drawing on screen is drawn, and nothing is still being computed."""
        handle = self.panel.element_handle()
        self._frame.wait_for_function(_SETTLED, arg=handle, timeout=PATIENCE * 1000)

    def until(self, **state: Any) -> None:
        """Waits until the app's state, which the kernel has, holds these values."""
        for name, value in state.items():
            self.book.until(f"app.state[{name!r}]", repr(value))

    def faint(self) -> list[str]:
        """Texts on screen with too little contrast to their ground."""
        return [fault for fault in fold.faults(self._frame, ()) if fault.startswith("contrast")]

    @property
    def _frame(self) -> Any:
        handle = self.panel.element_handle()
        frame = handle.owner_frame() if handle else None
        assert frame is not None
        return frame

    # ------------------------------------------------------------ what the header holds

    @property
    def format(self) -> Locator:
        """The choice of the leading format."""
        return self.panel.get_by_label("Format", exact=True)

    @property
    def block_size(self) -> Locator:
        """The slider's handle."""
        return self.panel.get_by_role("slider", name="Block size (weights)")

    @property
    def block_sizes(self) -> Locator:
        """The slider's track, from the smallest size to the largest."""
        return self.panel.locator(".noUi-target").first

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
        self.book.until(f"sum(event.kind == 'step' for event in app.train.run.events()) > {count}", "True")

    # ------------------------------------------------------------ what the Error tab holds

    @property
    def map(self) -> Locator:
        """The block map, where keys are heard."""
        return self.panel.get_by_role("application", name="RMSE by block.")
