"""How much memory measuring takes: the model in 16 bits, and a layer more."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
from tests.helpers.tiny_model import tiny_tokenizer

pytestmark = pytest.mark.slow

HIDDEN, INNER, LAYERS = 768, 3072, 7
LAYER = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
"""Bytes of a layer in 16 bits."""


def big_model(folder: Path) -> Path:
    """130 MB in 16 bits: the other things that a process holds are small beside twice of that."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=8,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        net = LlamaForCausalLM(config)
    net = net.to(torch.bfloat16).to_empty(device="cpu")
    for n, parameter in enumerate(net.parameters()):
        torch.manual_seed(n)
        torch.nn.init.normal_(parameter, std=0.02)
    net.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_memory_stays_at_the_model_in_16_bits_and_a_layer(tmp_path: Path) -> None:
    # In a process of its own: what this one took before would be counted too.
    ev = wb.evaluate(big_model(tmp_path / "big"), "nf4", max_rows=2, max_length=16).run()
    assert ev.memory is not None
    assert ev.memory.model == ev.rows[0].nbytes >= LAYERS * LAYER
    taken = ev.memory.peak - ev.memory.base
    print(f"{taken:,} over a base of {ev.memory.base:,}; the model has {ev.memory.model:,}, a layer {LAYER:,}")
    assert taken < ev.memory.model + 5 * LAYER < 1.75 * ev.memory.model
