"""Datasets in the shapes that people have: recognised by columns and first rows, made into text, and the same in a cell."""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from tests.training.test_templates import REWRITING
from workbench import ConfigError, DataError, TrainConfig, preview
from workbench.training import data
from workbench.training.checks import faults_of
from workbench.training.recipe_rows import data_code
from workbench.training.rows.shapes import settled, shape_of

CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER, ASSISTANT = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}
MORE = [{"role": "user", "content": "three?"}, {"role": "assistant", "content": "four"}]
ASKED = "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
BELOW = "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd."
SHAPES: dict[str, tuple[list[dict[str, Any]], str, list[tuple[str, str]]]] = {
    "text": ([{"text": "one two"}, {"text": ""}], "text", [("", "one two")]),
    "prompt": ([{"prompt": "one?", "completion": " two", "n": 3}], "prompt and completion", [("one?", " two")]),
    "prompt-chats": (
        [{"prompt": [USER, ASSISTANT, MORE[0]], "completion": [MORE[1]]}], "prompt and completion, both chats",
        [(ASKED + "two<|im_end|>\n<|im_start|>user\nthree?<|im_end|>\n<|im_start|>assistant\n", "four<|im_end|>\n")],
    ),
    "messages": ([{"messages": [USER, ASSISTANT]}], "chat messages", [(ASKED, "two<|im_end|>\n")]),
    "sharegpt": (
        [
            {"conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}], "system": ""},
            {"conversations": [{"from": "user", "value": "one?"}, {"from": "chatgpt", "value": "two"}], "system": "Be kind."},
        ],
        "ShareGPT conversations",
        [(ASKED, "two<|im_end|>\n"), ("<|im_start|>system\nBe kind.<|im_end|>\n" + ASKED, "two<|im_end|>\n")],
    ),
    "alpaca": (
        [
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "ready-made"},
            {"instruction": "Add.", "input": "", "output": "nothing", "text": "ready-made"},
        ],
        "Alpaca instructions",
        [
            (
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                f"{BELOW}\n\n### Input:\n1 2\n\n### Response:\n", "3",
            ),
            (f"Below is an instruction that describes a task. {BELOW}\n\n### Response:\n", "nothing"),
        ],
    ),
    "preference": (
        [
            {"prompt": "one?", "chosen": " two", "rejected": " three"},
            {"prompt": "", "chosen": "Q: one? A: The cat", "rejected": "Q: one? A: The car"},
            {"prompt": "one?", "chosen": "one? two", "rejected": "one? three"},
        ],
        "preference pairs (chosen is learnt)",
        [("one?", " two"), ("Q: one? A: The", " cat"), ("one?", " two")],
    ),
    "preference-chats": (
        [{"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "five"}]}],
        "preference pairs of chats (chosen is learnt)", [(ASKED, "two<|im_end|>\n")],
    ),
}  # fmt: skip
"""Of each shape some rows, how it is called, and what of each row that is learnt from is given and learnt."""


@functools.cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


def tokenizer(template: str = CHATML) -> Any:
    made = copy.deepcopy(_tokenizer())
    made.chat_template = template
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as a file of the kind that its name says."""
    inner = path.with_suffix("") if path.suffix == ".gz" else path
    match inner.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".arrow":
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        case ".csv":
            import pandas

            pandas.DataFrame(rows).to_csv(path, index=False)
        case kind:
            text = json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows))
            path.write_bytes(gzip.compress(text.encode()) if inner != path else text.encode())
    return str(path)


def read(config: TrainConfig, template: str = CHATML) -> list[tuple[str, str]]:
    """What is given and what is learnt of each row."""
    made = tokenizer(template)
    found = []
    for row in data.load(config, made).rows:
        texts = [made.decode(row.input_ids[bears]) for bears in (~row.loss, row.loss)]
        found.append((texts[0].removeprefix(made.bos_token), texts[1].removesuffix(made.eos_token)))
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_recognised_and_said(shape: str, tmp_path: Path) -> None:
    rows, title, right = SHAPES[shape]
    config = TrainConfig(dataset=write(tmp_path / "rows.jsonl", rows))
    found = shape_of(config, data.training_files(config))
    assert (found.kind, found.title) == (shape, title)
    assert read(config) == right
    kept = settled(config, found)
    assert kept.shape == shape
    assert kept == TrainConfig.from_dict(kept.to_dict())
    assert read(kept) == right, "and once it is written down"
    assert read(TrainConfig(dataset=config.dataset, row_shape=shape)) == right, "and where it is set"


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "parquet", "arrow"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cell_makes_the_same_tokens_of_every_shape_and_kind_of_file(shape: str, ending: str, tmp_path: Path) -> None:
    rows, _, right = SHAPES[shape]
    config = TrainConfig(dataset=write(tmp_path / f"rows.{ending}", rows))
    assert read(config) == right
    assert cell_rows(config, tokenizer()) == run_rows(config, tokenizer())


@pytest.mark.parametrize("shape", ["text", "prompt", "alpaca", "preference"])
def test_a_table_of_text_gives_the_same(shape: str, tmp_path: Path) -> None:
    rows, _, right = SHAPES[shape]
    config = TrainConfig(dataset=write(tmp_path / "rows.csv", rows))
    assert read(config) == right
    assert cell_rows(config, tokenizer()) == run_rows(config, tokenizer())


def run_rows(config: TrainConfig, made: Any) -> list[dict[str, list[int]]]:
    rows = data.load(config, made, limit=config.max_train_rows or None).rows
    return [
        {
            "input_ids": row.input_ids.tolist(),
            "labels": [token if bears else -100 for token, bears in zip(row.input_ids.tolist(), row.loss, strict=True)],
        }
        for row in rows
    ]


def cell_rows(config: TrainConfig, made: Any) -> Any:
    """``rows`` as the cell makes them, with a tokenizer of the test's."""
    files = data.training_files(config)
    code = data_code(config, files, shape_of(config, files))
    start = "import json, re\nfrom collections.abc import Callable\nfrom typing import Any\nfrom datasets import load_dataset\n"
    cell: dict[str, Any] = {"MODEL": "", "AutoTokenizer": type("", (), {"from_pretrained": staticmethod(lambda _: made)})}
    exec(compile(start + code, "cell", "exec"), cell)
    return cell["rows"]


@pytest.mark.parametrize("fields", [{}, {"thoughts": "drop"}, {"completion_only_loss": False}], ids=str)
@pytest.mark.parametrize("family", REWRITING)
def test_a_cell_makes_the_same_rows_of_turns_that_a_template_rewrites(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    thinking = {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"}
    calls = [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    called = [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "7"}]
    chats = [[USER, thinking, *MORE], [USER, ASSISTANT, *MORE], [ASSISTANT], [USER, *called, thinking], [], [USER]]
    config = TrainConfig(dataset=write(tmp_path / "rows.jsonl", [{"messages": messages} for messages in chats]), **fields)
    made = tokenizer(REWRITING[family].replace("{% generation %}", "").replace("{% endgeneration %}", ""))
    assert cell_rows(config, made) == run_rows(config, made)


def test_columns_go_into_a_template_of_the_users_own(tmp_path: Path) -> None:
    rows = [{"question": "one {x}?", "context": "here", "answer": "two"}, {"question": None, "context": "", "answer": None}]
    config = TrainConfig(dataset=write(tmp_path / "rows.jsonl", rows), prompt_template="{context} {{so}}: {question}\nAnswer: ")
    assert read(config) == [("here {so}: one {x}?\nAnswer:", " two")], "a token is learnt if any of its characters is"
    assert read(TrainConfig(dataset=config.dataset, prompt_template="{context}", completion_column="question")) == [
        ("here", "one {x}?")
    ]
    assert cell_rows(config, tokenizer()) == run_rows(config, tokenizer())
    with pytest.raises(DataError, match="no column 'topic'"):
        data.check(TrainConfig(dataset=config.dataset, prompt_template="{topic}"))


@pytest.mark.parametrize(
    "template",
    ["{q.__class__}", "{q[0]}", "{q!r}", "{q:>99999999999}", "{q:{w}}", "{0}", "{}", "no column", "{q", "}", "{q.a!s:{b}}"],
)
def test_a_template_is_refused_that_asks_for_more_than_columns(template: str) -> None:
    with pytest.raises(ConfigError, match="prompt_template"):
        TrainConfig(dataset="rows.csv", prompt_template=template)


def test_a_shape_that_is_not_recognised_is_refused_with_what_to_set(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "one?", "answer": "two", "id": 7}])
    with pytest.raises(DataError, match="not recognised by the columns 'question', 'answer', 'id'") as caught:
        data.check(TrainConfig(dataset=path))
    assert "prompt_template, as 'Question: {question}\\nAnswer: ', which 'answer' completes" in caught.value.remedy


def test_fields_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(dataset="a.csv", row_shape="alpaca", text_column="t", prompt_template="{a}")
    (fault,) = caught.value.faults
    assert fault == 'text_column, prompt_template: rows of the row_shape "alpaca" have no such column.'
    with pytest.raises(ConfigError, match="row_shape is 'alpacas'; it must be one of"):
        TrainConfig(row_shape="alpacas")
    assert TrainConfig(dataset="a.csv", row_shape="text", text_column="t") == TrainConfig(dataset="a.csv", text_column="t")
    assert not faults_of(TrainConfig(dataset="a.csv", row_shape="sharegpt", messages_column="c"))


def test_a_run_of_before_shapes_were_recognised_learns_the_text_that_it_did() -> None:
    old = TrainConfig(dataset="rows.jsonl").to_dict()
    for name in ("row_shape", "prompt_template", "thoughts"):
        del old[name]
    assert TrainConfig.from_dict(old) == TrainConfig(dataset="rows.jsonl", text_column="text")
    assert TrainConfig.from_dict(old | {"dataset": "builtin"}) == TrainConfig()
    assert TrainConfig.from_dict(old | {"messages_column": "m"}).text_column is None


def test_tools_and_their_calls_reach_the_template(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    turns = [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "name": "f", "content": "7"}, ASSISTANT]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for value in (tools, json.dumps(tools)):
        config = TrainConfig(dataset=write(tmp_path / "rows.jsonl", [{"messages": turns, "tools": value}]))
        template = CHATML.replace("{{ m.content }}", "{{ m.content or '' }}")
        made = tokenizer(template)
        (row,) = data.load(config, made).rows
        text = made.decode(row.input_ids)
        assert '"arguments": {"city": "Oslo"}' in text, "as an object, as transformers documents it"
        assert '"parameters": {}' in text
        assert cell_rows(config, made) == run_rows(config, made)


def test_sharegpts_tools_and_unknown_speakers(tmp_path: Path) -> None:
    spoken = [
        {"from": "human", "value": "one?"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "7"}, {"from": "Bot", "value": "two"},
    ]  # fmt: skip
    config = TrainConfig(dataset=write(tmp_path / "rows.jsonl", [{"conversations": spoken}, {"conversations": spoken[:1]}]))
    ((given, learnt),) = read(config)
    assert "tool\n7" in given
    assert '"arguments": {"a": 1}' in learnt
    assert learnt.endswith("two<|im_end|>\n")
    odd = [{"conversations": spoken}, {"conversations": [{"from": "narrator", "value": "x"}]}]
    found = data.load(TrainConfig(dataset=write(tmp_path / "odd.jsonl", odd)), tokenizer())
    assert (len(found.rows), found.refused) == (1, 1)
    assert "'narrator'" in str(found.refusal)


def test_a_developers_turn_is_the_systems_where_the_template_has_none_and_a_lost_turn_is_refused(tmp_path: Path) -> None:
    known = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role in ('system', 'user', 'assistant') %}")
    rows = [
        {"messages": [{"role": "developer", "content": "Be brief."}, USER, ASSISTANT]},
        {"messages": [USER, {"role": "tool", "content": "7"}, ASSISTANT]},
    ]  # fmt: skip
    found = data.load(TrainConfig(dataset=write(tmp_path / "rows.jsonl", rows)), made := tokenizer(known))
    (row,) = found.rows
    assert made.decode(row.input_ids).startswith("<|im_start|>system\nBe brief.")
    assert "writes nothing for the role 'tool'" in str(found.refusal)


def test_a_preview_says_the_shape_and_how_long_rows_are(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    rows = [{"prompt": "one?", "completion": " two" * n} for n in (1, 3, 40)]
    config = TrainConfig(model=str(model), dataset=write(tmp_path / "rows.jsonl", rows), max_length=32)
    seen = preview(config)
    counts, edges = seen.histogram(4)
    assert (seen.shape, seen.recognised, len(seen.lengths), round(seen.cut, 2)) == ("prompt and completion", True, 3, 0.33)
    assert (sum(counts), counts[0], counts[-1]) == (3, 2, 1)
    assert edges[-1] == max(seen.lengths) > 32
    for shown in (repr(seen), seen._repr_html_()):
        assert "prompt and completion, recognised" in shown
        assert "33.3 % of rows are longer than max_length, 32 tokens" in shown
    assert not preview(TrainConfig(model=str(model), dataset=config.dataset, row_shape="prompt")).recognised


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has a chat template."""
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny-chat"))
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shape", [*SHAPES, "template"])
def test_a_preview_shows_every_shape_with_what_is_learnt_of_it(shape: str, chatting: Path, tmp_path: Path) -> None:
    of_one_s_own = ([{"q": "one?", "a": " two"}], "columns by a template", [("Q: one?", " two")])
    rows, title, right = SHAPES.get(shape, of_one_s_own)
    own = {"prompt_template": "Q: {q}", "completion_column": "a"} if shape == "template" else {}
    config = TrainConfig(model=str(chatting), dataset=write(tmp_path / "rows.jsonl", rows), **own)
    seen = preview(config)
    assert seen.shape == title
    assert (seen.counts["total"], seen.counts["kept"], seen.whole) == (len(rows), len(right), True)
    made = tokenizer()
    for row, (given_text, learnt) in zip(seen.rows, right, strict=True):
        texts = ["".join(text for text, bears in row if bears is wanted) for wanted in (False, True)]
        assert texts[0].removeprefix(made.bos_token) == given_text
        assert texts[1].removesuffix(made.eos_token) == learnt
    assert title.split(" (")[0] in seen._repr_html_()


def test_blank_lines_before_a_tables_header_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("\n\ntext,n\n\none two,1\n")
    config = TrainConfig(dataset=str(tmp_path / "rows.csv"))
    assert read(config) == [("", "one two")]
    assert cell_rows(config, tokenizer()) == run_rows(config, tokenizer())


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "txt"])
def test_the_first_rows_alone_are_learnt_where_that_is_asked(ending: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(9)]
    path = tmp_path / f"rows.{ending}"
    if ending == "txt":
        path.write_text("\n".join(row["text"] for row in rows))
    else:
        write(path, rows)
    config = TrainConfig(dataset=str(path), max_train_rows=4)
    made = cell_rows(config, tokenizer())
    assert made == run_rows(config, tokenizer())
    assert len(made) == 4


WORDS = some.text(max_size=3) | some.sampled_from(["user", "assistant", "gpt", "function_call"])
KEYS = some.sampled_from(["role", "content", "from", "value", "tool_calls", "thinking", "x"])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers(-9, 9) | WORDS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("shape", ["messages", "sharegpt", "prompt-chats", "preference-chats"])
@given(odd=some.tuples(JSON, JSON, JSON))
def test_whatever_a_row_holds_it_is_learnt_counted_or_refused(
    shape: str, odd: tuple[Any, Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    good, _, _ = SHAPES[shape]
    row = dict(zip([*(name for name in good[0] if name != "system"), "prompt", "tools", "system"], [*odd, *odd], strict=False))
    path = tmp_path_factory.getbasetemp() / f"{shape}.jsonl"
    write(path, [good[0], row])
    with contextlib.suppress(DataError):
        rows = data.load(TrainConfig(dataset=str(path), row_shape=shape), _chatml())
        assert (rows.total, len(rows.rows) + rows.empty + rows.refused + rows.without_loss) == (2, 2)


@functools.cache
def _chatml() -> Any:
    return tokenizer()
