"""Names and numbers as a reader wants them, for the terminal and for reports alike. Gives plain text, which is not HTML."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

NONE = "–"


def printable(text: str) -> str:
    """Text from a file or a message, safe for a terminal: what is not printable is made visible."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def short(name: str, longest: int = 160) -> str:
    """A name out of a file as a label: printable, and at most so many characters long; its middle goes first."""
    if len(name) > longest:
        name = f"{name[: longest // 2]}…{name[len(name) - (longest - 1) // 2 :]}"
    text = printable(name)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int | Collection[int] = 1) -> str:
    """A table of aligned columns; ``texts`` (those, or so many of the first) stand to the left, numbers to the right.

    Without a ``head`` the rows alone.
    """
    left = range(texts) if isinstance(texts, int) else texts
    lines = [[printable(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def percent(ratio: float, digits: int = 2) -> str:
    """0.0912 → 9.12 %."""
    if ratio == 0:
        return "0 %"
    return f"{100 * ratio:,.{digits}f} %" if math.isfinite(ratio) else NONE


def number(value: float, form: str = "#.3g") -> str:
    """A number in a format, a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "∞" if value == math.inf else NONE


def count(value: int) -> str:
    """4423680 → 4.42 million; small numbers in full."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,}"


def counted(many: int, thing: str) -> str:
    """1 tensor, 2 tensors."""
    return f"{many:,} {thing}" if many == 1 else f"{many:,} {thing}s"


def whole_or_sampled(share: float | None) -> str:
    """How much was looked at: ``whole``, or the share of it that was sampled; None is all of it."""
    return "whole" if share is None else f"sampled: {percent(share)}"


def amount(nbytes: float) -> str:
    """Bytes of a file, or of what a file holds, in powers of ten as disks and papers count: 1234567 → 1.23 MB.

    Returns:
        Two decimals and the unit, kB, MB or GB; below 1 kB whole bytes.

    >>> wb.amount(1_234_567)
    '1.23 MB'
    """
    return _in_units(nbytes, 1000, ("B", "kB", "MB", "GB"))


def memory_size(nbytes: float) -> str:
    """Bytes of a GPU's or a machine's memory, in powers of two as drivers and PyTorch count: 1610612736 → 1.50 GiB.

    Returns:
        Two decimals and the unit, KiB, MiB or GiB; below 1 KiB whole bytes.

    >>> wb.memory_size(1_610_612_736)
    '1.50 GiB'
    """
    return _in_units(nbytes, 1024, ("B", "KiB", "MiB", "GiB"))


def memory_unit(top: float) -> tuple[str, float]:
    """The unit of an axis on which memory is drawn up to ``top`` bytes, and how many bytes one is."""
    return ("GiB", 2**30) if top >= 2**30 else ("MiB", 2**20)


def _in_units(nbytes: float, base: int, units: Sequence[str]) -> str:
    """In the largest unit of which there is one at least; each is ``base`` times the one before."""
    for power in range(len(units) - 1, 0, -1):
        if abs(nbytes) >= base**power:
            return f"{nbytes / base**power:,.2f} {units[power]}"
    return f"{nbytes:,.0f} {units[0]}"


def known_amount(nbytes: float | None) -> str:
    """``amount`` of what may not be known."""
    return NONE if nbytes is None else amount(nbytes)


def known_memory_size(nbytes: float | None) -> str:
    """``memory_size`` of what may not be known."""
    return NONE if nbytes is None else memory_size(nbytes)


def memory_size_or_none(nbytes: float) -> str:
    """``memory_size`` for the cells of a table, in which a dash reads better than 0 B."""
    return memory_size(nbytes) if nbytes else NONE


def listed(items: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def bracketed(title: str) -> str:
    """NF4, blocks of 64 → NF4 (blocks of 64), for the middle of a sentence."""
    name, comma, rest = title.partition(", ")
    return f"{name} ({rest})" if comma else name


def jsonable(value: Any) -> Any:
    """The same value for JSON, which has no tuples and no numbers that are not finite: those become null."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def nats(value: float) -> str:
    """A KL divergence as text: four decimals, or three digits where it is small.

    >>> from workbench.text import nats
    >>> nats(0.39912), nats(0.0075), nats(0.0000812)
    ('0.3991', '0.0075', '8.1e-05')
    """
    return number(value, ".4f" if abs(value) >= 9.5e-4 or not value else ".1e")
