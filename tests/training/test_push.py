"""What a run trained is pushed to the Hub, by the run itself and on request; the token stays out of all that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.hub_uploads import OWNER
from tests.helpers.live_runs import ended, files_of, of, until
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.folder import RunFolder, write_json
from workbench.training.spawning import spawn
from workbench.training.watch.hub_process import HubProcess


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    config = in_process.config_of(model, max_steps=2, max_eval_rows=0, push_to_hub=True, hub_model_id="tuned", save_steps=1)
    return in_process.ended(in_process.train(config, tmp_path_factory.mktemp("runs") / "run"))


def pushed(run: wb.Run, token: str | None) -> HubProcess:
    """What the run's own process for the push says."""
    process = HubProcess(RunFolder(run.dir), "push", token)
    until(run, lambda _: process.poll() is not None, 60)
    return process


def test_a_push_makes_a_private_repository_with_adapter_card_and_events(hub: HubServer, run: wb.Run) -> None:
    address = wb.push(run, token=TOKEN)
    repo = hub.repos[f"{OWNER}/tuned"]
    assert address == f"{hub.url}/{OWNER}/tuned"
    assert repo.private
    assert run.adapter_dir is not None
    adapter = {name: data for name, data in files_of(run.adapter_dir).items() if name != "README.md"}
    adapter.pop("trainer_state.json")
    events = {f"events/{path.name}": path.read_bytes() for path in run.dir.glob("events-*.jsonl")}
    assert repo.files == adapter | events | {"README.md": repo.files["README.md"]}
    card = repo.files["README.md"].decode()
    assert "# LoRA adapter of" in card
    assert str(run.dir) not in card

    # Another name, where everybody may read it; a second push is a second commit.
    wb.push(run.dir, "org/open", private=False, token=TOKEN)
    wb.push(run.dir, "org/open", private=False, token=TOKEN)
    assert not hub.repos["org/open"].private


def test_of_a_checkpoint_only_what_was_trained_is_pushed(hub: HubServer, run: wb.Run, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(run.dir, tmp_path / "half")
    shutil.rmtree(folder / "adapter")
    wb.push(folder, token=TOKEN)
    names = set(hub.repos[f"{OWNER}/tuned"].files)
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".pt", ".bin", ".pth")) or name in ("trainer_state.json", "complete")]


def test_the_runs_own_process_pushes_with_the_token_that_it_alone_gets(hub: HubServer, run: wb.Run) -> None:
    assert pushed(run, TOKEN).answer == {"address": f"{hub.url}/{OWNER}/tuned"}


def test_a_push_that_is_refused_says_why(hub: HubServer, run: wb.Run) -> None:
    answer = pushed(run, None).answer
    assert "does not let this account write there (404)" in answer["message"]
    hub.fail(path="/commit/", status=403)
    with pytest.raises(wb.RunError, match="does not let this account write there"):
        wb.push(run, token=TOKEN)


def test_a_run_whose_push_fails_is_finished_all_the_same(hub: HubServer, forks: Forks, run: wb.Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, run.config.to_dict())
    with forks.ready():
        spawn(folder, 1, ())  # without the token that launch asks for
        again = wb.attach(folder.root)
        status = ended(again, "finished", 60)
    assert status.message.startswith("Finished after 2 steps. It was not pushed to the Hub: tuned: ")
    assert status.message.endswith("wb.push(run) tries again.")
    assert [event["level"] for event in of(again, "log") if "not pushed" in event["text"]] == ["warning"]


def test_a_run_that_has_trained_nothing_has_nothing_to_push(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": "builtin"}', "utf-8")
    with pytest.raises(wb.RunError, match="nothing is trained yet"):
        wb.push(tmp_path)


# --- what launch refuses


def test_a_push_without_a_right_to_write_is_refused_at_launch(
    hub: HubServer, run: wb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run.config
    with pytest.raises(wb.ConfigError, match="no account is logged in"):
        wb.launch(config, tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.role = "read"
    with pytest.raises(wb.ConfigError, match="may only read"):
        wb.launch(config, tmp_path / "run")
    with pytest.raises(wb.ConfigError, match="no repository can be called 'a run'"):
        wb.launch(replace(config, hub_model_id=None), tmp_path / "a run")
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}_invalid")
    with pytest.raises(wb.ConfigError, match="does not accept the token"):
        wb.launch(config, tmp_path / "run")
    with pytest.raises(wb.ConfigError, match="hub_model_id is 'a/b/c'"):
        replace(config, hub_model_id="a/b/c")
    assert list(tmp_path.iterdir()) == []


# --- a whole run with a token


@pytest.mark.slow
def test_a_token_opens_a_gate_and_pushes_and_is_in_no_file_of_the_run(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.add("org/gated", files, private=True, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    config = in_process.config_of(
        Path("org/gated"), max_steps=2, max_eval_rows=0, push_to_hub=True, mirror_dir=str(tmp_path / "drive")
    )
    run = wb.launch(config, tmp_path / "run")
    status = ended(run, "finished", 200)
    assert status.message == f"Finished after 2 steps. Pushed to {hub.url}/{OWNER}/run."
    assert hub.repos[f"{OWNER}/run"].private
    assert "adapter_model.safetensors" in hub.repos[f"{OWNER}/run"].files
    assert [event["name"] for event in of(run, "phase") if event["edge"] == "end"][:1] == ["fetch"]
    run._process.wait(60)  # type: ignore[union-attr]
    for folder in (run.dir, tmp_path / "drive" / "run"):
        written = files_of(folder)
        assert {"config.json", "events-supervisor.jsonl", "status.json"} <= written.keys()
        assert [name for name, data in written.items() if TOKEN.encode() in data] == []
    assert json.loads((run.dir / "config.json").read_text("utf-8"))["model_revision"] == "a" * 40
    assert not [request for request in hub.requests if request.server == "cdn" and request.authorization]
