"""What rings: a stall by the run's own steps, every end, and a webhook whose address no file or event holds."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import ended
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.environment import WEBHOOK, for_supervisor, without_secrets
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder, write_json
from workbench.training.results.history import RunHistory
from workbench.training.watch import alerts
from workbench.training.watch.alerts import EVERY, LEAST, Alerts
from workbench.training.watch.supervisor import Supervisor

SECRET = "a-path-that-nobody-is-to-see"


class Hook(ThreadingHTTPServer):
    """A webhook on the loopback interface; it answers with ``code``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.code = 200
        self.heard: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append({"path": self.path, **said})
        self.send_response(self.server.code)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.heard.append({"path": self.path})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Watched:
    """A run whose worker writes events at moments of the test's own, and what its alerts emitted."""

    def __init__(self, root: Path, webhook: str = "") -> None:
        self.folder = RunFolder(root)
        write_json(self.folder.config, {})
        self.writer = EventWriter(self.folder.events("rank0"), 1)
        self.now = 0.0
        self.told: list[dict[str, Any]] = []
        self.alerts = Alerts(
            self.folder, 1, lambda k, **fields: self.told.append({"k": k, **fields}), webhook, lambda: self.now
        )

    def emit(self, k: str, at: float, **fields: Any) -> None:
        self.writer.emit(k, t=int(at * 1e9), **fields)

    def steps(self, *at: float) -> None:
        self.emit("phase", at[0], name="train", edge="begin")
        for n, moment in enumerate(at, 1):
            self.emit("step", moment, n=n)

    def look(self, at: float) -> list[str]:
        """The alerts that a look at this moment adds."""
        before, self.now = len(self.told), at
        self.alerts.look()
        return [event["event"] for event in self.told[before:] if event["k"] == "alert"]


def test_a_stall_is_told_once_by_the_run_s_own_steps_and_so_is_its_end(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    run.steps(0, 20, 40, 60)
    assert run.look(61) == []
    assert run.look(60 + 10 * 20 - 1) == []
    assert run.look(60 + 10 * 20 + 1 + EVERY) == ["stalled"]
    assert run.look(400) == []
    (warning,) = (event for event in run.told if event["k"] == "log")
    assert warning["text"] == "No step for 206 seconds: the longest of the last ones took 20.0 s."
    run.emit("step", 401, n=5)
    assert run.look(406) == [""]
    assert run.look(401 + 9 * 341) == []  # that was a slow step of its own


def test_short_steps_have_a_minute_and_what_is_no_step_has_longer(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    run.steps(0, 0.1, 0.2, 0.3)
    assert run.look(LEAST) == []
    run.emit("phase", LEAST, name="evaluate", edge="begin")
    assert run.look(5 * LEAST) == []
    run.emit("phase", 5 * LEAST, name="evaluate", edge="end")
    assert run.look(5 * LEAST + EVERY) == []
    assert run.look(6 * LEAST + 1) == ["stalled"]


def test_before_its_pace_is_known_nothing_stalls_and_another_attempt_s_steps_do_not_count(tmp_path: Path) -> None:
    run = Watched(tmp_path)
    run.steps(0, 1)
    assert run.look(10_000) == []
    run.writer.attempt = 2
    run.steps(20_000, 20_001, 20_002, 20_003)
    assert run.look(40_000) == []


def test_a_history_knows_the_alert_until_it_is_over() -> None:
    history, common = RunHistory(), {"t": 0, "attempt": 1}
    history.feed([{"k": "alert", "event": "stalled", **common}])
    assert history.alert == "stalled"
    history.feed([{"k": "alert", "event": "", **common}])
    assert history.alert == ""


@pytest.mark.parametrize(
    ("state", "kind", "event"),
    [
        ("finished", "", "finished"), ("finished", "early", "finished early"), ("failed", "nan_loss", "diverged"),
        ("failed", "overflow", "diverged"), ("failed", "data", "failed"), ("paused", "", "paused"),
        ("killed", "killed", "killed"),
    ],
)  # fmt: skip
def test_every_end_is_told_to_the_webhook(tmp_path: Path, hook: Hook, state: str, kind: str, event: str) -> None:
    run = Watched(tmp_path / "a run", hook.url)
    run.alerts.ended(state, kind)
    assert hook.heard == [{"path": f"/{SECRET}", "run": "a run", "event": event, "text": f"a run: {event}"}]
    assert run.told == []


def test_a_webhook_that_fails_is_a_warning_that_does_not_name_it(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT", 0.5)
    hook.code = 404
    closed = hook.url.replace(f":{hook.server_port}", ":1")
    for url, why in ((hook.url, "HTTP 404"), (closed, "URLError"), (f"nothing://{SECRET}", "URLError"), (SECRET, "ValueError")):
        run = Watched(tmp_path / why, url)
        run.alerts.ended("finished", "")
        (warning,) = run.told
        assert (warning["k"], warning["level"]) == ("log", "warning")
        assert warning["text"].endswith(f"{why}.")
        assert SECRET not in json.dumps(run.told)


def test_a_webhook_is_not_followed_elsewhere(tmp_path: Path, hook: Hook) -> None:
    hook.code = 302
    run = Watched(tmp_path, hook.url)
    run.alerts.ended("finished", "")
    assert [heard["path"] for heard in hook.heard] == [f"/{SECRET}"]
    assert "HTTP 302" in run.told[0]["text"]


def test_only_the_supervisor_has_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(WEBHOOK, f"https://example.invalid/{SECRET}")
    assert WEBHOOK not in without_secrets()
    assert for_supervisor()[WEBHOOK].endswith(SECRET)
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, {})
    Supervisor(folder, 1)
    assert WEBHOOK not in os.environ  # of which the worker gets a copy
    monkeypatch.setenv(WEBHOOK, f"ftp://example.invalid/{SECRET}")
    with pytest.raises(wb.ConfigError, match="begins with https") as caught:
        wb.launch(wb.TrainConfig(), tmp_path / "none")
    assert SECRET not in str(caught.value)


def test_a_run_rings_and_writes_the_address_nowhere(
    forks: Forks, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEBHOOK, hook.url)
    config = in_process.config_of(write_tiny_model(tmp_path / "model"), max_steps=2, max_eval_rows=0)
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
    ended(run, "finished")
    assert [heard["event"] for heard in hook.heard] == ["finished"]
    for path in run.dir.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in wb.as_code(config)
    assert os.environ[WEBHOOK] == hook.url
