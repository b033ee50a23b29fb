"""Datasets: found and checked without being loaded, tokenized with a loss mask, counted row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download

from tests.helpers.hub_server import HubServer
from tests.helpers.hubs import single, weights
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench import DataError, ModelError, TrainConfig, launch
from workbench.training import data, dataset_files
from workbench.training.dataset_files import locate


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_the_loss_is_on_completions_only(tokenizer: Any) -> None:
    rows = data.load(TrainConfig(), tokenizer, limit=3).rows
    first = rows[0]
    assert tokenizer.decode(first.input_ids[~first.loss]) == "<s>abasement, n."
    learnt = tokenizer.decode(first.input_ids[first.loss])
    assert learnt.startswith(" A decent and customary mental attitude")
    assert learnt.endswith("</s>")


def test_a_text_column_is_learnt_whole(tokenizer: Any) -> None:
    row = data.load(TrainConfig(text_column="text"), tokenizer, limit=1).rows[0]
    assert row.loss.tolist() == [False] + [True] * (len(row.input_ids) - 1)  # the first is predicted from nothing


def test_the_loss_can_be_on_prompts_too(tokenizer: Any) -> None:
    only, both = (data.load(TrainConfig(completion_only_loss=on), tokenizer, limit=1).rows[0] for on in (True, False))
    assert (only.input_ids == both.input_ids).all()
    assert only.loss.sum() < both.loss.sum() == len(both.input_ids) - 1


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
    assert counts["loss_tokens"] == sum(r.loss.sum() for r in rows.rows)


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
        ("rows.jsonl", "{half", "cannot be read .line 1"),
        ("rows.json", "[1, 2]", "no JSON object"),
        ("rows.parquet", "PAR?", "cannot be read"),
    ],
)
def test_a_file_that_is_no_dataset(name: str, content: str | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=told):
        data.check(TrainConfig(dataset=str(tmp_path / name)))


def test_csv_values_are_text_as_they_stand(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,n\nNA,007\n"two\nlines",1e3\n,\n', "utf-8")
    name = str(tmp_path / "rows.csv")
    for column, values in {"text": ["NA", "two\nlines"], "n": ["007", "1e3"]}.items():
        rows = data.load(TrainConfig(dataset=name, text_column=column), tokenizer)
        assert [tokenizer.decode(r.input_ids, skip_special_tokens=True) for r in rows.rows] == values
        assert (rows.total, rows.empty) == (3, 1)


def test_a_folder_is_a_dataset_and_file_names_tell_its_splits(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for stem in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path / "data" / f"{stem}.jsonl", {"text": stem})
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: ../../secret.txt\n---\n", "utf-8")
    config = TrainConfig(dataset=str(tmp_path), eval_split="test")
    read = [tokenizer.decode(r.input_ids, skip_special_tokens=True) for r in data.load(config, tokenizer).rows]
    assert read == ["train-00000-of-00002", "train-00001-of-00002"]
    held_out = data.held_out_files(config)
    assert held_out is not None
    assert [path.name for path in held_out.paths] == ["test-00000-of-00001.jsonl"]
    assert locate(str(tmp_path), config="data").paths == locate(str(tmp_path)).paths


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"split": "validation"}, "no split 'validation'; it has test, train"),
        ({"config": "none"}, "no configuration 'none'; its folders: a, mixed, plain"),
        ({"config": "../a"}, "no configuration '../a'"),
        ({"config": "mixed"}, "several kinds \\(.csv, .jsonl\\)"),
        ({"config": "plain", "split": "test"}, "it has 'train' \\(no file names a split\\)"),
    ],
)
def test_a_split_that_is_not_there(how: dict[str, str], told: str, tmp_path: Path) -> None:
    for name in ("a/train.jsonl", "a/test.jsonl", "mixed/rows.csv", "mixed/rows.jsonl", "plain/rows.jsonl"):
        (tmp_path / "it" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "it" / name, {"text": "a"})
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=told):
        locate(str(tmp_path / "it"), **how)


def test_a_dataset_on_the_hub_is_fetched_once_and_read_without_network(hub: HubServer, tokenizer: Any) -> None:
    row = json.dumps({"question": "one", "answer": " two"}).encode() + b"\n"
    card = b"---\nconfigs:\n- data_files: /etc/passwd\n---\n"
    hub.add(
        "org/pairs", {"data/train.jsonl": row * 900, "data/test.jsonl": row, "README.md": card, "load.py": b"raise SystemExit"}
    )
    config = TrainConfig(dataset="org/pairs", prompt_column="question", completion_column="answer", eval_split="test")
    files = data.check(config)
    assert files.revision == "a" * 40
    assert {path.suffix for path in files.paths[0].parent.parent.rglob("*") if path.is_file()} == {".jsonl"}
    hub.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        rows = data.load(config, tokenizer)
    assert not hub.requests
    assert (rows.total, rows.rows[0].loss.sum()) == (900, rows.rows[-1].loss.sum())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("org/none", "no such dataset"),
        ("org/closed", "no such dataset, or it is private"),
        ("org/empty", "no data files in it"),
    ],
)
def test_a_dataset_that_the_hub_does_not_give(name: str, told: str, hub: HubServer) -> None:
    hub.add("org/closed", {"train.jsonl": b"{}"}, private=True)
    hub.add("org/empty", {"load.py": b"raise SystemExit", "weights.pkl": b"x"})
    with pytest.raises(DataError, match=told) as caught:
        data.check(TrainConfig(dataset=name))
    assert caught.value.where == name


def test_hugging_faces_cache_that_cannot_be_written_is_named(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/pairs", {"train.jsonl": b'{"text": "a"}'})
    (tmp_path / "hf").write_text("a file in the place of a folder")
    with pytest.raises(DataError, match=r"cannot be written .*HF_HOME"):
        data.check(TrainConfig(dataset="org/pairs", text_column="text"))


def test_a_dataset_too_large_to_fetch_unasked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/large", {"train.jsonl": b'{"text": "a"}'})
    monkeypatch.setattr(dataset_files, "LARGEST", 5)
    with pytest.raises(DataError, match="its files take") as caught:
        data.check(TrainConfig(dataset="org/large"))
    assert "max_train_rows" in caught.value.remedy
    assert caught.value.field == "max_train_rows"


def test_a_single_file_that_is_too_large_is_not_fetched_for_a_few_of_its_rows(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/large", {"train.jsonl": b'{"text": "a"}'})
    monkeypatch.setattr(dataset_files, "LARGEST", 5)
    with pytest.raises(DataError, match="a file is fetched whole") as caught:
        data.check(TrainConfig(dataset="org/large", max_train_rows=1))
    assert caught.value.field == "dataset"


def test_of_a_dataset_that_is_too_large_the_first_files_are_fetched_until_they_have_the_rows(
    hub: HubServer, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {
        f"{split}/data/{split}-{n:05}-of-00004.jsonl": b"".join(b'{"text": "row %d"}\n' % (10 * n + i) for i in range(10))
        for split in ("train", "test")
        for n in range(4)
    }
    hub.add("org/large", {**shards, "other/train.jsonl": b'{"text": "another configuration"}'})
    monkeypatch.setattr(dataset_files, "LARGEST", 500)
    config = TrainConfig(dataset="org/large", dataset_config="train", max_train_rows=15, eval_dataset=None)
    files = data.check(config)
    assert [path.name for path in files.paths] == ["train-00000-of-00004.jsonl", "train-00001-of-00004.jsonl"]
    fetched = {path.name for path in files.paths[0].parents[2].rglob("*.jsonl")}
    assert fetched == {path.name for path in files.paths}, "and nothing else"
    rows = data.load(config, tokenizer, files, config.max_train_rows)
    assert (rows.total, tokenizer.decode(rows.rows[-1].input_ids, skip_special_tokens=True)) == (15, "row 14")


def test_only_the_split_that_is_asked_for_is_fetched(hub: HubServer) -> None:
    hub.add("org/splits", {f"en/{split}.jsonl": b'{"text": "a"}\n' for split in ("train", "validation", "test")})
    hub.add("org/plain", {"rows.jsonl": b'{"text": "a"}\n'})
    (path,) = locate("org/splits", "validation", "en").paths
    assert {found.name for found in path.parent.iterdir()} == {"validation.jsonl"}
    for how, told in (
        ({"split": "dev2"}, "no split 'dev2'; it has test, train, validation"),
        ({"config": "fr"}, "no configuration 'fr'; its folders: en"),
    ):
        with pytest.raises(DataError, match=told):
            locate("org/splits", **how)


def test_configurations_in_folders_are_not_mixed_in_silence(hub: HubServer, tmp_path: Path) -> None:
    names = [f"{config}/{split}-00000-of-00001.jsonl" for config in ("main", "socratic") for split in ("train", "test")]
    hub.add("org/maths", {name: b'{"text": "a"}\n' for name in names})
    for name in names:
        (tmp_path / "maths" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "maths" / name, {"text": "a"})
    for where in ("org/maths", str(tmp_path / "maths")):
        for split in ("train", "test"):
            with pytest.raises(DataError, match="several configurations: main, socratic") as caught:
                locate(where, split)
            assert caught.value.remedy == "Set dataset_config='main' or dataset_config='socratic'."
            assert caught.value.field == "dataset_config"
        assert [path.parent.name for path in locate(where, config="socratic").paths] == ["socratic"]


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"config_name": "socratic", "data_files": [{"split": "train", "path": ["socratic_*.jsonl"]}]}, "main, socratic"),
        ({"config_name": "all", "data_files": "*.jsonl"}, None),
        ({"config_name": "other", "data_dir": "elsewhere"}, None),
        ({"config_name": ["no name"], "data_files": {"path": 7}}, None),
    ],
)
def test_nor_are_those_that_the_card_names(second: dict[str, Any], told: str | None, hub: HubServer) -> None:
    files = {name: b'{"text": "a"}\n' for name in ("main_train.jsonl", "socratic_train.jsonl")}
    card = {"configs": [{"config_name": "main", "data_files": "main_train.jsonl"}, second]}
    hub.add("org/maths", files, card=card)
    if told is None:
        assert len(locate("org/maths").paths) == 2
        return
    with pytest.raises(DataError, match=f"several configurations: {told}") as caught:
        locate("org/maths")
    assert "name that file" in caught.value.remedy


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\nfirst\n"), ("a.jsonl", '{"text": "first"}\n')])
def test_a_byte_order_mark_is_no_part_of_a_column(name: str, content: str, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8-sig")
    config = TrainConfig(dataset=str(tmp_path / name))
    data.check(config)
    (row,) = data.load(config, tokenizer).rows
    assert tokenizer.decode(row.input_ids, skip_special_tokens=True) == "first"


@pytest.mark.parametrize("folder", ["a[1]", "b*", "c?d", "{e}"])
def test_a_path_is_no_pattern(folder: str, tokenizer: Any, tmp_path: Path) -> None:
    for name in (folder, "a1", "bb"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", {"text": name})
    row = data.load(TrainConfig(dataset=str(tmp_path / folder / "rows.jsonl")), tokenizer).rows
    assert [tokenizer.decode(r.input_ids, skip_special_tokens=True) for r in row] == [folder]


def test_a_run_keeps_the_commit_of_its_dataset(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/texts", {"train.jsonl": b'{"text": "one two three"}\n'})
    model = write_tiny_model(tmp_path / "model")
    run = launch(TrainConfig(model=str(model), dataset="org/texts", max_eval_rows=0), tmp_path / "run")
    run.stop(patience=0.1)
    assert (run.config.dataset, run.config.dataset_revision) == ("org/texts", "a" * 40)
    assert run.wait(300).state == "stopped"


def test_a_row_that_breaks_off_is_a_data_error(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": ', "utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        data.load(TrainConfig(dataset=str(path)), tokenizer)


def test_nothing_to_learn_from(tokenizer: Any, tmp_path: Path) -> None:
    name = write(tmp_path / "rows.jsonl", {"text": " "}, {"text": ""})
    with pytest.raises(DataError, match="of 2 rows 2 are empty"):
        data.load(TrainConfig(dataset=name), tokenizer)


def test_a_model_that_is_on_the_hub_alone_has_no_folder(hub: HubServer) -> None:
    hub.add("org/model", single(weights(1, 64)) | {"tokenizer.json": b"{}"})
    with pytest.raises(ModelError, match=r"whole model is needed on this machine.*'hf download org/model'"):
        data.model_folder("org/model")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        path = hf_hub_download("org/model", file)
    assert data.model_folder("org/model") == Path(path).parent
