"""The report's section on what formats cost the model: KL divergence from 16 bits, flipped tokens, and the loss beside them.

From the rows of an evaluation that was measured before. Does not measure.
"""

from __future__ import annotations

import math

from workbench.cost.evaluation import Cost, Evaluation
from workbench.report import figures
from workbench.report.sections import Section
from workbench.report.text import escaped, table
from workbench.text import NONE, amount, bracketed, nats, number, percent


def costs(evaluation: Evaluation) -> Section:
    """The formats, the least divergence first, each with its intervals, and their KL as bars."""
    section = Section("costs", "What each format costs")
    ranks = evaluation.ranks
    formats = (row for row in evaluation.rows if row.spec is not None)
    ordered = sorted(formats, key=lambda row: (not math.isfinite(row.kl), row.kl))
    section.say(
        f"Measured on {escaped(evaluation.text)}: KL divergence of the next-token distributions from those of the model in 16 "
        "bits, in nats a token; the share of tokens before which another one becomes the most likely; and the loss. Intervals "
        "are of 95 %, by bootstrap over rows. A format's rank is one more than how many diverge less, beyond the paired "
        "interval of the difference."
    )
    if ordered:
        least = ordered[0]
        same = [bracketed(row.name) for row in ordered[1:] if ranks[row.name] == 1]
        beside = f" Of the same rank: {escaped(', '.join(same))}." if same else ""
        section.say(f"{escaped(bracketed(least.name))} diverges least, by {nats(least.kl)} nats a token.{beside}")
    section.plot(
        "kl-bars", figures.kl_bars(ordered), "KL divergence from 16 bits by format, with 95 % intervals, the least first."
    )
    section.html += table(
        "Formats by divergence from 16 bits",
        ("format", "rank", "bits per weight", "all weights", "KL", "95 %", "flips", "loss", "added", "95 %"),
        [_line(row, str(ranks.get(row.name, NONE))) for row in (*evaluation.rows[:1], *ordered)],
    )
    return section


def _line(row: Cost, rank: str) -> tuple[str, ...]:
    head = escaped(row.name), rank, f"{row.bits_per_weight:.4f}", amount(row.nbytes)
    if row.spec is None:
        return *head, NONE, NONE, NONE, number(row.loss, ".4f"), NONE, NONE
    (low, high), (less, more) = row.kl_interval, row.increase_interval
    return (
        *head, nats(row.kl), f"{nats(low)} to {nats(high)}", percent(row.flips), number(row.loss, ".4f"),
        number(row.increase, "+.4f"), f"{number(less, '+.4f')} to {number(more, '+.4f')}",
    )  # fmt: skip
