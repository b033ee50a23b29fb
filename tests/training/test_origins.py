"""A run goes on, and is merged, with what it was begun with: anything else is refused by file and part, or accepted aloud."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import workbench as wb
from tests.helpers import in_process
from tests.helpers.hub_server import HubServer
from tests.helpers.immediate import Immediate
from tests.helpers.live_runs import ended, of, until
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import ROWS, write_tiny_model
from widgets.panels.train.export import RunExport
from workbench.cli.main import cli
from workbench.training import data, fingerprints, origins
from workbench.training.fingerprints import AT_ONCE, Changed
from workbench.training.folder import RunFolder, RunStatus
from workbench.training.origins import BASE, HELD_OUT, TEMPLATE, TOKENIZER
from workbench.training.origins import ROWS as OF_ROWS
from workbench.training.watch.endings import FAILED
from workbench.training.worker.worker import Worker

Edit = Callable[[Path], object]
COLUMNS = {"prompt_column": "prompt", "completion_column": "completion"}
TEMPLATE_TEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template is in its tokenizer's configuration, as most on the Hub have it."""
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
    edit_json(folder / "tokenizer_config.json", chat_template=TEMPLATE_TEXT)
    return folder


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = ROWS.read_text("utf-8").splitlines(True)
    for name, some in {"train-1.jsonl": lines[:12], "train-2.jsonl": lines[12:24], "test.jsonl": lines[24:32]}.items():
        (folder / name).write_text("".join(some), "utf-8")
    return folder


@pytest.fixture
def config(model: Path, rows: Path) -> wb.TrainConfig:
    return in_process.config_of(model, dataset=str(rows), eval_split="test", max_steps=3, **COLUMNS)


@pytest.fixture
def ended_run(config: wb.TrainConfig, tmp_path: Path) -> wb.Run:
    """A run as launch leaves it, paused before it began to train."""
    folder = RunFolder(tmp_path / "run")
    folder.control.mkdir(parents=True)
    folder.config.write_text(json.dumps(config.to_dict()), "utf-8")
    fingerprints.write(folder.root, origins.take(config, wb.open_model(config.model), data.check(config)))
    folder.write_status(RunStatus("paused"))
    return wb.attach(folder.root)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def noise(path: Path) -> None:
    """Other weights in a file of the same header and size."""
    raw = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(raw[:8], "little")
    raw[begin::2] = np.random.default_rng(0).bytes(len(raw[begin::2]))  # the low byte of each bfloat16: none becomes infinite
    path.write_bytes(raw)


def refused(run: wb.Run) -> list[tuple[str, str, str]]:
    """What a resume says has changed; it must leave the run as it is."""
    before = run.status
    with pytest.raises(Changed) as caught:
        run.resume()
    assert run.status == before
    assert caught.value.remedy
    return [(change.part, change.name, change.what) for change in caught.value.changes]


EDITS: dict[str, tuple[Edit, list[tuple[str, str, str]]]] = {
    "weights": (lambda at: noise(at / "model/model.safetensors"), [(BASE, "model.safetensors", "content")]),
    "configuration": (
        lambda at: edit_json(at / "model/config.json", rms_norm_eps=1e-3),
        [(BASE, "config.json", "content")],
    ),
    "tokenizer": (
        lambda at: edit_json(at / "model/tokenizer.json", post_processor=None),
        [(TOKENIZER, "tokenizer.json", "content")],
    ),
    "its settings": (
        lambda at: edit_json(at / "model/tokenizer_config.json", eos_token="<other>"),
        [(TOKENIZER, "tokenizer_config.json", "content")],
    ),
    "template": (
        lambda at: edit_json(at / "model/tokenizer_config.json", chat_template=f" {TEMPLATE_TEXT}"),
        [(TEMPLATE, "default", "content")],
    ),
    "another template": (
        lambda at: (at / "model/chat_template.jinja").write_text("{{ messages }}"),
        [(TEMPLATE, "default", "content")],
    ),
    "rows replaced": (
        lambda at: (at / "rows/train-1.jsonl").write_text("".join(ROWS.read_text("utf-8").splitlines(True)[50:52])),
        [(OF_ROWS, "train-1.jsonl", "content")],
    ),
    "rows appended": (
        lambda at: append(at / "rows/train-2.jsonl", '{"prompt": "a", "completion": "b"}\n'),
        [(OF_ROWS, "train-2.jsonl", "appended")],
    ),
    "a file of rows more": (
        lambda at: shutil.copy(at / "rows/train-1.jsonl", at / "rows/train-3.jsonl"),
        [(OF_ROWS, "train-3.jsonl", "new")],
    ),
    "held-out rows": (
        lambda at: shutil.copy(at / "rows/train-1.jsonl", at / "rows/test.jsonl"),
        [(HELD_OUT, "test.jsonl", "content")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_resume_is_refused_by_part_and_file(ended_run: wb.Run, tmp_path: Path, edit: str) -> None:
    change, told = EDITS[edit]
    change(tmp_path)
    assert refused(ended_run) == told


def test_what_is_the_same_to_transformers_is_the_same(ended_run: wb.Run, model: Path, rows: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def says() -> tuple[Any, list[int]]:
        tokenizer = AutoTokenizer.from_pretrained(model)
        return tokenizer.chat_template, tokenizer("lawyer, n.")["input_ids"]

    def check() -> None:
        source = wb.open_model(model)
        origins.check_before_resume(ended_run.dir, ended_run.config, source, data.check(ended_run.config), False, 2)
        assert says() == before

    before = says()
    check()
    for path in (*model.iterdir(), *rows.iterdir()):
        os.utime(path, (1, 1))
    check()
    edit_json(model / "config.json", transformers_version="4.0.0")  # written again by another version
    edit_json(model / "tokenizer_config.json", chat_template=None)
    (model / "chat_template.jinja").write_text(TEMPLATE_TEXT, "utf-8")  # where newer versions put it
    check()
    os.rename(model, tmp_path / "elsewhere")
    model.symlink_to(tmp_path / "elsewhere")
    check()


def test_every_template_of_several_counts(ended_run: wb.Run, model: Path) -> None:
    known = fingerprints.read(ended_run.dir)
    assert known is not None
    several = [{"name": "default", "template": TEMPLATE_TEXT}, {"name": "tool_use", "template": "{{ tools }}"}]
    edit_json(model / "tokenizer_config.json", chat_template=several)
    assert refused(ended_run) == [(TEMPLATE, "tool_use", "new")]


def test_a_base_in_shards_is_told_by_shard(config: wb.TrainConfig, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    shutil.copytree(model, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(sharded, max_shard_size="100KB")
    *_, last = shards = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(shards) > 2
    run = tmp_path / "run"
    run.mkdir()
    config = dataclasses.replace(config, model=str(sharded))
    source = wb.open_model(sharded)
    fingerprints.write(run, origins.take(config, source, data.check(config)))
    origins.check_base(run, config, source, origins.OF_MODEL)
    noise(sharded / last)
    with pytest.raises(Changed) as caught:
        origins.check_base(run, config, source, origins.OF_MODEL)
    (change,) = caught.value.changes
    assert (change.name, change.what) == (last, "content")


def test_the_worker_refuses_whoever_resumed(ended_run: wb.Run, model: Path) -> None:
    """A supervisor that is started by hand, or by an older kernel, does not ask what ``Run.resume`` asks."""
    noise(model / "model.safetensors")
    worker = Worker(RunFolder(ended_run.dir), 2, os.getppid())
    assert worker.run() == FAILED
    worker.writer.close()
    (error,) = of(ended_run, "error")
    assert error["kind"] == "changed"
    assert "model.safetensors" in error["message"]
    assert [event["name"] for event in of(ended_run, "phase")] == ["check"], "nothing was loaded"


def test_a_run_without_fingerprints_has_nothing_to_compare_with(ended_run: wb.Run, model: Path) -> None:
    """As all had that were launched before there were any."""
    (ended_run.dir / "fingerprints.json").unlink()
    noise(model / "model.safetensors")
    config = ended_run.config
    origins.check_before_resume(ended_run.dir, config, wb.open_model(model), data.check(config), False, 2)
    origins.check_resumed(ended_run.dir, config)
    origins.check_base(ended_run.dir, config, wb.open_model(model), origins.OF_MODEL)


def test_the_builtin_model_and_dataset_have_fingerprints_too(tmp_path: Path) -> None:
    config = wb.TrainConfig(max_steps=1)
    source = wb.open_model("builtin")
    fingerprints.write(tmp_path, origins.take(config, source, data.check(config)))
    known = fingerprints.read(tmp_path)
    assert known is not None
    assert source.path is not None
    found = {(part, file.name): file for part, files in known.parts.items() for file in files}
    weights = (source.path / "model.safetensors").read_bytes()
    assert found[BASE, "model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert found[OF_ROWS, "train.jsonl"].sha256 == hashlib.sha256(ROWS.read_bytes()).hexdigest()
    assert (HELD_OUT, "heldout.jsonl") in found
    origins.check_resumed(tmp_path, config)


def test_a_base_from_the_hub_stays_at_its_commit(hub: HubServer, tiny: Path, rows: Path, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    repo = hub.add("org/tiny", files)
    first = {Path(hf_hub_download("org/tiny", name)).parent for name in files}
    (snapshot,) = first
    config = in_process.config_of(Path("org/tiny"), dataset=str(rows), eval_split="test", **COLUMNS)
    fingerprints.write(tmp_path, origins.take(config, wb.open_model(data.model_folder("org/tiny")), data.check(config)))
    noise(shutil.copytree(tiny, tmp_path / "newer") / "model.safetensors")
    newer = {path.name: path.read_bytes() for path in (tmp_path / "newer").iterdir()}
    hub.add("org/tiny", newer, commit="b" * 40, older={repo.commit: files})
    for name in newer:
        hf_hub_download("org/tiny", name)
    assert data.model_folder("org/tiny") != snapshot, "main has moved on"
    commit = origins.pinned(tmp_path, config)
    assert commit == snapshot.name == repo.commit
    assert data.model_folder("org/tiny", commit) == snapshot
    origins.check_resumed(tmp_path, config)
    with pytest.raises(Changed):
        origins.check_base(tmp_path, config, wb.open_model("org/tiny"), [BASE])
    noise((snapshot / "model.safetensors").resolve())  # in the cache itself, where it is named by its hash
    with pytest.raises(Changed) as caught:
        origins.check_resumed(tmp_path, config)
    assert commit in caught.value.remedy


# Live runs.


@pytest.fixture
def paused(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> wb.Run:
    with forks.ready(phase="first_forward", ask="pause"):
        run = wb.launch(config, tmp_path / "run")
    ended(run, "paused", 60)
    return run


@pytest.fixture
def part(paused: wb.Run) -> Iterator[RunExport]:
    part = RunExport(Immediate())
    part.follow(paused)
    yield part
    part.close()


def test_another_base_is_refused_by_every_verb_and_the_old_one_goes_on(
    forks: Forks, paused: wb.Run, part: RunExport, model: Path, tmp_path: Path
) -> None:
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    noise(weights)
    assert refused(paused) == [(BASE, "model.safetensors", "content")]
    verbs: list[Callable[[], object]] = [
        lambda: wb.merge_errors(paused), lambda: wb.export(paused, tmp_path / "merged"), lambda: wb.repairs(paused),
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(Changed):
            verb()
    part.show.click()
    assert "model.safetensors" in part.message.value
    assert 'class="wb-remedy"' in part.message.value
    told = CliRunner().invoke(cli, ["export", str(paused.dir), str(tmp_path / "merged")])
    assert told.exit_code == 1
    assert "--changed-ok" in told.stderr
    assert not (tmp_path / "merged").exists()
    done = CliRunner().invoke(cli, ["export", str(paused.dir), str(tmp_path / "merged"), "--changed-ok"])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "merged" / "README.md").read_text("utf-8")
    assert "base model: model.safetensors has other content" in card

    weights.write_bytes(before)
    assert len(wb.merge_errors(paused).rows) == 14
    with forks.ready():
        ended(paused.resume(), "finished", 60)
    assert paused.adapter_dir is not None
    card = (paused.adapter_dir / "README.md").read_text("utf-8")
    assert f"| `{hashlib.sha256(before).hexdigest()}` |" in card
    assert "Resumed all the same" not in card


def test_rows_that_changed_do_not_matter_to_a_merge_and_may_be_accepted(forks: Forks, paused: wb.Run, rows: Path) -> None:
    (rows / "train-2.jsonl").write_text("".join(ROWS.read_text("utf-8").splitlines(True)[60:64]), "utf-8")
    assert refused(paused) == [(OF_ROWS, "train-2.jsonl", "content")]
    assert len(wb.merge_errors(paused).rows) == 14
    with forks.ready():
        ended(paused.resume(changed_ok=True), "finished", 60)
    assert paused.adapter_dir is not None
    card = (paused.adapter_dir / "README.md").read_text("utf-8")
    assert "before attempt 2, rows: train-2.jsonl has other content" in card
    assert hashlib.sha256((rows / "train-2.jsonl").read_bytes()).hexdigest() in card


def test_a_card_of_a_run_without_fingerprints_says_so(paused: wb.Run, tmp_path: Path) -> None:
    (paused.dir / "fingerprints.json").unlink()
    wb.export(paused, tmp_path / "merged")
    assert "## Fingerprints\n\nNot recorded." in (tmp_path / "merged" / "README.md").read_text("utf-8")


def test_the_supervisor_hashes_large_files_whole_while_the_run_goes(
    forks: Forks, config: wb.TrainConfig, model: Path, tmp_path: Path
) -> None:
    large = model / "vocab.bin"  # which counts as the tokenizer's
    with large.open("wb") as file:
        file.truncate(AT_ONCE + 1)

    def whole(run: wb.Run) -> str:
        known = fingerprints.read(run.dir)
        assert known is not None
        return next(file.sha256 for file in known.parts[TOKENIZER] if file.name == large.name)

    with forks.ready(phase="load", hang=True):
        run = wb.launch(config, tmp_path / "run")
    until(run, lambda run: whole(run) != "")
    assert whole(run) == hashlib.sha256(large.read_bytes()).hexdigest()
    run.stop()
    ended(run, "stopped", 60)
