"""Where the reader is: model › layer › tensor › block › weight, each a button that leads back up to it. No view of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from widgets.background.tasks import UI, guard
from widgets.controls.message import Message
from widgets.session import Session
from widgets.state import State
from workbench.sources.kinds import layer_of

_CUT = 48


class Breadcrumb(ipywidgets.HBox):
    """The path that a session's state describes; a level that the state leaves open is labelled the worst."""

    def __init__(self, session: Session, message: Message) -> None:
        self._session = session
        guarded = guard(message)
        self.model, self.layer, self.tensor, self.block, self.weight = (ipywidgets.Button() for _ in range(5))
        self.levels = (self.model, self.layer, self.tensor, self.block, self.weight)
        ways = (self._to_model, self._to_layer, self._to_tensor, self._to_block, self._to_weight)
        for button, go in zip(self.levels, ways, strict=True):
            button.add_class("wb-crumb")
            button.on_click(guarded(lambda _, go=go: session.store.update(**go(session.store.value))))
        super().__init__(self.levels)
        self.add_class("wb-row")
        self.add_class("wb-crumbs")
        self._endings: list[Callable[[], None]] = [
            session.store.observe(lambda state, _: self._show(state)),
            session.on_analysis(lambda _: self._show(session.store.value)),
        ]
        self._show(session.store.value)

    def close(self) -> None:
        """Stop following the session; the panel around it frees the widgets."""
        while self._endings:
            self._endings.pop()()
        super().close()

    def _tensor(self, state: State) -> str:
        analysis = self._session.analysis
        return state.tensor or (analysis.tensor.name if analysis is not None else "")

    def _show(self, state: State) -> None:
        tensor = self._tensor(state)
        layer = layer_of(tensor)
        with UI:
            _label(self.model, state.model, "Show the map of the whole model")
            _label(self.layer, f"layer {layer}" if layer is not None else "outside the layers", "List this layer's tensors")
            _label(self.tensor, tensor or "…", "Show how this tensor's weights are distributed")
            _label(self.block, "worst block" if state.block is None else f"block {state.block:,}", "Inspect this block")
            _label(
                self.weight,
                "worst weight" if state.weight is None else f"weight {state.weight}",
                "Show the arithmetic of this weight",
            )

    def _to_model(self, _: State) -> dict[str, Any]:
        return {"tab": "Model", "layer": None}

    def _to_layer(self, state: State) -> dict[str, Any]:
        return {"tab": "Model", "layer": layer_of(self._tensor(state))}

    def _to_tensor(self, _: State) -> dict[str, Any]:
        return {"tab": "Distribution", "block": None}

    def _to_block(self, _: State) -> dict[str, Any]:
        return {"tab": "Error", "weight": None}

    def _to_weight(self, _: State) -> dict[str, Any]:
        return {"tab": "Error"}


def _label(button: Any, text: str, tooltip: str) -> None:
    """Label a button; of a long name the end is kept, since beginnings are often alike."""
    button.description = text if len(text) <= _CUT else f"…{text[-_CUT:]}"
    button.tooltip = f"{tooltip}: {text}"
