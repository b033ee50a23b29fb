"""A Llama of the embedded model's shape, but tiny and untrained, with a tokenizer learnt from the example dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import workbench

ROWS = Path(workbench.__file__).parent / "builtin" / "data" / "train.jsonl"


def tiny_tokenizer(vocabulary: int = 512) -> Any:
    """The embedded model's kind of tokenizer, with fewer tokens."""
    from scripts.train import make_tokenizer

    return make_tokenizer([json.loads(line)["text"] for line in ROWS.read_text("utf-8").splitlines()], vocabulary)


def write_tiny_model(folder: Path) -> Path:
    """Saves model and tokenizer as transformers does; every linear's input is a multiple of 64."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
