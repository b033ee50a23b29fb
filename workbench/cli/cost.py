"""The commands on what quantization costs a model: ``cost``, ``sensitivity`` and ``mix``.

Covers their arguments and what they print, as text or, with ``--json``, as one JSON value. What is measured, and how, is
``workbench.cost``'s. What a command needs is imported when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.options import (
    commas,
    gpu_option,
    json_option,
    model_argument,
    on_terminal,
    opened,
    revision_option,
    specs_of,
    usage,
)
from workbench.text import NONE, amount, number, percent, printable, short

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost
    from workbench.cost.measurements import Interval
    from workbench.cost.sensitivities import ModuleCost, Sensitivity
    from workbench.memory.gpus import Gpu


def _held_out(command: Callable[..., None]) -> Callable[..., None]:
    """The options on the rows that are measured, and where the measurements are kept."""
    for option in (
        click.option("--data", metavar="DATA", help="A file, folder or OWNER/NAME with a column text.  [default: builtin]"),
        click.option("--max-rows", type=click.IntRange(1), help="Held-out rows that are measured.  [default: 64]"),
        click.option("--max-length", type=click.IntRange(2), help="Tokens of a row.  [default: 512]"),
        click.option(
            "--folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
            help="Keep what is measured here: with the same folder nothing is measured twice.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _format(command: Callable[..., None]) -> Callable[..., None]:
    """The options on the one format that modules are quantized to."""
    for option in (
        click.option("--format", "form", default="nf4", show_default=True, metavar="NAME", help="What they are quantized to."),
        click.option("--block-size", type=int, help="Weights that share a scale.  [default: the format's own]"),
        click.option("--double-quant/--no-double-quant", default=None, help="Quantize the scales too.  [default: with nf4]"),
    ):
        command = option(command)
    return command


@click.command("cost")
@model_argument
@click.option("--formats", metavar="NAMES", callback=commas(str), help="Formats, between commas.  [default: the usual eight]")
@click.option(
    "--double-quant",
    type=click.Choice(["no", "yes", "both"], case_sensitive=False),
    default="no",
    help="Quantize the scales of --formats.",
)
@click.option("--equal-bits", type=float, metavar="BITS", help="Each format's best configuration of at most so many bits.")
@_held_out
@revision_option
@json_option
def cost(
    model: str, formats: list[str], double_quant: str, equal_bits: float | None, data: str | None, max_rows: int | None,
    max_length: int | None, folder: Path | None, revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure MODEL's held-out loss in 16 bits and in 4-bit formats.

    The weights are quantized and dequantized, and the loss is taken on the CPU or a GPU, in a process of its own. Lines come as
    they are measured. Intervals are of 95 %, by bootstrap over held-out batches; those of increases are paired.
    """
    from workbench.cost.evaluation import USUAL, evaluate

    with usage():
        specs = specs_of(formats, [], None, double_quant) if formats else USUAL
    source = opened(model, revision)
    ev = evaluate(
        source, specs, data=data, max_rows=max_rows, max_length=max_length, equal_bits=equal_bits or False, folder=folder,
        progress=on_terminal(),
    )  # fmt: skip
    if as_json:
        _print_json(model=source.name, rows=[_plain(row) for row in ev])
        return
    _print_lines(
        (
            "specification",
            "bits per weight",
            "size",
            "loss",
            "perplexity",
            "increase",
            "95 % of it".rjust(len("+0.0000 to +0.0000")),
            "relative RMSE",
        ),
        (_cost_line(row) for row in ev),
        first=max(len(row) for row in (*(spec.title for spec in ev.specs), "specification")),
    )


def _cost_line(row: Cost) -> tuple[str, ...]:
    if row.spec is None:
        measured: tuple[str, ...] = (NONE, NONE, NONE)
    else:
        measured = (_nats(row.increase), _between(row.increase_interval), percent(row.relative_rmse))
    size = amount(row.nbytes)
    return row.name, f"{row.bits_per_weight:.4f}", size, _loss(row.loss), number(row.perplexity, ".2f"), *measured


@click.command("sensitivity")
@model_argument
@_format
@_held_out
@click.option("--worst", type=click.IntRange(1), default=20, show_default=True, help="How many of the modules to print.")
@revision_option
@json_option
def sensitivity(
    model: str, form: str, block_size: int | None, double_quant: bool | None, data: str | None, max_rows: int | None,
    max_length: int | None, folder: Path | None, worst: int, revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure what each module of MODEL costs: quantized alone, and all but it.

    Two losses a module, so that it takes a while: with --folder it goes on where it was broken off.
    """
    sens = _sensitivity(model, form, block_size, double_quant, data, max_rows, max_length, folder, revision)
    if as_json:
        _print_json(
            model=sens.job.source.name, spec=sens.spec.to_dict(), loss_16bit=sens.loss_16bit, loss_4bit=sens.loss_4bit,
            rows=[_plain(row) | {"share": row.share, "saved_bytes": row.saved_bytes} for row in sens.rows],
        )  # fmt: skip
        return
    click.echo(f"{_about(sens)}; the {min(worst, len(sens))} costliest of {len(sens):,} modules")
    rows = sorted(sens.rows, key=lambda row: -row.share)[:worst]
    _print_lines(
        ("module", "alone", "gained by leaving it out", "a MB", "output error", "relative RMSE", "saved"),
        map(_module_line, rows),
        first=max((len(short(row.name)) for row in rows), default=0),
    )


def _module_line(row: ModuleCost) -> tuple[str, ...]:
    per_mb = _nats(row.share / (row.saved_bytes / 1e6))
    errors = percent(row.output_error), percent(row.relative_rmse)
    return short(row.name), _nats(row.increase_only), _nats(row.decrease_all_but), per_mb, *errors, amount(row.saved_bytes)


@click.command("mix")
@model_argument
@click.option("--budget-mb", type=float, metavar="MB", help="Megabytes (of a million bytes) that all weights may take.")
@gpu_option("Or what the forecast of training leaves of this GPU, such as T4 or 'A100 40 GB'.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure the mix's loss too.")
@click.option("--code", is_flag=True, help="Print only the Python that loads the model so, with its BitsAndBytesConfig.")
@_format
@_held_out
@revision_option
@json_option
def mix(
    model: str, budget_mb: float | None, gpu: Gpu | None, measure: bool, code: bool, form: str, block_size: int | None,
    double_quant: bool | None, data: str | None, max_rows: int | None, max_length: int | None, folder: Path | None,
    revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose which modules of MODEL to leave in 16 bits, by measured loss per megabyte.

    Measures the modules' sensitivities first, or takes them from --folder. Prints the names for llm_int8_skip_modules.
    """
    from workbench.cost.mixing import mix as mixed

    if (budget_mb is None) == (gpu is None):
        raise click.UsageError("Give --budget-mb or --gpu.")
    sens = _sensitivity(model, form, block_size, double_quant, data, max_rows, max_length, folder, revision)
    found = mixed(sens, None if budget_mb is None else int(budget_mb * 1e6), gpu=gpu)
    if code:
        click.echo(found.as_code())
        return
    if measure:
        found.measure(progress=on_terminal())
    names = sens.names_for(found.modules_left_out)
    if as_json:
        points = [dataclasses.asdict(point) for point in found.curve]
        _print_json(
            model=sens.job.source.name, spec=sens.spec.to_dict(), nbytes=found.nbytes, llm_int8_skip_modules=names,
            modules_left_out=found.modules_left_out, predicted_loss=found.predicted_loss, measured_loss=found.measured_loss,
            loss_16bit=sens.loss_16bit, loss_4bit=sens.loss_4bit, curve=points,
        )  # fmt: skip
        return
    click.echo(_about(sens))
    low, high = found.all_4bit, found.all_16bit
    three: list[tuple[str, int, float, float | None]]
    three = [("all in 4 bits", low.nbytes, low.predicted_loss, low.predicted_loss)]
    three.append(("this mix", found.nbytes, found.predicted_loss, found.measured_loss))
    three.append(("all in 16 bits", high.nbytes, high.predicted_loss, high.predicted_loss))
    _print_lines(
        ("", "size", "loss predicted", "loss measured"),
        ((name, amount(size), _loss(predicted), _loss(loss)) for name, size, predicted, loss in three),
        first=len("all in 16 bits"),
    )
    click.echo(f"\nLeft in 16 bits ({len(found.modules_left_out)} of {len(sens)} modules), as llm_int8_skip_modules:")
    for name in names:
        click.echo(f"  {printable(name)}")


def _sensitivity(
    model: str, form: str, block_size: int | None, double_quant: bool | None, data: str | None, max_rows: int | None,
    max_length: int | None, folder: Path | None, revision: str | None,
) -> Sensitivity:  # fmt: skip
    """The sensitivities, measured to their end."""
    from workbench.cost.sensitivities import sensitivity as sensitivities
    from workbench.quant.formats import find_format
    from workbench.quant.spec import QuantSpec

    with usage():
        name = find_format(form).name
        spec = QuantSpec(name, block_size or 0, double_quant=name == "nf4" if double_quant is None else double_quant)
    source = opened(model, revision)
    how: dict[str, Any] = {"data": data, "max_rows": max_rows, "max_length": max_length, "folder": folder}
    return sensitivities(source, spec, progress=on_terminal(), **how).run()


def _about(sens: Sensitivity) -> str:
    losses = f"loss {sens.loss_16bit:.4f} in 16 bits, {sens.loss_4bit:.4f} quantized"
    return f"{short(sens.job.source.name)} to {sens.spec.title}: {losses}"


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _nats(value: float) -> str:
    return number(value, "+.4f")


def _between(interval: Interval) -> str:
    return f"{_nats(interval[0])} to {_nats(interval[1])}"


def _print_lines(head: tuple[str, ...], lines: Iterable[tuple[str, ...]], first: int) -> None:
    """A table, line by line as they come: the first column as wide as is known beforehand, the others as their heads are."""
    widths = [first, *(max(len(name), 10) for name in head[1:])]
    click.echo(_aligned(head, widths))
    for line in lines:
        click.echo(_aligned(line, widths))


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    cells = [printable(cell) for cell in line]
    return "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _plain(row: Any) -> dict[str, Any]:
    """A row's fields as JSON values."""
    return {**dataclasses.asdict(row), **({"spec": row.spec and row.spec.to_dict()} if hasattr(row, "spec") else {})}


def _print_json(**fields: Any) -> None:
    from workbench.cli.text import dumped

    click.echo(dumped(**fields))


COMMANDS = (cost, sensitivity, mix)
