"""The forecast of adapters, to the element, against what peft builds on transformers' own models on the meta device."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

import workbench as wb
from tests.helpers import meta, tiny
from workbench.memory.adapters import KNOWN, MOVED
from workbench.memory.footprint import Plan, trained, trained_between
from workbench.sources.packed import as_loaded

MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2"})
"""peft refuses to adapt all linears of these, and can take names."""
ALL = sorted(kind for kind in KNOWN - MAMBA if kind in CONFIG_MAPPING)
"""Those that the installed transformers has."""


def forecast(source: wb.Source, targets: Any = "all-linear", r: int = 4, **plan: Any) -> dict[str, int]:
    plan = {"lora_r": r, "target_modules": targets, **plan}
    return trained(as_loaded(source)[0], Plan(**plan), source.config)


@pytest.mark.filterwarnings("ignore")  # of configurations and of peft
@pytest.mark.parametrize("model_type", ALL)
def test_all_linear_is_forecast_to_the_byte_for_every_known_type(model_type: str) -> None:
    """Also without its type: the row then says between what it lies."""
    model = meta.build(model_type)
    source = meta.checkpoint(model)
    real = meta.trainable(model, "all-linear")
    assert sorted(forecast(source).values()) == sorted(p.numel() for p in real)
    nbytes = sum(p.numel() * p.element_size() for p in real)
    ledger = wb.forecast(source, Plan(method="lora", lora_r=4, page_min_numel=30_000))
    assert ledger["adapters"] == ledger["gradients"] == nbytes
    paged = [p.numel() for p in real if p.numel() >= 30_000]
    assert ledger["optimizer state, paged"] == 8 * sum(paged)
    assert ledger["optimizer state"] == 2 * nbytes - 8 * sum(paged)
    assert {row.known for row in ledger.rows if row.category in ("adapters", "gradients")} == {"computed"}
    source.config = {}
    fewest, most = trained_between(source.tensors(), Plan(lora_r=4), {}) or (0, 0)
    assert fewest <= nbytes // 4 <= most


QLORA = (
    "llama", "gpt2", "phi3", "falcon", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "phimoe", "granitemoehybrid",
    "gpt_oss", "qwen3_next", "lfm2", "afmoe", "gemma3",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", QLORA)
def test_all_linear_on_a_4bit_base(model_type: str) -> None:
    model = meta.build(model_type)
    source = meta.checkpoint(model)
    real = meta.trainable(meta.in_4_bits(model), "all-linear")
    assert sorted(forecast(source).values()) == sorted(p.numel() for p in real)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
NAMED: list[tuple[str, Any]] = [
    ("llama", ATTENTION),
    ("llama", ("embed_tokens", "lm_head")),
    ("llama", ("model.layers.1.mlp.up_proj",)),
    ("llama", r".*layers\.[13]\.self_attn\..*_proj"),
    ("gemma", ("embed_tokens", "lm_head")),  # tied: the checkpoint holds no head
    ("gpt2", ("c_attn", "wte", "wpe")),
    ("gpt2", ("lm_head",)),
    ("gpt_neox", ("query_key_value", "lm_head")),
    ("phi3", ("qkv_proj", "gate_up_proj")),
    ("falcon", ("query_key_value", "dense")),
    ("gemma3", ("model.language_model.layers.7.mlp.up_proj",)),
    ("gemma3", (*ATTENTION, *MLP)),
    ("gemma3", ("q_proj", "patch_embedding")),  # a convolution
    ("mixtral", ATTENTION),
    ("mixtral", ("w1", "w2", "w3")),
    ("mixtral", ("q_proj", "gate")),
    ("mixtral", r".*experts.*\.(w1|w2|w3)"),
    ("qwen3_moe", (*ATTENTION, *MLP)),
    ("qwen3_moe", ("down_proj",)),
    ("qwen3_moe", r".*layers\.1\..*_proj"),
    ("qwen2_moe", MLP),  # the shared expert's, and no expert
    ("qwen2_moe", r".*expert.*_proj"),
    ("deepseek_v3", ("q_a_proj", *MLP)),  # but not the first layers', which are dense
    ("deepseek_v3", ("gate",)),
    ("phimoe", ("router",)),
    ("llama4_text", ("router", "q_proj")),
    ("gpt_oss", ("q_proj", "sinks")),
    ("granitemoe", ("q_proj",)),
    ("granitemoehybrid", ("input_linear", "in_proj")),
    ("lfm2_moe", ("in_proj", "w1")),
    ("recurrent_gemma", ("linear_x", "q_proj")),
    ("bamba", ("in_proj", "out_proj")),
    ("mamba", ("in_proj", "x_proj", "embeddings")),
    ("falcon_mamba", ("x_proj", "dt_proj")),
    ("falcon_h1", ("q_proj", "in_proj")),
    ("mamba2", ("in_proj",)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "targets"), NAMED, ids=str)
def test_named_targets_are_forecast_to_the_element(model_type: str, targets: Any) -> None:
    model = meta.build(model_type)
    source = meta.checkpoint(model)
    real = meta.trainable(model, targets, r=8)
    assert sorted(forecast(source, targets, r=8).values()) == sorted(p.numel() for p in real)


DORA: list[tuple[str, Any]] = [
    *((model_type, "all-linear") for model_type in ("llama", "gpt2", "phi3", "falcon", "qwen2_moe", "phimoe", "gpt_oss")),
    ("gpt2", ("c_attn", "wte")),
    ("llama", ("embed_tokens", "lm_head")),
    ("gemma", ("embed_tokens", "lm_head")),
    ("mixtral", ATTENTION),
    ("qwen2_moe", MLP),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "targets"), DORA, ids=str)
def test_the_magnitudes_of_dora_are_forecast_to_the_element(model_type: str, targets: Any) -> None:
    model = meta.build(model_type, dtype="float32")
    source = meta.checkpoint(model)
    real = meta.trainable(model, targets, use_dora=True)
    assert sorted(forecast(source, targets, use_dora=True).values()) == sorted(p.numel() for p in real)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("r", [1, 16, 256])
def test_every_rank_and_the_variants_that_change_no_size(r: int) -> None:
    model = meta.build("qwen3_moe", dtype="float32")
    source = meta.checkpoint(model)
    real = meta.trainable(model, "all-linear", r=r, use_rslora=True)
    assert sorted(forecast(source, r=r).values()) == sorted(p.numel() for p in real)


def test_peft_adapts_the_experts_of_the_types_that_the_table_names() -> None:
    from peft.utils import transformers_weight_conversion as peft_moe
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    theirs = {
        model_type: peft_moe._MOE_TARGET_MODULE_MAPPING[pattern]
        for model_type, pattern in peft_moe._MODEL_TO_CONVERSION_PATTERN.items()
        if model_type in CONFIG_MAPPING and pattern in peft_moe._MOE_TARGET_MODULE_MAPPING
        if get_checkpoint_conversion_mapping(model_type) is not None
    }
    ours = {model_type: moved for model_type, moved in MOVED.items() if model_type in CONFIG_MAPPING}
    assert theirs.items() <= ours.items()
    assert ours.keys() - theirs.keys() <= {"qwen3_omni_moe_text"}  # peft 0.20 leaves its experts alone


@pytest.mark.filterwarnings("ignore")
def test_at_the_size_of_qwen_moe_no_expert_is_counted() -> None:
    values = {
        "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60, "vocab_size": 151_936,
    }  # fmt: skip
    model = meta.build("qwen2_moe", **values)
    source = meta.checkpoint(model)
    total = sum(p.numel() for p in meta.trainable(model, "all-linear", r=16))
    assert sum(forecast(source, r=16).values()) == total
    assert total == pytest.approx(15.9e6, rel=0.01)


# --- checkpoints that are packed ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_mixes_4_bit_and_16_bit_linears(tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    from tests.sources.test_packed import save_quantized

    for model_type, skipped in (("llama", ["o_proj", "up_proj", "lm_head"]), ("gpt2", ["c_fc", "lm_head"])):
        _, config, _ = tiny.ARCHITECTURES[model_type]
        folder = save_quantized(
            tmp_path / model_type, model_type, config, torch.bfloat16, load_in_4bit=True, llm_int8_skip_modules=skipped
        )
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        adapted = peft.get_peft_model(loaded, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        real = sorted(p.numel() for p in adapted.parameters() if p.requires_grad)
        for method in ("qlora", "lora"):
            assert sorted(forecast(wb.open_model(folder), method=method).values()) == real


@pytest.mark.filterwarnings("ignore")
def test_gpt_oss_in_mxfp4_gets_adapters_on_its_attention(tmp_path: Path) -> None:
    """What transformers loads of it has the same linear layers as without MXFP4; its experts are parameters."""
    import torch

    from tests.sources.test_packed_formats import checkpoint as packed_checkpoint

    model = meta.build("gpt_oss", **tiny.ARCHITECTURES["gpt-oss"][1])
    tensors: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if re.search(r"experts\.\w+_proj$", name):
            experts, inner, outer = tensor.shape
            tensors[f"{name}_blocks"] = torch.zeros(experts, outer, inner // 32, 16, dtype=torch.uint8).numpy()
            tensors[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 120, dtype=torch.uint8).numpy()
        else:
            tensors[name] = torch.zeros(tensor.shape).numpy()
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "quantization_config")}
    source = packed_checkpoint(tmp_path / "m", tensors, {"quant_method": "mxfp4"}, model_type="gpt_oss", **config)
    real = meta.trainable(model, "all-linear")
    assert sorted(forecast(source, method="lora").values()) == sorted(p.numel() for p in real)
    assert sum(p.numel() for p in real) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("deepseek-v3", "model.layers.2.self_attn.o_proj.weight"),
        ("deepseek-v3", "model.layers.2.mlp.experts.0.down_proj.weight"),
        ("qwen3-moe", "mtp.layers.0.self_attn.q_proj.weight"),
        ("qwen3-moe", "model.mtp.fc.weight"),
    ],
)
def test_layers_that_transformers_leaves_on_disk_take_nothing(tmp_path: Path, model: str, extra: str) -> None:
    import safetensors.torch
    import torch
    import transformers

    model_type, config, _ = tiny.ARCHITECTURES[model]
    folder = tiny.save(tmp_path / "m", model_type, config)
    before = wb.forecast(folder, Plan(lora_r=4))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors[extra] = torch.zeros(64, 64)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    names = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert not [name for name in names if "mtp" in name or name.startswith("model.layers.2.")]
    assert wb.forecast(folder, Plan(lora_r=4)) == before
    assert forecast(wb.open_model(folder)) == {
        piece.tensor: piece.bytes // 4 for piece in before.pieces if piece.category == "adapters"
    }


# --- what is not known --------------------------------------------------------------------------------------------------------


def test_of_an_unknown_type_the_row_says_estimated_and_between_what() -> None:
    source = meta.checkpoint(meta.build("qwen3_moe"))
    known = wb.forecast(source, Plan(method="lora", lora_r=4))
    fewest, most = trained_between(source.tensors(), Plan(lora_r=4), {"model_type": "new_moe"}) or (0, 0)
    assert trained_between(source.tensors(), Plan(lora_r=4), source.config) is None
    assert 0 < fewest < known["adapters"] // 4 <= most
    source.config = {"model_type": "new_moe", "auto_map": {"AutoModelForCausalLM": "modeling_new.NewForCausalLM"}}
    rows = {row.category: row for row in wb.forecast(source, Plan(method="lora", lora_r=4, page_min_numel=5_000)).rows}
    assert {f"{fewest:,}", f"{most:,}"} <= set(re.findall(r"[\d,]*\d", rows["adapters"].note))
    for category in ("adapters", "gradients", "optimizer state", "optimizer state, paged"):
        assert rows[category].known == "estimated"
    assert rows["weights"].known == "computed"


def test_a_full_fine_tune_is_known_whatever_the_type() -> None:
    source = meta.checkpoint(meta.build("llama"))
    source.config = {}
    ledger = wb.forecast(source, dataclasses.replace(Plan(), method="full"))
    assert {row.known for row in ledger.rows if row.category in ("gradients", "optimizer state")} == {"computed"}
