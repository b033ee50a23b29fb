"""A run on a model that is on the Hub and not on this machine: what launch refuses, and how the run fetches it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

import workbench as wb
from tests.helpers import in_process
from tests.helpers.hub_server import HubServer
from tests.helpers.hubs import single, weights
from tests.helpers.live_runs import ended, of, report_of, until, until_gone
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from widgets.panels.train import paging
from workbench.cost import jobs, method_results
from workbench.errors import Gated, Unreachable
from workbench.training import advice, disk, fingerprints, model_files
from workbench.training.folder import RunFolder, write_json
from workbench.training.hub_tasks import patiently
from workbench.training.results.card import card
from workbench.training.results.receipt_meter import ReceiptMeter

REPO, COMMIT = "org/tiny", "a" * 40
NOT_FETCHED = ("pytorch_model.bin", "consolidated.pth", "model-q4.gguf", "onnx/model.onnx", "modeling_tiny.py", "logo.png")
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(hub: HubServer, files: dict[str, bytes]) -> HubServer:
    """A Hub with the tiny model, and beside it what a repository has besides."""
    hub.add(REPO, {**files, "README.md": b"---\nlicense: mit\n---\n", **dict.fromkeys(NOT_FETCHED, b"x" * 5_000)})
    return hub


@pytest.fixture
def config() -> wb.TrainConfig:
    return in_process.config_of(Path(REPO), max_steps=2, max_eval_rows=0)


def stalled(hub: HubServer) -> None:
    """The next download of the tokenizer, which launch does not read, stands still in the middle."""
    hub.fail(path="tokenizer.json", server="cdn", stall=True)


def asked_for_tokenizer(hub: HubServer) -> bool:
    return any(request.server == "cdn" and "tokenizer.json" in request.path for request in hub.requests)


def snapshot() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "snapshots" / COMMIT


def test_a_run_fetches_what_training_needs_and_trains(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, files: dict[str, bytes], tmp_path: Path, capsys: Any
) -> None:
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
        assert run.config.model_revision == COMMIT, "the commit is pinned before anything is fetched"
        ended(run, "finished", 120)
    assert {path.name for path in snapshot().iterdir()} == {*files, "README.md"}
    assert not [request.path for request in hub.requests if any(name in request.path for name in NOT_FETCHED)]
    phases = [(event["name"], event["edge"]) for event in of(run, "phase")]
    assert phases[:2] == [("fetch", "begin"), ("fetch", "end")]
    *_, last = of(run, "fetch")
    assert last["done"] == last["total"] == sum(map(len, files.values())) + len(b"---\nlicense: mit\n---\n")
    assert last["speed"] > 0
    run.watch()
    size = wb.amount(last["total"])
    assert f"model: {size} of {size}\nstep 1: loss" in capsys.readouterr().out
    known = fingerprints.read(run.dir)
    assert known is not None
    assert known.commit == COMMIT
    assert {"base model", "tokenizer", "rows"} <= known.parts.keys()
    assert not RunFolder(run.dir).to_fetch.exists()
    assert run.adapter_dir is not None
    card = (run.adapter_dir / "README.md").read_text("utf-8")
    assert f'REVISION = "{COMMIT}"' in card
    assert 'license: "mit"' in card

    # The next run finds it here, and asks for nothing.
    hub.forget()
    with forks.ready(phase="load", ask="stop"):
        again = wb.launch(config, tmp_path / "again")
        ended(again, "stopped")
    assert of(again, "fetch") == []


def test_a_run_that_is_stopped_while_it_fetches_says_how_far_it_is_and_goes_on(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, tmp_path: Path
) -> None:
    stalled(hub)
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
        until(run, lambda _: asked_for_tokenizer(hub))
        assert run.status.state == "fetching"
        run.pause()
        status = ended(run, "paused", 60)
    assert "while the model was fetched" in status.message
    assert status.remedy == "Resume fetches the rest."
    with forks.ready(phase="load", ask="stop"):
        ended(run.resume(), "stopped", 60)
    assert [event["attempt"] for event in of(run, "phase") if event["name"] == "fetch"] == [1, 2, 2]


def test_a_supervisor_that_is_killed_takes_the_fetching_with_it_and_resume_goes_on(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, tmp_path: Path
) -> None:
    stalled(hub)
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
        until(run, lambda _: asked_for_tokenizer(hub))
        pid = run.status.pid
        assert pid is not None
        children = psutil.Process(pid).children()
        assert [child.cmdline()[-1] for child in children] == ["fetch"]
        os.kill(pid, signal.SIGKILL)
        assert ended(run, "killed", 60).kind == "killed"
        until_gone(run, children[0].pid)
    with forks.ready(phase="load", ask="stop"):
        ended(wb.attach(run.dir).resume(), "stopped", 60)


def test_what_only_whole_files_show_fails_the_run_before_it_trains(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, files: dict[str, bytes], tmp_path: Path
) -> None:
    tokenizer = json.loads(files["tokenizer.json"])
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 9_999
    hub.add(REPO, {**files, "tokenizer.json": json.dumps(tokenizer).encode()})
    with forks.ready():
        status = ended(wb.launch(config, tmp_path / "run"), "failed", 60)
    assert status.kind == "config"
    assert "tokens up to id 9,999" in status.message


def test_a_download_that_fails_is_a_failed_run_that_can_be_resumed(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, tmp_path: Path
) -> None:
    hub.fail(path="tokenizer_config.json", status=403, times=1_000)
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
        status = ended(run, "failed", 60)
        assert (status.kind, "tokenizer_config.json" in status.message) == ("model", True), report_of(run)
    hub.faults.clear()
    with forks.ready(phase="load", ask="stop"):
        ended(run.resume(), "stopped", 60)


def test_a_gap_in_the_network_is_waited_for() -> None:
    answers: list[Any] = [Unreachable("no network"), Unreachable("no network"), "there"]

    def work() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert patiently(work, (0, 0)) == "there"
    answers[:] = [Unreachable("no network")] * 3
    with pytest.raises(Unreachable):
        patiently(work, (0, 0))


# What launch refuses, with nothing fetched and no folder made.


def refused(config: wb.TrainConfig, folder: Path, error: type[wb.WorkbenchError], **match: Any) -> wb.WorkbenchError:
    with pytest.raises(error, **match) as caught:
        wb.launch(config, folder)
    assert not folder.exists()
    assert not snapshot().exists()
    return caught.value


def test_a_gate_is_met_at_launch(hub: HubServer, config: wb.TrainConfig, tmp_path: Path) -> None:
    hub.repos[REPO].gated = True
    refused(config, tmp_path / "run", Gated, match="asks readers to log in and accept terms")


def test_faults_that_headers_show_are_told_before_the_download(hub: HubServer, config: wb.TrainConfig, tmp_path: Path) -> None:
    fields = {"target_modules": ("no_such_module",)}
    refused(in_process.config_of(Path(REPO), **fields), tmp_path / "run", wb.ConfigError, match="no_such_module")


def test_only_safetensors_are_trained(hub: HubServer, config: wb.TrainConfig, tmp_path: Path) -> None:
    hub.add(REPO, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    refused(config, tmp_path / "run", wb.ModelError, match="It holds only pickles")


def test_a_model_without_a_tokenizer_is_refused(hub: HubServer, config: wb.TrainConfig, tmp_path: Path) -> None:
    hub.add(REPO, single(weights(1, 64)))
    refused(config, tmp_path / "run", wb.ModelError, match="no tokenizer")


def test_a_model_that_does_not_fit_the_disk_is_refused(
    hub: HubServer, config: wb.TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 100_000))
    error = refused(
        config, tmp_path / "run", wb.RunError, match=r"does not fit the disk.*model to fetch .* kB.*100.00 kB are free"
    )
    assert "HF_HOME" in error.remedy


def test_a_revision_is_pinned_to_its_commit_and_a_wrong_one_refused(
    hub: HubServer, forks: Forks, config: wb.TrainConfig, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[REPO].older["b" * 40] = files
    named = in_process.config_of(Path(REPO), model_revision="v2")
    refused(named, tmp_path / "run", wb.ModelError, match="no such revision")
    with pytest.raises(wb.ModelError, match="local model has no revisions"):
        wb.launch(wb.TrainConfig(model_revision="v1"), tmp_path / "run")
    older = in_process.config_of(Path(REPO), max_steps=2, max_eval_rows=0, model_revision="b" * 40)
    with forks.ready(phase="load", ask="stop"):
        run = wb.launch(older, tmp_path / "run")
        ended(run, "stopped", 60)
    assert run.config.model_revision == "b" * 40
    assert {path.name for path in snapshot().parent.iterdir()} == {"b" * 40}


def measured_by_cost(config: wb.TrainConfig, root: Path) -> object:
    write_json(root / "job.json", {"config": config.to_dict()})
    return jobs.opened(root).source.tensors()


@pytest.mark.parametrize(
    "ask",
    [
        lambda config, _: advice.advice(config),
        lambda config, root: method_results._result(config, root, ("failed", "", ""), [], ReceiptMeter().receipt(), None),
        measured_by_cost,
        lambda config, _: paging._simulation(config, None, {}, None),
    ],
    ids=["advice", "comparison of methods", "measurements of cost", "paging simulated"],
)
def test_whatever_asks_about_a_run_reads_the_model_at_its_revision(
    ask: Callable[[wb.TrainConfig, Path], object], hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[REPO].older["b" * 40] = files
    ask(in_process.config_of(Path(REPO), model_revision="b" * 40), tmp_path)
    named = {path.partition("/resolve/")[2].partition("/")[0] for path in (request.path for request in hub.requests)}
    assert named - {""} == {"b" * 40}


def test_rows_are_previewed_with_the_tokenizer_alone(hub: HubServer, files: dict[str, bytes]) -> None:
    seen = wb.preview(in_process.config_of(Path(REPO)), rows=1, scan=5)
    assert seen.counts["kept"] == 5
    assert not (snapshot() / "model.safetensors").exists()
    assert (snapshot() / "tokenizer.json").read_bytes() == files["tokenizer.json"]


MEASURES: list[Callable[..., object]] = [
    lambda **how: wb.evaluate(REPO, ["nf4"], max_rows=1, **how), lambda **how: wb.sensitivity(REPO, max_rows=1, **how)
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=["evaluate", "sensitivity"])
def test_what_measures_a_model_fetches_it_first(measure: Callable[..., object], hub: HubServer, tmp_path: Path) -> None:
    stalled(hub)
    with pytest.raises(InterruptedError):
        measure(cancelled=lambda: asked_for_tokenizer(hub), folder=tmp_path / "kept")
    seen: list[tuple[int, int]] = []
    needed = sum(model_files.to_fetch(wb.open_model(REPO)).values())
    measure(progress=lambda done, total: seen.append((done, total)), folder=tmp_path / "kept")
    assert seen[-1] == (needed, needed)
    assert model_files.is_whole(wb.open_model(REPO))
    hub.forget()
    measure(folder=tmp_path / "kept")
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_a_comparison_of_methods_leaves_the_fetching_to_its_first_run(hub: HubServer, tmp_path: Path) -> None:
    config = in_process.config_of(Path(REPO), max_steps=2)
    assert list(wb.compare_methods(config, folder=tmp_path / "methods").configs) == ["full", "lora", "qlora"]
    assert not snapshot().exists()


def test_the_files_that_training_needs(hub: HubServer) -> None:
    names = [
        "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model",
        "chat_template.jinja", "additional_chat_templates/tool.jinja", "generation_config.json", "config.json",
        "special_tokens_map.json", "added_tokens.json", "tokenizer_config.json", "README.md",
    ]  # fmt: skip
    others = ["original/tokenizer.model", "optimizer.pt", "tf_model.h5", "flax_model.msgpack", ".gitattributes", *NOT_FETCHED]
    patterns = (*model_files._FOR_TOKENIZER, *model_files._BESIDE)
    assert model_files._matching([*names, *others], patterns) == sorted(names[1:])


def test_forecasts_come_from_headers_alone(hub: HubServer, config: wb.TrainConfig) -> None:
    assert wb.forecast(REPO, config).total > 0
    budget = wb.disk_budget(config)
    fetched = next(use for use in budget.uses if use.what == "model to fetch")
    assert fetched.nbytes == sum(model_files.to_fetch(wb.open_model(REPO)).values())
    assert not snapshot().exists()
    assert shutil.disk_usage(fetched.where if Path(fetched.where).exists() else "/").free > 0


def test_a_card_names_the_commit_that_is_known_where_the_model_is_gone(hub: HubServer) -> None:
    config = wb.TrainConfig("org/gone", model_revision="main")
    known = card(config, [], "adapter", begun_with=fingerprints.Fingerprints({}, COMMIT))
    assert f"| revision | `{COMMIT}` |" in known
    assert f'MODEL = "org/gone"\nREVISION = "{COMMIT}"\n' in known
    assert "from_pretrained(MODEL, revision=REVISION" in known
    assert "| revision | `main` |" in card(config, [], "adapter")
    assert "revision" not in card(wb.TrainConfig("builtin"), [], "adapter").partition("## Data")[0]


# --- a first attempt that ended while it fetched


def test_a_run_begins_in_whichever_attempt_has_no_checkpoint_yet(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    fields: dict[str, Any] = {"init_lora_weights": "loftq", "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
    for name in ("long", "run"):
        (tmp_path / name).mkdir()
    never = in_process.config_of(model, max_steps=2, lr_scheduler_type="linear", warmup_steps=3)
    with pytest.raises(AssertionError, match="its learning rate would never be reached"):
        in_process.train(never, tmp_path / "long", attempt=2)
    run = in_process.train(in_process.config_of(model, max_steps=1, **fields), tmp_path / "run", attempt=2)
    assert (RunFolder(run.dir).beginning / "adapter_config.json").exists()
    assert [event["n"] for event in of(run, "eval")] == [0, 1]
