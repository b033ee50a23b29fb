"""What quantization costs, on the command line: what is printed, and what is wrong usage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import workbench as wb
from tests.helpers.cost_in_process import measuring
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from workbench.cli.main import cli


@pytest.fixture(scope="module", autouse=True)
def _here() -> Iterator[None]:
    with measuring():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cost") / "kept"


def run(*arguments: object, kept: Path | None = None) -> Result:
    folder = [] if kept is None else ["--folder", kept, "--max-rows", 8, "--max-length", 24]
    return CliRunner().invoke(cli, [str(argument) for argument in (*arguments, *folder)])


def test_cost_prints_a_line_a_format_after_that_of_16_bits(model: Path, kept: Path) -> None:
    done = run("cost", model, "--formats", "nf4,mxfp4", "--double-quant", "both", kept=kept)
    assert done.exit_code == 0, done.output
    table, _, ranks = done.stdout.partition("\n\n")
    head, *lines = table.splitlines()
    assert head.split("  ")[0] == "specification"
    assert "The Devil's Dictionary" in ranks
    assert not missing(ranks, "   1  ", "MXFP4, blocks of 32", "NF4, blocks of 64, double quantized")
    names = ["16 bits", "NF4, blocks of 64", "NF4, blocks of 64, double quantized", "MXFP4, blocks of 32"]
    assert [line.split("  ")[0] for line in lines] == names
    assert len({len(line) for line in lines}) == 1


def test_cost_as_json_has_every_number(model: Path, kept: Path) -> None:
    done = run("cost", model, "--formats", "nf4", "--json", kept=kept)
    value = json.loads(done.stdout)
    assert [row["spec"] and row["spec"]["format"] for row in value["rows"]] == [None, "nf4"]
    assert [row["rank"] for row in value["rows"]] == [None, 1]
    assert value["rows"][1]["kl_interval"][0] < value["rows"][1]["kl"] < value["rows"][1]["kl_interval"][1]
    assert value["rows"][1]["increase"] == pytest.approx(value["rows"][1]["loss"] - value["rows"][0]["loss"])


def test_the_ranks_of_json_are_those_of_all_rows(model: Path, kept: Path) -> None:
    value = json.loads(run("cost", model, "--formats", "int2-sym,int8", "--json", kept=kept).stdout)
    assert [row["rank"] for row in value["rows"]] == [None, 2, 1]


def test_sensitivity_prints_the_costliest_modules(model: Path, kept: Path) -> None:
    done = run("sensitivity", model, "--worst", 3, kept=kept)
    assert done.exit_code == 0, done.output
    about, head, *lines = done.stdout.splitlines()
    assert "the 3 costliest of 14 modules" in about
    assert head.startswith("module")
    rows = wb.sensitivity(model, max_rows=8, max_length=24, folder=kept).run().rows
    assert [line.split()[0] for line in lines] == [row.name for row in sorted(rows, key=lambda row: -row.share)[:3]]
    value = json.loads(run("sensitivity", model, "--json", kept=kept).stdout)
    assert [row["name"] for row in value["rows"]] == [row.name for row in rows]


def test_mix_prints_what_to_leave_out_and_what_that_gives(model: Path, kept: Path) -> None:
    done = run("mix", model, "--budget-mb", 0.2, kept=kept)
    assert done.exit_code == 0, done.output
    value = json.loads(run("mix", model, "--budget-mb", 0.2, "--json", kept=kept).stdout)
    assert value["nbytes"] <= 200_000
    assert value["measured_kl_interval"][0] <= value["measured_kl"] <= value["measured_kl_interval"][1]
    assert (value["rows_chosen_by"], value["rows_reported"]) == (4, 4)
    names = done.stdout.partition("as llm_int8_skip_modules:\n")[2].split()
    assert names == value["llm_int8_skip_modules"] != []
    code = run("mix", model, "--budget-mb", 0.2, "--code", kept=kept).stdout
    assert all(f'"{name}",' in code for name in names)
    compile(code, "cell", "exec")


def test_a_mix_as_another_checkpoint_s_says_so(model: Path, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dynamic"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    skipped = {"llm_int8_skip_modules": ["model.layers.1.mlp"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": skipped}))
    done = run("mix", model, "--like", folder, kept=kept)
    assert done.exit_code == 0, done.output
    assert "Modules as dynamic leaves them; figures of 4 held-out rows, every second one." in done.stdout
    assert "hosen by" not in done.stdout
    value = json.loads(run("mix", model, "--like", folder, "--json", kept=kept).stdout)
    assert (value["like"], value["gpu"], value["rows_chosen_by"], value["rows_reported"]) == ("dynamic", None, None, 4)
    assert len(value["modules_left_out"]) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cost", "builtin", "--equal-bits", "4.5", "--double-quant", "yes"), "leave --double-quant out"),
        (("mix", "builtin"), "--budget-mb or --gpu, or --like"),
        (("mix", "builtin", "--gpu", "T5"), "no GPU known"),
        (("cost", "builtin", "--formats", "nf5"), "no format 'nf5'"),
        (("sensitivity", "builtin", "--block-size", "3"), "no blocks of 3"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_begun(arguments: tuple[str, ...], told: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr


def test_what_goes_wrong_is_told_with_its_remedy(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("…")
    done = run("cost", model, kept=tmp_path)
    assert done.exit_code == 1
    assert "not empty" in done.stderr
    assert "Name a new folder." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("mix", "--budget-mb", "nan"), "must be a number of bytes"),
        (("mix", "--budget-mb", "inf"), "must be a number of bytes"),
        (("cost", "--equal-bits", "0"), "0"),
        (("cost", "--equal-bits", "nan"), "nan"),
    ],
)
def test_odd_numbers_are_refused(model: Path, kept: Path, arguments: tuple[str, ...], told: str) -> None:
    command, *more = arguments
    done = run(command, model, *more, kept=kept)
    assert done.exit_code == 1, done.output
    assert told in done.stderr
    assert "Traceback" not in done.stderr
