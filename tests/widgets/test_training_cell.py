"""The training panel with a real run and without a browser: launch, watch, stop, attach, errors, closing."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import living
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from tests.helpers.training_cells import SHORT, offered, press, put, shown, until
from widgets import TrainingCell, Workbench
from widgets.background import tasks
from widgets.drawing.plot import PlotlyLibrary
from widgets.panels.train.fields import FIELDS, config_of, shown_values
from widgets.state import State
from workbench.training.previews import preview

WITHOUT_A_CONTROL = {"model_revision", "sample_prompts"}
"""Fields of a configuration that only Python sets."""


def fault(panel: TrainingCell, name: str) -> str:
    """What stands beside a control."""
    _, *shown = panel.form._cells[name].children
    return shown[0].value if shown else ""


def test_every_field_of_a_configuration_has_a_control_or_stays_as_it_was_given() -> None:
    without = {f.name for f in dataclasses.fields(wb.TrainConfig)} - set(FIELDS)
    assert without == WITHOUT_A_CONTROL
    assert all(field.label for field in FIELDS.values()), "the label is the visible and the accessible name"


@pytest.mark.parametrize(
    "config",
    [
        wb.TrainConfig(),
        wb.TrainConfig(num_train_epochs=1.5, sample_prompts=("a word, n.",)),
        wb.TrainConfig(method="full", learning_rate=1e-5),
        wb.TrainConfig(method="lora", init_lora_weights="pissa", use_rslora=True, target_modules=("q_proj", "v_proj")),
        wb.TrainConfig(dataset="rows.jsonl", prompt_column="q", completion_column="a", llm_int8_skip_modules=("down_proj",)),
        wb.TrainConfig(dataset="rows.jsonl", prompt_template="{q} ", thoughts="drop"),
        wb.TrainConfig(dataset="rows.jsonl", row_shape="sharegpt"),
        wb.TrainConfig(dataset="rows.jsonl", row_shape="prompt-chats", prompt_column="p", completion_column="c"),
        wb.TrainConfig(dataset="org/chats", dataset_revision="main", messages_column="messages", eval_split="test"),
    ],
)
def test_a_configuration_goes_through_the_form_and_the_state_unchanged(config: wb.TrainConfig) -> None:
    assert config_of(config, shown_values(config)) == config
    state = State(**State().changes_to(config) | {"model": config.model})
    assert State.from_dict(json.loads(json.dumps(state.to_dict()))).training == config


def test_the_controls_are_a_config_and_lines_of_code(cell: Callable[..., TrainingCell]) -> None:
    panel = cell(config=SHORT)
    put(panel, lora_r=4, dataset=" rows.jsonl ", row_shape="prompt", prompt_column="question", completion_column="answer")
    panel.setup.run_folder.value = ""
    assert panel.config.lora_r == 4
    assert panel.config.dataset == "rows.jsonl"
    assert panel.config.columns == ("question", "answer")
    assert panel.config.sample_max_new_tokens == 4
    assert panel.store.value.training == panel.config, "the form's state is the app's"
    namespace: dict[str, Any] = {}
    exec(panel.code.replace("run = wb.launch(", "config = ("), namespace)
    assert namespace["config"] == panel.config


def test_all_faults_stand_beside_their_fields_and_open_the_fold(cell: Callable[..., TrainingCell]) -> None:
    panel = cell()
    before = panel.store.value
    put(panel, max_steps=0, lora_dropout=3.0, dataset="rows.jsonl", row_shape="template")
    assert "Steps is 0" in fault(panel, "max_steps")
    assert "Dropout is 3.0" in fault(panel, "lora_dropout")
    assert "write the prompt" in fault(panel, "prompt_template")
    assert "wb-faulty" in panel.form.more._dom_classes
    assert panel.store.value == before, "a state that cannot be trained is nobody's state"
    put(panel, max_steps=9, lora_dropout=0.0, prompt_template="{q}")
    assert not any(fault(panel, name) for name in FIELDS)
    assert "wb-faulty" not in panel.form.more._dom_classes
    assert panel.store.value.training.max_steps == 9


def test_controls_that_mean_nothing_are_away_and_refused_values_go_with_them(cell: Callable[..., TrainingCell]) -> None:
    panel = cell()
    put(panel, use_dora=True, llm_int8_skip_modules="down_proj", run_for="num_train_epochs", num_train_epochs=2.0)
    assert panel.form._cells["max_steps"].layout.display == "none"
    assert (panel.config.num_train_epochs, panel.config.max_steps) == (2.0, -1)
    put(panel, method="full")
    gone = [group.value for group, box in panel.form._groups.items() if box.layout.display == "none"]
    assert gone == ["Quantization of the base", "Adapters"]
    assert (panel.config.use_dora, panel.config.llm_int8_skip_modules) == (False, ())


def test_the_form_and_the_other_views_share_one_state() -> None:
    app = Workbench("builtin", executor=Immediate())
    panel = app.train
    assert panel.config == app.session.store.value.training
    assert panel.form.controls["max_steps"].value == 60, "what suits the embedded model"
    app.memory.rank.value = 32
    assert panel.form.controls["lora_r"].value == 32
    put(panel, per_device_train_batch_size=2, method="lora", learning_rate=5e-4)
    assert app.memory.config.per_device_train_batch_size == 2
    app.memory.double_quant.value = False
    assert panel.config.double_quant is False
    put(panel, max_steps=0)
    app.memory.length.value = 1024
    assert (panel.form.controls["max_steps"].value, panel.form.controls["max_length"].value) == (0, 1024)
    put(panel, max_steps=7)
    again = Workbench(state=json.loads(json.dumps(app.state)), executor=Immediate())
    assert again.train.config == panel.config
    app.close()
    again.close()


def test_rows_are_previewed_with_their_loss_mask_and_nothing_of_them_is_markup(
    cell: Callable[..., TrainingCell], tmp_path: Path
) -> None:
    rows = [
        {"q": "happiness, n.", "a": " An <img src=x onerror=alert(1)> sensation"}, {"q": "", "a": ""},
        {"q": "lawyer, n.", "a": ""}, {"q": "word " * 600, "a": " too late"},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    panel = cell(executor=Immediate())
    put(panel, dataset=str(tmp_path / "rows.jsonl"), row_shape="prompt", prompt_column="q", completion_column="a")
    panel.setup.rows.click()
    assert panel.message.value == ""
    told = panel.preview.counts.value
    assert not missing(
        told,
        "Shape: prompt and completion.",
        "All 4 rows",
        "1 to learn from",
        "1 empty",
        "1 cut at 512 tokens",
        "2 without a token",
    )
    shown = panel.preview.rows.value
    assert "<img" not in shown
    prompt, learnt = shown.split("<mark>")
    assert "With loss" in learnt
    assert "No loss" in prompt
    text = "".join(re.findall(r"<span>(.*?)</span>", learnt.split("</mark>")[0]))
    assert html.unescape(text).startswith(rows[0]["a"])
    lengths = panel.preview.lengths.value
    assert not missing(lengths, "<svg", 'role="img"', "33.3 % of rows are longer than 512 tokens", "<title>")
    put(panel, max_length=64)
    assert panel.preview.rows.value == panel.preview.lengths.value == "", "they were another configuration's"
    panel.setup.rows.click()
    assert "1 cut at 64 tokens" in panel.preview.counts.value
    changed = panel.store.value.changes_to(dataclasses.replace(panel.config, max_length=32))
    panel.store.update(**changed)  # as what is taken over from an earlier run
    assert panel.preview.counts.value == panel.preview.rows.value == "", "nor by the reader's own hand alone"
    put(panel, dataset="missing.jsonl")
    panel.setup.rows.click()
    assert "missing.jsonl" in panel.message.value


@pytest.mark.parametrize(
    ("fields", "wrong", "said"),
    [
        ({}, "row_shape", "not recognised by the columns"),
        ({"row_shape": "text", "text_column": "body"}, "text_column", "no column 'body'"),
        ({"row_shape": "template", "prompt_template": "{topic}", "completion_column": "answer"}, "prompt_template", "'topic'"),
        ({"eval_split": "test", "row_shape": "text", "text_column": "answer"}, "eval_split", "no split 'test'"),
    ],
    ids=["shape", "column", "template", "split"],
)
def test_a_fault_of_the_data_opens_the_form_at_its_field_in_the_forms_words(
    cell: Callable[..., TrainingCell], tmp_path: Path, fields: dict[str, Any], wrong: str, said: str
) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "rows.jsonl").write_text('{"question": "one?", "answer": "two"}\n')
    panel = cell(executor=Immediate())
    put(panel, dataset=str(tmp_path / "it"), **fields)
    for button in (panel.setup.rows, panel._launch):
        button.click()
        assert said in html.unescape(fault(panel, wrong))
        assert panel.form.more.filled
        assert "wb-faulty" in panel.form.more._dom_classes, "the fold that has it is open"
        assert not [name for name in FIELDS if "_" in name and name in panel.message.value], "named as in the form"
        put(panel, max_steps=panel.form.controls["max_steps"].value + 1)
        assert fault(panel, wrong) == ""


def test_a_preview_that_nobody_waits_for_ends_early() -> None:
    asked: list[int] = []
    with pytest.raises(InterruptedError):
        preview(wb.TrainConfig(), progress=lambda done, total: asked.append(done), cancelled=lambda: len(asked) == 10)
    assert asked == list(range(1, 11))


def test_copy_as_code_is_the_plain_cell_of_what_the_form_says(cell: Callable[..., TrainingCell], tmp_path: Path) -> None:
    panel = cell(executor=Immediate())
    put(panel, lora_r=3)
    assert panel.copy.code == wb.as_code(panel.config)
    assert "r=3" in panel.copy.code
    put(panel, dataset=str(tmp_path / "none.jsonl"))
    assert panel.copy.code.startswith("# ")
    put(panel, dataset="org/rows")
    assert "Preview its rows first" in panel.copy.code, "nothing is fetched for it"
    put(panel, max_steps=0)
    assert panel.copy.code == ""


@pytest.mark.parametrize(
    ("control", "value", "said"),
    [
        ("max_steps", 0, "Steps is 0"),
        ("dataset", "missing <b>.jsonl", "missing &lt;b&gt;.jsonl"),
        ("learning_rate", -1.0, "Learning rate is -1.0"),
    ],
)
def test_bad_input_shows_in_the_panel_with_the_controls_back(
    cell: Callable[..., TrainingCell], control: str, value: Any, said: str
) -> None:
    panel = cell()
    panel.form.controls[control].value = value
    panel._launch.click()
    assert said in panel.message.value
    assert 'role="alert"' in panel.message.value
    assert panel.run is None
    assert not panel._launch.disabled


def test_attaching_to_nothing_says_what_to_do(cell: Callable[..., TrainingCell]) -> None:
    panel = cell()
    panel._attach.click()
    assert "no run folder is named" in panel.message.value
    panel._elsewhere.value = "nothing here"
    panel._attach.click()
    assert "there is no run in this folder" in panel.message.value


def test_a_run_is_launched_watched_to_its_end_and_picked_up_again(
    cell: Callable[..., TrainingCell], capsys: pytest.CaptureFixture[str]
) -> None:
    panel = cell(config=SHORT)
    panel._launch.click()
    assert panel.message.value == ""
    assert shown(panel._during)
    assert not shown(panel._before)
    assert offered(panel) == ["edit", "pause", "stop"]
    until(lambda: shown(panel.result.widget) or panel.message.value != "")
    assert panel.run is not None
    assert panel.run.status.state == "finished", panel.message.value
    assert panel.message.value == "", "its bar and its result say it"
    assert re.search(r"<span>\d\.\d{3}</span> → <b>\d\.\d{3}</b>", panel.result.loss.value)
    assert str(panel.run.dir / "adapter").endswith(panel.result.folder.text)
    assert "loads in plain peft" in panel.result.facts.value
    seen = panel.view.cockpit._state["content"]
    assert "finished, 3 steps" in panel.view.cockpit.summary
    assert [len(seen["tables"][name]["t"]["data"]) // 4 for name in ("steps", "evals")] == [3, 2]
    assert {"import", "train", "save"} <= set(seen["names"])
    assert "There is no CUDA device" in seen["why"]
    assert offered(panel) == ["new"], "a finished run is replayed by the page itself"
    results = panel.view.details.open("Samples").widget.value
    assert "Held-out loss, measured" in results
    assert str(panel.run.adapter_dir) in results
    assert results.count("<tr>") == 4, "a heading and three prompts, before and after"
    assert "step 3 of 3" in panel.view.details.open("Log").widget.value
    assert "per_device_train_batch_size" in panel.view.details.open("Settings").widget.value

    again = cell(run=panel.run.dir)
    assert again.view.cockpit.summary == panel.view.cockpit.summary
    assert again.form.controls["max_steps"].value == 3
    assert again.view.details.open("Samples").widget.value == results

    # Its receipt and its truth are tables; a smaller GPU is simulated beside them, from the run's own configuration.
    receipt = again.view.details.open("Receipt").part
    assert "Receipt of the run's memory" in html.unescape(receipt._table.value)
    assert "are not explained" in receipt.plot.summary
    assert "evicted" in again.view.details.open("Paging truth").part._table.value
    assert "There is no CUDA device" in again.view.details.open("Paging truth").part._summary.value

    # Ticked in the list it is compared, has a picture of its own where no run is on show, and can be opened.
    other = cell(executor=Immediate())
    assert shown(other._before), "no run is going on"
    [line] = other.earlier.table.lines
    assert line["cells"][:2] == ["a run", "QLoRA r 16 · 2 × 48 · lr 2e-4 · 3 steps"]
    assert re.fullmatch(r"\d\.\d+ → \d\.\d+", line["cells"][2])
    assert "MiB" in line["cells"][3]
    assert (line["mark"], line["actions"]) == ("", ["open", "use"])
    other.earlier.table.ticked = ["a run"]
    assert "<td>a run</td><td class=wb-number>3</td>" in other.earlier._compared.value
    assert "1 earlier run" in other.earlier.plot.summary
    assert other.earlier.plot.layout.display == ""
    other.earlier.table.press("open", "a run")
    assert shown(other._during)
    assert other.view.cockpit.summary == panel.view.cockpit.summary
    assert other.form.controls["max_steps"].value == 100, "it is looked at, not taken over"
    other.earlier.table.press("use", "a run")
    assert other.form.controls["max_steps"].value == 3
    paging = other.view.details.open("Paging truth").part
    assert paging.plot.summary.startswith("Simulated, with")
    assert "simulated" in paging._beside.value
    simulated = other.view.cockpit._state["content"]["simulated"]
    assert simulated["on"].endswith("all optimizer state paged"), "on a CPU what would page is simulated"

    # Without a view, a cell that watches prints the steps.
    capsys.readouterr()
    assert wb.attach(panel.run.dir).watch().state == "finished"
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["step 1", "step 2", "step 3"]

    # The two lines that the panel shows load the adapter in plain peft.
    [lines] = re.findall(r'<pre class="wb-code">(.*?)</pre>', results, re.DOTALL)
    assert len(lines.splitlines()) == 2
    namespace: dict[str, Any] = {}
    exec(html.unescape(lines), namespace)
    assert any("lora_A" in name for name, _ in namespace["model"].named_parameters())


@pytest.mark.slow
def test_watching_a_run_moves_its_view_where_the_kernel_shows_nothing_while_a_cell_is_busy(
    cell: Callable[..., TrainingCell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "delivery", lambda: lambda change: None)  # a kernel whose loop waits for the cell to end
    config = {"method": "full", "learning_rate": 1e-4, "sample_prompts": (), "max_eval_rows": 0}
    panel = cell(config=dataclasses.replace(SHORT, **config))
    panel._launch.click()
    assert panel.run is not None
    assert panel.run.watch().state == panel.run.watch().state == "finished"
    assert capsys.readouterr().out == "", "the view says it all"
    assert "finished, 3 steps" in panel.view.cockpit.summary
    assert panel.message.value == ""
    results = panel.view.details.open("Samples").widget.value
    assert "AutoModelForCausalLM.from_pretrained" in html.unescape(results)
    assert str(panel.run.model_dir) in results
    assert "LoRA adapter" not in results


@pytest.mark.slow
def test_stop_ends_a_run_early_and_leaves_an_adapter(cell: Callable[..., TrainingCell]) -> None:
    panel = cell(config=wb.TrainConfig(max_steps=10_000, max_length=48, max_eval_rows=0, sample_prompts=()))
    panel._launch.click()
    until(lambda: "training loss" in panel.view.cockpit.summary)
    press(panel, "stop")
    assert "Stop was asked for" in panel.message.value
    until(lambda: shown(panel.result.widget))
    assert panel.message.value == ""
    assert panel.run is not None
    assert panel.run.adapter_dir is not None
    assert offered(panel) == ["resume", "new"]


def test_closing_the_panel_frees_all_and_leaves_the_run_alone(cell: Callable[..., TrainingCell]) -> None:
    PlotlyLibrary.shared()
    before = living.widgets()
    panel = cell(config=wb.TrainConfig(max_steps=10_000, max_length=48))
    panel._launch.click()
    panel.close()
    assert living.widgets() == before
    assert panel.run is not None
    assert panel.run.status.state in ("starting", "running")
