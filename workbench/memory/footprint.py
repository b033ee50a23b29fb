"""How many bytes the parts of a fine-tune take, tensor by tensor: weights as they are loaded, adapters, optimizer state.

Covers what follows from shapes alone: what transformers, peft and bitsandbytes allocate, to the byte (the tests hold it against
loaded models), and an estimate of the activations. Does not cover the allocator's rounding, fragmentation, and buffers that are
not in the checkpoint. Adding up is ``memory/forecast.py``'s part.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError
from workbench.given import described, is_a
from workbench.memory.adapters import EXPERT, Adapter, adapters, bounds
from workbench.memory.ledger import ABSMAX, CODEBOOKS, FOUR_BIT, FULL_WEIGHTS, INTEGERS, OPTIMIZER, PAGED, SECOND_LEVEL, UPCAST
from workbench.quant.spec import QuantSpec
from workbench.show import Line, Record
from workbench.sources.tensor_info import EMBEDDINGS, QUANTIZED, SKIPPED, Role, TensorInfo
from workbench.text import memory_size

FULL, LORA, QLORA = "full", "lora", "qlora"

CODEBOOK = 16 * 4
"""Bytes of the table of levels that bitsandbytes keeps with every 4-bit weight."""
NESTED_CODEBOOK = 256 * 4
"""Bytes of the table that double quantization keeps besides, again with every weight."""
MIN_8BIT = 4_096
"""Elements below which bitsandbytes keeps an 8-bit optimizer's state in fp32."""
_STATE_BLOCK = 256
_LINEAR = QUANTIZED | SKIPPED | {Role.EXPERT, Role.ROUTER}

_AHEAD = re.compile(r"^(?:model\.)?mtp(?:_layers)?\.")
_NUMBERED = re.compile(r"^model\.layers\.(\d+)\.")
_LAYER = re.compile(r"^(?P<layer>.*?\.\d+)\.")


@dataclass(frozen=True, repr=False)
class Plan(Record):
    """The part of a training configuration that memory depends on."""

    method: str = QLORA
    """``qlora``, ``lora``, or ``full`` (every weight trained in the compute dtype, without an fp32 copy)."""
    device: str = "cuda"
    """``cuda`` or ``cpu``."""
    compute_dtype: str = "auto"
    quant_type: str = "nf4"
    block_size: int = 64
    double_quant: bool = True
    llm_int8_skip_modules: tuple[str, ...] = ()
    lora_r: int = 16
    lora_dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    use_dora: bool = False
    optim: str = "paged_adamw_32bit"
    page_min_numel: int = 100_000
    per_device_train_batch_size: int = 4
    max_length: int = 512
    gradient_accumulation_steps: int = 1
    upcast_to_fp32: bool = False
    logits_at_once: int = 256
    gradient_checkpointing: bool = True
    norms_in_16_bits: bool = False
    inputs_on_host: bool = False
    packing: bool = False
    """Whether rows lie end to end: then attention always keeps a mask, as in a batch with padding."""
    padded: bool = False
    """Whether the batch has padding: attention then keeps its mask, and keys and values once for every head."""
    nproc_per_node: int = 1
    """Processes that train, each on a device of its own."""
    autocast: bool = True
    """Whether products are made in the compute dtype under autocast, which copies what is fp32; ours are."""
    logit_bytes: int = 12
    """Bytes of an element of the logits while the loss is computed: log-probabilities, their gradient, that of the logits."""

    @classmethod
    def of(cls, cfg: Any, device: str) -> Plan:
        """The plan of a ``TrainConfig``, or of anything that has its fields; missing fields have this class's defaults."""
        if not is_a(device, str) or device not in ("cuda", "cpu"):
            raise ConfigError([f"device is {device!r}; it must be 'cuda' or 'cpu'."], where="forecast", remedy="Choose one.")
        if isinstance(cfg, Plan):
            return dataclasses.replace(cfg, device=device)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "device"]
        found = {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
        if not found:
            remedy = "Give wb.TrainConfig(…); of fields in a dict, wb.TrainConfig(**fields)."
            raise ConfigError([f"{described(cfg)} is no TrainConfig."], where="forecast", remedy=remedy)
        return cls(device=device, **found)

    @property
    def compute_bytes(self) -> int:
        """Bytes of an element in the compute dtype; ``auto`` is 16 bits on a GPU and float32 on a CPU."""
        auto = "float32" if self.device == "cpu" else "bfloat16"
        return 4 if (auto if self.compute_dtype == "auto" else self.compute_dtype) == "float32" else 2

    @property
    def spec(self) -> QuantSpec:
        """How the 4-bit weights are stored."""
        return QuantSpec(self.quant_type, block_size=self.block_size, double_quant=self.double_quant)

    @property
    def paged(self) -> bool:
        """Whether the optimizer pages: bitsandbytes' CPU version does not."""
        return "paged" in self.optim and self.device == "cuda"

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass, if every row has the full length."""
        return self.per_device_train_batch_size * self.max_length


@dataclass(frozen=True, repr=False)
class Piece(Record):
    """Bytes of one tensor in one category."""

    category: str
    tensor: str
    bytes: int

    def _line_(self) -> Line:
        return {"category": self.category, "tensor": self.tensor, "memory": memory_size(self.bytes)}


def loaded(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors that take memory once loaded: a head stored beside the embedding that it is tied to is dropped."""
    return [t for t in tensors if t.numel and t.role is not Role.TIED_HEAD]


def taken(tensors: Iterable[TensorInfo], config: Mapping[str, Any]) -> list[TensorInfo]:
    """``loaded`` without layers for predicting several tokens ahead, which transformers leaves on disk."""
    layers = config.get("num_hidden_layers")
    most = layers if type(layers) is int else None

    def on_disk(name: str) -> bool:
        beyond = _NUMBERED.match(name)
        return _AHEAD.match(name) is not None or (beyond is not None and most is not None and int(beyond[1]) >= most)

    return [t for t in loaded(tensors) if not on_disk(t.name)]


def in_four_bits(tensor: TensorInfo, plan: Plan) -> bool:
    """Whether the plan holds the tensor in 4 bits."""
    left_out = leaves_out(plan.llm_int8_skip_modules, tensor.name.removesuffix(".weight"))
    return plan.method == QLORA and tensor.quantizable and not left_out


def leaves_out(names: Iterable[str], module: str) -> bool:
    """Whether transformers leaves the module out of 4 bits: by its name's beginning, up to a dot or its end, or its ending."""
    return any(re.match(rf"(?:{name})(?:(?<=\.)|(?=\.|$))", module) or module.endswith(name) for name in names)


def base_weights(tensors: Iterable[TensorInfo], plan: Plan) -> list[Piece]:
    """The frozen (or, for ``full``, trained) weights as they lie in memory.

    Of what is not in 4 bits beside them norms and biases are fp32, and embeddings, head and fused experts stay in the compute
    dtype; with ``upcast_to_fp32`` all are fp32. Without 4-bit weights everything stays in the compute dtype.
    """
    pieces = []
    for t in loaded(tensors):
        if not t.dtype.startswith(("F", "BF")):
            pieces.append(Piece(INTEGERS, t.name, t.nbytes))
        elif plan.method != QLORA:
            pieces.append(Piece(FULL_WEIGHTS, t.name, t.numel * plan.compute_bytes))
        elif in_four_bits(t, plan):
            parts = plan.spec.storage(t.numel)
            pieces.append(Piece(FOUR_BIT, t.name, parts.pop("codes")))
            nested = parts.pop("nested absmax", 0) + parts.pop("offset", 0)
            pieces.append(Piece(ABSMAX, t.name, sum(parts.values())))
            pieces.append(Piece(SECOND_LEVEL, t.name, nested))
            pieces.append(Piece(CODEBOOKS, t.name, CODEBOOK + (NESTED_CODEBOOK if plan.double_quant else 0)))
        elif plan.compute_bytes == 4 or plan.upcast_to_fp32 or len(t.shape) == 1:
            pieces.append(Piece(UPCAST, t.name, t.numel * 4))
        else:
            pieces.append(Piece(FULL_WEIGHTS, t.name, t.numel * plan.compute_bytes))
    return pieces


def trained(tensors: Iterable[TensorInfo], plan: Plan, config: Mapping[str, Any]) -> dict[str, int]:
    """Elements of every parameter that is trained, by name; ``config`` is the model's config.json.

    LoRA adds A (r, in) and B (out, r) to each weight that peft adapts, and DoRA a magnitude (out) besides: ``adapters.py``.
    """
    tensors = taken(tensors, config)
    if plan.method == FULL:
        return {t.name: t.numel for t in tensors if t.dtype.startswith(("F", "BF"))}
    return _elements(adapters(tensors, config, plan.target_modules, plan.lora_r), plan)


def trained_between(tensors: Iterable[TensorInfo], plan: Plan, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The fewest and the most elements of adapters, where the model's type is not known; None where ``trained`` is exact."""
    if plan.method == FULL or (found := bounds(taken(tensors, config), config, plan.target_modules, plan.lora_r)) is None:
        return None
    fewest, most = (sum(_elements(adapters, plan).values()) for adapters in found)
    return fewest, most


def _elements(adapters: Iterable[Adapter], plan: Plan) -> dict[str, int]:
    found: dict[str, int] = {}
    for adapter in adapters:
        found[f"{adapter.name}.lora_A"] = adapter.rank * adapter.in_features
        found[f"{adapter.name}.lora_B"] = adapter.rank * adapter.out_features
        if plan.use_dora:
            found[f"{adapter.name}.lora_magnitude_vector"] = adapter.magnitudes
    return found


def optimizer_state(parameters: Mapping[str, int], plan: Plan) -> list[Piece]:
    """Adam's two moments of every trained parameter, as bitsandbytes or torch hold them.

    8-bit: two bytes an element and two fp32 scales for every 256, in fp32 below 4,096 elements; two tables of 256 levels
    besides. Paged: moments of parameters from ``page_min_numel`` elements on lie in managed memory, their scales do not.
    torch keeps the moments in the parameter's dtype and a step count in fp32.
    """
    pieces = []
    eight_bit = "8bit" in plan.optim
    for name, numel in parameters.items():
        state, scales = 8 * numel, 0
        if "torch" in plan.optim:
            state = 2 * numel * (plan.compute_bytes if plan.method == FULL else 4) + 4
        elif eight_bit and numel >= MIN_8BIT:
            state, scales = 2 * numel, 8 * -(-numel // _STATE_BLOCK)
        managed = plan.paged and numel >= plan.page_min_numel
        pieces.append(Piece(PAGED if managed else OPTIMIZER, name, state))
        if scales:
            pieces.append(Piece(OPTIMIZER, name, scales))
    if eight_bit and any(numel >= MIN_8BIT for numel in parameters.values()):
        pieces.append(Piece(OPTIMIZER, "(8-bit levels)", 2 * 256 * 4))
    return pieces


@dataclass(frozen=True)
class Activations:
    """Bytes per token that the forward pass keeps for the backward pass (estimated)."""

    checkpoints: int
    """One hidden state a layer: what gradient checkpointing keeps."""
    on_host: int
    """Those of it that ``inputs_on_host`` moves to the host: all but the one at work."""
    all_layers: int
    """Everything that every layer keeps without it."""
    largest_layer: int
    """Everything that the layer which keeps most keeps: computed again, one layer at a time, with checkpointing."""
    formula: str
    layers: int = 1
    weights: int = 0
    """Bytes of weights that every layer keeps besides, whatever the tokens."""
    weights_of_layer: int = 0
    """Those of the layer that keeps most, computed again."""

    def kept(self, checkpointing: bool) -> int:
        """Bytes per token at the peak."""
        return self.checkpoints + self.largest_layer if checkpointing else self.all_layers

    def bytes(self, tokens: int, checkpointing: bool) -> int:
        """All bytes at the peak, for so many tokens."""
        return tokens * self.kept(checkpointing) + (self.weights_of_layer if checkpointing else self.weights)


def activations(tensors: Iterable[TensorInfo], config: Mapping[str, Any], plan: Plan) -> Activations:
    """An estimate of what a transformer layer keeps, per token, from the shapes of its linear layers.

    With h the hidden size, k the keys' (h · key-value heads / heads), m the largest input of the layer's linears, c the compute
    dtype's bytes, and s the residual's (4 for a 4-bit model, whose norms are fp32 and whose linears answer in the dtype they
    are asked in, with ``norms_in_16_bits`` c in the MLP; else c), a layer keeps

        2 norms 2·4h + attention c·(2h + 2k) + gated MLP 3·s·m + Σ over linears of the input

    where a linear keeps c·in, and, adapted with LoRA, c·r and its dropout's mask (a byte an element, on a CPU four). At its
    boundary a layer keeps the residual, s·h. The last norm keeps 4h. In a batch with padding, of length L, attention keeps
    c·(4h + L): with a mask keys and values are repeated for every head, and each layer puts the mask into its dtype anew.
    DoRA keeps two outputs more of every adapted linear, 2c·out. On a 4-bit base with dropout it also keeps each weight
    unpacked, c·in·out, and while a layer is computed again there is an identity matrix as wide as the largest input, 4·in².
    """
    layers: dict[str, list[tuple[int, TensorInfo, float]]] = defaultdict(list)
    tensors = taken(tensors, config)
    adapted: frozenset[str] = frozenset()
    if plan.method != FULL:
        found = adapters(tensors, config, plan.target_modules, plan.lora_r)
        adapted = frozenset(name for adapter in found for name in adapter.tensors)
    config = _of_text(config)
    share, hidden = _active_share(config), hidden_size(tensors, config)
    for t in tensors:
        if len(t.shape) != 2 or not t.dtype.startswith(("F", "BF")):
            continue
        match = _LAYER.match(t.name)
        if match and t.role in _LINEAR:
            in_features = t.shape[0] if t.layout == "transposed" else t.shape[1]
            layers[match["layer"]].append((in_features, t, share if EXPERT.match(t.name) else 1.0))
    heads = _first_int(config, ("num_attention_heads", "n_head"), 1)
    keys = hidden * min(1.0, _first_int(config, ("num_key_value_heads",), heads) / heads)
    c, s = plan.compute_bytes, 4 if plan.method == QLORA else plan.compute_bytes
    masked = plan.padded or plan.packing
    attention = 2 * hidden + 2 * (hidden if masked else keys) + plan.max_length * masked
    mask_bytes = 0 if plan.lora_dropout == 0 else 4 if plan.device == "cpu" else 1
    per_layer, unpacked, identity = [], [0], 0
    for linears in layers.values():
        kept = 8 * hidden + c * attention + 3 * (c if plan.norms_in_16_bits else s) * max(i for i, _, _ in linears)
        unpacked.append(0)
        for in_features, t, active in linears:
            lora = t.name in adapted
            if lora and plan.use_dora:
                kept += active * 2 * c * (t.numel // in_features)
                identity = max(identity, 4 * in_features**2)
                unpacked[-1] += c * t.numel * (plan.lora_dropout > 0 and in_four_bits(t, plan))
            kept += active * c * in_features * (lora or plan.method == FULL)
            kept += active * (mask_bytes * in_features + c * plan.lora_r) * lora
        per_layer.append(int(kept))
    formula = f"{len(layers)} layers: norms 8·{hidden}, attention {c}·{attention:.0f}, MLP {3 * s}·m, linears' inputs"
    last = 4 * hidden
    most = max(per_layer, default=0)
    return Activations(
        s * hidden * len(layers) + last,
        s * hidden * max(len(layers) - 1, 0),
        sum(per_layer) + last,
        most,
        formula,
        max(len(layers), 1),
        sum(unpacked),
        max(unpacked) + identity,
    )


def hidden_size(tensors: Iterable[TensorInfo], config: Mapping[str, Any]) -> int:
    """Elements of a token's hidden state: as the configuration says, or else as wide as the embedding."""
    wide = max((min(t.shape) for t in tensors if t.role in EMBEDDINGS and len(t.shape) == 2), default=0)
    return _first_int(_of_text(config), ("hidden_size", "n_embd", "d_model", "dim"), wide)


def _of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _active_share(config: Mapping[str, Any]) -> float:
    experts = _first_int(config, ("num_local_experts", "num_experts", "n_routed_experts"), 0)
    return min(1.0, _first_int(config, ("num_experts_per_tok", "num_experts_per_token"), 2) / experts) if experts else 1.0


def _first_int(config: Mapping[str, Any], names: Iterable[str], default: int) -> int:
    return next((v for name in names if type(v := config.get(name)) is int and v > 0), default)
