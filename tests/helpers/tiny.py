"""Tiny models of many architectures, built from transformers' configurations with random weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

LLAMA = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
_PLAIN = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
_MOE = {"num_experts": 4, "moe_intermediate_size": 64}
_VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {  # name: (model type, configuration, class; "" for causal)
    "llama": ("llama", LLAMA, ""),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}, ""),
    "qwen2": ("qwen2", {**LLAMA, "tie_word_embeddings": True}, ""),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16}, ""),
    "mistral": ("mistral", LLAMA, ""),
    "gemma": ("gemma", {**LLAMA, "head_dim": 16}, ""),
    "gemma3": ("gemma3_text", {**LLAMA, "head_dim": 16}, ""),
    "phi": ("phi", _PLAIN, ""),
    "phi3": ("phi3", {**LLAMA, "pad_token_id": 0}, ""),
    "gpt2": ("gpt2", _GPT2, ""),
    "gpt-bigcode": ("gpt_bigcode", _GPT2, ""),
    "gpt-neo": (
        "gpt_neo",
        {
            "hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 128, "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
        },
        "",
    ),
    "gpt-neox": ("gpt_neox", _PLAIN, ""),
    "opt": (
        "opt",
        {
            "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
            "max_position_embeddings": 64, "word_embed_proj_dim": 64,
        },
        "",
    ),
    "falcon": ("falcon", _PLAIN, ""),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}, ""),
    "stablelm": ("stablelm", {**LLAMA, "num_key_value_heads": 4}, ""),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128}, ""),
    "olmo-tied": ("olmo", {**LLAMA, "tie_word_embeddings": True}, ""),  # its norms are no parameters: the last is a linear's
    "ctrl": ("ctrl", {"n_embd": 64, "dff": 128, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}, ""),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8}, ""),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}, ""),
    "qwen2-moe": ("qwen2_moe", {**LLAMA, **_MOE, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1}, ""),
    "gpt-oss": ("gpt_oss", {**LLAMA, "num_local_experts": 4, "head_dim": 16}, ""),
    "qwen3-moe": ("qwen3_moe", {**LLAMA, **_MOE, "head_dim": 16}, ""),
    "hy-v3": ("hy_v3", {**LLAMA, **_MOE, "head_dim": 16, "num_experts_per_tok": 2}, ""),
    "zamba2": (
        "zamba2",
        {
            **_PLAIN, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_d_state": 16,
            "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_ngroups": 1, "num_mem_blocks": 1, "adapter_rank": 8,
        },
        "",
    ),
    "bamba": (
        "bamba",
        {
            **LLAMA, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
            "attn_layer_indices": [1],
        },
        "",
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            **LLAMA, "num_hidden_layers": 3, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8,
            "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "head_dim": 16,
        },
        "",
    ),
    "granite-moe": ("granitemoe", {**LLAMA, "num_local_experts": 4}, ""),
    "deepseek-v3": (
        "deepseek_v3",
        {
            **LLAMA, **_MOE, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16, "v_head_dim": 16,
        },
        "",
    ),
    "gemma3-vision": (
        "gemma3",
        {"text_config": {**LLAMA, "head_dim": 16}, "vision_config": {**_VISION, "vision_use_head": True}},
        "Gemma3ForConditionalGeneration",
    ),
    "clip": ("clip", {"text_config": {**_PLAIN}, "vision_config": _VISION, "projection_dim": 64}, "CLIPModel"),
    "whisper": (
        "whisper",
        {
            "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 128, "num_mel_bins": 8, "max_source_positions": 32,
            "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
        },
        "WhisperForConditionalGeneration",
    ),
    "bert": ("bert", _PLAIN, "BertForMaskedLM"),
    "distilbert": (
        "distilbert",
        {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 128, "max_position_embeddings": 64},
        "DistilBertForMaskedLM",
    ),
    "t5": (
        "t5",
        {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 128},
        "T5ForConditionalGeneration",
    ),
    "vit": (
        "vit",
        {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
            "patch_size": 16,
        },
        "ViTForImageClassification",
    ),
}  # fmt: skip


def save(folder: Path, model_type: str, config: dict[str, Any], cls: str = "", **how: Any) -> Path:
    """A random bfloat16 model as ``save_pretrained`` writes it; ``how`` goes to save_pretrained."""
    import torch
    import transformers

    quiet()
    torch.manual_seed(0)
    values = transformers.AutoConfig.for_model(model_type, **config)
    build = getattr(transformers, cls) if cls else transformers.AutoModelForCausalLM.from_config
    model = build(values).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    model.save_pretrained(folder, **how)
    return folder


def randomize(file: Path, deviation: float) -> None:
    """Draws every value of a safetensors file anew, in its dtype: norms around 1, the rest around 0."""
    import safetensors.torch
    import torch

    seeded, values = torch.Generator().manual_seed(1), safetensors.torch.load_file(file)
    for name, value in values.items():
        drawn = torch.randn(value.shape, generator=seeded) * deviation + ("norm" in name)
        values[name] = drawn.to(value.dtype)
    safetensors.torch.save_file(values, file, {"format": "pt"})


def load_4bit(folder: Path, cls: str = "", double_quant: bool = True) -> Any:
    """The model as QLoRA loads it."""
    import torch
    import transformers

    quiet()
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    auto = getattr(transformers, cls) if cls else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)


@cache
def quiet() -> None:
    """Turns transformers' progress bars and chatter off."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
