"""Which model: the embedded one or a folder, what it holds, and what QLoRA would quantize of it."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets.panels.base import View
from widgets.session import Analysis
from widgets.style import note, row, set_note
from widgets.tables import amount, table
from widgets.tasks import guard

_SHOWN = 400


class ModelPicker(View):
    """Opens a model and lists its tensors: which ones QLoRA holds in 4 bits, which not, and why."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Model", model, **options)

    def build(self) -> list[Any]:
        """The field, the summary, the list."""
        self.name = ipywidgets.Combobox(
            description="Model (builtin, or a folder)",
            options=["builtin"],
            value=self.session.store.value.model,
            ensure_option=False,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "min(100%, 520px)"},
        )
        self.button = ipywidgets.Button(description="Open", tooltip="Open this model", button_style="primary")
        guarded = guard(self.message, [self.button, self.name])
        self.button.on_click(guarded(self._open))
        self.summary, self.table = note(), ipywidgets.HTML()
        return [row(self.name, self.button), self.summary, self.table]

    def draw(self, analysis: Analysis) -> None:
        """Summary and list of the analysis's model."""
        source = analysis.source
        tensors = source.tensors()
        self.name.value = self.session.store.value.model
        kinds = ", ".join(sorted({t.dtype for t in tensors}))
        architecture = ", ".join(map(str, source.config.get("architectures") or [])) or "architecture not named"
        chosen = [t for t in tensors if t.quantizable]
        rest = sum(t.nbytes for t in tensors if not t.quantizable)
        set_note(
            self.summary,
            f"{source.name}: {architecture}, {sum(t.numel for t in tensors):,} parameters in {len(tensors)} tensors ({kinds}), "
            f"{amount(sum(t.nbytes for t in tensors))}. QLoRA holds {len(chosen)} tensors with "
            f"{sum(t.numel for t in chosen):,} weights in 4 bits; {amount(rest)} stay as they are.",
        )
        rows = [
            (t.name, " × ".join(map(str, t.shape)), t.dtype, amount(t.nbytes), "4 bits" if t.quantizable else "stays", t.reason)
            for t in tensors[:_SHOWN]
        ]
        if len(tensors) > _SHOWN:
            rows.append((f"and {len(tensors) - _SHOWN} more", "", "", "", "", ""))
        self.table.value = table(
            ["tensor", "shape", "dtype", "size", "QLoRA", "why"], rows, f"Tensors of {source.name}", numbers=6
        )

    def _open(self, _: Any) -> None:
        self.button.disabled = True
        self.session.open(self.name.value.strip())
        self.button.disabled = False
