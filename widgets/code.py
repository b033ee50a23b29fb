"""The lines of Python that give what a view shows, from the state: what "Copy as code" copies.

Covers every view. The lines use ``workbench`` alone and run as they are, in a notebook or a script; the tests run them and
compare. Each function returns text; none computes anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cost.jobs import text_of
from workbench.quant.spec import QuantSpec
from workbench.sources.rule import AS_STORED
from workbench.training.answers.values import Sampling
from workbench.training.config import TrainConfig

if TYPE_CHECKING:
    from widgets.session import Analysis, Rescaled
    from widgets.state import State

_OWN = "registered by the user"


def model(analysis: Analysis) -> str:
    """The model's tensors, and what QLoRA makes of each."""
    return _lines(_head(analysis), ["for tensor in src.tensors():", "    print(tensor.name, tensor.shape, tensor.reason)"])


def survey(analysis: Analysis, spec: QuantSpec) -> str:
    """The model map: ``table`` has a line for each tensor."""
    return _lines(
        _head(analysis, specs=[spec]),
        [
            f"table = wb.survey(src, {spec.as_code()}).to_frame()",
            'table[["tensor", "layer", "kind", "relative_rmse", "sqnr_db"]]',
        ],
    )


def distribution(analysis: Analysis, by_block: bool) -> str:
    """Error and occupancy of each format, the histogram, the quantiles, the outliers."""
    specs = [e.spec for e in analysis.stats]
    size = analysis.state.block_size
    return _lines(
        _weights(analysis, specs),
        [
            f"stats = wb.measure(x, [{', '.join(spec.as_code() for spec in specs)}])",
            "for e in stats:",
            "    print(e.spec.title, e.relative_rmse, e.sqnr_db, e.entropy_bits, e.occupancy)",
            f"counts = wb.histogram(x, block_size={size})",
            "bins = [wb.bin_errors(x, e) for e in stats]",
            f"normal = wb.quantiles(x, block_size={size})" if by_block else "normal = wb.quantiles(x)",
            "tails = wb.outliers(x, stats[0].spec)",
            "tails.to_frame()",
        ],
    )


def block(analysis: Analysis, field: str, index: int, weight: int) -> str:
    """The block map's values, the worst blocks, one block and one weight of it."""
    specs = [e.spec for e in analysis.stats]
    return _lines(
        ["import numpy as np", ""],
        _weights(analysis, specs),
        [
            f"stats = wb.measure(x, [{', '.join(spec.as_code() for spec in specs)}])",
            f"errors = stats[0].{field}",
            "worst = np.argsort(-np.nan_to_num(errors, nan=-1), kind='stable')[:10]",
            f"block = wb.inspect_block(x, stats[0], {index})",
            f'print(*block.arithmetic({weight}), sep="\\n")',
            "block.to_frame()",
        ],
    )


def formats(analysis: Analysis, scope: str, bits: float, sample: float | None) -> str:
    """The duel and the Pareto front."""
    if scope == "model":
        head, on = _head(analysis), "src"
    else:
        head, on = _weights(analysis, []), "x"
    how = "" if sample is None else f", sample={sample!r}"
    return _lines(
        head,
        [
            f"duel = wb.duel({on}, {bits!r}{how})",
            f"front = wb.pareto({on}{how})",
            "print(duel.to_frame())",
            "front.to_frame()",
        ],
    )


def double_quant(analysis: Analysis, scales: Rescaled) -> str:
    """The two errors, the scales' codes, and the bytes saved."""
    plain, doubled = scales.plain.spec, scales.doubled.spec
    sizes = f"block_size={plain.block_size}, nested_block_size={doubled.nested_block_size}"
    return _lines(
        _weights(analysis, [plain]),
        [
            f"plain, doubled = wb.measure(x, [{plain.as_code()}, {doubled.as_code()}])",
            "print(plain.spec.bits_per_weight - doubled.spec.bits_per_weight, doubled.rmse / plain.rmse - 1)",
            f"nested = wb.double_quantize(plain.block_absmax, {doubled.nested_block_size})",
            f"savings = wb.double_quant_savings(src, {sizes})",
            "saved, by_tensor = savings.saved, savings.tensors",
            f"by_size = wb.savings_of_published({sizes})",
        ],
    )


def memory(analysis: Analysis, state: State) -> str:
    """The ledger, the five methods, the verdict and what would make it fit."""
    gpu = repr(state.gpu)
    return _lines(
        _head(analysis),
        [
            f"cfg = {config(state.training)}",
            "ledger = wb.forecast(src, cfg)",
            "methods = wb.forecast_methods(src, cfg)",
            f"verdict = wb.fit(ledger, {gpu})",
            f"ways = wb.ways_to_fit(src, cfg, {gpu})",
            "ledger.to_frame()",
        ],
    )


def cost(model: str, data: TrainConfig, spec: QuantSpec, folder: str, bits: str) -> str:
    """Divergence by format and module by module; with the panel's folder, what was measured already comes at once."""
    if (text := text_of(data)) is not None:
        rows = f"data={text!r}, max_rows={data.max_eval_rows}, max_length={data.max_length}, "
    else:
        rows = "" if data == TrainConfig() else f"data={config(data)}, "
    measure = {"curve": "wb.kl_curve(src, ", "equal": "wb.evaluate(src, equal_bits=True, "}.get(bits, "wb.evaluate(src, ")
    return _lines(
        ["import workbench as wb", "", f"src = wb.open_model({model!r})"],
        [f"costs = {measure}{rows}folder={folder!r})"],
        [f"sens = wb.sensitivity(src, {spec.as_code()}, {rows}folder={folder!r})"],
        ["print(costs.to_frame())", "sens.to_frame()"],
    )


def methods(training: TrainConfig, folder: str) -> str:
    """Full fine-tuning, LoRA and QLoRA side by side."""
    return _lines(
        ["import workbench as wb", "", f"cfg = {config(training)}"],
        [f"methods = wb.compare_methods(cfg, folder={folder!r})" if folder else "methods = wb.compare_methods(cfg)"],
        ["methods.to_frame()"],
    )


def repairs(run_dir: str) -> str:
    """What a run's adapter takes back of 4 bits' error."""
    return _lines(["import workbench as wb", "", f"repairs = wb.repairs({run_dir!r})", "repairs.to_frame()"])


def export(run_dir: Path, folder: str, base: str, dtype: str, form: str = "transformers", base_gguf: str = "") -> str:
    """What merging a run's adapter changes, and the merged model; or either form of GGUF."""
    head = ["import workbench as wb", "", f"run = wb.attach({str(run_dir)!r})"]
    if form == "transformers":
        errors = f"print(wb.merge_errors(run, {dtype!r}).to_frame())"
        return _lines(head, [errors, f"wb.export(run, {folder!r}, base={base!r}, dtype={dtype!r})"])
    into = "" if form == "gguf-adapter" else f", base={base!r}"
    like = f", base_gguf={base_gguf!r}" if base_gguf and form == "gguf" else ""
    return _lines(head, [f"wb.export(run, {folder!r}, format={form!r}{into}, dtype={dtype!r}{like})"])


def deployed(run_dir: Path, bases: Sequence[str]) -> str:
    """What a run's adapter loses on other bases; none named: on those that are always there."""
    named = f", {list(bases)!r}" if bases else ""
    head = ["import workbench as wb", "", f"run = wb.attach({str(run_dir)!r})"]
    return _lines(head, [f"on_bases = wb.deployed(run{named}).run()", "on_bases.to_frame()"])


def try_out(run_dir: Path, prompt: str, sampling: Sampling, original: bool) -> str:
    """The answers of a run's base and of its adapter to a prompt."""
    given = dataclasses.asdict(sampling) | {"original": original}
    usual = dataclasses.asdict(Sampling()) | {"original": True}
    more = "".join(f", {name}={value!r}" for name, value in given.items() if value != usual[name])
    return _lines(
        ["import workbench as wb", "", f"run = wb.attach({str(run_dir)!r})"],
        [f"answers = wb.try_out(run, {prompt!r}{more})", "answers"],
    )


def config(training: TrainConfig) -> str:
    """A configuration as Python: what differs from the defaults."""
    given = [f"{f.name}={value!r}" for f in dataclasses.fields(training) if (value := getattr(training, f.name)) != f.default]
    return f"wb.TrainConfig({', '.join(given)})"


def _head(analysis: Analysis, specs: Iterable[QuantSpec] = ()) -> list[str]:
    """Opening the model; formats that the reader registered come along."""
    own = {spec.format: spec.definition for spec in specs if spec.definition.source == _OWN}
    registered = [f"wb.register_format({name!r}, {list(form.steps)!r}, title={form.title!r})" for name, form in own.items()]
    return ["import workbench as wb", "", *registered, f"src = wb.open_model({analysis.state.model!r})"]


def _weights(analysis: Analysis, specs: Iterable[QuantSpec]) -> list[str]:
    """Opening the model and reading the tensor, as bitsandbytes sees it."""
    name, lines = analysis.tensor.name, _head(analysis, specs)
    if analysis.packed or analysis.tensor.layout != AS_STORED:
        return [*lines, f"x = wb.weights(src, {name!r})"]
    return [*lines, f"x = src.read({name!r})"]


def _lines(*parts: Iterable[str]) -> str:
    return "\n".join(line for part in parts for line in part)
