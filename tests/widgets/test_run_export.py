"""The export of a run in the panel, without a browser: what merging changes first, then the folder, errors in their place."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.cost_in_process import measuring
from tests.helpers.immediate import Immediate, Later
from tests.helpers.needed import needed_gguf
from tests.helpers.tiny_model import write_tiny_model
from widgets.drawing.wire import encode_figure
from widgets.figures.merge import merge_figure
from widgets.panels.train.export import RunExport
from widgets.panels.train.on_bases import said
from widgets.panels.train.result import RunResult
from workbench.training.folder import RunStatus
from workbench.training.results import on_bases
from workbench.training.results.merging import MergeError, MergeErrors
from workbench.training.results.on_bases import OnBase


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    config = in_process.config_of(model, max_steps=2, max_eval_rows=0)
    return in_process.train(config, tmp_path_factory.mktemp("runs") / "a run")


@pytest.fixture
def part() -> Iterator[RunExport]:
    part = RunExport(Immediate())
    yield part
    part.close()
    part.close()


def there(part: RunExport) -> bool:
    return part.widget.layout.display == ""


def test_it_is_there_once_the_run_has_ended_and_left_an_adapter(part: RunExport, run: wb.Run) -> None:
    assert not there(part)
    part.follow(run)
    assert not there(part), "only once it is asked for"
    part.toggle()
    assert there(part)
    assert part.folder.value == f"{run.dir}-merged"
    assert [control.description for control in (part.form, part.base, part.dtype, part.folder)] == [
        "For", "Merge into", "Dtype", "Folder to write",
    ]  # fmt: skip


def test_nothing_is_written_before_its_errors_were_shown(part: RunExport, run: wb.Run, tmp_path: Path) -> None:
    part.follow(run)
    part.toggle()
    part.folder.value = str(tmp_path / "merged")
    assert part.write.disabled
    part.show.click()
    assert not part.write.disabled
    assert part.message.value == ""
    assert not (tmp_path / "merged").exists()
    errors = wb.merge_errors(run)
    assert part.plot.summary == merge_figure(errors)[1]
    assert "‖merged − trained‖ / ‖trained‖ in bfloat16, at most" in html.unescape(part.summary.value)
    table = html.unescape(part.table.value)
    assert table.count("<tr>") == 1 + len(errors.rows)
    assert f"<td class=wb-number>{100 * errors.rows[0].requantized:.3f} %</td>" in table
    part.dtype.value = "float16"
    assert part.write.disabled, "its errors are others"
    part.dtype.value = "bfloat16"
    part.write.click()
    assert "Written: " in part.message.value
    assert str(tmp_path / "merged") in html.unescape(part.message.value)
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 0
    part.write.click()
    assert "the folder is not empty" in part.message.value
    assert 'class="wb-remedy"' in part.message.value
    part.folder.value = " "
    part.write.click()
    assert "no folder is named" in part.message.value


def test_copy_as_code_does_the_same(part: RunExport, run: wb.Run, tmp_path: Path) -> None:
    part.follow(run)
    part.toggle()
    part.folder.value = str(tmp_path / "copied")
    part.base.value = "original"
    assert "base='original'" in part.copy.code
    namespace: dict[str, Any] = {}
    exec(part.copy.code, namespace)
    assert wb.open_model(tmp_path / "copied").config["dtype"] == "bfloat16"


def test_another_run_begins_anew(part: RunExport, run: wb.Run, model: Path, tmp_path: Path) -> None:
    part.follow(run)
    part.toggle()
    part.show.click()
    config = in_process.config_of(model, method="lora", max_steps=1, max_eval_rows=0)
    lora = in_process.train(config, tmp_path / "lora")
    part.follow(lora)
    part.toggle()
    assert part.write.disabled
    assert part.summary.value == ""
    assert part.base.options == (("the original 16-bit base", "original"),)
    part.show.click()
    part.write.click()
    assert (tmp_path / "lora-merged" / "config.json").exists()


def known_on_another_base(run: wb.Run, kl: float = 0.5) -> None:
    """Figures in the run's folder, of its adapter as it is."""
    near = (kl, kl)
    row = OnBase("original", "original, 16 bits", 100, kl, near, 0.25, near, 2.0, 0.1, near)
    assert run.adapter_dir is not None
    on_bases.keep(run.dir, on_bases.adapter_digest(run.adapter_dir), 8, [row])


def test_figures_of_an_adapter_go_once_its_run_goes_on(part: RunExport, run: wb.Run, tmp_path: Path) -> None:
    copied = shutil.copytree(run.dir, tmp_path / "run")
    mine = wb.attach(copied)
    known_on_another_base(mine)
    result = RunResult(part, ipywidgets.HTML(), pytest.fail, lambda: None, pytest.fail, Immediate())
    for each in (part, result):
        each.follow(mine)
    result.update(RunStatus("stopped"))
    part.toggle()
    part.show.click()
    assert "KL 0.5000" in result.facts.value
    assert "0.50000" in part.on_bases.table.value
    assert not part.write.disabled
    result.update(RunStatus("stopped"))
    assert there(part), "nothing has happened"
    result.update(RunStatus("running", attempt=2))
    assert not there(part)
    weights = next((copied / "adapter").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    result.update(RunStatus("finished", attempt=2))
    assert "KL" not in result.facts.value
    part.toggle()
    assert part.on_bases.table.value == part.summary.value == ""
    assert part.write.disabled
    known_on_another_base(mine)
    part.follow(mine)
    result.update(RunStatus("finished", attempt=3))  # as a run that was extended in a cell, which nobody watched
    assert "KL 0.5000" in result.facts.value
    result.close()


def test_an_adapter_is_not_read_whole_on_the_kernel_s_thread(run: wb.Run, tmp_path: Path) -> None:
    mine, later = wb.attach(shutil.copytree(run.dir, tmp_path / "run")), Later()
    known_on_another_base(mine)
    part = RunExport(later)
    result = RunResult(part, ipywidgets.HTML(), pytest.fail, lambda: None, pytest.fail, later)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_bases, "adapter_digest", pytest.fail)
        for each in (part, result):
            each.follow(mine)
        result.update(RunStatus("finished"))
    later.run()
    assert "KL 0.5000" in result.facts.value
    assert "0.50000" in part.on_bases.table.value
    for whole in (part, result):
        whole.close()


def test_a_weight_that_a_way_does_not_fit_is_a_gap() -> None:
    rows = (MergeError("c", (2, 2), 0.25, None, None, None), MergeError("a.<b>", (2, 2), 0.5, 0.001, None, 0.1))
    figure, said = merge_figure(MergeErrors(rows, "float16"))
    assert [trace["y"].tolist()[1] for trace in figure["data"]] == pytest.approx([0.5, 0.001, 0.1])
    assert figure["data"][0]["text"] == ["c", "a.&lt;b&gt;"]
    assert said == (
        "‖merged − trained‖ / ‖trained‖ in float16, at most: what the adapter changed, to compare with 50.00 %; "
        "merged into the dequantized 4-bit base 0.10 %; merged, and quantized to 4 bits again 10.00 %."
    )
    encode_figure(figure)


@pytest.mark.parametrize(("form", "file"), [("gguf", "model.gguf"), ("gguf-adapter", "adapter.gguf")])
def test_gguf_is_written_at_once_and_said_to_be_run_by_llama_cpp(
    part: RunExport, run: wb.Run, form: str, file: str, tmp_path: Path
) -> None:
    needed_gguf()
    part.follow(run)
    part.toggle()
    part.form.value = form
    assert part.folder.value == f"{run.dir}-{form}"
    assert [shown(each) for each in (part.base, part.base_gguf, part.show)] == [form == "gguf", form == "gguf", False]
    assert not part.write.disabled
    part.folder.value = str(tmp_path / "written")
    part.write.click()
    assert "README.md there has the lines that run it, in llama.cpp" in part.message.value
    assert (tmp_path / "written" / file).stat().st_size > 0
    part.folder.value = str(tmp_path / "copied")
    exec(part.copy.code, {})
    assert (tmp_path / "copied" / file).read_bytes() == (tmp_path / "written" / file).read_bytes()
    part.base_gguf.value = str(tmp_path / "missing.gguf")
    part.folder.value = str(tmp_path / "not written")
    part.write.click()
    assert ("cannot be read" in part.message.value) == (form == "gguf")  # an adapter needs none


def shown(control: Any) -> bool:
    return control.layout.display != "none"


def test_other_bases_are_measured_on_demand_and_shown_again(part: RunExport, run: wb.Run, tmp_path: Path) -> None:
    needed_gguf()
    copied = tmp_path / "run <b>"
    shutil.copytree(run.dir, copied)
    mine, told = wb.attach(copied), []
    part.on_bases.found = told.append
    part.follow(mine)
    assert part.on_bases.table.value == ""
    assert said(mine) == ""
    part.on_bases.gguf.value = "q4_k_m"
    part.on_bases.measure.click()
    assert "is no base" in part.on_bases.message.value
    part.on_bases.gguf.value = ""
    with measuring():
        part.on_bases.measure.click()
    assert told == [mine]
    table = html.unescape(part.on_bases.table.value)
    assert table.count("<tr>") == 1 + 4
    assert "next tokens flipped" in table
    assert "On original, 16 bits: KL" in said(mine)
    assert "NF4" not in said(mine)  # what it was trained on: nothing is lost
    part.follow(run)
    assert part.on_bases.table.value == ""
    part.follow(mine)
    assert html.unescape(part.on_bases.table.value) == table
    assert part.on_bases.copy.code.count("wb.deployed(run)") == 1
    part.on_bases.gguf.value = "q4_k_m"
    assert "wb.deployed(run, ['original', 'nf4', 'q8_0', 'q4_0', 'q4_k_m'])" in part.on_bases.copy.code
