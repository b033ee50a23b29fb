"""Models that fit a free 16 GB GPU: well-known ones, with sizes computed from their published shapes, without a network.

Covers Llama, Qwen2 and Qwen3 as far as their tensors' names and shapes go; the forecast's own arithmetic does the rest. The
numbers are those of each model's config.json; the tests hold the shapes equal to what transformers builds from them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from workbench.errors import ModelError
from workbench.given import nearest
from workbench.memory.gpus import Gpu, find
from workbench.show import Line, Record, ShownTuple, in_words
from workbench.sources.base import Reader, Source, Watch
from workbench.sources.header import DTYPES, Entry
from workbench.text import amount, count, memory_size

GPU = "T4 16 GB"
"""The GPU of Colab's and Kaggle's free sessions, as ``workbench.memory.gpus.GPUS`` names it."""
ROWS, TOKENS = 1, 512
"""The batch that the forecast is made for."""


@dataclass(frozen=True, repr=False)
class Candidate(Record):
    """A model that fits."""

    name: str
    """Its id on the Hub."""
    parameters: int
    checkpoint: int
    """Bytes of its weights in bfloat16, as the Hub has them."""
    training: int
    """Bytes that a QLoRA fine-tune is forecast to take: one row of 512 tokens, 8-bit paged optimizer."""
    gated: bool
    """Whether its owner asks readers to accept terms first."""

    def _line_(self) -> Line:
        return {
            "model": self.name, "parameters": count(self.parameters), "checkpoint": amount(self.checkpoint),
            "QLoRA, forecast": memory_size(self.training), "asks for terms": in_words(self.gated),
        }  # fmt: skip


def config_of(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    """The part of a config.json that decides the shapes of a Llama, Qwen2 or Qwen3."""
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "head_dim": 128 if kind == "qwen3" else hidden // heads,
    }  # fmt: skip


PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": config_of("llama", 576, 1_536, 30, 9, 3, 49_152, True),
    "Qwen/Qwen3-0.6B": config_of("qwen3", 1_024, 3_072, 28, 16, 8, 151_936, True),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": config_of("llama", 2_048, 5_632, 22, 32, 4, 32_000, False),
    "meta-llama/Llama-3.2-1B-Instruct": config_of("llama", 2_048, 8_192, 16, 32, 8, 128_256, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": config_of("llama", 2_048, 8_192, 24, 32, 32, 49_152, True),
    "Qwen/Qwen3-1.7B": config_of("qwen3", 2_048, 6_144, 28, 16, 8, 151_936, True),
    "Qwen/Qwen3-4B": config_of("qwen3", 2_560, 9_728, 36, 32, 8, 151_936, True),
    "Qwen/Qwen2.5-7B-Instruct": config_of("qwen2", 3_584, 18_944, 28, 28, 4, 152_064, False),
    "meta-llama/Llama-3.1-8B-Instruct": config_of("llama", 4_096, 14_336, 32, 32, 8, 128_256, False),
    "Qwen/Qwen3-8B": config_of("qwen3", 4_096, 12_288, 36, 32, 8, 151_936, False),
}
"""Id → the part of config.json that decides the tensors' shapes."""
_GATED = ("meta-llama/",)


def shortlist(gpu: Gpu | str = GPU) -> tuple[Candidate, ...]:
    """The published models whose fine-tune is forecast to fit ``gpu``, the smallest first.

    Returns:
        Each model with its parameters and the bytes of its download and of its forecast fine-tune.

    Raises:
        ConfigError: For an unknown GPU.

    >>> [model.name for model in wb.shortlist("T4")][:2]
    ['HuggingFaceTB/SmolLM2-135M-Instruct', 'Qwen/Qwen3-0.6B']
    """
    return _fitting(find(gpu))


@functools.cache
def _fitting(gpu: Gpu) -> tuple[Candidate, ...]:
    from workbench.memory.footprint import Plan
    from workbench.memory.forecast import fit, forecast

    plan = Plan(per_device_train_batch_size=ROWS, max_length=TOKENS, optim="paged_adamw_8bit")
    found = []
    for name in PUBLISHED:
        source = PublishedShapes(name)
        ledger = forecast(source, plan)
        if fit(ledger, gpu).verdict == "fits":
            tensors = source.tensors()
            parameters, checkpoint = sum(t.numel for t in tensors), sum(t.nbytes for t in tensors)
            found.append(Candidate(name, parameters, checkpoint, ledger.total, name.startswith(_GATED)))
    return ShownTuple(sorted(found, key=lambda candidate: candidate.parameters), f"Models whose fine-tune fits {gpu.name}")


class PublishedShapes(Source):
    """A model of which only the shapes are known: it can be listed and forecast, but not read.

    Args:
        name: The model's id on the Hub.
        config: Fields of its config.json; None for the models whose shapes are known here.

    Raises:
        ModelError: Where its shapes are not known here, or ``config`` lacks a field.
    """

    def __init__(self, name: str, config: dict[str, Any] | None = None) -> None:
        if config is None and name not in PUBLISHED:
            remedy = f"Choose one of: {', '.join(PUBLISHED)}. {nearest(name, PUBLISHED)}".strip()
            raise ModelError("Its shapes are not known here.", where=str(name), remedy=remedy)
        if config is not None and (missing := [key for key in PUBLISHED[next(iter(PUBLISHED))] if key not in config]):
            remedy = "Give these fields of its config.json, and head_dim."
            raise ModelError(f"Its config says nothing of {', '.join(missing)}.", where=str(name), remedy=remedy)
        self.name, self.path = name, None
        self.config = PUBLISHED[name] if config is None else config
        bfloat16, at = DTYPES["BF16"], 0
        self._where: dict[str, tuple[str, Entry]] = {}
        for tensor, shape in _shapes(self.config):
            end = at + 2 * functools.reduce(lambda a, b: a * b, shape)
            self._where[tensor] = ("", Entry(tensor, bfloat16, shape, at, end))
            at = end

    def entries(self) -> dict[str, tuple[str, Entry]]:
        """As ``Source`` has it."""
        return self._where

    def _open(self, file: str, begin: int, end: int, watch: Watch) -> AbstractContextManager[Reader]:
        raise ModelError(
            "Only its shapes are known here.", where=self.name, remedy="Open it: open_model reads it from the Hub."
        )


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint, by the names that transformers gives."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for part, out in (("q", q), ("k", kv), ("v", kv)):
            yield f"{layer}self_attn.{part}_proj.weight", (out, hidden)
            if config["model_type"] == "qwen2":
                yield f"{layer}self_attn.{part}_proj.bias", (out,)
        yield f"{layer}self_attn.o_proj.weight", (hidden, q)
        if config["model_type"] == "qwen3":
            yield from ((f"{layer}self_attn.{part}_norm.weight", (head,)) for part in "qk")
        yield from ((f"{layer}mlp.{part}_proj.weight", (inner, hidden)) for part in ("gate", "up"))
        yield f"{layer}mlp.down_proj.weight", (hidden, inner)
        yield from ((f"{layer}{part}_layernorm.weight", (hidden,)) for part in ("input", "post_attention"))
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
