"""What cannot be evaluated is refused in words: before anything is begun, or before it is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.tiny_model import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("measured_here")


def test_what_is_missing_is_told_before_anything_is_begun(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a row"}\n')
    with pytest.raises(wb.DataError, match="held-out"):
        wb.evaluate(model, data=wb.TrainConfig(dataset=str(rows)))
    with pytest.raises(wb.FormatError, match="no format 'nf5'"):
        wb.evaluate(model, "nf5")
    with pytest.raises(wb.FormatError, match="no format to measure"):
        wb.evaluate(model, [])
    with pytest.raises(wb.ConfigError, match="dataset is"):
        wb.evaluate(model, data={})  # type: ignore[arg-type]
    assert wb.evaluate(model, data=rows).model == model.name


def test_weights_that_are_quantized_already_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "whole", "llama", {**tiny.LLAMA, "vocab_size": 512})
    tiny_tokenizer().save_pretrained(folder)
    packed = tmp_path / "packed"
    tiny.load_4bit(folder).save_pretrained(packed)
    tiny_tokenizer().save_pretrained(packed)
    with pytest.raises(wb.ModelError, match="already in 4 bits"):
        wb.evaluate(packed)


def test_a_model_without_a_class_is_refused_in_words(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "novel", "auto_map": {"AutoConfig": "code.Config"}}))
    (folder / "code.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(wb.ModelError, match="cannot load it") as refused:
        wb.evaluate(folder, max_rows=4).run()
    assert "without code of its own" in refused.value.remedy


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "huge"
    folder.mkdir()
    for path in model.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    shape = [1 << 20, 1 << 20]  # two terabytes, of which the disk holds a header
    header = {"model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 2 << 40]}}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + (2 << 40))
    with pytest.raises(wb.ModelError, match="of memory") as refused:
        wb.evaluate(folder).run()
    assert "smaller model" in refused.value.remedy
