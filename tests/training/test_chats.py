"""Chats: put into text by the template, learnt where the assistant speaks, and nothing in them is run or rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench import DataError, TrainConfig
from workbench.training import data

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LATEST_ONLY = (  # an earlier answer loses its reasoning once another turn follows
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}(thinking){% endif %}{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}{% for x in ().__class__.__bases__ %}{% endfor %}"


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE
    return made


def rows(tmp_path: Path, tokenizer: Any, *chats: Any, **fields: Any) -> data.Rows:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"chat": messages}) + "\n" for messages in chats), "utf-8")
    return data.load(TrainConfig(dataset=str(path), messages_column="chat", **fields), tokenizer)


def test_the_loss_is_on_what_the_assistant_says(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = rows(tmp_path, tokenizer, chat("one?", "two", "three?", "four")).rows
    assert tokenizer.decode(row.input_ids) == "<user>one?</s><assistant>two</s><user>three?</s><assistant>four</s>"
    assert tokenizer.decode(row.input_ids[row.loss]) == "two</s>four</s>"


def test_or_on_the_whole_chat(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = rows(tmp_path, tokenizer, chat("one?", "two"), completion_only_loss=False).rows
    assert row.loss.tolist() == [False] + [True] * (len(row.input_ids) - 1)


def test_chats_without_an_answer_or_without_turns_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    found = rows(tmp_path, tokenizer, chat("one?", "two"), chat("only a question"), [], None, chat("word " * 90, "late"))
    counts = found.counts()
    assert {name: counts[name] for name in ("total", "kept", "empty", "without_loss", "truncated")} == {
        "total": 5, "kept": 2, "empty": 2, "without_loss": 1, "truncated": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "messages", "told"),
    [
        (None, chat("a", "b"), "no chat template"),
        (LATEST_ONLY, chat("a", "b", "c", "d"), "writes a turn otherwise once others follow"),
        ("{{ raise_exception('roles must alternate') }}", chat("a", "b"), "does not take this chat .roles must alternate"),
        (TEMPLATE, "no chat at all", "it is no chat"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error_with_its_row(
    tmp_path: Path, tokenizer: Any, template: str | None, messages: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(DataError, match=told) as caught:
        rows(tmp_path, tokenizer, messages)
    assert caught.value.where.endswith("chats.jsonl, row 1")
    assert caught.value.remedy


def test_hostile_content_stays_text(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = rows(tmp_path, tokenizer, chat("hello", HOSTILE)).rows
    assert tokenizer.decode(row.input_ids[row.loss]) == HOSTILE + "</s>"


def test_a_list_is_no_text(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": chat("a", "b")}) + "\n", "utf-8")
    with pytest.raises(DataError, match="column 'text' holds no text but lists") as caught:
        data.load(TrainConfig(dataset=str(path)), tokenizer)
    assert "messages_column" in caught.value.remedy


def test_a_preview_reads_no_more_than_it_is_asked_to(tmp_path: Path) -> None:
    model, path = write_tiny_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    path.write_text('{"text": "one two"}\n' * 50 + '{"text": ""}\n' * 50 + '{"text": "' + "word " * 50_000 + '"}\n', "utf-8")
    config = TrainConfig(model=str(model), dataset=str(path), max_length=16)
    first = data.preview(config, rows=2, scan=60)
    assert (len(first.rows), first.whole, first.counts["total"], first.counts["empty"]) == (2, False, 60, 10)
    assert "".join(token for token, _ in first.rows[0]) == "<s>one two</s>"
    assert [bears for _, bears in first.rows[0]] == [False] + [True] * (len(first.rows[0]) - 1)
    everything = data.preview(config)
    assert (everything.whole, everything.counts["total"], everything.counts["truncated"]) == (True, 101, 1)
    assert everything.counts["longest"] == 16
