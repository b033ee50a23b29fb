"""Words, numbers and HTML tables for the report. Every text is escaped here; nothing else may put text into the page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

_NONE = "–"
_LONGEST = 160  # characters of a name


def short(name: str) -> str:
    """A name out of a file as a label: bounded, and with what is not printable made visible."""
    kept = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in kept)


def escaped(value: object) -> str:
    """Text as HTML, with what is not printable made visible."""
    return html.escape(short(str(value)))


def code(value: object) -> str:
    """A name as HTML in the code font."""
    return f"<code>{escaped(value)}</code>"


def percent(ratio: float, digits: int = 2) -> str:
    """0.0912 → 9.12 %."""
    if ratio == 0:
        return "0 %"
    return f"{100 * ratio:,.{digits}f} %" if math.isfinite(ratio) else _NONE


def number(value: float, form: str = "#.3g") -> str:
    """A number in a format, a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "∞" if value == math.inf else _NONE


def count(value: int) -> str:
    """4423680 → 4.42 million; small numbers in full."""
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:,}"


def amount(nbytes: float) -> str:
    """Bytes in the unit that reads best, powers of ten."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(nbytes) >= size:
            return f"{nbytes / size:,.2f} {unit}"
    return f"{nbytes:,.0f} B"


def bracketed(title: str) -> str:
    """NF4, blocks of 64 → NF4 (blocks of 64), for the middle of a sentence."""
    name, comma, rest = title.partition(", ")
    return f"{name} ({rest})" if comma else name


def listed(items: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, group: tuple[int, int] = (1, 1)
) -> str:
    """A table of cells that are HTML already. The first cell of a row is its header; the first ``texts`` columns hold text,
    the others numbers. A wide one scrolls by itself, by keyboard too.

    ``group`` is (rows, cells): so many rows belong together and have so many first cells in common, which are told once.
    """
    tall, shared = group

    def cell(row: int, i: int, value: str) -> str:
        kind = "" if i < texts else ' class="number"'
        if i < shared and tall > 1:
            kind += f' rowspan="{tall}"'
            return "" if row % tall else f'<th scope="rowgroup"{kind}>{value}</th>' if i == 0 else f"<td{kind}>{value}</td>"
        return f'<th scope="row"{kind}>{value}</th>' if i == 0 else f"<td{kind}>{value}</td>"

    columns = "".join(
        f'<th scope="col"{"" if i < texts else " class=number"}>{escaped(name)}</th>' for i, name in enumerate(head)
    )
    body = "\n".join("<tr>" + "".join(cell(n, i, value) for i, value in enumerate(row)) + "</tr>" for n, row in enumerate(rows))
    told = escaped(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{told}"><table>\n'
        f"<caption>{told}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
