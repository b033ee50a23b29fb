"""A real llama.cpp inside this process: the log-probabilities of the next token, and a tokenizer's ids.

Covers the package xllamacpp, which is there on Linux for x86_64 only; elsewhere the tests that use it are skipped. Flash
attention is off and keys and values are float32, so that llama.cpp rounds nothing that transformers does not.
"""

from __future__ import annotations

import json
import platform
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.needed import needed

HERE = sys.platform == "linux" and platform.machine() == "x86_64"
xllamacpp = needed("xllamacpp", "xllamacpp, a llama.cpp to run GGUF files with, is not installed here", HERE)


class LlamaCpp:
    """A GGUF model, with an adapter on it where one is named."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        if adapter is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        params.n_parallel, params.n_ctx, params.warmup, params.verbosity = 1, 256, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)

    def _complete(self, prompt: str | list[int], **more: Any) -> dict[str, Any]:
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "cache_prompt": False, **more}
        answer: dict[str, Any] = self._server.handle_completions(asked)
        assert "choices" in answer, answer
        return answer

    def log_probabilities(self, ids: list[int], vocabulary: int, plain: int) -> np.ndarray[Any, Any]:
        """Of every token after ``ids``: (vocabulary,).

        ``plain`` is a token of ASCII, which is the one that is made: the server says nothing of one that is half a character.
        What it says is from before that choice.
        """
        answer = self._complete(ids, logprobs=vocabulary, ignore_eos=True, logit_bias=[[plain, 1_000.0]])
        (content,) = answer["choices"][0]["logprobs"]["content"]
        found = np.full(vocabulary, np.nan)
        for each in content["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found

    def generate(self, prompt: str, tokens: int) -> str:
        """The greedy continuation."""
        text: str = self._complete(prompt, max_tokens=tokens)["choices"][0]["text"]
        return text

    def tokenized(self, text: str) -> list[int]:
        """A text's ids, with those that begin and end it; special tokens in it are taken as such."""
        asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize", asked, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # on 127.0.0.1
            ids: list[int] = json.load(answer)["tokens"]
        return ids
