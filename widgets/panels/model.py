"""Which model: the embedded one, a folder, or one on the Hub; what it holds, and what QLoRA would quantize of it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets

from widgets.background.tasks import guard
from widgets.controls.search_field import SearchField
from widgets.controls.style import row
from widgets.controls.suggestions import Suggestions
from widgets.figures.tables import facts, table
from widgets.panels.base import View
from widgets.session import Analysis
from workbench.errors import WholeFileOnly
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, TensorInfo
from workbench.sources.rule import LeftOut, left_in_16_bits
from workbench.text import amount, count

_SHOWN = 400


class ModelPicker(View):
    """Opens a model and lists its tensors: which ones QLoRA holds in 4 bits, which not, why, and what that costs."""

    of_one_tensor = False

    def __init__(self, model: Any = None, **options: Any) -> None:
        self._drawn: Source | None = None
        super().__init__("Model", model, **options)
        rest = [child for child in self.children if child is not self.message]
        below = rest.index(self.fields) + 1
        self.children = (*rest[:below], self.message, *rest[below:])  # where the reader has just typed

    def build(self) -> list[Any]:
        """The field with its suggestions, what is known of the model, what stays in 16 bits, the list."""
        self.name = SearchField(
            description="Model",
            placeholder="builtin, a folder, or owner/name on the Hub",
            value=self.session.store.value.model,
        )
        self.button = ipywidgets.Button(description="Open", tooltip="Open this model", button_style="primary")
        self.download = ipywidgets.Button(
            description="Download whole files", tooltip="Take them into Hugging Face's cache, and open the model from there"
        )
        self.download.layout.display = "none"
        guarded = guard(self.message, [self.button, self.download])
        self.button.on_click(guarded(lambda _: self._open()))
        self.download.on_click(guarded(lambda _: self._open(download=True)))
        self.name.on_chosen(guarded(self._open))
        self.suggestions = Suggestions(self.name, lambda: self.session.store.value.model, self.session.executor)
        self.when_closed(self.suggestions.close)
        self.summary, self.rest, self.table = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.table.add_class("wb-tensors")
        self.fields = row(self.name, self.button, self.download)
        self.fields.add_class("wb-picker")
        return [self.fields, self.summary, self.rest, self.table]

    def draw(self, analysis: Analysis) -> None:
        """What the analysis's model is and holds."""
        source = analysis.source
        if source is self._drawn:
            return
        self._drawn = source
        self.name.value = self.session.store.value.model
        self.suggestions.renew()
        tensors = source.tensors()
        left = left_in_16_bits(tensors)
        explained = {part.reason for part in left}  # at length, above the list
        title = f'<h3 class="wb-heading">{html.escape(self.session.store.value.model)}</h3>'
        self.summary.value = title + facts(_facts(source, tensors, left))
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

    def _open(self, download: bool = False) -> None:
        self.download.layout.display = "none"
        self.session.load(self.name.value.strip(), download=download, failed=self._failed)

    def _failed(self, error: Exception) -> None:
        self.message.error(error)
        self.download.layout.display = "" if isinstance(error, WholeFileOnly) else "none"


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
        (
            "Under QLoRA",
            f"{count(weights)} weights of {len(chosen):,} tensors in 4 bits take {amount(after)} (NF4, blocks of 64, double "
            f"quantized); what stays in 16 bits takes {amount(stays)}",
        ),
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
        (part.reason, f"{part.tensors:,}", f"{part.numel:,}", _whole(amount(part.nbytes)), _whole(amount(part.extra)))
        for part in left
    ]
    return table(["stays in 16 bits", "tensors", "weights", "takes", "more than in 4 bits"], rows, f"What stays of {name}")


def _shape(tensor: TensorInfo) -> str:
    return _whole(" × ".join(map(str, tensor.shape)) or "one number")


def _whole(text: str) -> str:
    """The text so that no line breaks inside it."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
