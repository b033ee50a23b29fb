"""What is worth knowing before a run: whether its adapter has room for what it learns, and what its learning rate goes by.

Covers two rules of thumb from "LoRA Without Regret" (John Schulman and Thinking Machines Lab, 2025,
https://thinkingmachines.ai/blog/lora/), applied to one configuration. The first takes from Allen-Zhu and Li (arXiv 2404.05405)
that networks trained for long store about 2 bits a parameter, and that text usually has a loss of around 1 bit a token, which
bounds what there is to learn. Measures nothing, and forecasts no loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from workbench.memory.footprint import Plan, trained, trained_between
from workbench.show import Shown, View
from workbench.sources import Source, open_model
from workbench.text import count
from workbench.training.beginnings import taken
from workbench.training.config import TrainConfig, as_config
from workbench.training.previews import Preview, preview

BITS_A_PARAMETER, BITS_A_TOKEN = 2.0, 1.0
SOURCE = "LoRA Without Regret, Thinking Machines Lab 2025"
_SHORT = 100
"""Steps below which a run is a short one, for the learning rate."""


@dataclass(frozen=True, repr=False)
class Advice(Shown):
    """Two rules of thumb on one run, and what its batches are padded with: estimates, not measured."""

    parameters: int
    """What is trained, in elements: of adapters, or with method ``full`` of the model."""
    exact: bool
    """Whether that is known to the element, or the fewest that it may be."""
    loss_tokens: int | None
    """Tokens with a loss in the whole run, each row counted once however often it comes; None: not looked at, or not known."""
    whole: bool
    """Whether all rows were looked at, or the first ones, which then stand for all."""
    learning_rate: str
    """What the method's learning rate goes by, in a sentence or two."""
    padding: str = ""
    """How much of a batch is padding, and how much it would be otherwise, in a sentence; "" where no rows were looked at."""

    @property
    def room(self) -> float:
        """Bits that the parameters hold, at 2 bits each."""
        return BITS_A_PARAMETER * self.parameters

    @property
    def enough(self) -> bool | None:
        """Whether there is room for a bit of every token with a loss; None where these are not known."""
        return None if self.loss_tokens is None else self.room >= BITS_A_TOKEN * self.loss_tokens

    @property
    def capacity(self) -> str:
        """What there is room for, in a sentence or two."""
        least = "" if self.exact else "at least "
        said = f"{least}{count(self.parameters)} trained parameters store about {count(round(self.room))} bits, at 2 bits each"
        if self.loss_tokens is None:
            return f"{_first_upper(said)}: at most 1 bit a token, the loss of about as many tokens."
        tokens = f"the run's {'' if self.whole else 'some '}{count(self.loss_tokens)} tokens with a loss"
        verdict = "have room there" if self.enough else "have more to learn than that: training is then less efficient"
        return f"{_first_upper(said)}; {tokens}, at most 1 bit each, {verdict}."

    def with_rows(self, config: TrainConfig, seen: Preview) -> Advice:
        """The same with the rows of the configuration counted.

        Args:
            config: The configuration.
            seen: Its rows, as ``preview`` gave them.

        Returns:
            A new ``Advice``; capacity and learning rate stay.
        """
        return replace(self, loss_tokens=_loss_tokens(config, seen), whole=seen.whole, padding=seen.padding.summary(config))

    def _show_(self) -> View:
        facts = {"capacity": self.capacity, "learning rate": self.learning_rate, "padding": self.padding, "source": SOURCE}
        return View("Before a run: rules of thumb, not measured", facts)


def advice(config: TrainConfig, seen: Preview | None = None, *, source: Source | None = None) -> Advice:
    """The rules of thumb for a configuration.

    Args:
        config: The configuration.
        seen: Its rows as ``preview`` gave them; without it the first rows are tokenized here.
        source: Its model, where that is open.

    Returns:
        What rank can learn against the tokens there are, the learning rate to begin with, and the padding; rules of thumb, none
        measured.

    Raises:
        RunError: Where ``config`` is no configuration, or its ``init_adapter`` no run.
        ModelError: As ``open_model`` does, and for faults of the tokenizer.
        DataError: As ``preview`` does.

    >>> found = wb.advice(wb.TrainConfig(max_steps=100))
    >>> found.enough, found.learning_rate.partition(":")[0]
    (True, 'LoRA')
    """
    config = taken(as_config(config, "advice"))
    seen = preview(config) if seen is None else seen
    return advice_on(config, source or open_model(config.model, config.model_revision)).with_rows(config, seen)


def advice_on(config: TrainConfig, source: Source) -> Advice:
    """The same without looking at rows: ``loss_tokens`` is None."""
    plan, tensors = Plan.of(config, "cpu"), source.tensors()
    between = trained_between(tensors, plan, source.config)
    parameters = between[0] if between else sum(trained(tensors, plan, source.config).values())
    return Advice(parameters, between is None, None, False, _learning_rate(config))


def _loss_tokens(config: TrainConfig, seen: Preview) -> int | None:
    """Of the rows that the run comes to, each once; of packs as many as have so many tokens."""
    kept, tokens, bearing = (seen.counts[name] for name in ("kept", "tokens", "loss_tokens"))
    if not kept or (config.max_steps < 0 and not seen.whole):  # passes over an unknown number of rows
        return None
    rows = config.rows_a_step * config.for_rows(kept).max_steps
    learnt = bearing / kept * rows * (config.max_length / (tokens / kept) if config.packing else 1)
    return min(math.ceil(learnt), bearing) if seen.whole else math.ceil(learnt)


def _learning_rate(config: TrainConfig) -> str:
    if config.method == "full":
        return "Full fine-tuning: its best rate is about a tenth of LoRA's."
    short = 0 < config.max_steps < _SHORT
    times = "about ten times" + (", in a run as short as this about fifteen times," if short else "")
    said = f"LoRA: its best rate is {times} that of full fine-tuning, whatever the rank"
    return said + (" (found on bases in 16 bits)." if config.method == "qlora" else ".")


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
