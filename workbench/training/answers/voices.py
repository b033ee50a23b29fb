"""A run's base and its adapter, loaded as plain transformers and peft load them, and what they say. Needs torch.

Covers loading the base as the run held it, once, with the adapter on it; the same weights without it; and the 16-bit base where
this device has the memory for it. Runs in the process of ``worker`` alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from workbench.errors import DataError, RunError
from workbench.memory.footprint import Plan, base_weights
from workbench.sources import open_model
from workbench.sources.packed import as_loaded
from workbench.text import memory_size
from workbench.training import data, origins
from workbench.training.answers.values import Answer, Sampling, Voice
from workbench.training.config import TrainConfig
from workbench.training.model_checks import positions
from workbench.training.rows.chats import Template
from workbench.training.watch.endings import ending_of
from workbench.training.watch.shortage import headroom
from workbench.training.worker.generation import encode, generate
from workbench.training.worker.model import compute_dtype, load_base

_ROOM = 1 << 29
"""Bytes beside the weights, for what a model computes with while it answers."""
_REWRITING = ("olora", "pissa")
"""Beginnings of adapters for which peft takes something out of the base's own weights."""


def free_memory(device: str) -> int:
    """Bytes that another model may take on the device."""
    if device != "cuda":
        return headroom()
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


class Voices:
    """The models of one run, each loaded when it is first needed."""

    def __init__(self, run: Path, config: TrainConfig, adapter: Path, free: Callable[[str], int] = free_memory) -> None:
        """Loads base and adapter. Raises ``ModelError`` or ``RunError`` where one cannot be.

        ``free``: the bytes that may still be taken on ``"cuda"`` or ``"cpu"``.
        """
        self._config, self._dtype, self._free = config, compute_dtype(config), free
        self._folder = data.model_folder(config.model, origins.pinned(run, config))
        self.tokenizer = data.open_tokenizer(self._folder)
        base = load_base(config, self._folder, self._dtype, lambda: None)
        self._adapted = _with_adapter(base, adapter)
        self._base: Any = None
        if config.init_lora_weights in _REWRITING:
            self._base = load_base(config, self._folder, self._dtype, lambda: None).eval()
        self._original: Any = None

    def has(self, voice: Voice) -> bool:
        """Whether it is loaded."""
        return voice is not Voice.ORIGINAL or self._original is not None

    def lacking(self) -> str:
        """Why the 16-bit base cannot be loaded here; "" where it can, or is already."""
        if self._original is not None:
            return ""
        tensors, own = as_loaded(source := open_model(self._folder))
        if own is not None:
            return "The checkpoint itself holds 4 bits: there is no 16-bit base."
        device = self._adapted.device.type
        dtype = str(self._dtype).removeprefix("torch.")
        plan = Plan(method="lora", device="cuda" if device == "cuda" else "cpu", compute_dtype=dtype)
        needed = sum(piece.bytes for piece in base_weights(tensors, plan)) + _ROOM
        if needed <= (free := self._free(device)):
            return ""
        where = "on the GPU" if device == "cuda" else "on this machine"
        there = f"{memory_size(free)} are free {where}."
        return f"The 16-bit base is left out: {source.name} would take {memory_size(needed)} in {dtype}, and {there}"

    def load_original(self) -> None:
        """Loads the 16-bit base."""
        plain = TrainConfig(model=self._config.model, method="lora", compute_dtype=self._config.compute_dtype)
        self._original = load_base(plain, self._folder, self._dtype, lambda: None).eval()

    def answer(
        self,
        voice: Voice,
        prompt: str,
        sampling: Sampling,
        asked: Callable[[], object | None],
        hear: Callable[[Answer], object],
    ) -> Answer:
        """What one of them says. Raises ``DataError`` for a prompt that the model has no room for."""
        model, without = self._adapted, contextlib.nullcontext()
        if voice is Voice.ORIGINAL:
            model = self._original
        elif voice is Voice.BASE and self._base is not None:
            model = self._base
        elif voice is Voice.BASE:
            without = model.disable_adapter()
        encoded = self._encoded(prompt)
        tokens = self._room(encoded["input_ids"].shape[1], sampling.max_new_tokens)
        torch.manual_seed(sampling.seed)
        began = time.monotonic()

        def grown(text: str, tokens: int) -> None:
            hear(Answer(voice, text, tokens, time.monotonic() - began, complete=False))

        with without, torch.inference_mode():
            made = generate(model, self.tokenizer, encoded, tokens, asked, temperature=sampling.temperature, hear=grown)
        return Answer(voice, made.text, made.tokens, time.monotonic() - began, ended=made.ended)

    def _encoded(self, prompt: str) -> dict[str, torch.Tensor]:
        """The prompt as the run's rows began: through the chat template where they were chats."""
        if self._config.chats:
            return encode(self.tokenizer, Template(self.tokenizer).question(prompt, "the prompt"), special=False)
        return encode(self.tokenizer, prompt)

    def _room(self, prompt: int, wanted: int) -> int:
        """Tokens that an answer may have: a model with a table of positions has none beyond its end."""
        if not prompt:
            raise DataError("the prompt is empty.", where="the prompt", remedy="Write one.")
        most = positions(self._adapted.config.to_dict())
        if most is None:
            return wanted
        if prompt >= most:
            what = f"it has {prompt:,} tokens, and this model positions for {most:,}, the answer's among them."
            raise DataError(what, where="the prompt", remedy="Write a shorter one.")
        return min(wanted, most - prompt)


def _with_adapter(base: Any, adapter: Path) -> Any:
    try:
        return PeftModel.from_pretrained(base, str(adapter)).eval()
    except Exception as error:  # whatever peft and safetensors raise about files that they cannot take
        if ending_of(error, {}).kind == "out_of_memory":
            raise
        remedy = "Choose another run, or resume this one, which saves its adapter again."
        raise RunError(f"the adapter cannot be loaded ({error}).", where=str(adapter), remedy=remedy) from error
