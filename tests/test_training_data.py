"""Datasets: found and checked without being loaded, tokenized with a loss mask, counted row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download

from tests.hub_server import HubServer
from tests.hubs import single, weights
from tests.tiny_model import tiny_tokenizer
from workbench import DataError, ModelError, TrainConfig
from workbench.training import data


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_the_loss_is_on_completions_only(tokenizer: Any) -> None:
    rows = data.load(TrainConfig(), tokenizer, limit=3).rows
    first = rows[0]
    assert tokenizer.decode(first.input_ids[: first.loss_from]) == "<s>abasement, n."
    learnt = tokenizer.decode(first.input_ids[first.loss_from :])
    assert learnt.startswith(" A decent and customary mental attitude")
    assert learnt.endswith("</s>")


def test_a_text_column_is_learnt_whole(tokenizer: Any) -> None:
    row = data.load(TrainConfig(text_column="text"), tokenizer, limit=1).rows[0]
    assert row.loss_from == 0


def test_rows_that_cannot_be_learnt_from_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    long = "a long prompt that goes on and on and on and on and on and on and on"
    name = write(
        tmp_path / "rows.jsonl",
        {"q": "two", "a": " three"},
        {"q": "", "a": None},
        {"q": long, "a": " never reached"},
        {"q": "one", "a": " " + long},
        {"q": "no answer", "a": ""},
    )
    config = TrainConfig(dataset=name, prompt_column="q", completion_column="a", max_length=16)
    rows = data.load(config, tokenizer)
    counts = rows.counts()
    assert {k: counts[k] for k in ("total", "kept", "empty", "truncated", "without_loss", "longest")} == {
        "total": 5, "kept": 2, "empty": 1, "truncated": 2, "without_loss": 2, "longest": 16,
    }  # fmt: skip
    assert counts["loss_tokens"] == sum(len(r.input_ids) - r.loss_from for r in rows.rows)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "txt"])
def test_every_kind_of_file_gives_the_same_rows(ending: str, tokenizer: Any, tmp_path: Path) -> None:
    import pandas

    path = tmp_path / f"rows.{ending}"
    table = pandas.DataFrame({"text": ["the first row", "the second row"]})
    match ending:
        case "jsonl":
            table.to_json(path, orient="records", lines=True)
        case "json":
            table.to_json(path, orient="records")
        case "csv":
            table.to_csv(path, index=False)
        case "parquet":
            table.to_parquet(path)
        case "txt":
            path.write_text("the first row\nthe second row\n", "utf-8")
    config = TrainConfig(dataset=str(path))
    data.check(config)
    rows = data.load(config, tokenizer).rows
    assert [tokenizer.decode(r.input_ids) for r in rows] == ["<s>the first row</s>", "<s>the second row</s>"]


def test_a_missing_column_names_those_there_are() -> None:
    with pytest.raises(DataError, match=r"no column 'answer'; it has 'prompt', 'completion', 'text'"):
        data.check(TrainConfig(prompt_column="prompt", completion_column="answer"))


def test_the_held_out_file_is_checked_too(tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"text": "a"})
    other = write(tmp_path / "held.jsonl", {"txt": "a"})
    with pytest.raises(DataError, match=r"held.jsonl: the dataset has no column 'text'"):
        data.check(TrainConfig(dataset=name, eval_dataset=other))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.jsonl", None, "no such file"),
        ("rows.xlsx", "", "not read"),
        ("rows.jsonl", "", "no rows"),
        ("rows.jsonl", "{half", "first row cannot be read"),
        ("rows.json", "[1, 2]", "no JSON object"),
        ("rows.parquet", "PAR?", "first row cannot be read"),
    ],
)
def test_a_file_that_is_no_dataset(name: str, content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=told):
        data.check(TrainConfig(dataset=str(tmp_path / name)))


def test_a_row_that_breaks_off_is_a_data_error(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": ', "utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        data.load(TrainConfig(dataset=str(path)), tokenizer)


def test_nothing_to_learn_from(tokenizer: Any, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"text": " "}, {"text": ""})
    with pytest.raises(DataError, match="of 2 rows 2 are empty"):
        data.load(TrainConfig(dataset=name), tokenizer)


def test_a_model_on_the_hub_is_trained_once_it_is_downloaded(hub: HubServer) -> None:
    hub.add("org/model", single(weights(1, 64)) | {"tokenizer.json": b"{}"})
    with pytest.raises(ModelError, match=r"whole model on this machine.*'hf download org/model'"):
        data.model_folder("org/model")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        path = hf_hub_download("org/model", file)
    assert data.model_folder("org/model") == Path(path).parent
