"""Small HTML tables as a reader wants them. Every text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text."""

    text: str
    colour: str = ""
    """Of the mark before the text; empty: none."""
    share: float = 0.0
    """How much of the cell a bar behind the text fills."""

    def __str__(self) -> str:
        return self.text


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str, numbers: int | Collection[int] = 1) -> str:
    """An HTML table; ``numbers`` are the right-aligned columns, or the first from which all are.

    ``caption`` is read out by screen readers.
    """
    right = range(numbers, len(head)) if isinstance(numbers, int) else numbers

    def line(cells: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=wb-number' if i in right else ''}{_bar(cell)}>{_mark(cell)}{html.escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    opening = f'<div class="wb-scroll"><table class="wb-table" aria-label="{html.escape(caption)}">'
    return f"{opening}<thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"


def _mark(cell: object) -> str:
    return f'<i class="wb-swatch" style="background:{cell.colour}"></i>' if isinstance(cell, Cell) and cell.colour else ""


def _bar(cell: object) -> str:
    return f' style="--wb-share:{100 * cell.share:.1f}%"' if isinstance(cell, Cell) and cell.share else ""


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, side by side; a pair without a value is left out."""
    body = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs if value)
    return f'<dl class="wb-facts">{body}</dl>'
