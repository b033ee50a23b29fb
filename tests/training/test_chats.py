"""Chats: put into text by the template, learnt where the assistant speaks, and nothing in them is run or rendered."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from widgets.panels.train.preview import counts_summary
from workbench import DataError, TrainConfig
from workbench.training import data
from workbench.training.previews import preview
from workbench.training.rows.tokens import Rows, TokenRow

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALTERNATING = (  # as Gemma's and Mistral's do
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS = (  # of a model that sees: content is a list
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
EITHER = PARTS.replace("{% for part in", "{% if m.content is string %}{{ m.content }}{% else %}{% for part in").replace(
    "{% endfor %}</s>", "{% endfor %}{% endif %}</s>"
)
THINKING = (  # what Qwen3's does with thoughts: only those after the last question stay, and none is written as an empty one
    "{% set last = namespace(question=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{% set content = m.content %}{% set thought = '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > last.question %}"
    "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TOOLS = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}")
HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}{% for x in ().__class__.__bases__ %}{% endfor %}"


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE
    return made


def with_template(template: str) -> Any:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def text_of(row: TokenRow, tokenizer: Any, learnt: bool = False) -> str:
    return str(tokenizer.decode(row.input_ids[row.loss] if learnt else row.input_ids))


def rows(tmp_path: Path, tokenizer: Any, *chats: Any, **fields: Any) -> Rows:
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


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"role": "assistant", "content": "welcome"},
            {"role": "user", "content": "one?"},
            {"role": "assistant", "content": "two"},
        ],
        [{"role": "assistant", "content": "welcome <assistant> to all"}],
        [
            {"role": "system", "content": "be kind"},
            {"role": "assistant", "content": "welcome"},
            {"role": "user", "content": "a"},
        ],
        chat("one?", "two", "three?", "four"),
    ],
    ids=["before a question", "alone", "after a system's turn", "after a question"],
)
def test_the_loss_is_where_transformers_marks_the_assistants_words(messages: Any, tmp_path: Path, tokenizer: Any) -> None:
    (row,) = rows(tmp_path, tokenizer, messages).rows
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% else %}<{{ m.role }}>{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    right = tokenizer.apply_chat_template(
        messages, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    assert row.input_ids.tolist() == right["input_ids"]
    assert row.loss.tolist() == [bool(bears) for bears in right["assistant_masks"]]


@pytest.mark.parametrize("template", [TEMPLATE, PARTS, EITHER], ids=["text", "parts", "either"])
def test_content_in_parts_is_its_text_under_every_template(template: str, tmp_path: Path) -> None:
    tokenizer = with_template(template)
    plain = chat("one two?", "three", "four?", "five")
    parted: list[Any] = [dict(message, content=[{"type": "text", "text": message["content"]}]) for message in plain]
    parted[0]["content"] = [{"type": "text", "text": "one "}, {"type": "text", "text": "two?"}]
    found = rows(tmp_path, tokenizer, plain, parted, [plain[0], *parted[1:]]).rows
    right = with_template(TEMPLATE).apply_chat_template(plain, tokenize=False)
    assert [text_of(row, tokenizer) for row in found] == [right] * 3
    assert [text_of(row, tokenizer, learnt=True) for row in found] == ["three</s>five</s>"] * 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image", "url": "a.png"}], "'image'"),
        ([{"type": "text"}], "'text'"),
        (["a"], "'str'"),
        ({"text": "a"}, "no text but"),
        (True, "no text but True"),
    ],
)
def test_content_that_is_no_text_is_refused_by_row(content: Any, told: str, tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=told) as caught:
        rows(tmp_path, tokenizer, chat("a", "b"), [{"role": "user", "content": content}, *chat("a", "b")[1:]])
    assert caught.value.where.endswith("row 2")


def test_chats_that_the_template_refuses_are_counted_with_the_reason(tmp_path: Path) -> None:
    tokenizer = with_template(ALTERNATING)
    welcome = [{"role": "assistant", "content": "welcome"}, *chat("one?", "two")]
    found = rows(tmp_path, tokenizer, chat("one?", "two"), welcome, [], chat("three?", "four"), welcome)
    assert {name: found.counts()[name] for name in ("total", "kept", "empty", "refused")} == {
        "total": 5, "kept": 2, "empty": 1, "refused": 2,
    }  # fmt: skip
    assert found.refusal is not None
    assert found.refusal.where.endswith("row 2")
    assert "roles must alternate" in found.refusal.what
    with pytest.raises(DataError, match="roles must alternate"):
        rows(tmp_path, tokenizer, welcome)


def test_a_preview_says_what_the_template_refuses(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    with_template(ALTERNATING).save_pretrained(model)
    path = tmp_path / "chats.jsonl"
    chats = [chat("one?", "two"), [{"role": "assistant", "content": "welcome"}]]
    path.write_text("".join(json.dumps({"chat": messages}) + "\n" for messages in chats), "utf-8")
    config = TrainConfig(model=str(model), dataset=str(path), messages_column="chat")
    shown = counts_summary(preview(config), config)
    assert "1 refused by the chat template" in shown
    assert "row 2" in shown
    assert "roles must alternate" in shown


def test_an_empty_thought_that_the_template_adds_is_not_learnt(tmp_path: Path) -> None:
    tokenizer = with_template(THINKING)
    thought = "<think>\nhm\n</think>\n\n"
    plain, thinking, unthinking = rows(
        tmp_path, tokenizer, chat("one?", "two"), chat("one?", f"{thought}two"), chat("one?", "<think>\n\n</think>\n\ntwo")
    ).rows
    without = tokenizer.apply_chat_template(
        chat("one?"), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )  # what transformers puts before an answer without a thought
    assert text_of(plain, tokenizer) == without + "two</s>"
    assert text_of(plain, tokenizer, learnt=True) == "two</s>"
    assert text_of(thinking, tokenizer, learnt=True) == f"{thought}two</s>"
    assert text_of(unthinking, tokenizer) == text_of(plain, tokenizer)
    assert text_of(unthinking, tokenizer, learnt=True) == "two</s>", "nor one that stands in the file"


def test_a_turn_that_the_template_rewrites_later_is_a_row_of_its_own(tmp_path: Path) -> None:
    tokenizer = with_template(THINKING)
    found = rows(tmp_path, tokenizer, chat("one?", "two", "three?", "<think>\nhm\n</think>\n\nfour"))
    first, last = found.rows
    assert (found.total, found.single_turns) == (1, 1)
    assert text_of(first, tokenizer) == "<user>one?</s><assistant><think>\n\n</think>\n\ntwo</s>"
    assert text_of(first, tokenizer, learnt=True) == "two</s>"
    history = "<user>one?</s><assistant>two</s><user>three?</s><assistant>"
    assert text_of(last, tokenizer) == history + "<think>\nhm\n</think>\n\nfour</s>"
    assert text_of(last, tokenizer, learnt=True) == "<think>\nhm\n</think>\n\nfour</s>"


def test_a_whole_chat_is_learnt_but_for_an_empty_thought(tmp_path: Path) -> None:
    tokenizer = with_template(THINKING)
    several = chat("one?", "two", "three?", "four")
    (row,) = rows(tmp_path, tokenizer, several, completion_only_loss=False).rows
    assert text_of(row, tokenizer) == tokenizer.apply_chat_template(several, tokenize=False)
    assert "<think>" not in text_of(row, tokenizer, learnt=True)
    assert text_of(row, tokenizer, learnt=True).endswith("<assistant>four</s>")


def test_nulls_that_a_columnar_file_adds_are_not_learnt_and_those_of_the_author_are(tmp_path: Path) -> None:
    tokenizer = with_template(TOOLS)
    calls: list[dict[str, Any]] = [{"city": "Oslo"}, {"days": 3, "at": {"hour": 7}}]
    chats = [
        [*chat("how?"), {"role": "assistant", "content": "so", "tool_calls": [{"name": "f", "arguments": call}]}]
        for call in calls
    ]
    right = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in chats]
    arguments = pa.struct({"city": pa.string(), "days": pa.int64(), "at": pa.struct({"hour": pa.int64()})})
    called = pa.list_(pa.struct({"name": pa.string(), "arguments": arguments}))
    message = pa.struct({"role": pa.string(), "content": pa.string(), "tool_calls": called})
    table = pa.table({"chat": pa.array(chats, pa.list_(message))})
    pq.write_table(table, tmp_path / "chats.parquet")
    found = data.load(TrainConfig(dataset=str(tmp_path / "chats.parquet"), messages_column="chat"), tokenizer).rows
    assert [text_of(row, tokenizer) for row in found] == right
    calls[0]["unit"] = None
    (own,) = rows(tmp_path, tokenizer, chats[0]).rows
    assert '"unit": null' in text_of(own, tokenizer)


@pytest.mark.parametrize("content", ["2019-05-03", "2019-05-03T10:00:00+02:00", "18", "18.0", "1e3", "0.10"])
def test_a_chats_content_is_what_stands_in_the_file(content: str, tmp_path: Path, tokenizer: Any) -> None:
    written = content if content[:2] in ("18", "1e", "0.") else json.dumps(content)
    path = tmp_path / "chats.jsonl"
    path.write_text(f'{{"chat": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": {written}}}]}}\n')
    (row,) = data.load(TrainConfig(dataset=str(path), messages_column="chat"), tokenizer).rows
    assert text_of(row, tokenizer, learnt=True) == content + "</s>"


def test_what_a_chat_cannot_hold_is_refused_by_row(tmp_path: Path, tokenizer: Any) -> None:
    chats = [{"chat": [{"role": "user", "content": "a", "at": datetime.date(2019, 5, 3)}]}]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "chats.parquet")
    with pytest.raises(DataError, match="holds a date") as caught:
        data.load(TrainConfig(dataset=str(tmp_path / "chats.parquet"), messages_column="chat"), tokenizer)
    assert caught.value.where.endswith("row 1")


def test_half_a_character_is_refused_by_row(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(DataError, match="encoded") as caught:
        data.load(TrainConfig(dataset=str(path)), tokenizer)
    assert caught.value.where.endswith("row 2")


def test_hostile_content_stays_text(tmp_path: Path, tokenizer: Any) -> None:
    (row,) = rows(tmp_path, tokenizer, chat("hello", HOSTILE)).rows
    assert tokenizer.decode(row.input_ids[row.loss]) == HOSTILE + "</s>"


def test_a_list_is_no_text(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": chat("a", "b")}) + "\n", "utf-8")
    with pytest.raises(DataError, match="column 'text' holds no text but lists") as caught:
        data.load(TrainConfig(dataset=str(path), text_column="text"), tokenizer)
    assert "messages_column" in caught.value.remedy


def test_a_preview_reads_no_more_than_it_is_asked_to(tmp_path: Path) -> None:
    model, path = write_tiny_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    path.write_text('{"text": "one two"}\n' * 50 + '{"text": ""}\n' * 50 + '{"text": "' + "word " * 50_000 + '"}\n', "utf-8")
    config = TrainConfig(model=str(model), dataset=str(path), max_length=16)
    first = preview(config, rows=2, scan=60)
    assert (len(first.rows), first.whole, first.counts["total"], first.counts["empty"]) == (2, False, 60, 10)
    assert "".join(token for token, _ in first.rows[0]) == "<s>one two</s>"
    assert [bears for _, bears in first.rows[0]] == [False] + [True] * (len(first.rows[0]) - 1)
    everything = preview(config)
    assert (everything.whole, everything.counts["total"], everything.counts["truncated"]) == (True, 101, 1)
    assert everything.counts["longest"] == 16
