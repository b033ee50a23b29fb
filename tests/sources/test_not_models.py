"""Folders that are no model, or none yet: each says what it is and what to do. And one that is a model all the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors

import workbench as wb
from tests.helpers.tiny_model import write_tiny_model

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 16069\n"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    names = wb.open_model(folder).tensors()
    index = {"weight_map": {info.name: "a.safetensors" for info in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "a.safetensors", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs_is_named_with_its_remedy(model: Path, file: str) -> None:
    if not (model / file).exists():
        sharded(model)
    (model / file).write_bytes(POINTER)
    with pytest.raises(wb.ModelError, match="Git LFS") as caught:
        wb.open_model(model)
    assert "git lfs pull" in caught.value.remedy
    assert caught.value.where == str(model / file)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_so_is_one_in_the_place_of_a_tokenizer_before_a_run_is_begun(model: Path, tmp_path: Path, file: str) -> None:
    (model / file).write_bytes(POINTER)
    with pytest.raises(wb.ModelError, match="Git LFS") as caught:
        wb.launch(wb.TrainConfig(model=str(model)), tmp_path / "run")
    assert caught.value.where == str(model / file)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("base", ["owner/base", None])
def test_an_adapter_is_told_what_it_is_and_of_which_model(tmp_path: Path, base: str | None, safe: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), LoraConfig(target_modules=["0"]))  # type: ignore[arg-type]
    net.peft_config["default"].base_model_name_or_path = base
    net.save_pretrained(str(tmp_path / "adapter"))
    if not safe:
        (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(wb.ModelError, match=r"adapter \('LORA'\)") as caught:
        wb.open_model(tmp_path / "adapter")
    assert ("owner/base" in caught.value.what) is (base is not None)
    assert "merge_and_unload" in caught.value.remedy


def test_a_model_with_an_adapter_beside_it_is_opened(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert wb.open_model(model).tensors()


def test_no_metadata_may_be_written_as_null(tmp_path: Path) -> None:
    """As the format's own library reads it."""
    text = json.dumps({"__metadata__": None, "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())
    np.testing.assert_array_equal(wb.open_model(tmp_path).read("a.weight"), values)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() is None
        np.testing.assert_array_equal(file.get_tensor("a.weight"), values)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html></html>", b"# xet version 0\nfilesize = 10\n", b"/annex/objects/SHA256E-s1--a"]
)
def test_a_text_in_the_place_of_weights_is_no_header_of_quintillions_of_bytes(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(wb.ModelError, match="begins with") as caught:
        wb.open_model(model)
    assert content[:8].decode() in caught.value.what
    assert "header of" not in caught.value.what
