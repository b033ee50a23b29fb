"""Layer and kind of a tensor, from the names that real model classes give, and from names that none does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import tiny
from workbench.sources.kinds import kind_of, layer_of

LLAMA = {"q", "k", "v", "o", "gate", "up", "down"}
GPT2 = {"qkv", "o", "up", "down"}
BERT = {"q", "k", "v", "o", "up", "down"}
KINDS = {
    **dict.fromkeys(["llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma", "gemma3", "stablelm"], LLAMA),
    **dict.fromkeys(["gpt2", "gpt-bigcode", "gpt-neox", "falcon", "bloom", "mpt"], GPT2),
    **dict.fromkeys(["mixtral", "qwen2-moe", "qwen3-moe"], LLAMA | {"router"}),
    **dict.fromkeys(["gpt-neo", "opt", "phi", "bert", "distilbert", "t5", "vit", "clip", "whisper"], BERT),
    "deepseek-v3": {"q", "kv", "o", "gate", "up", "down", "router"},
    "granite-moe": {"q", "k", "v", "o", "gate_up", "down", "router"},
    "gemma3-vision": LLAMA,
    "phi3": {"qkv", "o", "gate_up", "down"},
    "gpt-oss": {"q", "k", "v", "o", "router", "gate_up", "down"},
    "mamba": {"in_proj", "x_proj", "dt_proj", "out_proj"},
}  # fmt: skip


@pytest.mark.parametrize("architecture", KINDS)
def test_kinds_of_real_architectures(architecture: str, tmp_path: Path) -> None:
    source = wb.open_model(tiny.save(tmp_path / "m", *tiny.ARCHITECTURES[architecture]))
    matrices = [t.name for t in source.tensors() if len(t.shape) > 1 and layer_of(t.name) is not None and "bias" not in t.name]
    kinds = Counter((layer_of(name), kind_of(name)) for name in matrices)
    unusual = {"conv1d", "A_log", "shared_expert_gate"}
    assert {kind for _, kind in kinds} - unusual == KINDS[architecture]
    assert 0 in {layer for layer, _ in kinds} <= {0, 1}


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.31.self_attn.q_proj.weight", 31, "q"),
        ("model.layers.3.self_attn.q_proj.bias", 3, "q bias"),
        ("model.layers.3.mlp.experts.17.down_proj.weight", 3, "down"),
        ("model.layers.3.mlp.experts.gate_up_proj", 3, "gate_up"),
        ("model.layers.3.mlp.experts.down_proj_blocks", 3, "down"),
        ("model.layers.3.mlp.gate.weight", 3, "router"),
        ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", 3, "kv"),
        ("layers.0.attention.wo.weight", 0, "o"),
        ("layers.0.feed_forward.w1.weight", 0, "gate"),
        ("layers.0.feed_forward.w2.weight", 0, "down"),
        ("layers.0.feed_forward.w3.weight", 0, "up"),
        ("encoder.block.5.layer.1.DenseReluDense.wi_0.weight", 5, "gate"),
        ("encoder.block.5.layer.1.DenseReluDense.wo.weight", 5, "down"),
        ("transformer.h.11.attn.c_proj.weight", 11, "o"),
        ("transformer.h.11.mlp.c_proj.weight", 11, "down"),
        ("transformer.resblocks.2.attn.in_proj_weight", 2, "qkv"),
        ("model.layers.2.input_layernorm.weight", 2, "input_layernorm"),
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
        ("v", None, "v"),
        ("weight", None, "weight"),
        ("gate", None, "gate"),
        ("experts.7.w1", None, "gate"),
        ("", None, ""),
        (".", None, "."),
        ("layers.99999999999999999999.q_proj.weight", None, "q"),
        ("слой.٣.вес", None, "вес"),
    ],
)
def test_layer_and_kind_of_a_name(name: str, layer: int | None, kind: str) -> None:
    assert (layer_of(name), kind_of(name)) == (layer, kind)
