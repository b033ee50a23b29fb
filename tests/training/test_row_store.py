"""Tokens of large files: kept by content, read from disk, bounded, and never in the way of a run."""

from __future__ import annotations

import errno
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import in_process
from tests.helpers.live_runs import of
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench import TrainConfig
from workbench.sources.base import Watch
from workbench.training import data
from workbench.training.results.history import RunHistory
from workbench.training.rows import store
from workbench.training.worker import material


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which every dataset is large enough to be kept."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "LARGE", 1)
    return tmp_path / "cache" / "rows"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self) -> None:
        self._made, self.texts = tiny_tokenizer(), 0

    def __call__(self, batch: list[str], **how: Any) -> Any:
        self.texts += len(batch)
        return self._made(batch, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


def write(path: Path, count: int = 300) -> str:
    rows = [{"prompt": f"word {i}", "completion": " a definition" * (i % 7)} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


def tokens(rows: Any) -> list[tuple[list[int], list[bool]]]:
    return [(row.input_ids.tolist(), row.loss.tolist()) for row in rows.rows]


def test_tokens_are_made_once_and_the_same_as_without_a_store(tmp_path: Path, model: Path) -> None:
    config, counting = TrainConfig(dataset=write(tmp_path / "rows.jsonl")), Counting()
    first = data.load(config, counting, keep=model)
    assert counting.texts == 300
    again = data.load(config, counting, keep=model)
    assert counting.texts == 300, "read from disk"
    plain = data.load(config, counting)
    assert tokens(first) == tokens(again) == tokens(plain)
    assert first.counts() == again.counts() == plain.counts()
    assert [tokens_of.tolist() for tokens_of in (again.rows[-1].input_ids, again.rows[3:5][1].input_ids)] == [
        plain.rows[-1].input_ids.tolist(), plain.rows[4].input_ids.tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"max_length": 8},
        {"completion_only_loss": False},
        {"row_shape": "text", "text_column": "completion"},
        {"thoughts": "drop"},
    ],
    ids=str,
)
def test_other_fields_have_tokens_of_their_own(changed: dict[str, Any], tmp_path: Path, model: Path) -> None:
    path, counting = write(tmp_path / "rows.jsonl"), Counting()
    data.load(TrainConfig(dataset=path), counting, keep=model)
    data.load(TrainConfig(dataset=path, **changed), counting, keep=model)
    assert counting.texts > 300


def test_content_counts_and_names_do_not(tmp_path: Path, model: Path) -> None:
    path, counting = Path(write(tmp_path / "rows.jsonl")), Counting()
    data.load(TrainConfig(dataset=str(path)), counting, keep=model)
    data.load(TrainConfig(dataset=str(path.rename(tmp_path / "moved.jsonl"))), counting, keep=model)
    assert counting.texts == 300
    moved = tmp_path / "moved.jsonl"
    moved.write_text(moved.read_text().replace("word 7", "word 8", 1))
    data.load(TrainConfig(dataset=str(moved)), counting, keep=model)
    assert counting.texts == 600
    other = tmp_path / "tokenizer"
    tiny_tokenizer(400).save_pretrained(other)
    data.load(TrainConfig(dataset=str(moved)), counting, keep=other)
    assert counting.texts == 900


@pytest.mark.parametrize(
    "row",
    [
        {"text": "word"},
        {"prompt": "word", "completion": "word"},
        {"question": "word", "answer": "word"},
        {"instruction": "word", "input": "word", "output": "word"},
        {"chosen": "word a", "rejected": "word b", "prompt": "word"},
        {"messages": [{"role": "user", "content": "word"}, {"role": "assistant", "content": "word"}]},
    ],
    ids=lambda row: ", ".join(row),
)
def test_all_the_code_that_a_row_goes_through_counts(row: dict[str, Any], tmp_path: Path, model: Path) -> None:
    path, tokenizer, gone_through = tmp_path / "rows.jsonl", tiny_tokenizer(), set()
    path.write_text(json.dumps(row) + "\n", "utf-8")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = {"prompt_template": "Say {question}: "} if "question" in row else {}
    config = TrainConfig(dataset=str(path), **template)
    sys.setprofile(lambda frame, *_: gone_through.add(Path(frame.f_code.co_filename)))
    try:
        data.load(config, tokenizer, keep=model)
    finally:
        sys.setprofile(None)
    training = Path(data.__file__).parent
    ours = {source for source in gone_through if source.is_relative_to(training)}
    assert ours - {training / "config.py"} <= set(store._MADE_BY), "of the configuration the fields themselves count"


def test_a_set_that_is_damaged_is_made_again(tmp_path: Path, model: Path, folder: Path) -> None:
    config, counting = TrainConfig(dataset=write(tmp_path / "rows.jsonl")), Counting()
    right = tokens(data.load(config, counting, keep=model))
    (ids,) = folder.glob("*/ids")
    for damage in (lambda: ids.write_bytes(ids.read_bytes()[:-4]), lambda: (ids.parent / "rows.json").write_text("{")):
        damage()
        assert tokens(data.load(config, counting, keep=model)) == right
    assert counting.texts == 900


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes_first(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", 300 + n) for n in range(3)]
    for path in paths[:2]:
        data.load(TrainConfig(dataset=path), Counting(), keep=model)
    sets = [path for path in folder.iterdir() if path.is_dir()]
    size = sum(part.stat().st_size for one in sets for part in one.iterdir())
    data.load(TrainConfig(dataset=paths[0]), Counting(), keep=model)  # now the second is the older one
    monkeypatch.setenv("WORKBENCH_CACHE_GB", str((size + 1_000) / 1e9))
    data.load(TrainConfig(dataset=paths[2]), Counting(), keep=model)
    kept = []
    for path in paths:
        counting = Counting()
        data.load(TrainConfig(dataset=path), counting, keep=model)
        kept.append(counting.texts == 0)
        if not kept[-1]:
            break
    assert kept == [True, False]
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("how", ["nothing is to be kept", "the disk is full"])
def test_without_a_store_tokens_are_in_memory(
    how: str, tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if how == "the disk is full":
        monkeypatch.setattr(store.os, "replace", full)
    else:
        monkeypatch.setenv("WORKBENCH_CACHE_GB", "0")
    assert len(data.load(TrainConfig(dataset=write(tmp_path / "rows.jsonl")), Counting(), keep=model).rows) > 200
    assert not folder.exists() or not [path for path in folder.iterdir() if path.is_dir()]


def test_tokens_are_kept_on_a_file_system_without_locks(
    tmp_path: Path, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    counting = Counting()
    for _ in range(2):
        data.load(TrainConfig(dataset=write(tmp_path / "rows.jsonl")), counting, keep=model)
    assert counting.texts == 300


def test_what_is_cancelled_leaves_nothing_half_made(tmp_path: Path, model: Path, folder: Path) -> None:
    done: list[int] = []
    watch = Watch(300, lambda at, of: done.append(at), lambda: len(done) >= 100)
    with pytest.raises(InterruptedError):
        data.load(TrainConfig(dataset=write(tmp_path / "rows.jsonl")), Counting(), watch=watch, keep=model)
    assert done == list(range(1, 101))
    assert not [path for path in folder.iterdir() if path.is_dir()]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(material, "_EVERY", 0.0)


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_reads_rows_before_its_model_says_how_far_it_is_and_learns_the_same_from_disk(
    packing: bool, tmp_path: Path, said: Callable[[], None]
) -> None:
    said()
    config = in_process.config_of(write_tiny_model(tmp_path / "model"), dataset=write(tmp_path / "rows.jsonl"), packing=packing)
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(in_process.train(config, tmp_path / name))
    first, second = runs
    assert [e["loss"] for e in of(first, "step")] == [e["loss"] for e in of(second, "step")]
    phases = [e["name"] for e in of(first, "phase") if e["edge"] == "begin"]
    assert phases.index("dataset") < phases.index("load")
    progress = of(first, "progress")
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["what"]) == (300, 299, "rows tokenized")
    assert not of(second, "progress"), "nothing was left to do"
    history = RunHistory()
    events = list(first.events())
    history.feed(events[: events.index(progress[0]) + 1])
    assert history.progress == progress[0]
    history.feed(events[events.index(progress[0]) + 1 :])
    assert history.progress is None
