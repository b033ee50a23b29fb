"""Which layer of a model a tensor belongs to, and what it does there, found from its name.

Covers the names that the common architectures give: Llama and what follows it, GPT-2, GPT-NeoX, BERT, T5, mixtures of experts.
A name that none of them gives keeps its module's own name. Does not cover which tensors are quantized (``sources/rule.py``).
"""

from __future__ import annotations

import re

_ORDER = ("q", "k", "v", "qkv", "kv", "o", "gate", "up", "gate_up", "down")
_PARAMETER = re.compile(r"[._](?:weight|bias|blocks|scales)$")
_LAYER = re.compile(r"(?<!experts)\.([0-9]+)(?:\.|$)")
_ATTENTION = re.compile(r"attn|attention|(?:^|\.)att\.", re.IGNORECASE)

_ANYWHERE = {
    "q": "q_proj query wq q_lin q_attn to_q q_a_proj q_b_proj",
    "k": "k_proj key wk k_lin to_k",
    "v": "v_proj value wv v_lin to_v",
    "qkv": "c_attn qkv_proj query_key_value wqkv qkv w_pack att_proj",
    "kv": "kv_proj kv_a_proj_with_mqa kv_b_proj key_value",
    "o": "o_proj",
    "gate": "gate_proj wi_0 w1",
    "up": "up_proj fc1 fc_in c_fc wi_1 wi w3 dense_h_to_4h lin1",
    "down": "down_proj fc2 fc_out w2 dense_4h_to_h lin2 output_linear",
    "gate_up": "gate_up_proj input_linear",
}
# What these are depends on whether the module sits in an attention block: (inside it, outside it; "": its own name).
_BY_PLACE = {
    "q": ("q", ""),
    "k": ("k", ""),
    "v": ("v", ""),
    "o": ("o", ""),
    "in_proj": ("qkv", ""),
    "out_proj": ("o", ""),
    "out_lin": ("o", ""),
    "c_proj": ("o", "down"),
    "dense": ("o", ""),
    "wo": ("o", "down"),
}
_KIND = {module: kind for kind, modules in _ANYWHERE.items() for module in modules.split()}


def layer_of(name: str) -> int | None:
    """The number of the layer: the first number in the name that does not count experts; None where there is none.

    Encoder and decoder of one model both count from 0.
    """
    found = _LAYER.search(f".{name}")
    return int(found[1]) if found and len(found[1]) <= 9 else None


def within_layer(name: str) -> str:
    """What is left of a weight's name inside its layer: ``mlp.down_proj``; of one outside the layers all but ``.weight``."""
    layer = layer_of(name)
    inside = name if layer is None else name.partition(f".{layer}.")[2] or name
    return inside.removesuffix(".weight")


def order_of(kind: str) -> tuple[int, str]:
    """What to sort kinds by: their order in a block, then the others by name."""
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind)


def kind_of(name: str) -> str:
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, several fused (``qkv``, ``kv``, ``gate_up``), ``router``, or the
    module's own name. A bias is called so: ``q bias``.
    """
    path = _PARAMETER.sub("", name)
    parent, _, module = path.rpartition(".")
    kind = _kind(parent, module) or module or name
    return f"{kind} bias" if path != name and name.endswith("bias") else kind


def _kind(parent: str, module: str) -> str:
    lower = module.lower()
    if lower in _BY_PLACE:
        inside, outside = _BY_PLACE[lower]
        if _ATTENTION.search(f"{parent}."):
            return inside
        if lower == "dense":  # BERT: intermediate.dense is the way up, output.dense the way down
            return {"intermediate": "up", "output": "down"}.get(parent.rpartition(".")[2], "")
        return outside
    if lower == "router" or parent.endswith(".router") or (lower == "gate" and parent):  # a gated MLP's own is called gate_proj
        return "router"
    return _KIND.get(lower, "")
