"""An adapter on another base than the one that it was trained on: what was measured of that, and kept in the run's folder.

``wb.deployed`` measures it; cards and the app read it. What belongs to another adapter than the run's newest is not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.show import Line, Record
from workbench.text import number, percent
from workbench.training.folder import write_json

Interval = tuple[float, float]
FOLDER = "deployed"
"""In a run's folder: a folder of measurements for each adapter and number of rows, and the rows of the newest."""
_FILE = "bases.json"


@dataclass(frozen=True, repr=False)
class OnBase(Record):
    """The adapter on one base, measured against the model that was trained, over the tokens that bear a loss."""

    base: str
    """``"original"``, ``"nf4"``, ``"q8_0"``, ``"q4_0"``, or the path of a GGUF."""
    name: str
    """The same in words; of a GGUF its file's name and the types in it."""
    tokens: int
    """Of all rows."""
    kl: float
    """KL divergence of its predictions from those of the trained model, nats a token; 0: they are the same."""
    kl_interval: Interval
    """95 %, by bootstrap over rows; NaN with a single row."""
    flipped: float
    """Share of tokens whose most likely successor is another one."""
    flipped_interval: Interval
    loss: float
    """Held-out loss, nats a token."""
    loss_change: float
    """``loss`` minus the trained model's."""
    loss_change_interval: Interval
    """Paired: both models on the same rows."""

    def _line_(self) -> Line:
        return {
            "base": self.name,
            "KL, nats a token": number(self.kl, ".5f"),
            "KL, 95 %": _span(self.kl_interval, ".5f"),
            "next tokens flipped": percent(self.flipped),
            "flipped, 95 %": _percents(self.flipped_interval),
            "loss": number(self.loss, ".4f"),
            "loss − trained": number(self.loss_change, "+.4f"),
            "loss − trained, 95 %": _span(self.loss_change_interval, "+.4f"),
        }

    def said(self) -> str:
        """The two figures that distinguish bases, with their intervals, in a sentence."""
        kl = f"KL {number(self.kl, '.4f')}{_within(self.kl_interval, _span(self.kl_interval, '.4f'))} nats a token"
        flipped = f"{percent(self.flipped)}{_within(self.flipped_interval, _percents(self.flipped_interval))}"
        return f"On {self.name}: {kl}, {flipped} of next tokens flipped."


def adapter_digest(adapter: Path) -> str:
    """What an adapter is known by: of its configuration and its weights."""
    digests = []
    for path in sorted(adapter.glob("adapter_*")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return hashlib.sha256(b"".join(digests)).hexdigest()


def keep(run: Path, adapter: str, max_rows: int, found: Sequence[OnBase]) -> None:
    """Writes down these rows beside others of the same adapter and rows; others are replaced. A full disk is no error here."""
    with contextlib.suppress(OSError):
        before = {} if (there := _there(run)) is None or there[:2] != (adapter, max_rows) else {r.base: r for r in there[2]}
        rows = before | {row.base: row for row in found}
        (run / FOLDER).mkdir(exist_ok=True)
        kept = [{name: _plain(value) for name, value in dataclasses.asdict(row).items()} for row in rows.values()]
        write_json(run / FOLDER / _FILE, {"adapter": adapter, "max_rows": max_rows, "bases": kept})


def read(run: Path, adapter: Path | None) -> tuple[OnBase, ...]:
    """The rows of this adapter; empty where none were measured, or only another's."""
    there = _there(run)
    if there is None or adapter is None or there[0] != adapter_digest(adapter):
        return ()
    return there[2]


def _there(run: Path) -> tuple[str, int, tuple[OnBase, ...]] | None:
    try:
        kept = json.loads((run / FOLDER / _FILE).read_text("utf-8"))
        return kept["adapter"], kept["max_rows"], tuple(_row(fields) for fields in kept["bases"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(value: object) -> object:
    """A value as JSON has it: null for what is no number."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(fields: dict[str, object]) -> OnBase:
    """The inverse of ``_plain``."""
    values = {name: math.nan if value is None else value for name, value in fields.items()}
    for name in ("kl_interval", "flipped_interval", "loss_change_interval"):
        low, high = (math.nan if end is None else float(end) for end in values[name])  # type: ignore[attr-defined]
        values[name] = (low, high)
    return OnBase(**values)  # type: ignore[arg-type]


def _span(interval: Interval, form: str) -> str:
    return f"{number(interval[0], form)} … {number(interval[1], form)}"


def _percents(interval: Interval) -> str:
    return f"{percent(interval[0])} … {percent(interval[1])}"


def _within(interval: Interval, said: str) -> str:
    """An interval behind its figure; nothing where there is none."""
    return f" (95 %: {said})" if all(map(math.isfinite, interval)) else ""
