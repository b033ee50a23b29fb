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
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8}, ""),
    "mixtral": ("mixtral", {**LLAMA, "num_local_experts": 4}, ""),
    "qwen2-moe": ("qwen2_moe", {**LLAMA, **_MOE, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1}, ""),
    "gpt-oss": ("gpt_oss", {**LLAMA, "num_local_experts": 4, "head_dim": 16}, ""),
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
