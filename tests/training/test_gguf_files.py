"""GGUF files of one's own and of others, and the models that are not written as one: nothing here runs llama.cpp."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.needed import needed_gguf
from workbench.training.results.gguf_files import Read, Tensor, Writer, encoded
from workbench.training.results.gguf_layouts import Layout

needed_gguf()

SHAPE = {**tiny.LLAMA, "num_hidden_layers": 4, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "config", "told"),
    [
        ("gemma", {}, "the architecture 'gemma' is not one of llama, mistral"),
        ("gpt2", {}, "the architecture 'gpt2'"),
        ("mixtral", {}, "the architecture 'mixtral'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "scaled by 'yarn'"),
        ("qwen2", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 32}}, "was not tried for qwen2"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "every fourth layer"),
        ("llama", {"hidden_act": "gelu"}, "its MLPs use 'gelu'"),
    ],
)
def test_models_that_were_not_tried_are_refused_by_name(model_type: str, config: dict[str, Any], told: str) -> None:
    with pytest.raises(wb.ModelError, match=told) as caught:
        Layout({"model_type": model_type, **SHAPE, **config}, "a model").keys()
    assert "convert_hf_to_gguf.py" in caught.value.remedy
    with pytest.raises(wb.ModelError, match="no name for vision"):
        Layout({"model_type": "llama", **SHAPE}, "a model").name("vision.patch.weight")


def test_a_window_that_llama_cpp_leaves_out_is_said() -> None:
    (note,) = Layout({"model_type": "mistral", **SHAPE, "sliding_window": 64}, "a model").notes()
    assert "sliding window of 64 tokens" in note
    assert Layout({"model_type": "qwen2", **SHAPE, "sliding_window": 64}, "a model").notes() == []  # it has one and uses none


def test_a_file_is_read_as_it_was_written_and_a_damaged_one_is_said_to_be_one_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    tensors = [Tensor("a.weight", (64, 32), "Q8_0"), Tensor("b.weight", (32,), "F32")]
    keys = {"a.number": 7, "a.text": "text", "a.truth": True, "tokenizer.ggml.tokens": ["é"] * 1_000, "a.types": [1, 2, 3]}
    writer = Writer(tmp_path / "whole.gguf", "llama", keys, tensors)
    values = [np.random.default_rng(0).standard_normal(tensor.shape).astype(np.float32) for tensor in tensors]
    for tensor, value in zip(tensors, values, strict=True):
        writer.write(encoded(value, tensor.kind))
    writer.close()
    there = Read(tmp_path / "whole.gguf")
    assert {name: there.value(name) for name in keys} == keys
    assert np.abs(there.read("a.weight") - values[0]).max() < np.abs(values[0]).max() / 200
    np.testing.assert_array_equal(there.read("b.weight"), values[1])
    whole = (tmp_path / "whole.gguf").read_bytes()
    key = struct.pack("<Q", 1) + b"k"
    lists = [key + struct.pack("<IIQ", 9, kind, 1 << 60) for kind in (0, 8, 9)]
    damaged = [
        b"", b"zip", b"GGUF" + b"\xff" * 40, whole[:20], whole[:1_000], whole[:5_000], whole[:-64],
        *(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + each for each in lists),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
    ]  # fmt: skip
    for n, content in enumerate(damaged):
        (tmp_path / f"{n}.gguf").write_bytes(content)
        with pytest.raises(wb.ModelError, match="no whole GGUF file") as caught:
            Read(tmp_path / f"{n}.gguf")
        assert caught.value.remedy
