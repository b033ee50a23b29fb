"""Records the run that comes with the workbench: ``python -m scripts.record`` (a minute or two).

Covers launching it here, and keeping of it what ``workbench.training.recorded`` shows: its configuration, status, events and
adapter, with a note of the device and the date. Machine names, paths, process ids and the log stay out; times begin at 0.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.training.beginnings import CONFIG as CONFIGURATION
from workbench.training.beginnings import WEIGHTS
from workbench.training.folder import RunFolder, write_json
from workbench.training.recorded import FOLDER, NOTE

CONFIG = wb.TrainConfig(
    max_steps=60, learning_rate=2e-3, per_device_train_batch_size=8, max_length=128, eval_steps=15, save_steps=30,
    max_eval_rows=32, sample_max_new_tokens=24,
)  # fmt: skip
_DROPPED = frozenset({"log", "anchor", "error"})
_TIMES = ("t", "start", "end")
_OF_THE_MACHINE = ("pid", "create_time", "worker_pid", "worker_create_time")


def keep(run: wb.Run, target: Path) -> None:
    """What is worth keeping of a finished run, in a folder of its own."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    events = run.events()
    begin, device = events[0]["t"], next(str(e["device"]) for e in reversed(events) if e["k"] == "hello")
    for path in sorted(run.dir.glob("events-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        kept = [json.dumps(_cleaned(event, begin), separators=(",", ":")) for event in lines if event["k"] not in _DROPPED]
        (target / path.name).write_text("\n".join(kept) + "\n", "utf-8")
    write_json(target / "config.json", run.config.to_dict())
    status: dict[str, Any] = json.loads((run.dir / "status.json").read_text("utf-8"))
    write_json(target / "status.json", status | dict.fromkeys(_OF_THE_MACHINE))
    adapter = RunFolder(run.dir).adapter
    kept_adapter = RunFolder(target).adapter
    kept_adapter.mkdir()
    shutil.copyfile(adapter / WEIGHTS, kept_adapter / WEIGHTS)
    described = json.loads((adapter / CONFIGURATION).read_text("utf-8"))
    write_json(kept_adapter / CONFIGURATION, described | {"base_model_name_or_path": run.config.model})
    day = time.strftime("%d %B %Y", time.gmtime(status["began"])).lstrip("0")
    write_json(target / NOTE, {"note": f"recorded on a {'CPU' if device == 'cpu' else device}, {day}"})


def _cleaned(event: dict[str, Any], begin: int) -> dict[str, Any]:
    times = {name: event[name] - begin for name in _TIMES if name in event}
    return {name: value for name, value in (event | times).items() if name != "anchors"}


def main() -> None:
    """Launch, wait, keep; or keep a finished run whose folder is given."""
    if len(sys.argv) > 1:
        keep(wb.attach(sys.argv[1]), FOLDER)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = wb.launch(CONFIG, Path(folder) / "run")
        if run.wait().state != "finished":
            raise SystemExit(str(run.status))
        keep(run, FOLDER)


if __name__ == "__main__":
    main()
