"""What a text for readers must say, however it is worded."""

from __future__ import annotations

import re


def missing(text: str, *facts: str) -> list[str]:
    """The facts (a number with its unit, a name, a command) that are not in the text."""
    return [fact for fact in facts if fact not in text]


def changes(remedy: str) -> list[str]:
    """The changes of a configuration that a remedy names, in its order: ``field=value``."""
    return re.findall(r"\w+=[\w.]+", remedy)


def quantities(text: str) -> list[str]:
    """The numbers in a text with the sign, the unit of bytes or the percent that they have, in their order."""
    return re.findall(r"-?\d[\d,.]*(?<![.,])(?: (?:(?:[kMGT]|[KMGT]i)?B\b|%))?", text)
