"""HTML tables and texts for the report. Every text is escaped here; nothing else may put text into the page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from workbench.text import short

_LONG = 120
"""A cell's text of more characters than this is wrapped."""


def escaped(value: object) -> str:
    """Text as HTML, with what is not printable made visible."""
    return html.escape(short(str(value)))


def code(value: object) -> str:
    """A name as HTML in the code font."""
    return f"<code>{escaped(value)}</code>"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1, group: tuple[int, int] = (1, 1)
) -> str:
    """A table of cells that are HTML already. The first cell of a row is its header; the first ``texts`` columns hold text,
    the others numbers. A wide one scrolls by itself, by keyboard too.

    ``group`` is (rows, cells): so many rows belong together and have so many first cells in common, which are shown once.
    """
    tall, shared = group

    def cell(row: int, i: int, value: str) -> str:
        kind = "" if i < texts and len(value) < _LONG else ' class="long"' if i < texts else ' class="number"'
        if i < shared and tall > 1:
            kind += f' rowspan="{tall}"'
            return "" if row % tall else f'<th scope="rowgroup"{kind}>{value}</th>' if i == 0 else f"<td{kind}>{value}</td>"
        return f'<th scope="row"{kind}>{value}</th>' if i == 0 else f"<td{kind}>{value}</td>"

    columns = "".join(
        f'<th scope="col"{"" if i < texts else " class=number"}>{escaped(name)}</th>' for i, name in enumerate(head)
    )
    body = "\n".join("<tr>" + "".join(cell(n, i, value) for i, value in enumerate(row)) + "</tr>" for n, row in enumerate(rows))
    label = escaped(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'
        f"<caption>{label}</caption>\n<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
