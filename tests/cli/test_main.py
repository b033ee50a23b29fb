"""The command line as a script and a person at a terminal meet it: results, exit codes, what goes where, and interruptions."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import tomllib
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import workbench as wb
from tests.helpers.surveys import checkpoint, layers, two_shards
from workbench.cli import text as cli_text
from workbench.cli.main import cli
from workbench.memory.forecast import forecast_methods
from workbench.memory.gpus import GPUS

ROOT = Path(wb.__file__).parents[1]
COMMANDS = ("survey", "duel", "forecast", "export", "doctor", "formats", "cost", "sensitivity", "mix")


def run(*arguments: object) -> Result:
    """In this process; an exception that is no error of ours is raised."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments: object, **how: Any) -> subprocess.Popen[bytes]:
    """``python -m workbench`` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "workbench", *map(str, arguments)], env=environment, **how)


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=300)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


# --- help ---------------------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_every_command_has_help():
    for arguments in ([], ["--help"], ["-h"]):
        result = run(*arguments)
        assert all(name in result.output for name in COMMANDS)
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: cli {name}")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys, workbench.cli.main\n"
        "sys.argv = ['workbench', sys.argv[1]]\n"
        "try: workbench.cli.main.main()\n"
        "finally: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True, check=True)
        heavy = {"numpy", "numba", "pandas", "torch", "plotly", "transformers", "huggingface_hub"}
        assert not heavy & set(done.stderr.split())
    assert done.stdout == f"workbench {wb.__version__}\n"


def test_the_script_and_the_module_are_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, function = scripts["workbench"].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv = ['workbench', 'formats', '--json']; {function}()"
    script = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
    assert finished(start("formats", "--json", **PIPES)) == (0, script.decode(), "")


# --- results ------------------------------------------------------------------------------------------------------------------


def test_formats():
    text, data = run("formats").output, json.loads(run("formats", "--json").stdout)
    assert all(form.title in text for form in wb.FORMATS.values())
    assert [line["name"] for line in data["formats"]] == list(wb.FORMATS)
    for line in data["formats"]:
        form = wb.FORMATS[line["name"]]
        assert line["bits_per_weight"] == wb.QuantSpec(form.name).bits_per_weight
        assert tuple(line["levels"]) == form.steps
    assert data["workbench"] == wb.__version__


def test_survey_prints_and_writes_the_survey(tmp_path):
    csv, parquet, html = (tmp_path / f"survey.{kind}" for kind in ("csv", "parquet", "html"))
    options = ["--formats", "nf4,int4", "--block-size", "64,128", "--double-quant", "both", "--json"]
    result = run("survey", "builtin", *options, "--csv", csv, "--parquet", parquet, "--html", html)
    assert result.exit_code == 0
    specs = [wb.QuantSpec(f, b, double_quant=d) for f in ("nf4", "int4") for b in (64, 128) for d in (False, True)]
    expected = wb.survey("builtin", specs, progress=False).to_frame()
    pd.testing.assert_frame_equal(pd.read_parquet(parquet)[["tensor", "spec", "rmse"]], expected[["tensor", "spec", "rmse"]])
    written = pd.read_csv(csv, dtype={"sqnr_db": str})["sqnr_db"]  # pandas before 3 rounds the numbers that it reads
    assert written.map(float).tolist() == expected["sqnr_db"].tolist()
    data = json.loads(result.stdout)
    assert [line["rmse"] for line in data["rows"]] == expected["rmse"].tolist()
    assert [wb.QuantSpec(**spec) for spec in data["specs"]] == specs
    assert [line["spec"] for line in data["overall"]] == [spec.title for spec in specs]
    assert html.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["Wrote"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["survey.csv", "survey.html", "survey.parquet"]


def test_survey_as_text_shows_totals_and_the_worst():
    result = run("survey", "builtin", "--tensors", "*.down_proj.*", "--tensors", "*.layers.0.*", "--worst", 3)
    assert result.stdout.startswith("builtin: 12 tensors, ")
    frame = wb.survey("builtin", wb.QuantSpec(), progress=False).to_frame()
    chosen = frame[frame["tensor"].str.contains(r"down_proj|layers\.0\.")]
    worst = chosen.sort_values("relative_rmse", ascending=False)["tensor"].tolist()
    assert [line.split()[0] for line in result.stdout.splitlines()[-3:]] == worst[:3]
    assert not result.stderr
    alone = run("survey", "builtin", "--tensors", "model.embed_tokens.*").stdout
    assert alone.startswith("builtin: 1 tensor, 1.05 million weights"), "a pattern that asks for what QLoRA leaves gets it"


def test_double_quantization_is_both_where_there_is_both():
    data = json.loads(run("survey", "builtin", "--formats", "nf4,mxfp4", "--double-quant", "both", "--json").stdout)
    assert [line["spec"] for line in data["overall"]] == [
        "NF4, blocks of 64", "NF4, blocks of 64, double quantized", "MXFP4, blocks of 32",
    ]  # fmt: skip


def test_duel():
    expected = wb.duel("builtin", 4.25)
    data = json.loads(run("duel", "builtin", "--bits", 4.25, "--by", "layer", "--json").stdout)
    assert [line["rmse"] for line in data["contenders"]] == [score.rmse for score in expected.contenders]
    assert data["winners"]["rmse"] == list(expected.winners())
    assert data["left_out"] == dict(expected.left_out)
    assert [line["winners"] for line in data["rounds"]] == [list(fought.winners()) for fought in expected.rounds("layer")]
    assert data["double_quantization"]["nf4"]["bytes_saved"] == expected.trades["nf4"].bytes_saved
    text = run("duel", "builtin", "--bits", 4.25, "--by", "kind").stdout
    first = text.splitlines()[3]
    assert first.startswith(min(expected.contenders, key=lambda score: score.rmse).spec.title)
    assert f": {wb.FORMATS[expected.winners()[0]].title}." in text
    assert "INT8 (8.002 at the least)" in text
    assert any(line.startswith("gate ") for line in text.splitlines())
    few = json.loads(run("duel", "builtin", "--formats", "nf4,fp4", "--json").stdout)
    assert [line["format"] for line in few["contenders"]] == ["nf4", "fp4"]


def test_forecast():
    config = wb.TrainConfig(per_device_train_batch_size=2, max_length=128, lora_r=8, block_size=128)
    ledgers = forecast_methods(wb.open_model("builtin"), config)
    options = ["--batch-size", 2, "--max-length", 128, "--lora-r", 8, "--block-size", 128]
    data = json.loads(run("forecast", "builtin", *options, "--json").stdout)
    assert [(line["method"], line["total"]) for line in data["methods"]] == [(led.title, led.total) for led in ledgers]
    assert [line["gpu"] for line in data["gpus"]] == list(GPUS)
    text = run("forecast", "builtin", *options, "--gpu", "T4 16 GB").stdout
    assert "2 rows of 128 tokens, adapters of rank 8" in text
    assert "T4 16 GB" in text
    assert "A100" not in text
    assert "not measured" in text


# --- what goes wrong ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["survey", "no/such folder"], 1, "There is no"),
        (["forecast", "."], 1, "holds no model.safetensors"),
        (["surwey"], 2, "No such command"),
        (["survey"], 2, "Missing argument 'MODEL'"),
        (["survey", "builtin", "--formats", "nf5"], 2, "There is no format 'nf5'. Choose one of: nf4, "),
        (["survey", "builtin", "--block-size", "65"], 2, "NF4 has no blocks of 65 weights."),
        (["survey", "builtin", "--block-size", "big"], 2, "'big' is not a list of whole numbers"),
        (["survey", "builtin", "--formats", "mxfp4", "--double-quant", "yes"], 2, "cannot be double quantized"),
        (["survey", "builtin", "--tensors", "*.no_such.*"], 2, "No tensor's name matches '*.no_such.*'"),
        (["survey", "builtin", "--revision", "main"], 1, "no revisions"),
        (["survey", "builtin", "--csv", "no such folder/x.csv"], 2, "is in no folder that there is"),
        (["survey", "builtin", "--csv", "."], 2, "is a folder"),
        (["survey", "builtin", "--csv", "x", "--html", "./x"], 2, "--csv and --html need files of their own"),
        (["survey", "builtin", "--html", "x", "--bits", "2"], 2, "Nothing takes 2 bits"),
        (["duel", "builtin", "--bits", "3"], 2, "NF4 takes the fewest, 4.0020"),
        (["duel", "builtin", "--formats", "nf4,,x"], 2, "There is no format ''"),
        (["forecast", "builtin", "--gpu", "T5"], 2, "'T5' is no GPU known here. Choose one of: RTX 3060"),
        (["forecast", "builtin", "--block-size", "65"], 2, "block_size is 65"),
        (["forecast", "builtin", "--batch-size", "0"], 2, "0 is not in the range"),
    ],
)
def test_what_goes_wrong_is_told_on_standard_error(arguments, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert told in " ".join(result.stderr.split())
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_cannot_be_read_fails_the_command_and_not_the_rest(tmp_path):
    """One of two shards vanishes after the model was opened."""
    names = list(two_shards(tmp_path))
    code = (
        "import pathlib, sys, workbench.cli.main, workbench.sources as s\n"
        "def opened(*a, _open=s.open_model):\n"
        "    source = _open(*a); pathlib.Path(sys.argv[2], '1.safetensors').unlink(missing_ok=True); return source\n"
        "s.open_model = opened\n"
        "workbench.cli.main.main()"
    )
    csv = tmp_path / "rows.csv"
    done = subprocess.run(
        [sys.executable, "-c", code, "survey", str(tmp_path), "--csv", str(csv)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "2 of 4 tensors could not be measured." in done.stderr
    assert names[2] in done.stderr
    assert "2 tensors, 81,920 weights" in done.stdout
    assert pd.read_csv(csv)["error"].notna().tolist() == [False, False, True, True]


def test_names_cannot_steer_the_terminal(tmp_path):
    folder = checkpoint(tmp_path / "a\x1b]0;title\x07b", layers(2))
    for arguments in (["survey", folder], ["duel", folder], ["forecast", folder], ["survey", tmp_path / "no\x1b[31m"]):
        result = run(*arguments)
        assert "\x1b" not in result.output
        assert "\\u001b" in result.output or "\\x1b" in result.output
    assert "\x1b" not in cli_text.columns(("name",), [("\x1b[2J",)])


# --- processes ----------------------------------------------------------------------------------------------------------------


def large(folder: Path) -> Path:
    """A model of 20 GB, all zeros and on no disk: enough to be in the middle of it for a while."""
    numel = 1 << 26
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(160)]
    header = {
        name: {"dtype": "BF16", "shape": [1 << 13, 1 << 13], "data_offsets": [2 * numel * i, 2 * numel * (i + 1)]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2 * numel * len(names))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def until(stream: IO[bytes], text: bytes) -> bytes:
    """What comes up to and with ``text``."""
    seen = b""
    while text not in seen:
        part = os.read(stream.fileno(), 4096)
        assert part, seen
        seen += part
    return seen


def test_control_c_ends_it_with_130_and_without_files(tmp_path):
    model = large(tmp_path / "model")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    options = ["--formats", "nf4,int4", "--double-quant", "both", "--csv", tmp_path / "x.csv"]
    process = start("survey", model, *options, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        until(terminal, b"Survey:")
        process.send_signal(signal.SIGINT)
        told = until(terminal, b"Interrupted.")
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Traceback" not in told
    assert out == b""
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_no_progress_bar_and_nothing_else_on_standard_error_where_it_is_no_terminal(tmp_path):
    code, out, err = finished(start("survey", "builtin", "--json", **PIPES))
    assert (code, err) == (0, "")
    assert json.loads(out)["model"] == "builtin"


def test_a_reader_that_leaves_is_no_error():
    process = start("formats", "--json", **PIPES)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(300) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told():
    with open("/dev/full", "wb") as full:
        code, _, err = finished(start("formats", stdout=full, stderr=subprocess.PIPE))
    assert code == 1
    assert err == "Error: No space left on device.\n"


def test_a_terminal_that_knows_no_unicode_gets_something():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "workbench", "formats"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"nf4" in done.stdout


def test_what_can_be_printed_has_a_width():
    table = cli_text.columns(("name", "n"), [("a", "1"), ("bcd", "1,234")])
    assert table == "name      n\na         1\nbcd   1,234"
    assert json.loads(cli_text.dumped(x=float("inf"), y=(np.pi,))) == {"workbench": wb.__version__, "x": None, "y": [np.pi]}
