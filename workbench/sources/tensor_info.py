"""``TensorInfo``: one tensor of a checkpoint, and what a QLoRA load makes of it.

Covers the roles that a tensor may have, with the sentence for each: code asks for the role, and only people read the sentence.
Does not decide which one it has: ``rule.py`` does by name, ``exact.py`` by asking transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workbench.show import Line, Record, in_words
from workbench.text import amount


class Role(StrEnum):
    """What a tensor is to a QLoRA load."""

    LINEAR = "linear"
    CONV1D = "conv1d"
    KEPT_LINEAR = "kept linear"
    """Left in 16 bits by a checkpoint that is packed otherwise."""
    SKIPPED_LINEAR = "skipped linear"
    """By transformers, which was asked; the next five are linear layers that the rule knows to be skipped."""
    OWN_LINEAR = "linear of an own class"
    FP32_LINEAR = "linear in fp32"
    SHARED_LINEAR = "shared linear"
    ATTENTION_LINEAR = "linear of torch's attention"
    LAST_LINEAR = "last linear"
    OTHER_MODULE = "other module"
    """A matrix that is linear by its name and not by its module's class."""
    PACKED = "packed"
    PACKED_PART = "packed part"
    EMBEDDING = "embedding"
    TIED_EMBEDDING = "tied embedding"
    EMBEDDING_OR_HEAD = "embedding or head"
    HEAD = "head"
    TIED_HEAD = "tied head"
    EXPERT = "expert"
    FUSED_EXPERTS = "fused experts"
    ROUTER = "router"
    NORM = "norm"
    VECTOR = "vector"
    PARAMETER = "parameter"
    HIGH_RANK = "high rank"
    NOT_FLOATING = "not floating"
    EMPTY = "empty"
    UNUSED = "unused"
    """The model has no such parameter."""
    OTHER = "other"

    def sentence(self, detail: object = "") -> str:
        """The role in words, with what it says besides, where it has room for that."""
        return _SENTENCES[self].format(detail)


QUANTIZED = frozenset({Role.LINEAR, Role.CONV1D})
"""Roles of what a load puts into 4 bits."""
SKIPPED = frozenset(
    {Role.SKIPPED_LINEAR, Role.OWN_LINEAR, Role.FP32_LINEAR, Role.SHARED_LINEAR, Role.ATTENTION_LINEAR, Role.LAST_LINEAR}
)
"""Roles of linear layers that a load leaves as they are."""
EMBEDDINGS = frozenset({Role.EMBEDDING, Role.TIED_EMBEDDING, Role.EMBEDDING_OR_HEAD})
HEADS = frozenset({Role.HEAD, Role.TIED_HEAD})

_SENTENCES = {
    Role.LINEAR: "a linear layer's weight",
    Role.CONV1D: "a linear layer (Conv1D), transposed before it is quantized",
    Role.KEPT_LINEAR: "not quantized further: a linear layer's weight that the checkpoint, in {}, keeps as it is",
    Role.SKIPPED_LINEAR: "a linear layer that transformers skips",
    Role.OWN_LINEAR: "a linear layer of the model's own class ({}), which transformers does not replace",
    Role.FP32_LINEAR: "a linear layer that the model keeps in fp32",
    Role.SHARED_LINEAR: "a linear layer that several layers share, and that transformers skips for being tied",
    Role.ATTENTION_LINEAR: "a linear layer of torch's own attention, which transformers does not replace",
    Role.LAST_LINEAR: "a linear layer that transformers skips: the model's last",
    Role.OTHER_MODULE: "a weight of {}, which transformers does not replace",
    Role.PACKED: "already in {}",
    Role.PACKED_PART: "a part of the packed weight {}",
    Role.EMBEDDING: "an embedding: looked up, not multiplied",
    Role.TIED_EMBEDDING: "an embedding, tied to the output head",
    Role.EMBEDDING_OR_HEAD: "an embedding or output head, by its shape: a row for every token",
    Role.HEAD: "the output head: transformers skips it",
    Role.TIED_HEAD: "the output head, tied to the embedding",
    Role.EXPERT: "an expert: fused with the others into one 3-D parameter on loading, which stays in 16 bits",
    Role.FUSED_EXPERTS: "fused experts: one 3-D parameter, which bitsandbytes leaves in 16 bits",
    Role.ROUTER: "an expert router: a parameter of its own, not a linear layer",
    Role.NORM: "a norm",
    Role.VECTOR: "a bias, norm or other vector",
    Role.PARAMETER: "a parameter of its own, not a linear layer's weight",
    Role.HIGH_RANK: "a convolution or other parameter of more than two dimensions",
    Role.NOT_FLOATING: "stored as {}: not a floating-point weight, listed and not measured",
    Role.EMPTY: "empty",
    Role.UNUSED: "{} has no such parameter",
    Role.OTHER: "",
}


@dataclass(frozen=True, repr=False)
class TensorInfo(Record):
    """One tensor of a checkpoint, and what a QLoRA load makes of it."""

    name: str
    """Its name in the checkpoint."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: ``BF16``, ``F32``, ``F8_E4M3`` …"""
    numel: int
    nbytes: int
    """Bytes in the checkpoint."""
    quantizable: bool
    """Whether transformers + bitsandbytes hold it in 4 bits."""
    reason: str
    """Why, or why not, in words; ``role`` is what to ask for."""
    layout: str
    """How bitsandbytes sees it: ``as stored``, ``transposed`` before quantization, or on loading ``fused`` with others or
    ``split`` into several (which only the exact answer knows)."""
    role: Role = Role.OTHER

    def _line_(self) -> Line:
        return {
            "tensor": self.name, "shape": f"{self.shape}", "dtype": self.dtype, "size": amount(self.nbytes),
            "in 4 bits": in_words(self.quantizable), "why": self.reason,
        }  # fmt: skip
