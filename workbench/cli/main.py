"""The command ``workbench``: survey, duel and forecast a model, export a run, list the formats, doctor; what 4 bits cost.

Covers arguments, exit codes and what goes where: results to standard output (as text, or with ``--json`` as one JSON value),
progress and errors to standard error. Exit codes: 0, 1 for what went wrong (with what, where and the remedy), 2 for wrong
usage, 130 after Ctrl-C, 141 where the reader of a pipe has gone. Does not cover what the results look like (``cli/text.py``),
nor the commands on what 4 bits cost (``cli/cost.py``).

What a command needs is imported when it runs, so that ``--help`` is immediate.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from workbench._version import __version__
from workbench.cli.cost import COMMANDS
from workbench.cli.options import (
    bar,
    commas,
    gpu_option,
    json_option,
    model_argument,
    on_terminal,
    opened,
    revision_option,
    specs_of,
    usage,
)  # fmt: skip
from workbench.errors import WorkbenchError
from workbench.text import amount, counted, printable

if TYPE_CHECKING:
    from workbench.memory.gpus import Gpu
    from workbench.sources import Source

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # what a shell reports for a process that SIGINT or SIGPIPE ended


class _Failure(click.ClickException):
    """What went wrong, where, and the remedy, on standard error."""

    def __init__(self, error: WorkbenchError) -> None:
        where = f"{error.where}: " if error.where else ""
        super().__init__(printable(f"{where}{error.what}"))
        self.remedy = printable(error.remedy)

    def show(self, file: Any = None) -> None:
        super().show(file)
        if self.remedy:
            click.echo(self.remedy, file=file, err=file is None)


class _Group(click.Group):
    """Commands whose errors are shown without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WorkbenchError as error:
            raise _Failure(error) from error
        except BrokenPipeError:
            _forget_output()
            raise click.exceptions.Exit(_BROKEN_PIPE) from None


def main() -> NoReturn:
    """Runs the command line and ends the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8
    try:
        code = cli.main(prog_name="workbench", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = _INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        code = _BROKEN_PIPE
    except OSError as error:  # the disk that standard output goes to is full
        _forget_output()
        click.echo(f"Error: {error.strerror or error}.", err=True)
        code = 1
    sys.exit(code)


def _forget_output() -> None:
    """Discards what is still buffered for a standard output that takes nothing, before the interpreter writes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """See what 4-bit quantization does to a model's weights, and what a QLoRA fine-tune of it takes.

    MODEL is "builtin", a folder with safetensors, or OWNER/NAME on the Hugging Face Hub.
    """


_tensors = click.option(
    "--tensors", "patterns", metavar="PATTERN", multiple=True,
    help="Of the tensors that QLoRA quantizes only those whose name matches, such as '*.mlp.*'; where that is none, of all. "
    "May be given several times.",
)  # fmt: skip


@cli.command("survey")
@model_argument
@click.option(
    "--formats", default="nf4", show_default=True, metavar="NAMES", callback=commas(str), help="Formats, between commas."
)
@click.option(
    "--block-size", "block_sizes", metavar="SIZES", callback=commas(int),
    help="Block sizes, between commas.  [default: each format's own]",
)  # fmt: skip
@click.option("--scale-dtype", metavar="DTYPE", help="What scales are stored in.  [default: each format's own]")
@click.option(
    "--double-quant", type=click.Choice(["no", "yes", "both"], case_sensitive=False), default="no", show_default=True,
    help="Quantize the scales too.",
)  # fmt: skip
@_tensors
@revision_option
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write every tensor's numbers as CSV.")
@click.option("--parquet", type=click.Path(path_type=Path), metavar="FILE", help="Write them as Parquet.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE",
    help="Write a report that opens in any browser: the error by layer, the formats at equal bits, memory, outliers.",
)  # fmt: skip
@click.option("--bits", type=float, default=4.5, show_default=True, help="Bits per weight of the report's duel.")
@click.option("--worst", type=click.IntRange(1), default=10, show_default=True, help="How many of the worst tensors to print.")
@json_option
def _survey(
    model: str, formats: list[str], block_sizes: list[int], scale_dtype: str | None, double_quant: str,
    patterns: tuple[str, ...], revision: str | None, csv: Path | None, parquet: Path | None, html: Path | None, bits: float,
    worst: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure every tensor of MODEL under one or several formats.

    Prints the totals and the worst tensors. A tensor that cannot be read is named, the others are measured all the same, and
    the exit code is then 1.
    """
    from workbench.atomic import replacing_for_user
    from workbench.cli import text
    from workbench.report import write_report
    from workbench.surveys.duel import entrants
    from workbench.surveys.survey import survey

    files = {option: path for option, path in (("--csv", csv), ("--parquet", parquet), ("--html", html)) if path is not None}
    _check_targets(files)
    with usage():
        specs = specs_of(formats, block_sizes, scale_dtype, double_quant)
        entrants(bits)
    source = opened(model, revision)
    surveyed = survey(source, specs, _names(source, patterns), progress=on_terminal()).run()
    for path, write in ((csv, surveyed.to_csv), (parquet, surveyed.to_parquet)):
        if path is not None:
            with replacing_for_user(path) as draft:
                write(draft)
    if html is not None:
        write_report(surveyed, html, bits=bits, progress=on_terminal())
    click.echo(text.survey_json(surveyed) if as_json else text.survey_text(surveyed, worst))
    for path in files.values():
        click.echo(f"Wrote {printable(str(path))} ({path.stat().st_size:,} bytes).", err=True)
    if surveyed.errors:
        first = surveyed.errors[0]
        raise WorkbenchError(
            f"{len(surveyed.errors)} of {counted(len(surveyed), 'tensor')} could not be measured.",
            where=source.name,
            remedy=f"The first, {first.tensor.name}: {first.error}",
        )


@cli.command("duel")
@model_argument
@click.option("--bits", type=float, default=4.5, show_default=True, help="Bits per weight that no format may exceed.")
@click.option(
    "--formats", metavar="NAMES", callback=commas(str), help="Formats, between commas.  [default: all of 4 bits, and int8]"
)
@click.option(
    "--by", type=click.Choice(["tensor", "layer", "kind"], case_sensitive=False), help="Tell who wins on each as well."
)
@_tensors
@revision_option
@json_option
def _duel(
    model: str, bits: float, formats: list[str], by: str | None, patterns: tuple[str, ...], revision: str | None, as_json: bool
) -> None:
    """Set the formats against each other at equal bits per weight on MODEL.

    Each takes part in its configuration of least error and at most --bits bits per weight, scales and zero points counted.
    """
    from workbench.cli import text
    from workbench.surveys.duel import duel, entrants

    with usage():
        entrants(bits, formats or None)
    source = opened(model, revision)
    found = duel(source, bits, formats or None, tensors=_names(source, patterns), progress=on_terminal())
    click.echo(text.duel_json(found, by) if as_json else text.duel_text(found, by))


@cli.command("forecast")
@model_argument
@gpu_option("Judge against this GPU alone, such as T4 or 'A100 40 GB'.  [default: every known one]")
@click.option("--batch-size", type=click.IntRange(1), help="Rows in a forward pass.")
@click.option("--max-length", type=click.IntRange(2), help="Tokens in a row.")
@click.option("--lora-r", type=click.IntRange(1), help="Rank of the adapters.")
@click.option("--block-size", type=int, help="Weights that share a scale.")
@revision_option
@json_option
def _forecast(
    model: str, gpu: Gpu | None, batch_size: int | None, max_length: int | None, lora_r: int | None, block_size: int | None,
    revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Forecast what fine-tuning MODEL takes in memory, by method, and which GPUs it fits.

    Only headers are read. Weights, adapters, gradients and optimizer state follow from the shapes; activations are estimated.
    """
    from workbench.cli import text
    from workbench.memory.forecast import fit, forecast_methods
    from workbench.memory.gpus import known
    from workbench.training.config import TrainConfig

    given = {"per_device_train_batch_size": batch_size, "max_length": max_length, "lora_r": lora_r, "block_size": block_size}
    with usage():
        config = TrainConfig(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    ledgers = forecast_methods(opened(model, revision), config)
    fits = [[fit(ledger, one) for ledger in ledgers] for one in ([gpu] if gpu else known().values())]
    click.echo((text.forecast_json if as_json else text.forecast_text)(config, ledgers, fits))


@cli.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--format",
    "form",
    type=click.Choice(["transformers", "gguf", "gguf-adapter"], case_sensitive=False),
    default="transformers",
    show_default=True,
    help="A merged model for transformers; for llama.cpp and Ollama; or the adapter alone, for llama.cpp.",
)
@click.option(
    "--base",
    type=click.Choice(["dequantized", "original"], case_sensitive=False),
    help="Merge into the dequantized 4-bit base, or into the model's own weights.  [default: what was trained on]",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "q8_0"], case_sensitive=False),
    help="The last two are GGUF's.  [default: bfloat16; in GGUF float16, of an adapter float32]",
)
@click.option(
    "--base-gguf", type=click.Path(path_type=Path),
    help="A GGUF of the same base, whose keys and tokenizer are copied (--format gguf).",
)  # fmt: skip
@click.option("--worst", type=click.IntRange(1), default=10, show_default=True, help="How many of the worst tensors to print.")
@click.option("--changed-ok", is_flag=True, help="Go on though the base is no longer what the run was begun with.")
@json_option
def _export(
    run: Path, folder: Path | None, form: str, base: str | None, dtype: str | None, base_gguf: Path | None, worst: int,
    changed_ok: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write what RUN, a run's folder, has trained to FOLDER: its adapter merged into the base, or alone.

    For transformers it prints the error that merging adds to each adapted weight first; without FOLDER that is all.
    """
    from workbench.cli import text
    from workbench.training.results.export import export
    from workbench.training.results.merging import merge_errors
    from workbench.training.runs import attach

    if form != "transformers" and folder is None:
        raise click.UsageError(f"--format {form} needs a FOLDER to write to.")
    trained = attach(run)
    if form == "transformers":
        with bar("measured") as progress:
            errors = merge_errors(trained, dtype or "bfloat16", changed_ok=changed_ok, progress=progress)
        click.echo(text.merge_json(errors) if as_json else text.merge_text(errors, worst))
    if folder is not None:
        with bar("written") as progress:
            written = export(
                trained, folder, format=form, base=base, dtype=dtype, base_gguf=base_gguf, changed_ok=changed_ok,
                progress=progress,
            )  # fmt: skip
        if form != "transformers" and as_json:
            click.echo(text.export_json(written))
        merged = "" if written.base is None else f"merged into the {written.base} base, "
        details = f"{amount(written.nbytes)}, {merged}in {written.dtype}"
        click.echo(f"Wrote {printable(str(written.folder))} ({details}).", err=True)


@cli.command("doctor")
@json_option
def _doctor(as_json: bool) -> None:
    """Print versions, devices, drivers and what works here, to paste into an issue.

    No path, name or variable of yours is in it. Asks the Hub for its front page, with a limit of three seconds.
    """
    from workbench.cli.doctor import doctor
    from workbench.cli.text import dumped

    found = doctor(progress=on_terminal())
    click.echo(dumped(findings=[dataclasses.asdict(each) for each in found.findings]) if as_json else found.text)


@cli.command("formats")
@json_option
def _formats(as_json: bool) -> None:
    """List the formats: bits per weight, block sizes, scales, and where they are defined."""
    from workbench.cli import text

    click.echo(text.formats_json() if as_json else text.formats_text())


def _names(source: Source, patterns: tuple[str, ...]) -> list[str] | None:
    """The tensors that the patterns choose, None without any. A pattern that chooses nothing is wrong usage."""
    if not patterns:
        return None
    infos = source.tensors()
    names, chosen = [info.name for info in infos], set[str]()
    for pattern in patterns:
        matched = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not matched:
            raise click.BadParameter(f"No tensor's name matches {pattern!r}.", param_hint="--tensors")
        chosen |= {info.name for info in infos if info.quantizable and info.name in matched} or matched
    return [name for name in names if name in chosen]


def _check_targets(files: dict[str, Path]) -> None:
    """Refuses before anything is measured what could not be written after it."""
    for option, path in files.items():
        target = path.resolve()
        special = target.exists() and not target.is_file()  # a pipe or a device
        fault = None
        if path.is_dir():
            fault = "is a folder"
        elif not target.parent.is_dir():
            fault = "is in no folder that there is"
        elif not os.access(target if special else target.parent, os.W_OK):
            fault = "cannot be written"
        if fault:
            raise click.BadParameter(f"{str(path)!r} {fault}.", param_hint=option)
    if len({path.resolve() for path in files.values()}) < len(files):
        raise click.UsageError(f"{' and '.join(files)} need files of their own.")


for _command in COMMANDS:
    cli.add_command(_command)
