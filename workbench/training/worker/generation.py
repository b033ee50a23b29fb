"""A prompt's continuation, token by token: the samples of a run, and the answers of a trained model. Needs torch.

Covers greedy and sampled generation by transformers' own ``generate``, breaking it off, and hearing of the text as it grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

Hear = Callable[[str, int], object]
"""Called with the text so far and how many tokens it has."""
_EVERY = 0.1
"""Seconds between two times, at least."""


@dataclass(frozen=True)
class Generated:
    """What a model made of a prompt."""

    text: str
    """Without special tokens."""
    tokens: int
    """All that were generated, an end token among them."""
    ended: bool
    """Whether the model ended it by itself, with a token that says so."""


class StopWhenAsked(StoppingCriteria):
    """Ends a generation once ``asked`` returns anything but None."""

    def __init__(self, asked: Callable[[], object | None]) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(rows,) of bool: all of them, once it was asked."""
        return torch.full((input_ids.shape[0],), self.asked() is not None, dtype=torch.bool, device=input_ids.device)


class _Growing(BaseStreamer):
    """Hands the text on now and then. All of it is decoded: a token may change how the one before it is written."""

    def __init__(self, tokenizer: Any, hear: Hear) -> None:
        self._tokenizer, self._hear = tokenizer, hear
        self._ids: list[int] | None = None  # until the prompt has come
        self._next = 0.0

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then a token at a time."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + _EVERY
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self._hear(text.rstrip("\ufffd"), len(self._ids))  # a character may be half there

    def end(self) -> None:
        """Nothing is left to hand on."""


def encode(tokenizer: Any, text: str, special: bool = True) -> dict[str, torch.Tensor]:
    """The text as one row of tokens; ``special``: with those that the tokenizer puts in front, which a chat's text has."""
    encoded = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def generate(
    model: Any,
    tokenizer: Any,
    encoded: dict[str, torch.Tensor],
    tokens: int,
    asked: Callable[[], object | None],
    *,
    temperature: float = 0.0,
    hear: Hear | None = None,
) -> Generated:
    """At most ``tokens`` more tokens: the likeliest at temperature 0, else sampled with torch's generator as it stands.

    Everything else is as the model's own generation_config.json has it.
    """
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    out = model.generate(
        **{name: value.to(model.device) for name, value in encoded.items()},
        **sampling,
        max_new_tokens=tokens,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        stopping_criteria=[StopWhenAsked(asked)],
        streamer=_Growing(tokenizer, hear) if hear else None,
    )
    new = out[0, encoded["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    ended = len(new) > 0 and int(new[-1]) in (ends if isinstance(ends, list) else [ends])
    return Generated(str(tokenizer.decode(new, skip_special_tokens=True)), len(new), ended)
