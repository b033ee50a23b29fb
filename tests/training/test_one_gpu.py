"""What a worker sees of the GPUs, and what a run on one leaves for the forecasts after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench import compat
from workbench.memory.learnt import Learnt, learn, learnt, path
from workbench.training.environment import ALLOCATOR, for_worker
from workbench.training.events import read_events
from workbench.training.folder import RunFolder, write_json
from workbench.training.results import measured
from workbench.training.watch import supervisor

MIB = 2**20


@pytest.mark.parametrize(
    ("environ", "processes", "gpus", "seen"),
    [
        ({}, 1, 2, "0"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, 1, 4, "3"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5b1c, GPU-9e2a"}, 1, 2, "GPU-5b1c"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, 2, ""),  # a run on the CPU
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1, 2, "1"),
        ({}, 2, 2, None),  # one a process
        ({}, 1, 1, None),
        ({}, 1, 0, None),
    ],
)
def test_one_process_sees_one_gpu(environ: dict[str, str], processes: int, gpus: int, seen: str | None) -> None:
    assert for_worker(environ, processes, gpus).get("CUDA_VISIBLE_DEVICES") == seen


def test_no_model_is_shared_out_over_devices() -> None:
    """Every device_map puts the whole model on one device, the process's own; the copied cell and the card name none."""
    home = Path(wb.__file__).parent
    sources = [path.read_text("utf-8") for path in [*home.rglob("*.py"), *(home.parent / "widgets").rglob("*.py")]]
    lines = [line.strip() for source in sources for line in source.splitlines() if "device_map" in line]
    assert lines == ['arguments["device_map"] = {"": local_rank()}']
    assert "device_map" not in wb.as_code(wb.TrainConfig(nproc_per_node=2))


def test_the_allocator_grows_its_segments_unless_the_user_says_otherwise() -> None:
    grow = "expandable_segments:True"
    assert for_worker({}, 1, 1, torch="2.13.0+cpu")["PYTORCH_ALLOC_CONF"] == grow
    assert for_worker({}, 1, 1, torch="2.9.1")["PYTORCH_CUDA_ALLOC_CONF"] == grow
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        own = for_worker({name: "max_split_size_mb:128"}, 1, 1)
        assert {key: value for key, value in own.items() if "ALLOC" in key} == {name: "max_split_size_mb:128"}


@pytest.mark.parametrize(("gpus", "own", "said"), [(2, "", ["GPU 0 alone", "segments"]), (1, "x", []), (0, "", [])])
def test_a_run_s_events_say_what_it_sees_and_how_it_allocates(
    gpus: int, own: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", *ALLOCATOR):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(ALLOCATOR[0], own)
    monkeypatch.setattr(supervisor, "devices", lambda: gpus)
    monkeypatch.setattr(supervisor, "Ranks", lambda *_, **__: None)
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, {})
    supervisor.Supervisor(folder, 1).start()
    logs = [event["text"] for event in read_events(folder.root) if event["k"] == "log"]
    assert len(logs) == len(said)
    assert all(part in text for part, text in zip(said, logs, strict=True))


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """transformers' attention functions by name, to be put back."""
    from transformers import AttentionInterface

    mapping: dict[str, Any] = AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, "sdpa", mapping["sdpa"])
    return mapping


@pytest.mark.parametrize(("capability", "mended"), [((7, 5), True), ((8, 0), False)])
def test_a_run_s_events_say_that_heads_attend_by_turns(
    capability: tuple[int, int], mended: bool, tmp_path: Path, attention: dict[str, Any]
) -> None:
    from workbench.training.worker.worker import Worker

    before = attention["sdpa"]
    folder = RunFolder(tmp_path / "run")
    write_json(folder.config, wb.TrainConfig().to_dict())
    worker = Worker(folder, 1, os.getppid())
    worker._mend_attention(capability)
    worker.writer.close()
    assert [event["k"] for event in read_events(folder.root) if "by turns" in event.get("text", "")] == ["log"] * mended
    assert (attention["sdpa"] is not before) is mended


@pytest.mark.parametrize(
    ("queries", "keys", "shared", "masked"),
    [(7, 7, 4, False), (7, 7, 4, True), (7, 7, 1, False), (1, 9, 4, False), (7, 12, 2, False)],
    ids=["a batch", "with a mask", "no heads share", "a token more", "a cache with room"],
)
def test_heads_answer_by_turns_as_at_once(
    queries: int, keys: int, shared: int, masked: bool, attention: dict[str, Any]
) -> None:
    import torch
    from torch import nn

    module = nn.Module()
    module.num_key_value_groups, module.is_causal = shared, True  # type: ignore[assignment]  # as a model's attention has them
    torch.manual_seed(0)
    shapes = [(2, 2 * shared, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    mask = torch.rand(2, 1, queries, keys) < 0.8 if masked else None

    def answered() -> list[torch.Tensor]:
        answer, _ = attention["sdpa"](module, *given, mask, scaling=0.3)
        return [answer, *torch.autograd.grad(answer.square().sum(), given)]

    at_once = answered()
    compat.heads_by_turns()
    torch.testing.assert_close(answered(), at_once)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return path()


def test_a_run_s_context_and_slack_are_kept_for_the_next_forecast(tmp_path: Path, caches: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    gpu = {"allocated": 7_000 * MIB, "allocated_peak": 8_000 * MIB, "reserved": 8_400 * MIB, "nvml_process": None}
    events = [
        {"k": "hello", "device": "Tesla T4"},
        {"k": "forecast", "device": "cuda", "method": "qlora", "shape": [1, 64], "rows": []},
        {"k": "memory", "moment": "context", "context": 139 * MIB, "gpu": {"nvml_process": None, "reserved": 0}},
        {"k": "memory", "moment": "step", "n": 1, "rows": 1, "longest": 64, "padded": 0, "recomputed": 0, "gpu": gpu},
    ]
    lines = [json.dumps({"t": i, "seq": i, "attempt": 1, **event}) for i, event in enumerate(events)]
    (run / "events-worker.jsonl").write_text("\n".join(lines) + "\n")
    found = measured.learn(run)
    assert found == learnt("Tesla T4") != None  # noqa: E711  (one value in three places)
    assert (found.context, found.slack) == (139 * MIB, 0.05)
    assert found.run.startswith("run, ")

    own = wb.Gpu("Tesla T4, in this machine", 15 * 2**30, found.context, f"measured here by the run {found.run}", found.slack)
    ledger = wb.fit(wb.forecast("builtin", wb.TrainConfig()), own).ledger
    assert ledger["CUDA context"] == 139 * MIB
    assert ledger["spare"] == int(0.05 * (ledger.needed - 139 * MIB))
    assert {row.category for row in ledger.rows if "measured here by the run" in row.note} == {"CUDA context", "spare"}


def test_what_was_learnt_of_others_stays_and_what_cannot_be_read_is_nothing(caches: Path) -> None:
    learn("A", Learnt(1, None, "a"))
    learn("B", Learnt(2, 0.1, "b"))
    learn("A", Learnt(3, None, "c"))
    assert (learnt("A"), learnt("B"), learnt("C")) == (Learnt(3, None, "c"), Learnt(2, 0.1, "b"), None)
    caches.write_text("no JSON")
    assert learnt("A") is None
    learn("A", Learnt(4, None, "d"))
    assert learnt("A") == Learnt(4, None, "d")


def test_on_a_cpu_nothing_is_learnt(tmp_path: Path, caches: Path) -> None:
    (tmp_path / "run").mkdir()
    assert measured.learn(tmp_path / "run") is None
    assert not caches.exists()
