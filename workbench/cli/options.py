"""What the commands have in common: their arguments and options, opening a model, progress on a terminal.

Imports nothing that takes time: a command brings that in when it runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import click

from workbench.errors import ConfigError, FormatError
from workbench.progress import Progress, reporting
from workbench.text import printable

if TYPE_CHECKING:
    from workbench.memory.gpus import Gpu
    from workbench.quant.spec import QuantSpec
    from workbench.sources import Source


model_argument = click.argument("model")
revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of a model on the Hub.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value in place of text.")


def _gpu(ctx: click.Context, parameter: click.Parameter, name: str | None) -> Gpu | None:
    """The GPU of that name; wrong usage where none is known by it."""
    from workbench.memory.gpus import find

    try:
        return None if name is None else find(name)
    except ConfigError as error:
        raise click.BadParameter(printable(f"{error.what} {error.remedy}")) from error


def gpu_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``--gpu``, which takes a name as ``gpus.find`` does."""
    return click.option("--gpu", metavar="NAME", callback=_gpu, help=text)


def commas(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], list[Any]]:
    """A callback for values between commas, none where the option is left out."""

    def parse(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[Any]:
        try:
            return [] if text is None else list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list of whole numbers between commas.") from None

    return parse


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What the options ask for and nothing has is wrong usage, told before any model is opened."""
    try:
        yield
    except (FormatError, ConfigError) as error:
        raise click.UsageError(printable(str(error))) from error


def opened(model: str, revision: str | None) -> Source:
    """The model that a command names."""
    from workbench.sources import open_model

    return open_model(model, revision)


def specs_of(formats: list[str], block_sizes: list[int], scale_dtype: str | None, double_quant: str) -> list[QuantSpec]:
    """Every combination; with ``both``, double quantization where there is any."""
    from workbench.quant.spec import QuantSpec
    from workbench.surveys.duel import configurations

    specs = [QuantSpec(name, size, scale_dtype, double_quant == "yes") for name in formats for size in block_sizes or [0]]
    if double_quant != "both":
        return specs
    found = (configurations([s.format], block_sizes=[s.block_size], scale_dtypes=[s.scale_dtype]) for s in specs)
    return [spec for both in found for spec in both]


def bar(what: str) -> AbstractContextManager[Progress]:
    """A progress bar of weights on a terminal's standard error, as a callback."""
    return reporting(on_terminal(), what, "")


def on_terminal() -> bool:
    """Whether somebody sees a bar on standard error."""
    return sys.stderr.isatty()
