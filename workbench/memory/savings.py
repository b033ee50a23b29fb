"""What double quantization saves: tensor by tensor, and on well-known models from half a billion to 70 billion weights.

The sizes of models that are not at hand are computed from their published shapes, without a network. Does not cover the
error that it adds, which only the weights show.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.memory.footprint import NESTED_CODEBOOK, loaded
from workbench.memory.shortlist import PublishedShapes
from workbench.quant.spec import QuantSpec
from workbench.show import Line, Record, Shown, ShownMapping, View
from workbench.sources import Source, open_model
from workbench.sources.packed import as_loaded
from workbench.text import amount, count, counted


@dataclass(frozen=True, repr=False)
class TensorSaving(Record):
    """Bytes of one tensor's scales."""

    tensor: str
    weights: int
    absmax: int
    """Without double quantization: float32."""
    nested: int
    """With it: 8-bit scales, second-level scales, offset."""

    @property
    def saved(self) -> int:
        """The difference; below zero where a tensor has so few blocks that the second level costs more than it saves."""
        return self.absmax - self.nested

    def _line_(self) -> Line:
        sizes = {"scales": amount(self.absmax), "double quantized": amount(self.nested), "saved": amount(self.saved)}
        return {"tensor": self.tensor, "weights": count(self.weights), **sizes}


@dataclass(frozen=True, repr=False)
class DoubleQuantSavings(Shown):
    """What double quantization saves on a model's 4-bit weights, in bytes."""

    tensors: tuple[TensorSaving, ...]
    """Those that QLoRA holds in 4 bits."""

    @property
    def weights(self) -> int:
        """How many weights are quantized."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def absmax(self) -> int:
        """The scales without it: fp32."""
        return sum(tensor.absmax for tensor in self.tensors)

    @property
    def nested(self) -> int:
        """With it: 8-bit scales, second-level scales, offsets."""
        return sum(tensor.nested for tensor in self.tensors)

    @property
    def codebooks(self) -> int:
        """What bitsandbytes keeps besides, a table of 256 levels for every tensor."""
        return NESTED_CODEBOOK * len(self.tensors)

    @property
    def saved(self) -> int:
        """Bytes saved on scales."""
        return self.absmax - self.nested

    @property
    def saved_bits_per_weight(self) -> float:
        """The same in bits per weight: 0.373 for large tensors at block sizes 64 and 256."""
        return 8 * self.saved / self.weights if self.weights else 0.0

    def _line_(self) -> Line:
        return {
            "weights": count(self.weights), "scales": amount(self.absmax), "double quantized": amount(self.nested),
            "saved": amount(self.saved), "bits per weight": f"{self.saved_bits_per_weight:.3f}",
        }  # fmt: skip

    def _show_(self) -> View:
        title = f"Double quantization saves {amount(self.saved)} on {counted(len(self.tensors), 'tensor')}, computed"
        return View(title, self._line_(), self.tensors)


def double_quant_savings(
    src: Source | str | os.PathLike[str], block_size: int = 64, nested_block_size: int = 256
) -> DoubleQuantSavings:
    """What double quantization saves on every tensor of a model that QLoRA holds in 4 bits.

    Args:
        src: A source, or what ``open_model`` takes.
        block_size: As in ``QuantSpec``.
        nested_block_size: As in ``QuantSpec``.

    Returns:
        Bytes of scales without and with double quantization, a line a tensor, and what that saves in all.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        FormatError: For a block size that NF4 does not have.

    >>> savings = wb.double_quant_savings("builtin")
    >>> savings.saved, round(savings.saved_bits_per_weight, 3)
    (206112, 0.373)
    """
    plain = QuantSpec("nf4", block_size)
    double = QuantSpec("nf4", block_size, double_quant=True, nested_block_size=nested_block_size)

    def scales(spec: QuantSpec, numel: int) -> int:
        return spec.nbytes(numel) - spec.storage(numel)["codes"]

    return DoubleQuantSavings(
        tuple(
            TensorSaving(t.name, t.numel, scales(plain, t.numel), scales(double, t.numel))
            for t in loaded(as_loaded(open_model(src))[0])
            if t.quantizable
        )
    )


# hidden, inner, layers, heads, key-value heads, vocabulary, tied: from each model's config.json on the Hub.
_SHAPES = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 4_864, 24, 14, 2, 151_936, True),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1_536, 8_960, 28, 12, 2, 151_936, True),
    "Qwen/Qwen2.5-3B": ("qwen2", 2_048, 11_008, 36, 16, 2, 151_936, True),
    "huggyllama/llama-7b": ("llama", 4_096, 11_008, 32, 32, 32, 32_000, False),
    "huggyllama/llama-13b": ("llama", 5_120, 13_824, 40, 40, 40, 32_000, False),
    "huggyllama/llama-30b": ("llama", 6_656, 17_920, 60, 52, 52, 32_000, False),
    "huggyllama/llama-65b": ("llama", 8_192, 22_016, 80, 64, 64, 32_000, False),
    "meta-llama/Llama-3.1-70B": ("llama", 8_192, 28_672, 80, 64, 8, 128_256, False),
}
_KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "tie_word_embeddings",
)  # fmt: skip
_LISTED = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.1-8B-Instruct")


@functools.cache
def savings_of_published(block_size: int = 64, nested_block_size: int = 256) -> Mapping[str, DoubleQuantSavings]:
    """What double quantization saves on the models whose shapes are listed, computed from them.

    Args:
        block_size: As in ``QuantSpec``.
        nested_block_size: As in ``QuantSpec``.

    Returns:
        The savings by the model's id on the Hub, from the smallest to the largest.

    >>> f"{wb.savings_of_published()['meta-llama/Llama-3.1-8B-Instruct'].saved:.3g} bytes"
    '3.25e+08 bytes'
    """
    sources = [PublishedShapes(name) for name in _LISTED]
    for name, values in _SHAPES.items():
        config = dict(zip(_KEYS, values, strict=True))
        sources.append(PublishedShapes(name, config | {"head_dim": int(values[1]) // int(values[4])}))
    found = {source.name: double_quant_savings(source, block_size, nested_block_size) for source in sources}
    by_size = dict(sorted(found.items(), key=lambda item: item[1].weights))
    return ShownMapping(by_size, "What double quantization saves, computed from published shapes", "model")
