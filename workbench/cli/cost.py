"""The commands on what quantization costs a model: ``cost``, ``sensitivity`` and ``mix``.

Covers their arguments and what they print, as text or, with ``--json``, as one JSON value. What is measured, and how, is
``workbench.cost``'s. What a command needs is imported when it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
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
from workbench.text import NONE, amount, nats, number, percent, printable, short

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost
    from workbench.cost.row_costs import Interval
    from workbench.cost.sensitivities import ModuleCost, Sensitivity
    from workbench.memory.gpus import Gpu


_BETWEEN = len("+0.0000 to +0.0000")


def _held_out(command: Callable[..., None]) -> Callable[..., None]:
    """The options on the rows that are measured, and where the measurements are kept."""
    for option in (
        click.option(
            "--data",
            metavar="DATA",
            help="bible, wordnet, or a file, folder or OWNER/NAME with a column text.  [default: builtin]",
        ),
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
    """Measure how far 4-bit formats take MODEL from itself in 16 bits.

    KL divergence of the next-token distributions on held-out rows, in nats a token; the share of tokens before which the most
    likely one flips; and the loss. The weights are quantized and dequantized, on the CPU or a GPU, in a process of its own.
    Lines come as they are measured; ranks follow at the end. Intervals are of 95 %, by bootstrap over held-out rows.
    """
    from workbench.cost.evaluation import USUAL, evaluate

    if equal_bits is not None and double_quant != "no":
        raise click.UsageError("--equal-bits chooses double quantization itself: leave --double-quant out.")
    with usage():
        specs = specs_of(formats, [], None, double_quant) if formats else USUAL
    source = opened(model, revision)
    ev = evaluate(
        source, specs, data=data, max_rows=max_rows, max_length=max_length, folder=folder, progress=on_terminal(),
        equal_bits=False if equal_bits is None else equal_bits,
    )  # fmt: skip
    if as_json:
        ranks = ev.run().ranks
        _print_json(model=source.name, text=ev.text, rows=[_plain(row) | {"rank": ranks.get(row.name)} for row in ev.rows])
        return
    _print_lines(
        ("specification", "bits per weight", "size", "KL", "95 % of it".rjust(_BETWEEN), "flips", "loss", "increase",
         "95 % of it".rjust(_BETWEEN), "relative RMSE"),
        (_cost_line(row) for row in ev),
        first=max(len(row) for row in (*(spec.title for spec in ev.specs), "specification")),
    )  # fmt: skip
    click.echo(f"\nOn {printable(ev.text)}. A format's rank is one more than how many diverge less, beyond the interval:")
    for rank, names in _places(ev.ranks).items():
        click.echo(f"{rank:4}  {', '.join(names)}")


def _places(ranks: Mapping[str, int]) -> dict[int, list[str]]:
    """Rank → the formats that share it, in rising order."""
    found: dict[int, list[str]] = {}
    for name, rank in sorted(ranks.items(), key=lambda item: item[1]):
        found.setdefault(rank, []).append(name)
    return found


def _cost_line(row: Cost) -> tuple[str, ...]:
    if row.spec is None:
        kl: tuple[str, ...] = (NONE, NONE, NONE)
        added: tuple[str, ...] = (NONE, NONE, NONE)
    else:
        kl = (nats(row.kl), _kl_between(row.kl_interval), percent(row.flips))
        added = (_nats(row.increase), _between(row.increase_interval), percent(row.relative_rmse))
    return row.name, f"{row.bits_per_weight:.4f}", amount(row.nbytes), *kl, _loss(row.loss), *added


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
    """Measure what each module of MODEL costs in KL divergence from 16 bits: quantized alone, and all but it.

    Two passes over the held-out rows a module, so that it takes a while: with --folder it goes on where it was broken off.
    """
    from workbench.cost.sensitivities import module_line

    sens = _sensitivity(model, form, block_size, double_quant, data, max_rows, max_length, folder, revision)
    if as_json:
        _print_json(
            model=sens.job.source.name, text=sens.text, spec=sens.spec.to_dict(), kl=sens.quantized and sens.quantized.kl,
            loss_16bit=sens.loss_16bit, loss_4bit=sens.loss_4bit, rows=[module_line(row) for row in sens.rows],
        )  # fmt: skip
        return
    click.echo(f"{_about(sens)}; the {min(worst, len(sens))} costliest of {len(sens):,} modules")
    rows = sorted(sens.rows, key=lambda row: -row.share)[:worst]
    _print_lines(
        ("module", "KL alone", "gained by leaving it out", "95 % of their mean".rjust(_BETWEEN), "a MB", "output error",
         "relative RMSE", "outlier channels".rjust(24), "saved"),
        map(_module_line, rows),
        first=max((len(short(row.name)) for row in rows), default=0),
    )  # fmt: skip


def _module_line(row: ModuleCost) -> tuple[str, ...]:
    from workbench.cost.sensitivities import outliers_of

    per_mb = nats(row.share / (row.saved_bytes / 1e6))
    errors = percent(row.output_error), percent(row.relative_rmse), outliers_of(row.channels)
    return (
        short(row.name),
        nats(row.kl_only),
        nats(row.kl_gain),
        _kl_between(row.share_interval),
        per_mb,
        *errors,
        amount(row.saved_bytes),
    )


@click.command("mix")
@model_argument
@click.option("--budget-mb", type=float, metavar="MB", help="Megabytes (of a million bytes) that all weights may take.")
@gpu_option("Or what the forecast of training leaves of this GPU, such as T4 or 'A100 40 GB'.")
@click.option("--like", metavar="MODEL", help="Or the modules that this checkpoint's configuration leaves out of 4 bits.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Measure the mix too.")
@click.option("--code", is_flag=True, help="Print only the Python that loads the model so, with its BitsAndBytesConfig.")
@_format
@_held_out
@revision_option
@json_option
def mix(
    model: str, budget_mb: float | None, gpu: Gpu | None, like: str | None, measure: bool, code: bool, form: str,
    block_size: int | None, double_quant: bool | None, data: str | None, max_rows: int | None, max_length: int | None,
    folder: Path | None, revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose which modules of MODEL to leave in 16 bits, by measured KL divergence per megabyte.

    Measures the modules' sensitivities first, or takes them from --folder. Every second held-out row is chosen by, and figures
    are of the others. Prints the names for llm_int8_skip_modules.
    """
    from workbench.cost.mixing import mix as mixed

    if sum(value is not None for value in (budget_mb, gpu, like)) != 1:
        raise click.UsageError("Give --budget-mb or --gpu, or --like.")
    sens = _sensitivity(model, form, block_size, double_quant, data, max_rows, max_length, folder, revision)
    found = mixed(sens, None if budget_mb is None else budget_mb * 1e6, gpu=gpu, like=like)
    if code:
        click.echo(found.as_code())
        return
    if measure:
        found.measure(progress=on_terminal())
    names = sens.names_for(found.modules_left_out)
    if as_json:
        points = [dataclasses.asdict(point) for point in found.curve]
        four, sixteen, chosen = found.in_4_bits, found.in_16_bits, found.measured
        interval = None if chosen is None else chosen.kl_interval
        flips = None if chosen is None else chosen.flips
        _print_json(
            model=sens.job.source.name, text=sens.text, spec=sens.spec.to_dict(), gpu=gpu and gpu.name,
            like=found.like or None, nbytes=found.nbytes, llm_int8_skip_modules=names,
            modules_left_out=found.modules_left_out, rows_chosen_by=None if found.like else found.rows[0],
            rows_reported=found.rows[1], predicted_kl=found.predicted_kl, measured_kl=found.measured_kl,
            measured_kl_interval=interval, measured_flips=flips, measured_loss=found.measured_loss, kl_4bit=four.kl,
            loss_4bit=four.loss, loss_16bit=sixteen.loss, curve=points,
        )  # fmt: skip
        return
    click.echo(_about(sens))
    lines = [{name: cell for name, cell in line.items() if name} for line in found.lines()]
    head = ("", *list(lines[0])[1:])
    _print_lines(head, (tuple(line.values()) for line in lines), first=len("all in 16 bits"))
    click.echo(printable(found.basis))
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
    whole = sens.quantized
    measured = "" if whole is None else f"KL {nats(whole.kl)}, {percent(whole.flips)} of tokens flip, loss {_loss(whole.loss)}"
    head = f"{short(sens.job.source.name)} to {sens.spec.title}: {measured} (16 bits: {_loss(sens.loss_16bit)})"
    return f"{head}, on {short(sens.text)}"


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _nats(value: float) -> str:
    return number(value, "+.4f")


def _kl_between(interval: Interval) -> str:
    return f"{nats(interval[0])} to {nats(interval[1])}"


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
