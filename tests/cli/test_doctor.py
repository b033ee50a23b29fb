"""`workbench doctor`: what is on the machine and works, in text that can be pasted, with nothing of the user's in it."""

from __future__ import annotations

import ctypes
import getpass
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers.hub_server import HubServer
from tests.helpers.stub_libraries import compile_stub
from workbench.cli import doctor, probe

ROOT = Path(wb.__file__).parents[1]


def ask(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``workbench doctor`` of a user who lives in ``home`` and works in a folder of it."""
    folder = home / "secret-project"
    folder.mkdir(parents=True, exist_ok=True)
    mine = {"HOME": str(home), "USER": "zz-user", "LOGNAME": "zz-user", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "workbench", "doctor", *arguments], cwd=folder, env=os.environ | mine | variables,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_it_says_what_is_here_and_nothing_of_the_user(tmp_path: Path) -> None:
    home = tmp_path / "zz-home"
    done = ask(home)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert lines["torch"] == importlib.metadata.version("torch")
    assert lines["qlora-workbench"] == wb.__version__
    assert "give back what was stored" in done.stdout
    assert "not asked: offline mode is on" in done.stdout
    own = [str(home), "zz-home", "zz-user", "secret-project", str(ROOT), sys.prefix, socket.gethostname()]
    assert not [word for word in own if word in done.stdout + done.stderr]
    assert getpass.getuser() not in done.stdout.split()


def test_for_a_program_it_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_probed", lambda: iter([doctor.Finding("torch", "sees nothing", False)]))
    monkeypatch.setattr(sys, "argv", ["workbench", "doctor", "--json"])
    from workbench.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"subject": "torch", "found": "sees nothing", "works": False} in findings


def test_a_library_that_raises_or_ends_its_process_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the text of the error, which names a folder."""
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text(f"raise OSError('{tmp_path}/libcudart.so: no such file')")
    bitsandbytes = tmp_path / "bitsandbytes"
    bitsandbytes.mkdir()
    (bitsandbytes / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(doctor, "without_secrets", lambda: os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    found = {finding.subject: finding for finding in doctor._probed()}
    assert list(found) == list(probe.QUESTIONS)
    assert found["torch"].found == "raises OSError"
    assert found["torch"].works is False
    assert not any(str(tmp_path) in finding.found for finding in found.values())


def test_whatever_cupti_answers_is_told_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    stub, other = (compile_stub(name, tmp_path / f"lib{name}.so") for name in ("cupti", "nvml"))
    for path, told in (
        (None, (False, "torch has loaded no libcupti")),
        (tmp_path / "answered.so", (False, "could not be loaded")),
        (other, (False, "could not be loaded")),
        (stub, (True, "CUPTI unified-memory counters: h2d, d2h")),
    ):
        monkeypatch.setattr("workbench.training.worker.cupti.loaded_cupti", lambda path=path: path and str(path))
        works, found = probe.QUESTIONS["CUPTI, paging counters"]()
        assert (works, found[: len(told[1])]) == told
        assert str(tmp_path) not in found
    ctypes.CDLL(str(stub)).stub_answer(b"cuptiActivityEnable", 35)
    works, found = probe.QUESTIONS["CUPTI, paging counters"]()
    assert not works
    assert found.startswith("cuptiActivityEnable answered CUPTI_ERROR_35 (the driver lets administrators")


def test_threads_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.kernels.pool.usable_cores", lambda: 33)
    assert {finding.subject: finding.found for finding in doctor._system()}["threads"].startswith("33 of ")


def test_a_process_that_is_ended_leaves_what_it_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"name": "torch", "works": True, "found": "here"})
    script = f"import os, signal; print('noise'); print({answer!r}, flush=True)"
    monkeypatch.setattr(doctor, "_PROBE", ("-c", f"{script}; os.kill(os.getpid(), signal.SIGKILL)"))
    torch, *others = doctor._probed()
    assert (torch.works, torch.found) == (True, "here")
    assert {(finding.works, finding.found) for finding in others} == {(False, "the process that was asked ended by signal 9")}


def test_a_hub_that_answers_and_one_that_does_not(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (there,) = doctor._hub()
    assert "the mirror that HF_ENDPOINT names answers with status" in there.found
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (gone,) = doctor._hub()
    assert gone.works is False
    assert gone.found == "the mirror that HF_ENDPOINT names does not answer: ConnectError"


def test_as_a_value_it_is_a_table_and_counts_what_it_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_probed", lambda: iter([doctor.Finding("torch", "sees nothing", False)]))
    steps: list[tuple[int, int]] = []
    checkup = wb.doctor(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(n, 5) for n in range(1, 6)]
    assert checkup.text.splitlines()[0].split() == ["subject", "works", "found"]
    assert len(checkup.text.splitlines()) == 1 + len(checkup.findings)
    assert "torch" in checkup._repr_html_()
