"""How values show themselves: as an aligned table in a terminal, and as the same table in HTML in a notebook.

Covers the two kinds of value, collections of them, and the forms: at most a screen of text, plain HTML that needs neither
styles nor colours (GitHub keeps none), every text from outside escaped. What a value says of itself is in its class: ``Shown``
gives a ``View``, a table; a ``Record`` is a line of such tables, and in a terminal its fields.
"""

from __future__ import annotations

import dataclasses
import html
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from workbench.text import NONE, columns, number, short

T = TypeVar("T")
Line = Mapping[str, str]
"""A line of a table: what stands in each column, by the column's head."""

SCREEN, PAGE = 2_000, 12_000
"""Bytes of UTF-8 that a value takes at most in a terminal, and as HTML."""
_LINES = 24
_CELL, _TITLE, _SENTENCE = 64, 160, 400
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_HEIGHTS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class View:
    """What a value shows: a title, facts by name, a table, a note. Plain text, which is clipped and escaped here.

    A fact that is empty is left out.
    """

    title: str
    facts: Line = field(default_factory=dict)
    lines: Sequence[Line | Shown] = ()
    """Those beyond the first few are counted and not drawn up: a survey may have thousands."""
    note: str = ""
    total: Line | None = None
    """The table's last line, which is shown whatever is left out."""
    cell: int = _CELL
    """Characters of a cell at most, as HTML; in a terminal they stand in one line."""

    @cached_property
    def text(self) -> str:
        """Of at most ``SCREEN`` bytes."""
        return self._within(SCREEN, self._as_text)

    @cached_property
    def html(self) -> str:
        """Of at most ``PAGE`` bytes."""
        return self._within(PAGE, self._as_html)

    def _within(self, most: int, form: Callable[[Line, Sequence[Line]], str]) -> str:
        """With as many facts and lines as leave room."""
        facts = {_clipped(name): _clipped(value, _SENTENCE) for name, value in self.facts.items() if value}
        lines = [_line_of(line) for line in self.lines[:_LINES]]
        while len((made := form(facts, lines)).encode("utf-8", "replace")) > most and (lines or facts):
            if lines:
                lines.pop()
            else:
                facts.popitem()
        return made

    def _table(self, lines: Sequence[Line], longest: int) -> tuple[list[str], list[list[str]]]:
        """Heads and cells, these of so many characters at most."""
        shown = [*lines, *([self.total] if self.total and lines else [])]
        heads = list(dict.fromkeys(head for line in shown for head in line))
        return heads, [[_clipped(line.get(head, ""), longest) for head in heads] for line in shown]

    def _rest(self, lines: Sequence[Line]) -> str:
        left = len(self.lines) - len(lines)
        return f"… and {left:,} more" if left else ""

    def _as_text(self, facts: Line, lines: Sequence[Line]) -> str:
        parts = [_clipped(self.title, _TITLE)]
        if facts:
            parts.append(columns((), facts.items(), texts=range(2)))
        heads, cells = self._table(lines, _CELL)
        if cells:
            parts.append(columns(heads if any(heads) else (), cells, texts=_texts(cells)))
        parts += [self._rest(lines), _clipped(self.note, _SENTENCE)]
        return "\n".join(filter(None, parts))

    def _as_html(self, facts: Line, lines: Sequence[Line]) -> str:
        parts = [f"<p><b>{html.escape(_clipped(self.title, _TITLE))}</b></p>"]
        if facts:
            parts.append(_html_table((), list(facts.items()), range(2)))
        heads, cells = self._table(lines, self.cell)
        if cells:
            parts.append(_html_table(heads, cells, _texts(cells)))
        notes = filter(None, (self._rest(lines), _clipped(self.note, _SENTENCE)))
        return "".join([*parts, *(f"<p>{html.escape(note)}</p>" for note in notes)])


class Shown(ABC):
    """A value that shows itself as a table. A dataclass of this kind is made with ``repr=False``."""

    __slots__ = ()

    @abstractmethod
    def _show_(self) -> View:
        """What it shows."""

    def _line_(self) -> Line:
        """What it is in a table of its kind."""
        return {"": self._show_().title}

    def __repr__(self) -> str:
        return self._show_().text

    def _repr_html_(self) -> str:
        return self._show_().html


class Record(Shown):
    """A small value: in a terminal its fields as Python has them, as HTML its line with the heads beside the cells.

    The line is its fields unless its class says otherwise.
    """

    __slots__ = ()

    def _show_(self) -> View:
        return View(type(self).__name__, self._line_())

    def _line_(self) -> Line:
        return {name: in_words(value) for name, value in _fields(self)}

    def __repr__(self) -> str:
        return _python.called(self, _fields(self))


class _Several(Shown):
    """Several values of a kind, a line each."""

    title: str

    def _show_(self) -> View:
        return View(self.title, lines=self, note="" if len(self) else "none")  # type: ignore[arg-type]


class ShownList(_Several, list[T]):
    """A list that shows itself as a table of its items."""

    def __init__(self, items: Iterable[T] = (), title: str = "") -> None:
        super().__init__(items)
        self.title = title


class ShownTuple(_Several, tuple[T, ...]):
    """A tuple that shows itself as a table of its items."""

    title = ""

    def __new__(cls, items: Iterable[T] = (), title: str = "") -> ShownTuple[T]:
        """As ``tuple`` makes one, with a title."""
        made = super().__new__(cls, items)
        made.title = title
        return made


class ShownMapping(Shown, Mapping[str, T]):
    """A view of a dictionary that can only be read, and shows itself as a table of its items."""

    def __init__(self, items: Mapping[str, T], title: str, head: str) -> None:
        self._items, self._title, self._head = items, title, head

    def __getitem__(self, name: str) -> T:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def _show_(self) -> View:
        return View(self._title, lines=[{self._head: name, **_line_of(item)} for name, item in self._items.items()])


def bar(share: float, width: int = 12) -> str:
    """A share of 1 as a bar of so many characters at most: 0.4 → ██████."""
    eighths = round(8 * width * min(max(share, 0.0), 1.0)) if share == share else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(values: Iterable[float]) -> str:
    """Numbers from 0 on as a row of small bars, the largest as high as the line: ▁▃█▃▁."""
    heights = list(values)
    top = max(heights, default=0.0)
    return "".join(_HEIGHTS[min(int(8 * value / top), 7)] if top > 0 else _HEIGHTS[0] for value in heights)


def in_words(value: object) -> str:
    """A field's value as a cell of a table."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value, ".4g")
    if isinstance(value, Shown):
        return _clipped(value._show_().title) if not isinstance(value, Record) else repr(value)
    return str(value) if isinstance(value, str) else _python.repr(value)


class _Python(reprlib.Repr):
    """Values as Python writes them, long ones clipped; an array by its dtype and shape, a table by its title."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 72
        self.maxtuple = self.maxlist = self.maxdict = 6

    def repr_ndarray(self, array: Any, level: int) -> str:
        return f"<{array.dtype.name} {array.shape}>"

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, Record):
            return self.called(value, _fields(value), level - 1) if level > 0 else f"{type(value).__name__}(…)"
        return f"<{_clipped(value._show_().title)}>" if isinstance(value, Shown) else super().repr_instance(value, level)

    def called(self, value: object, fields: Iterable[tuple[str, Any]], level: int | None = None) -> str:
        """A call of the value's class with these fields."""
        level = self.maxlevel if level is None else level
        given = ", ".join(f"{name}={self.repr1(part, level)}" for name, part in fields)
        if len(given.encode("utf-8", "replace")) > SCREEN - 100:
            given = f"{given[:480]} …"
        return f"{type(value).__name__}({given})"


_python = _Python()


def as_python(value: object, fields: Mapping[str, Any]) -> str:
    """The call of a value's class that gives these of its fields; long ones are clipped."""
    return _python.called(value, fields.items())


def _fields(value: Any) -> list[tuple[str, Any]]:
    return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr]


def _line_of(item: Any) -> Line:
    return item._line_() if isinstance(item, Shown) else item if isinstance(item, Mapping) else {"": in_words(item)}


def _clipped(text: str, longest: int = _CELL) -> str:
    """Printable, and of so many characters at most; the middle goes first, since names differ at their ends."""
    return short(text, longest)


def _texts(cells: Sequence[Sequence[str]]) -> list[int]:
    """The columns of a table that hold text and stand to the left."""
    return [i for i, column in enumerate(zip(*cells, strict=True)) if not all(_is_number(cell) for cell in column)]


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "0123456789+−-–∞≤≥"


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: Iterable[int]) -> str:
    left = set(texts)

    def cells(row: Sequence[str], tag: str) -> str:
        sides = ("left" if i in left else "right" for i in range(len(row)))
        # The attribute is what GitHub keeps, the style what JupyterLab's own style sheet gives way to.
        opened = (f'<{tag} align="{side}" style="text-align: {side}">' for side in sides)
        # A number and its unit stay on one line.
        shown = (html.escape(cell if i in left else cell.replace(" ", "\u00a0")) for i, cell in enumerate(row))
        return "".join(f"{tag_}{cell}</{tag}>" for tag_, cell in zip(opened, shown, strict=True))

    head = f"<thead><tr>{cells(heads, 'th')}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"
