"""What the open model is: what it holds, and what QLoRA would quantize of it. The header opens another one."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets

from widgets.controls.style import column, heading, set_heading
from widgets.figures.tables import facts, table
from widgets.panels.base import View
from widgets.session import Analysis
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, TensorInfo
from workbench.sources.rule import LeftOut, left_in_16_bits
from workbench.text import amount, count

_SHOWN = 400
_WHY = (
    "QLoRA holds the matrices of the linear layers in 4 bits and everything else as it was. Which tensors that are, which not, "
    "and why, is what transformers and bitsandbytes do with this model's configuration. Sizes in 4 bits are those of NF4 in "
    "blocks of 64, double quantized."
)


class ModelPicker(View):
    """Opens a model and lists its tensors: which ones QLoRA holds in 4 bits, which not, why, and what that costs."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._drawn: Source | None = None
        super().__init__("Model", model, **options)

    def build(self) -> list[Any]:
        """What is known of the model and what stays in 16 bits; the list of tensors."""
        self.title = heading("")
        self.summary, self.rest, self.table = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.table.add_class("wb-tensors")
        about = column(self.title, self.summary, self.rest)
        about.add_class("wb-about")
        return [about, self.table]

    def draw(self, analysis: Analysis) -> None:
        """What the analysis's model is and holds."""
        source = analysis.source
        if source is self._drawn:
            return
        self._drawn = source
        tensors = source.tensors()
        left = left_in_16_bits(tensors)
        explained = {part.reason for part in left}  # at length, above the list
        set_heading(self.title, self.session.store.value.model, _WHY)
        self.summary.value = facts(_facts(source, tensors, left))
        self.rest.value = _warnings(left) + _left_out(left, source.name)
        rows = [
            (
                t.name,
                _shape(t),
                t.dtype,
                _whole(amount(t.nbytes)),
                "4\N{NO-BREAK SPACE}bits" if t.quantizable else "stays",
                t.reason.partition(":")[0] if t.reason in explained else t.reason,
            )
            for t in tensors[:_SHOWN]
        ]
        if len(tensors) > _SHOWN:
            rows.append((f"and {len(tensors) - _SHOWN:,} more", "", "", "", "", ""))
        self.table.value = table(
            ["tensor", "shape", "dtype", "size", "QLoRA", "why"], rows, f"Tensors of {source.name}", numbers=6
        )


def _facts(source: Source, tensors: Sequence[TensorInfo], left: Iterable[LeftOut]) -> list[tuple[str, str]]:
    named = source.config.get("architectures")
    architecture = ", ".join(map(str, named)) if isinstance(named, list) and named else "not named in config.json"
    chosen = [t for t in tensors if t.quantizable]
    weights, spec = sum(t.numel for t in chosen), QuantSpec("nf4", 64, double_quant=True)
    after = sum(spec.nbytes(t.numel) for t in chosen)
    stays = sum(part.nbytes for part in left)
    return [
        ("Architecture", architecture),
        ("Parameters", f"{count(sum(t.numel for t in tensors))} in {len(tensors):,} tensors"),
        ("Stored as", ", ".join(sorted({t.dtype for t in tensors}))),
        ("Size", amount(sum(t.nbytes for t in tensors))),
        ("Licence", source.licence or "not named by its card or a licence file"),
        ("Place", _place(source)),
        ("In 4 bits", f"{count(weights)} weights of {len(chosen):,} tensors: {amount(after)}"),
        ("In 16 bits", amount(stays)),
    ]


def _place(source: Source) -> str:
    if source.name == "builtin":
        return "comes with the workbench"
    revision = getattr(source, "revision", "")
    return f"the Hub, at commit {revision[:12]}" if revision else str(source.path or "")


def _warnings(left: Iterable[LeftOut]) -> str:
    """What a user may have expected in 4 bits, and what it costs that it is not."""
    return "".join(
        f'<div class="wb-message wb-warning" role="note"><div class="wb-what">{html.escape(_capital(part.reason))}</div>'
        f"<div>{part.tensors:,} tensors with {count(part.numel)} weights stay in 16 bits: {amount(part.nbytes)}, "
        f"{amount(part.extra)} more than in 4 bits.</div></div>"
        for part in left
        if part.unexpected
    )


def _left_out(left: Sequence[LeftOut], name: str) -> str:
    if not left:
        return ""
    rows = [
        (part.reason, f"{part.tensors:,}", _whole(amount(part.nbytes)), _whole(amount(part.nbytes - part.extra)))
        for part in left
    ]
    return table(["stays in 16 bits", "tensors", "takes", "in 4 bits"], rows, f"What stays of {name}")


def _shape(tensor: TensorInfo) -> str:
    return _whole(" × ".join(map(str, tensor.shape)) or "one number")


def _whole(text: str) -> str:
    """The text so that no line breaks inside it."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
