"""The cell that trains the same without the workbench is run, and gives the worker's losses step by step."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_model import ROWS, tiny_tokenizer, write_tiny_model
from tests.training.test_chats import TEMPLATE, chat
from tests.training.test_shapes import SHAPES, write
from workbench.training import data
from workbench.training.environment import ALLOCATOR, for_worker
from workbench.training.recipe import as_code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CSV file with rows that are left out, one that is cut, values that look like numbers, and quotes."""
    import pandas

    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()[:20]]
    odd = [{"prompt": "", "completion": ""}, {"prompt": "no answer", "completion": ""}, {"prompt": "007", "completion": "NA"}]
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    pandas.DataFrame([*rows[:10], *odd, *rows[10:]])[["prompt", "completion"]].to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()[:20]]
    path = tmp_path_factory.mktemp("chats") / 'it\'s "quoted".jsonl'
    lines = [json.dumps({"chat": chat(row["prompt"], row["completion"], "and?", "no more")}) for row in rows]
    welcome = [{"role": "assistant", "content": [{"type": "text", "text": "2019-05-03"}]}, *chat("a question", "an answer")]
    path.write_text("\n".join([*lines, json.dumps({"chat": []}), json.dumps({"chat": welcome})]), "utf-8")
    return str(path)


PAIRS = {"prompt_column": "prompt", "completion_column": "completion"}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"optim": "paged_adamw_8bit", "lora_dropout": 0.1, "gradient_accumulation_steps": 2}, id="qlora-pairs"),
        pytest.param(
            {
                "dataset": "table", **PAIRS, "num_train_epochs": 0.7, "warmup_steps": 0.5, "lr_scheduler_type": "linear",
                "block_size": 32, "llm_int8_skip_modules": ("down_proj",), "use_dora": True, "page_min_numel": 1000,
            },
            id="blocks-of-32-table", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"dataset": "chats", "messages_column": "chat", "method": "lora", "use_rslora": True, "optim": "adamw_torch"},
            id="lora-chats", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"text_column": "text", "method": "full", "learning_rate": 1e-3, "gradient_checkpointing": False},
            id="full-text", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"packing": True, "num_train_epochs": 1.5, "lora_dropout": 0.1, "max_length": 96},
            id="packed", marks=pytest.mark.slow,
        ),
        pytest.param(
            {"norms_in_16_bits": True, "inputs_on_host": True, "compute_dtype": "bfloat16"},
            id="norms-in-16-bits", marks=pytest.mark.slow,
        ),
        pytest.param({"init_lora_weights": "pissa", "lora_dropout": 0.1}, id="qpissa"),
        pytest.param({"rescale_mlp": 6, "lora_dropout": 0.1}, id="rescaled", marks=pytest.mark.slow),
        pytest.param({"group_by_length": False, "max_length": 64}, id="at-random", marks=pytest.mark.slow),
        pytest.param({"group_by_length": False, "logits_at_once": 0}, id="all-logits", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_cell_gives_the_same_losses(
    model: Path, table: str, chats: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes as bnb

    if name := fields.get("dataset"):
        fields = {**fields, "dataset": {"table": table, "chats": chats}[name]}
    config = in_process.config_of(model, **fields)
    monkeypatch.setattr(bnb.nn.Params4bit, "__new__", bnb.nn.Params4bit.__new__)  # which a cell may change, undone afterwards
    monkeypatch.chdir(tmp_path)
    check_losses(config, tmp_path / "run")


def check_losses(config: wb.TrainConfig, folder: Path) -> None:
    """Run and cell give the same, step by step."""
    folder.mkdir()
    worker = [e["loss"] for e in in_process.train(config, folder).events() if e["k"] == "step"]
    code = as_code(config)
    assert "workbench" not in code.replace(str(ROWS), "")
    cell: dict[str, Any] = {}
    exec(compile(code, "cell", "exec"), cell)
    alone = [entry["loss"] for entry in cell["trainer"].state.log_history if "loss" in entry]
    assert len(worker) == len(alone) > 2
    assert alone == worker


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cell_gives_the_same_losses_for_every_shape(
    model: Path, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _, _ = SHAPES[shape]
    many = [row for row in rows for _ in range(8)]
    config = in_process.config_of(
        model,
        dataset=write(tmp_path / "rows.jsonl", many),
        method="lora",
        optim="adamw_torch",
        max_length=128,
    )
    monkeypatch.chdir(tmp_path)
    check_losses(config, tmp_path / "run")


TURNS = [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}]
ASKED, ANSWERED = chat("one?", "two")


def cell_rows(config: wb.TrainConfig) -> Any:
    """The rows of tokens that the cell makes."""
    code = as_code(config)
    cell: dict[str, Any] = {}
    exec(compile(code[: code.index("\nmodel = ")], "cell", "exec"), cell)
    return [(row["input_ids"], row["labels"]) for row in cell["rows"]]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"conversations": TURNS}, {"conversations": [{"from": "narrator", "value": "it rains"}, *TURNS]}),
        ({"conversations": TURNS}, {"conversations": [TURNS[0], {"from": "tool_call", "value": "no JSON"}]}),
        ({"messages": [ASKED, ANSWERED]}, {"messages": [ASKED, ANSWERED], "tools": "no JSON"}),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, {"prompt": TURNS[:1], "completion": [{"from": "narrator"}]}),
        (
            {"prompt": "one?", "chosen": [ANSWERED], "rejected": [chat("", "no")[1]]},
            {"prompt": "", "chosen": [{"from": "narrator", "value": "two"}], "rejected": [ANSWERED]},
        ),
    ],
    ids=["speaker", "call", "tools", "prompt-chats", "preference-chats"],
)
def test_a_chat_that_the_run_leaves_out_is_left_out_by_the_cell(
    model: Path, good: dict[str, Any], bad: dict[str, Any], tmp_path: Path
) -> None:
    config = wb.TrainConfig(str(model), dataset=write(tmp_path / "rows.jsonl", [good, bad, good]), method="lora")
    run = data.load(config, data.open_tokenizer(model))
    assert (run.total, run.refused) == (3, 1)
    learnt = [
        [token if bears else -100 for token, bears in zip(row.input_ids.tolist(), row.loss.tolist(), strict=True)]
        for row in run.rows
    ]
    assert cell_rows(config) == [(row.input_ids.tolist(), labels) for row, labels in zip(run.rows, learnt, strict=True)]


@pytest.mark.parametrize("bad", ["one? two", ["one?", "two"], [{"content": "two"}]], ids=str)
def test_a_row_that_is_no_chat_ends_the_cell_as_it_ends_the_run(model: Path, bad: Any, tmp_path: Path) -> None:
    rows = [{"messages": [ASKED, ANSWERED]}, {"messages": bad}]
    config = wb.TrainConfig(str(model), dataset=write(tmp_path / "rows.jsonl", rows), method="lora")
    with pytest.raises(wb.DataError, match="it is no chat"):
        data.load(config, data.open_tokenizer(model))
    with pytest.raises(ValueError, match="no chat"):
        cell_rows(config)


def test_a_dataset_on_the_hub_is_named_with_its_commit(hub: HubServer) -> None:
    hub.add("org/texts", {"data/train.jsonl": b'{"text": "a"}\n'})
    code = as_code(wb.TrainConfig(dataset="org/texts"))
    assert f'data_files=["hf://datasets/org/texts@{"a" * 40}/data/train.jsonl"]' in code


def test_a_model_on_the_hub_is_taken_at_its_revision(hub: HubServer) -> None:
    hub.add("org/model", {})
    code = as_code(wb.TrainConfig(model="org/model", model_revision="b" * 40, llm_int8_skip_modules=("down_proj",)))
    assert f'MODEL = "org/model"\nREVISION = "{"b" * 40}"\n' in code
    assert code.count("from_pretrained(MODEL, revision=REVISION") == code.count("from_pretrained(MODEL") == 3
    assert "REVISION" not in as_code(wb.TrainConfig(model="org/model"))


def test_loftq_reads_the_weights_of_the_revision(hub: HubServer) -> None:
    loftq = wb.TrainConfig("owner/tiny", init_lora_weights="loftq", lora_r=8, lora_alpha=8)
    assert "replace_lora_weights_loftq(model)" in as_code(loftq)
    code = as_code(replace(loftq, model_revision="b" * 40))
    assert "\nfrom huggingface_hub import snapshot_download\n" in code
    assert "loftq(model, snapshot_download(MODEL, revision=REVISION, local_files_only=True))" in code
    compile(code, "cell", "exec")


def test_a_push_is_plain_code_and_a_mirror_is_the_workbenchs_own() -> None:
    code = as_code(wb.TrainConfig(push_to_hub=True, hub_model_id="me/tuned", mirror_dir="/drive"))
    assert code.endswith(
        'model.save_pretrained("adapter")\n'
        'model.push_to_hub("me/tuned", private=True)\n'
        'tokenizer.push_to_hub("me/tuned", private=True)\n'
    )
    assert "# The workbench mirrors its runs" in code


def test_what_the_cell_cannot_do_is_said_in_it() -> None:
    code = as_code(wb.TrainConfig(page_min_numel=1000))
    assert "# bitsandbytes pages optimizer state from 100,000 elements on" in code
    assert "page_min_numel=" not in code


def test_a_cell_makes_a_few_logits_at_a_time_where_the_run_may() -> None:
    assert "few = LossWithoutLogits(model, 256)" in as_code(wb.TrainConfig())
    for all_at_once in ({"logits_at_once": 0}, {"method": "full"}):
        assert "LossWithoutLogits" not in as_code(wb.TrainConfig(**all_at_once))


def test_a_cell_prepares_the_base_as_the_run_does() -> None:
    assert "prepare_model_for_kbit_training" not in as_code(wb.TrainConfig())
    assert "register_forward_hook" not in as_code(wb.TrainConfig(upcast_to_fp32=True))
    assert as_code(wb.TrainConfig(upcast_to_fp32=True)).count("prepare_model_for_kbit_training") == 2


@pytest.mark.parametrize("environ", [{}, {"CUDA_VISIBLE_DEVICES": "3,1"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}])
def test_a_cell_sees_one_gpu_and_sets_the_allocator_as_the_run_does(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code = as_code(wb.TrainConfig())
    exec(compile(code[: code.index("import torch")], "cell", "exec"), {})
    run = for_worker(environ, 1, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == run["CUDA_VISIBLE_DEVICES"]
    for name in ALLOCATOR:
        assert os.environ.get(name) == run.get(name) or name not in run  # both names hold it, the run knows its torch
    several = as_code(wb.TrainConfig(nproc_per_node=2))
    assert "CUDA_VISIBLE_DEVICES" not in several
    assert "expandable_segments:True" in several


def test_heads_attend_by_turns_in_a_cell_where_they_do_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AttentionInterface

    mapping = AttentionInterface._global_mapping
    before = mapping["sdpa"]
    monkeypatch.setitem(mapping, "sdpa", before)  # to be put back
    code = as_code(wb.TrainConfig())
    mend = code[code.index("\nif torch.cuda") : code.index("\nMODEL =")]
    for capability, mended in (((8, 0), False), ((7, 5), True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        exec(compile(mend, "cell", "exec"), {"torch": torch})
        assert (mapping["sdpa"] is not before) is mended
