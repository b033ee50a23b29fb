"""What callers give, taken as it was meant: one thing or several, and names that are spelt almost right.

Covers what every kind of argument has in common. What a specification, a GPU, a configuration, a model or a run may be given as
is said by the one function that takes it: ``as_spec``, ``gpus.find``, ``as_config``, ``open_model``, ``attach``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_LONGEST = 300
"""Characters of a name that are compared with others; longer ones are no typing error."""


def several(given: Any) -> tuple[Any, ...]:
    """One by one what was given: a text is one thing, and so is whatever cannot be iterated."""
    return tuple(given) if is_several(given) else (given,)


def is_several(given: Any) -> bool:
    """Whether a list or another iterable was given, rather than one thing."""
    return isinstance(given, Iterable) and not isinstance(given, str | bytes)


def expanded(given: str | os.PathLike[str]) -> Path:
    """A path with ``~`` as the home folder; where there is no such user it stays, as in the shell."""
    return Path(os.path.expanduser(given))


def spelling(name: str) -> str:
    """A name without what people leave out or add: case, spaces, hyphens, brackets. ``INT4 (sym)`` → ``int4sym``."""
    return re.sub(r"[\W_]+", "", name.casefold())


def nearest(given: object, names: Iterable[str]) -> str:
    """``Did you mean …?`` with up to three of the names that are spelt much like what was given, or else contain it."""
    text = str(given).casefold()
    known = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(text, known, n=3) if len(text) <= _LONGEST else []
    near = near or [name for name in known if len(text) > 2 and text in name][:3]
    return f"Did you mean {' or '.join(repr(known[name]) for name in near)}?" if near else ""


def unknown_fields(given: Iterable[object], fields: Mapping[str, Iterable[str]]) -> list[str]:
    """A sentence for each name that is none of ``fields``, with the one that goes by that name elsewhere, or the nearest.

    ``fields`` has for each what else it is called.
    """
    if not (unknown := [name for name in given if name not in fields]):
        return []
    elsewhere = {spelling(other): name for name, others in fields.items() for other in others}
    meant = ((name, elsewhere.get(spelling(str(name)))) for name in unknown)
    hints = ((name, f"Did you mean {field!r}?" if field else nearest(name, fields)) for name, field in meant)
    return [f"{name!r} is no field. {hint}".strip() for name, hint in hints]


def is_a(value: object, *kinds: type) -> bool:
    """``isinstance`` for an argument that may not be what its annotation says, though type checkers take it to be."""
    return isinstance(value, kinds)


def is_whole(value: object, least: int) -> bool:
    """Whether it is a whole number, Python's or NumPy's, from ``least`` on; True and False are none."""
    return is_a(value, Integral) and not is_a(value, bool) and int(value) >= least  # type: ignore[call-overload]


def is_number(value: object) -> bool:
    """Whether it is a real number, Python's or NumPy's; True and False are none."""
    return is_a(value, Real) and not is_a(value, bool)


def described(value: object) -> str:
    """What was given, for an error: the value where it is short, else its type."""
    shown = repr(value) if value is None or isinstance(value, str | int | float) else ""
    return shown if 0 < len(shown) <= 80 else f"a {type(value).__name__}"
