"""What a run trained is pushed to the Hub, by the run itself and on request; the token stays out of all that it writes."""

from __future__ import annotations

import json
import shutil
import sys
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
from workbench.training.events import EventWriter
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
    made_anew = {f"events/{path.name}" for path in run.dir.glob("events-*.jsonl")} | {"README.md", "adapter_config.json"}
    assert repo.files == adapter | {name: repo.files[name] for name in made_anew}
    steps = [json.loads(line) for line in repo.files["events/events-rank0.jsonl"].splitlines()]
    assert [event["loss"] for event in steps if event["k"] == "step"] == [event["loss"] for event in of(run, "step")]
    card = repo.files["README.md"].decode()
    assert "# LoRA adapter of" in card
    assert str(run.dir) not in card

    # Another name, where everybody may read it; a second push is a second commit.
    wb.push(run.dir, "org/open", private=False, token=TOKEN)
    wb.push(run.dir, "org/open", private=False, token=TOKEN)
    assert not hub.repos["org/open"].private


def test_of_a_checkpoint_only_what_was_trained_is_pushed(hub: HubServer, run: wb.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.dir, tmp_path / "half")
    shutil.rmtree(folder / "adapter")
    (folder / "checkpoints" / "checkpoint-2" / "scaler.pt").write_bytes(b"of a run in float16")
    wb.push(folder, token=TOKEN)
    names = set(hub.repos[f"{OWNER}/tuned"].files)
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".pt", ".bin", ".pth")) or name in ("trainer_state.json", "complete")]
    assert "those after step 2, of a run that had not ended" in hub.repos[f"{OWNER}/tuned"].files["README.md"].decode()


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_nothing_that_is_pushed_names_a_path_of_this_machine(hub: HubServer, model: Path, method: str, tmp_path: Path) -> None:
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"text": "one two three"}\n' * 9, "utf-8")
    mine = shutil.copytree(model, tmp_path / "models" / "mine")
    (tmp_path / "runs").mkdir()
    config = in_process.config_of(
        mine, method=method, dataset=str(rows), eval_dataset=str(rows), max_steps=2, mirror_dir=str(tmp_path / "drive"),
        hub_model_id="tuned", save_steps=1,
    )  # fmt: skip
    run = in_process.ended(in_process.train(config, tmp_path / "runs" / "run"))
    writer = EventWriter(run.dir / "events-supervisor.jsonl", 1)
    writer.emit("log", level="warning", text=f"The mirror {tmp_path / 'drive'} cannot be written.")
    writer.emit("error", kind="error", message=f"{mine} is damaged.", remedy=f"See {run.log}.", text=f'File "{__file__}"')
    writer.emit("hello", device="cpu", versions={}, capabilities={"cupti": {"works": False, "why": f"{tmp_path}/libcupti.so"}})
    writer.emit("exit", code=0, state="finished")
    writer.close()
    wb.push(run, token=TOKEN)
    pushed = hub.repos[f"{OWNER}/tuned"].files
    private = [str(path).encode() for path in (tmp_path, model, Path.home(), Path(sys.prefix), Path(__file__).parent)]
    assert [name for name, data in pushed.items() if any(path in data for path in private)] == []
    kinds = [json.loads(line)["k"] for line in pushed["events/events-supervisor.jsonl"].splitlines()]
    assert kinds == ["hello", "exit"]
    if method == "qlora":
        assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "mine"


def test_a_pushed_adapter_names_its_base_on_the_hub(hub: HubServer, run: wb.Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.dir, tmp_path / "run")
    write_json(folder / "config.json", replace(run.config, model="org/base").to_dict())
    wb.push(folder, token=TOKEN)
    assert json.loads(hub.repos[f"{OWNER}/tuned"].files["adapter_config.json"])["base_model_name_or_path"] == "org/base"


def test_a_pushed_card_says_which_step_the_weights_are_of(hub: HubServer, model: Path, tmp_path: Path) -> None:
    config = in_process.config_of(
        model, max_steps=3, eval_steps=1, save_steps=1, load_best_model_at_end=True, learning_rate=5.0, hub_model_id="tuned"
    )
    (tmp_path / "run").mkdir()
    run = in_process.ended(in_process.train(config, tmp_path / "run"))
    assert run.adapter_dir is not None
    wb.push(run, token=TOKEN)
    card = hub.repos[f"{OWNER}/tuned"].files["README.md"].decode()
    assert "The weights are those after step" in card
    assert card == (run.adapter_dir / "README.md").read_text("utf-8")


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
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a/b/c", "a b", "a--b", "a..b", "a/b.git", "-a", "a-", "a.", "me/.a", "ä", "a" * 97, "", "a\n"]
)
def test_a_name_that_no_repository_can_have_is_refused_by_itself(run: wb.Run, name: str) -> None:
    with pytest.raises(wb.ConfigError, match="hub_model_id is ") as caught:
        replace(run.config, hub_model_id=name)
    assert repr(name) in str(caught.value)
    if name:  # else it is the configuration's
        with pytest.raises(wb.RunError, match="no repository can be called") as refused:
            wb.push(run, name, token=TOKEN)
        assert repr(name) in str(refused.value)
    replace(run.config, hub_model_id=f"{'a' * 39}/{'b' * 40}_c.d-e")


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
