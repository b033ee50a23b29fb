"""How llama.cpp names and lays out a model that transformers knows otherwise: eight architectures, and no other.

Covers tensors' names, through the package ``gguf``; the order of query and key rows; the hyperparameters as keys; the tensor
that Llama 3's scaling of rotary frequencies becomes. Each was run against a llama.cpp of 2026: log-probabilities differ from
transformers' by less than 1e-4 (tests/training/test_gguf.py). Tokenizers are ``gguf_tokenizers.py``'s part.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.training.results.gguf_files import library

Array = NDArray[Any]


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp makes of one of transformers' model types."""

    name: str
    pairs: bool
    """Whether rotary embedding turns neighbours in a head, not its halves: rows of queries and keys are put in that order."""


ARCHITECTURES = {
    "llama": Architecture("llama", True),
    "mistral": Architecture("llama", True),
    "smollm3": Architecture("smollm3", True),
    "granite": Architecture("granite", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
    "olmo2": Architecture("olmo2", False),
    "phi3": Architecture("phi3", False),
}
_GRANITE = {
    "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
}  # fmt: skip
_HEADS = re.compile(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$")
_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$")
CONVERTER = "python convert_hf_to_gguf.py MERGED --outfile model.gguf"
"""llama.cpp's own converter, for a merged model as transformers loads it."""


class Layout:
    """One model's: ``ModelError`` where it is of an architecture, or has a setting, that was not tried."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        model_type = str(config.get("model_type", ""))
        self._where = where
        if model_type not in ARCHITECTURES:
            raise self.refused(f"the architecture {model_type!r} is not one of {', '.join(ARCHITECTURES)}.")
        self.architecture = ARCHITECTURES[model_type]
        self.config = _with_defaults(config)
        self.heads = int(self.config["num_attention_heads"])
        self.key_heads = int(self.config.get("num_key_value_heads") or self.heads)
        self.head_dim = int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)
        gguf = library()
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture.name)
        self._names = gguf.get_tensor_name_map(arch, int(self.config["num_hidden_layers"]))

    def refused(self, what: str) -> ModelError:
        """The error, with what does it instead."""
        remedy = f'Export with format="transformers", then llama.cpp\'s own converter: {CONVERTER}'
        return ModelError(what, where=self._where, remedy=remedy)

    def name(self, tensor: str) -> str | None:
        """llama.cpp's name of a checkpoint's tensor; None for a buffer that it needs no tensor for."""
        if _BUFFER.search(tensor):
            return None
        full = tensor if tensor.startswith(("model.", "lm_head.")) else f"model.{tensor}"
        found: str | None = self._names.get_name(full, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise self.refused(f"llama.cpp has no name for {tensor}.")
        return found

    def turned(self, tensor: str, values: Array) -> Array:
        """Query and key rows in llama.cpp's order: in each head (2, dim / 2, …) becomes (dim / 2, 2, …)."""
        return self._reordered(tensor, values, (2, self.head_dim // 2))

    def turned_back(self, tensor: str, values: Array) -> Array:
        """The inverse of ``turned``."""
        return self._reordered(tensor, values, (self.head_dim // 2, 2))

    def _reordered(self, tensor: str, values: Array, halves: tuple[int, int]) -> Array:
        match = _HEADS.search(tensor)
        if match is None or not self.architecture.pairs:
            return values
        heads = self.heads if match[1] == "q" else self.key_heads
        return values.reshape(heads, *halves, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

    def keys(self) -> dict[str, Any]:
        """The hyperparameters. ``ModelError`` for settings that llama.cpp would silently read otherwise."""
        config, rope = self.config, self.config.get("rope_parameters") or {}
        self._check(rope)
        found: dict[str, Any] = {
            "block_count": int(config["num_hidden_layers"]),
            "context_length": int(config["max_position_embeddings"]),
            "embedding_length": int(config["hidden_size"]),
            "feed_forward_length": int(config["intermediate_size"]),
            "vocab_size": int(config["vocab_size"]),
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "rope.freq_base": float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            "rope.dimension_count": self.head_dim,
        }
        if self.architecture.name == "granite":
            found |= {key: float(config[field]) for field, key in _GRANITE.items()}
        if self.architecture.name == "phi3":
            found["rope.dimension_count"] = int(self.head_dim * rope.get("partial_rotary_factor", 1.0))
            found["rope.scaling.original_context_length"] = int(
                config.get("original_max_position_embeddings") or config["max_position_embeddings"]
            )
            found["attention.sliding_window"] = int(config.get("sliding_window") or 0)
        if rope.get("rope_type") == "linear":
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        return {f"{self.architecture.name}.{key}": value for key, value in found.items()}

    def _check(self, rope: dict[str, Any]) -> None:
        config, kind = self.config, str(rope.get("rope_type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise self.refused(f"its rotary embedding is scaled by {kind!r}, which was not tried here.")
        if kind == "llama3" and self.architecture.name != "llama":
            raise self.refused(f"llama3's scaling of rotary embeddings was not tried for {self.architecture.name}.")
        if self.architecture.name == "smollm3":
            layers = range(1, int(config["num_hidden_layers"]) + 1)
            if (has := config.get("no_rope_layers")) and [bool(x) for x in has] != [layer % 4 != 0 for layer in layers]:
                raise self.refused("llama.cpp leaves rotary embeddings out of every fourth layer, and this model of others.")
        if str(config.get("hidden_act", "silu")) != "silu":
            raise self.refused(f"its MLPs use {config['hidden_act']!r}, and llama.cpp's silu.")

    def notes(self) -> list[str]:
        """Where llama.cpp computes the same only up to some length."""
        window = self.config.get("sliding_window")
        uses = (
            self.config["model_type"] == "mistral"
            or self.config["model_type"] == "phi3"
            or self.config.get("use_sliding_window")
        )
        if not window or not uses or int(window) >= int(self.config["max_position_embeddings"]):
            return []
        return [f"Trained with a sliding window of {int(window):,} tokens, which llama.cpp leaves out: longer texts differ."]

    def more_tensors(self) -> dict[str, Array]:
        """Tensors that no checkpoint has: the divisors of Llama 3's rotary frequencies."""
        rope = self.config.get("rope_parameters") or {}
        if rope.get("rope_type") != "llama3":
            return {}
        # As transformers' _compute_llama3_parameters: long waves are divided, short ones kept, those between blended.
        factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
        length = float(rope["original_max_position_embeddings"])
        frequencies = float(rope["rope_theta"]) ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        waves = 2 * math.pi / frequencies
        blend = np.clip((length / waves - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": (1 / ((1 - blend) / factor + blend)).astype(np.float32)}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what transformers takes for fields that are missing. Runs no code that comes with a model."""
    from transformers import AutoConfig

    left_out = ("quantization_config", "model_type", "auto_map")
    given = {name: value for name, value in config.items() if name not in left_out}
    values: dict[str, Any] = AutoConfig.for_model(config["model_type"], **given).to_dict()
    return values
