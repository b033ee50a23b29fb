"""A tokenizer's ids against the embedding's rows: from the files at launch, and row by row once the model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench.training.rows.tokens import Rows, tokenize
from workbench.training.vocabulary import vocabulary_fault


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def with_tokenizer(model: Path, folder: Path, change: Any = lambda tokenizer: None) -> wb.sources.Source:
    shutil.copytree(model, folder)
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return wb.open_model(folder)


def test_a_padding_token_that_was_added_without_a_row_is_told(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = with_tokenizer(model, tmp_path / "pad", lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<PAD>"}))
    told = vocabulary_fault(source)
    assert told is not None
    assert "'<PAD>', has id 512, and the model's embedding has 512 rows" in told
    with pytest.raises(IndexError):  # what it came to
        AutoModelForCausalLM.from_pretrained(model)(torch.tensor([[5, 512]]))


def test_a_tokenizer_of_another_model_and_an_id_of_the_configuration_are_told(model: Path, tmp_path: Path) -> None:
    source = with_tokenizer(model, tmp_path / "other")
    tiny_tokenizer(600).save_pretrained(tmp_path / "other")
    assert "tokens up to id 599" in (vocabulary_fault(source) or "")
    config = json.loads((tmp_path / "other" / "config.json").read_text("utf-8")) | {"pad_token_id": 512}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config), "utf-8")
    assert "pad_token_id is 512" in (vocabulary_fault(wb.open_model(tmp_path / "other")) or "")


def test_tokens_of_a_chat_template_need_a_row_where_chats_are_learnt(model: Path, tmp_path: Path) -> None:
    def change(tokenizer: Any) -> None:
        tokenizer.add_tokens(["<|im_start|>"])
        tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"

    source = with_tokenizer(model, tmp_path / "chat", change)
    assert "'<|im_start|>'" in (vocabulary_fault(source, chats=True) or "")
    assert vocabulary_fault(source) is None


def test_a_padded_vocabulary_and_a_token_that_no_row_has_are_fine(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.training.loaded_checks import check_ids
    from workbench.training.rows.tokens import Text

    assert vocabulary_fault(wb.open_model("builtin")) is None
    source = with_tokenizer(model, tmp_path / "image", lambda tokenizer: tokenizer.add_tokens(["<image>"]))
    assert vocabulary_fault(source) is None
    net, tokenizer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])

    def rows(*texts: str) -> Rows:
        return tokenize([(Text(text, ((0, len(text)),)),) for text in texts], tokenizer, 32)

    check_ids(net, tokenizer, rows("a lawyer", "a judge").rows, 2, "here")
    with pytest.raises(wb.DataError, match=r"'<image>' in row 2 .* has id 512"):
        check_ids(net, tokenizer, rows("a lawyer", "a <image>").rows, 2, "here")
    with pytest.raises(wb.DataError, match="padding"):
        check_ids(net, tokenizer, rows("a lawyer").rows, 512, "here")
