"""``Controls``: the header of an app or of a view that stands alone, bound to a session's state in both directions.

Covers which layers, tensors, formats and block sizes there are to choose from, what a choice changes, opening another model,
and what is said of the tensor. How it looks and feels: ``widgets/controls/header.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets

from widgets.background.tasks import UI, guard
from widgets.controls.header import CHOICES, Header
from widgets.controls.message import Message
from widgets.controls.suggestions import Suggestions
from widgets.session import Analysis, Session, choosable
from widgets.state import State
from workbench.errors import WholeFileOnly
from workbench.quant.formats import BLOCK_SIZES, FORMATS
from workbench.sources import Source, TensorInfo
from workbench.sources.kinds import kind_of, layer_of, order_of, within_layer
from workbench.sources.rule import TRANSPOSED
from workbench.surveys.rows import nonfinite_summary


class Controls:
    """``header``, and ``download``, a button that shows when a server gives no parts of files.

    ``whole``: whether there is more to choose than the model. Errors go to ``message``, which the panel puts between the two.
    """

    def __init__(self, session: Session, message: Message, *, whole: bool = True) -> None:
        self._session, self._message = session, message
        self._listed: Source | None = None
        self._layers: dict[int | None, list[TensorInfo]] = {}
        self._wanted = ""
        state = session.store.value
        self.header = Header(state=self._chosen(state), choices=self._offered(state), whole=whole)
        self.download = ipywidgets.Button(
            description="Download whole files", tooltip="Take them into Hugging Face's cache, and open the model from there"
        )
        self.download.layout.display = "none"
        guarded = guard(message)
        self.download.on_click(guarded(lambda _: self._open(self._wanted, download=True)))
        self._suggestions = Suggestions(self.header.offer, lambda: session.store.value.model, session.executor)
        self.header.on_ask("choose", guarded(self._choose))
        self.header.on_ask("typed", guarded(self._suggestions.typed))
        self.header.on_ask("open", guarded(self._open))
        self.header.on_ask("cancel", guarded(lambda _: session.cancel()))
        self._endings: list[Callable[[], None]] = [
            session.store.observe(lambda state, _: self._show(state)),
            session.on_analysis(self._show_tensor),
            session.on_progress(self.header.advance),
            self._suggestions.close,
        ]

    def close(self) -> None:
        """End the binding; the panel around it frees the widgets."""
        while self._endings:
            self._endings.pop()()

    def _choose(self, changes: Mapping[str, Any]) -> None:
        changes = {name: value for name, value in changes.items() if name in CHOICES}
        if "formats" in changes:
            changes["formats"] = tuple(changes["formats"])
        if "layer" in changes and "tensor" not in changes:
            changes["tensor"] = self._counterpart(changes["layer"])
        self._session.store.update(**changes)

    def _counterpart(self, layer: int | None) -> str:
        """The tensor of a layer that does there what the chosen one does in its own, or the layer's first."""
        kind = kind_of(self._tensor(self._session.store.value))
        there = self._layers[layer]
        return next((tensor.name for tensor in there if kind_of(tensor.name) == kind), there[0].name)

    def _open(self, model: str, download: bool = False) -> None:
        self.download.layout.display = "none"
        self._wanted = model.strip()
        self._session.load(self._wanted, download=download, failed=self._failed)

    def _failed(self, error: Exception) -> None:
        self._message.error(error)
        self.download.layout.display = "" if isinstance(error, WholeFileOnly) else "none"

    def _tensor(self, state: State) -> str:
        analysis = self._session.analysis
        return state.tensor or (analysis.tensor.name if analysis is not None else "")

    def _chosen(self, state: State) -> dict[str, Any]:
        tensor = self._tensor(state)
        return {
            "model": state.model, "layer": layer_of(tensor), "tensor": tensor, "formats": list(state.formats),
            "block_size": state.block_size, "double_quant": state.double_quant, "shape": self._shape(tensor),
        }  # fmt: skip

    def _shape(self, tensor: str) -> str:
        """As bitsandbytes sees it, once the tensor is read."""
        analysis = self._session.analysis
        return " × ".join(map(str, analysis.shape)) if analysis is not None and analysis.tensor.name == tensor else ""

    def _show(self, state: State) -> None:
        with UI:
            choices = self._offered(state)
            if self.header.choices != choices:
                self.header.choices = choices
            self.header.show(self._chosen(state))

    def _show_tensor(self, analysis: Analysis) -> None:
        if self._listed is not analysis.source:
            self._listed = analysis.source
            self._layers = _by_layer(choosable(analysis.source))
        name = analysis.tensor.name
        inside = self._layers.setdefault(layer_of(name), [])
        if all(tensor.name != name for tensor in inside):
            inside.append(analysis.tensor)
        self._show(self._session.store.value)
        with UI:
            self.header.status = _said(analysis)

    def _offered(self, state: State) -> dict[str, Any]:
        layer = layer_of(self._tensor(state))
        numbered = sorted(number for number in self._layers if number is not None)
        layers = [{"value": str(number), "label": f"layer {number}"} for number in numbered]
        if None in self._layers:
            layers.append({"value": "", "label": "outside the layers"})
        inside = self._layers.get(layer, []) + (self._layers.get(None, []) if layer is not None else [])
        bits = {name: state.spec(name, state.double_quant).bits_per_weight for name in FORMATS}
        return {
            "layer": layers,
            "tensor": [{"value": t.name, "label": within_layer(t.name), "title": t.name} for t in inside],
            "format": [
                {"value": name, "label": FORMATS[name].title, "note": f"{n:.4g} bits"}
                | ({} if FORMATS[name].usual else {"fold": "integers of any bits"})
                for name, n in bits.items()
            ],
            "block_size": [{"value": str(size), "label": f"{size:,} weights a scale"} for size in BLOCK_SIZES],
        }


def _by_layer(tensors: Iterable[TensorInfo]) -> dict[int | None, list[TensorInfo]]:
    """Each layer's tensors, in the order in which a block computes with them."""
    layers: dict[int | None, list[TensorInfo]] = {}
    for tensor in sorted(tensors, key=lambda tensor: order_of(kind_of(tensor.name))):
        layers.setdefault(layer_of(tensor.name), []).append(tensor)
    return layers


def _said(analysis: Analysis) -> dict[str, str]:
    """How much is measured, and what is special about the tensor."""
    notes = []
    if analysis.packed:
        notes.append(f"The checkpoint holds it in {analysis.packed}: shown is what that dequantizes to, quantized once more.")
    elif analysis.tensor.layout == TRANSPOSED:
        notes.append("It is shown transposed, as bitsandbytes quantizes it.")
    notes.append(nonfinite_summary(analysis.stats))
    flags = ["dequantized" if analysis.packed else "", "not all finite" if notes[-1] else ""]
    text = ", ".join(filter(None, [f"{analysis.weights.size:,} weights", "whole", *flags]))
    return {"text": text, "more": " ".join(filter(None, notes))}
