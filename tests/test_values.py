"""Every public value shows itself: a screen of text in a terminal, and as plain HTML in a notebook, whatever it holds.

Which values are public is read from the public functions' annotations, so that a new one cannot be left out. Each is made here
as large and as hostile as its fields allow.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import enum
import inspect
import pickle
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers.texts import missing
from workbench.cost.assignments import Assignment
from workbench.cost.row_costs import RowCosts
from workbench.show import ShownList, ShownMapping, ShownTuple
from workbench.surveys.scores import MeasuredTensors
from workbench.text import amount, memory_size
from workbench.training.answers.values import Sampling
from workbench.training.config import TrainConfig

HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e&amp;\"" + "层" * 5_000
MANY = 300
WORKINGS = {
    "Assignment", "Category", "Channel", "Entry", "EventReader", "Job", "Measurements", "MemoryUse", "Packing", "Phase", "Role",
    "RowCosts", "Series", "Tally",
}  # fmt: skip
"""What values are made of or with, and a reader is not shown: it may look as Python has it."""


def named_in(annotation: object) -> set[str]:
    """The names in an annotation, which may be text."""
    tree = ast.parse(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "None"), mode="eval")
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def classes() -> dict[str, list[type]]:
    """The package's classes by name, from the modules that the public names are loaded from."""
    for name in wb.__all__:
        getattr(wb, name)
    found: dict[str, list[type]] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("workbench"):
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__.startswith("workbench"):
                    those = found.setdefault(value.__name__, [])
                    those += [value] if value not in those else []
    return found


def given_by(value: Any) -> Iterator[str]:
    """The names in what a function, or a class's fields, properties and methods, give."""
    if not isinstance(value, type):
        yield from named_in(inspect.signature(value).return_annotation)
        return
    for base in value.__mro__:
        if base.__module__.startswith("workbench"):
            for annotation in vars(base).get("__annotations__", {}).values():
                yield from named_in(annotation)
            for name, member in vars(base).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not name.startswith("_") and isinstance(function, types.FunctionType):
                    yield from named_in(inspect.signature(function).return_annotation)


def public_values() -> list[type]:
    """The classes of what public functions return, and of what those values hold and return."""
    known, found = classes(), list[type]()
    waiting = [getattr(wb, name) for name in wb.__all__]
    waiting = [value for value in waiting if isinstance(value, type | types.FunctionType)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, type):
            is_value = not issubclass(value, BaseException | enum.Enum) and value.__name__ not in WORKINGS
            if value in found or not is_value:
                continue
            found.append(value)
        waiting += [each for name in given_by(value) for each in known.get(name, []) if each not in found]
    return sorted(found, key=lambda value: value.__qualname__)


VALUES = public_values()


def test_what_a_public_function_returns_is_found() -> None:
    names = {value.__name__ for value in VALUES}
    assert names >= {
        "Source", "TensorInfo", "QuantSpec", "Format", "ErrorStats", "Quantized", "Outliers", "Survey", "Duel", "Pareto",
        "MemoryLedger", "Fit", "Receipt", "PagingTruth", "PagerSimulation", "Run", "RunStatus", "MergeErrors", "Evaluation",
        "Sensitivity", "Mix", "MethodComparison", "Repairs", "Preview", "Score", "ModuleCost",
    }  # fmt: skip


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__qualname__)
def test_a_public_value_shows_itself_by_its_own_rules(kind: type) -> None:
    assert hasattr(kind, "_repr_html_"), "take after workbench.show.Shown, or Record"
    assert kind.__repr__ is not object.__repr__
    assert not hasattr(kind.__repr__, "__wrapped__"), "a dataclass's own repr has no bound: repr=False"


# What a hostile model, a long run or a large array makes of each.


class Renamed(wb.PublishedShapes):
    """A model whose names are hostile."""

    def __init__(self) -> None:
        super().__init__("Qwen/Qwen3-8B")
        self.name, self.config = HOSTILE, {**self.config, "model_type": HOSTILE}
        self.licence, self.path = HOSTILE, Path(HOSTILE[:200])
        self._where = {
            f"{i}{HOSTILE[:2_000]}{name}": (file, dataclasses.replace(entry, name=name))
            for i, (name, (file, entry)) in enumerate(self._where.items())
        }


def made(kind: Any, depth: int = 0) -> Any:
    """A value of a type, hostile and long."""
    if kind in FACTORIES:
        return FACTORIES[kind]()
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return made(next(each for each in inner if each is not type(None)), depth)
    if origin is typing.Literal:
        return inner[0]
    if origin is tuple:
        return (
            (made(inner[0], depth + 1),) * (MANY if depth < 2 else 3)
            if inner[-1] is ...
            else tuple(made(i, depth) for i in inner)
        )
    if origin in (list, set, frozenset):
        return [made(inner[0], depth + 1)] * MANY
    if origin in (dict, Mapping):
        return {HOSTILE if i == 0 else f"{i}{HOSTILE}": made(inner[1], depth + 1) for i in range(20)}
    if origin is np.ndarray or kind is np.ndarray:
        return np.ones(16, np.int64)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        others = {name: those[0] for name, those in classes().items()}
        hints = typing.get_type_hints(kind, others | vars(sys.modules[kind.__module__]))
        return kind(**{field.name: made(hints[field.name], depth + 1) for field in dataclasses.fields(kind) if field.init})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    simple = {str: HOSTILE, int: 10**15, float: 0.5, bool: True, Path: Path(HOSTILE[:200]), np.float32: np.float32(0.5)}
    return simple.get(kind, HOSTILE)


def unfolded(measurement: Any, rows: list[Any]) -> Any:
    """A measurement that has these rows."""
    measurement._rows[:] = rows
    return measurement


def of_sixteen_bins(kind: type) -> Any:
    """Statistics under a specification of that many levels."""
    fields = {name: made(hint, 1) for name, hint in typing.get_type_hints(kind).items()}
    return kind(**fields | {"spec": SPEC, "numel": 16})


def run_in(folder: Path) -> wb.Run:
    (folder / "control").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model": "builtin"}', "utf-8")
    return wb.attach(folder)


def sensitivity() -> wb.Sensitivity:
    found = wb.sensitivity("builtin")
    for point in (Assignment(), Assignment(found.spec)):
        found.measurements.rows[point.key] = RowCosts((7,) * MANY, (1e9,) * MANY, (-1e-9,) * MANY, (3,) * MANY)
    return unfolded(found, [dataclasses.replace(made(wb.ModuleCost), name=name) for name in found.job.weights])  # type: ignore[no-any-return]


def mixed() -> wb.Mix:
    return wb.Mix(sensitivity(), made(wb.CurvePoint), (made(wb.CurvePoint),) * MANY, like=HOSTILE)


def measured() -> Any:
    found = wb.duel("builtin", tensors="model.layers.0.mlp.down_proj.weight").measured
    return dataclasses.replace(found, name=HOSTILE)


def duel() -> wb.Duel:
    found = wb.duel("builtin", tensors="model.layers.0.mlp.down_proj.weight")
    left_out = {f"{i}{HOSTILE}": 4.5 for i in range(MANY)}
    return dataclasses.replace(found, measured=measured(), contenders=found.contenders * MANY, left_out=left_out)


def pareto() -> wb.Pareto:
    found = wb.pareto("builtin", tensors="model.layers.0.mlp.down_proj.weight")
    return dataclasses.replace(found, measured=measured(), points=found.points * 9)


def truth() -> wb.PagingTruth:
    readings = [dataclasses.replace(each, source=HOSTILE) for each in wb.paging_truth(wb.TrainConfig()).readings]
    return dataclasses.replace(made(wb.PagingTruth), readings=tuple(readings) * MANY)


def history() -> wb.RunHistory:
    found = wb.RunHistory()
    common = {"attempt": 1, "longest": 8, "padded": 0, "tokens": 8, "lr": 1e-4, "grad_norm": 1.0, "peak": None, "seconds": 0.1}
    found.feed({"k": "step", "t": n * 10**9, "n": n, "loss": 1 / n, **common} for n in range(1, MANY))
    found.feed([{"k": "hello", "t": 1, "attempt": 1, "device": HOSTILE, "capabilities": {}}])
    return found


SPEC = wb.QuantSpec("nf4", double_quant=True)
WEIGHTS = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
FORMAT = dataclasses.replace(wb.FORMATS["int8"], name=HOSTILE, title=HOSTILE, scale_rule=HOSTILE, source=HOSTILE)
FACTORIES: dict[Any, Callable[[], Any]] = {
    wb.QuantSpec: lambda: SPEC,
    wb.Format: lambda: FORMAT,
    wb.Source: Renamed,
    wb.PublishedShapes: Renamed,
    TrainConfig: lambda: wb.TrainConfig(
        model=HOSTILE, dataset=HOSTILE, sample_prompts=(HOSTILE,) * MANY, lora_r=8, max_steps=7
    ),
    wb.Totals: lambda: of_sixteen_bins(wb.Totals),
    wb.ErrorStats: lambda: of_sixteen_bins(wb.ErrorStats),
    wb.Quantized: lambda: wb.quantize(WEIGHTS, "nvfp4"),
    wb.NestedScales: lambda: wb.double_quantize(WEIGHTS),
    wb.Outliers: lambda: wb.outliers(WEIGHTS, SPEC, [i / 100 for i in range(1, 60)]),
    wb.Quantiles: lambda: wb.quantiles(WEIGHTS),
    wb.BinErrors: lambda: wb.bin_errors(WEIGHTS, wb.measure(WEIGHTS, "int8")),
    wb.Block: lambda: wb.inspect_block(WEIGHTS, wb.measure(WEIGHTS, "nf4, blocks of 4096"), 0),
    wb.PagerSimulation: lambda: wb.simulate_paging(Renamed(), wb.TrainConfig(), "T4"),
    wb.Survey: lambda: wb.survey(Renamed(), ["nf4", "int4"], progress=False),
    wb.Evaluation: lambda: unfolded(wb.evaluate("builtin"), [made(wb.Cost)] * MANY),
    wb.Sensitivity: sensitivity,
    wb.Mix: mixed,
    wb.RunHistory: history,
    wb.Duel: duel,
    Sampling: Sampling,
    wb.Alternative: lambda: wb.alternatives(Renamed(), wb.TrainConfig(), "T4")[0],
    wb.Pressure: lambda: wb.under_pressure("builtin", wb.TrainConfig()),
    wb.Pareto: pareto,
    MeasuredTensors: measured,
    wb.ReceiptMeter: wb.ReceiptMeter,
}


def hostile(kind: type, tmp_path: Path) -> Any:
    if kind is wb.Run:
        return run_in(tmp_path / HOSTILE.replace("/", "")[:60])
    if kind is wb.MethodComparison:
        compared = wb.compare_methods(wb.TrainConfig(), folder=tmp_path)
        return unfolded(compared, [made(wb.MethodResult)] * MANY)
    if kind in (wb.Repairs, wb.Deployed):
        empty = object.__new__(kind)
        super(kind, empty).__init__(MANY, None)  # its own makes a process's folder, and opens a run
        empty._models = {step: RowCosts((7,) * MANY, (1e9,) * MANY, (-1e-9,) * MANY, (3,) * MANY) for step in (None, 0)}
        empty.adapters = {}
        return unfolded(empty, [made(wb.Repair if kind is wb.Repairs else wb.OnBase)] * MANY)
    return truth() if kind is wb.PagingTruth else made(kind)


class Plain(HTMLParser):
    """Notes what a page holds that GitHub would not show, or what no table has."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        allowed = {"align": ("left", "right"), "style": ("text-align: left", "text-align: right")}
        self.wrong += [tag] if tag not in ("p", "b", "table", "thead", "tbody", "tr", "th", "td") else []
        self.wrong += [f"{name}={value}" for name, value in attrs if value not in allowed.get(name, ())]

    def handle_endtag(self, tag: str) -> None:
        self.wrong += [f"</{tag}>"] if not self.opened or self.opened.pop() != tag else []


def assert_shown(value: Any) -> None:
    text, page = repr(value), value._repr_html_()
    assert len(text.encode()) <= 2_048
    assert len(page.encode()) <= 20_000
    assert text.replace("\n", "").isprintable(), "nothing steers a terminal"
    assert "<script" not in page
    parser = Plain()
    parser.feed(page)
    parser.close()
    assert not parser.wrong
    assert not parser.opened


ANSWERS = (wb.Answer, wb.Answers, wb.Tried)
"""These show whole texts: tests/training/test_try_out.py."""
SHOWN = [kind for kind in VALUES if kind not in ANSWERS and (not inspect.isabstract(kind) or kind in FACTORIES)]


@pytest.mark.parametrize("kind", SHOWN, ids=lambda kind: kind.__qualname__)
def test_a_value_is_a_screen_of_text_and_a_plain_table_whatever_it_holds(kind: type, tmp_path: Path) -> None:
    assert_shown(hostile(kind, tmp_path))


def test_collections_show_their_items_a_line_each() -> None:
    src = wb.open_model("builtin")
    ledger = wb.forecast(src, wb.TrainConfig())
    several = [
        src.tensors(), Renamed().tensors(), wb.configurations(), wb.forecast_methods(src, wb.TrainConfig()), wb.shortlist(),
        wb.runs(),
        wb.savings_of_published(), wb.FORMATS, wb.GPUS, wb.measure(WEIGHTS, ["nf4", "int4"], 0.5),
        wb.live_runs(), wb.alternatives(src, wb.TrainConfig(), "T4"),
        wb.ways_to_fit(wb.PublishedShapes("Qwen/Qwen3-8B"), wb.TrainConfig(), "T4"),
    ]  # fmt: skip
    for values in several:
        assert_shown(values)
    duel, front = wb.duel("builtin"), wb.pareto("builtin", ["nf4", "fp4"])
    for value in (
        duel,
        duel.rounds("layer"),
        duel.ranked,
        duel.trades["nf4"],
        front,
        front.front,
        ledger,
        wb.fit(ledger, "T4"),
        src,
    ):
        assert_shown(value)
    assert not missing(repr(several[3]), "Full fine-tuning", "paged 8-bit", "forecast")


def test_what_is_shown_says_how_it_is_known() -> None:
    src, config = wb.open_model("builtin"), wb.TrainConfig()
    assert "Forecast, not measured" in repr(wb.forecast(src, config))
    assert "Simulated" in repr(wb.simulate_paging(src, config, "T4"))
    assert "sampled: 50.00 %" in repr(wb.measure(WEIGHTS, "nf4", 0.5))
    assert "whole" in repr(wb.measure(WEIGHTS, "nf4"))
    assert "measured, whole" in repr(wb.duel("builtin"))


def test_memory_is_in_powers_of_two_and_files_in_powers_of_ten() -> None:
    assert [memory_size(n) for n in (512, 1 << 20, 3 << 29)] == ["512 B", "1.00 MiB", "1.50 GiB"]
    assert [amount(n) for n in (512, 1_000_000, 1_500_000_000)] == ["512 B", "1.00 MB", "1.50 GB"]
    assert "GiB" in repr(wb.fit(wb.forecast("builtin", wb.TrainConfig()), "T4"))
    assert " MB" in repr(wb.open_model("builtin"))


def test_a_configuration_shows_what_it_does_not_have_by_default() -> None:
    config = wb.TrainConfig(lora_r=8, max_steps=20)
    assert repr(config) == "TrainConfig(lora_r=8, max_steps=20)"
    assert eval(repr(config), {"TrainConfig": TrainConfig}) == config
    assert not missing(config._repr_html_(), "lora_r", "learning_rate", "fields are as by default")


def test_a_run_whose_folder_is_gone_still_shows_itself(tmp_path: Path) -> None:
    run = run_in(tmp_path / "r")
    (tmp_path / "r" / "config.json").unlink()
    assert "its folder cannot be read" in repr(run)
    assert "its folder cannot be read" in run._repr_html_()


def test_a_list_a_tuple_and_a_mapping_stay_what_they_are() -> None:
    spec = wb.QuantSpec()
    assert ShownList([spec], "One") == [spec]
    assert ShownTuple([spec], "One") == (spec,)
    assert hash(ShownTuple([spec], "One")) == hash((spec,))
    assert ShownMapping({"a": spec}, "One", "name") == {"a": spec}
    for several in (ShownList([spec], "One"), ShownTuple([spec], "One")):
        again = pickle.loads(pickle.dumps(several))
        assert (again, repr(again)) == (several, repr(several))
        assert copy.deepcopy(several) == several


def test_values_stay_equal_and_can_be_sent_to_another_process() -> None:
    for value in (
        wb.forecast("builtin", wb.TrainConfig()),
        wb.duel("builtin", candidates="nf4").contenders[0].spec,
        wb.QuantSpec(),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
