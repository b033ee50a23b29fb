"""The licence that a model names: in its card's front matter (``README.md``), in a licence file, or in what the Hub says of it.

Covers finding a short name to show. Does not judge what the licence allows, and does not recognise licences by their text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from workbench.errors import ModelError

ENOUGH = 1 << 16
"""Bytes from the beginning of a card or licence file that are looked at."""
_LONGEST = 80
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_FIELD = re.compile(r"^(license|license_name):[ \t]*([^\n#]+)", re.MULTILINE)
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")


def of_folder(names: Collection[str], head: Callable[[str], bytes]) -> str:
    """What the folder's card or licence file names; ``head`` gives the first ``ENOUGH`` bytes of one of ``names``."""

    def text(file: str) -> str:
        try:
            return head(file).decode("utf-8", "replace") if file in names else ""
        except ModelError:  # a link out of the folder, say: the model itself may still be read
            return ""

    card = _FRONT_MATTER.match(text("README.md"))
    named = _chosen(dict(_FIELD.findall(card[1]))) if card else ""
    if named:
        return named
    lines = (line.strip("# \t") for file in _FILES for line in text(file).splitlines())
    return next((clean for line in lines if (clean := _clean(line))), "")


def of_card(card: Mapping[str, Any], tags: Iterable[Any]) -> str:
    """What the Hub says: the card's fields, or a ``license:`` tag."""
    if named := _chosen(card):
        return named
    return next((_clean(tag.partition(":")[2]) for tag in tags if isinstance(tag, str) and tag.startswith("license:")), "")


def _chosen(card: Mapping[str, Any]) -> str:
    licence, name = (card.get(field) for field in ("license", "license_name"))
    if isinstance(licence, list):
        licence = ", ".join(part for part in licence if isinstance(part, str))
    named, own = (_clean(value) if isinstance(value, str) else "" for value in (licence, name))
    return own or named if named in ("", "other") else named


def _clean(text: str) -> str:
    """Printable and of bounded length; quotes of YAML taken off."""
    kept = "".join(char for char in text[: 4 * _LONGEST] if char.isprintable()).strip().strip("\"'[]")
    return kept if len(kept) <= _LONGEST else f"{kept[:_LONGEST]}…"
