"""The memory forecast against what transformers, peft and bitsandbytes really allocate on a CPU."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.shapes import Shapes, llama
from workbench.memory.footprint import Plan, base_weights, optimizer_state, trained
from workbench.memory.forecast import fit, forecast_methods
from workbench.memory.gpus import GIB, GPUS, Gpu
from workbench.memory.ledger import GROUPS
from workbench.memory.ways import cheapest, ways_to_fit
from workbench.sources.tensor_info import TensorInfo

MIDDLE = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 32_000, "max_position_embeddings": 128,
}  # fmt: skip
"""A Llama of 66 million parameters."""


@pytest.fixture(scope="module")
def llama_7b() -> Shapes:
    return llama("llama-7b", 4096, 11_008, 32, 32_000)


# --- exact: weights --------------------------------------------------------------------------------------------------------


def really_held(model: Any) -> dict[str, int]:
    """Bytes of a loaded model's storages, by the forecast's categories."""
    import bitsandbytes as bnb

    sizes = dict.fromkeys(("4-bit weights", "absmax scales", "second-level scales", "codebooks", "weights upcast to fp32"), 0)
    for parameter in model.parameters():  # each once, tied or not
        if not isinstance(parameter, bnb.nn.Params4bit):
            sizes["weights upcast to fp32"] += parameter.untyped_storage().nbytes()
            continue
        state = parameter.quant_state
        sizes["4-bit weights"] += parameter.untyped_storage().nbytes()
        sizes["absmax scales"] += state.absmax.untyped_storage().nbytes()
        sizes["codebooks"] += state.code.untyped_storage().nbytes()
        if state.nested:
            sizes["second-level scales"] += state.state2.absmax.untyped_storage().nbytes() + state.offset.nbytes
            sizes["codebooks"] += state.state2.code.untyped_storage().nbytes()
    return {name: size for name, size in sizes.items() if size}


@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("model", ["llama", "llama-tied", "gpt2", "mixtral", "falcon", "t5", "middle"])
def test_weights_are_forecast_to_the_byte(tmp_path: Path, model: str, double_quant: bool) -> None:
    import peft

    model_type, config, cls = tiny.ARCHITECTURES.get(model, ("llama", MIDDLE, ""))
    folder = tiny.save(tmp_path / model, model_type, config, cls)
    config = wb.TrainConfig(double_quant=double_quant, upcast_to_fp32=True)
    ledger = wb.forecast(wb.open_model(folder), config, device="cpu")
    loaded = tiny.load_4bit(folder, cls, double_quant)
    held = really_held(peft.prepare_model_for_kbit_training(loaded, use_gradient_checkpointing=False))
    assert {name: ledger[name] for name in held} == held
    weights = base_weights(wb.open_model(folder).tensors(), ledger.plan)
    assert sum(piece.bytes for piece in weights) == sum(held.values())


def test_without_4_bits_weights_stay_in_the_compute_dtype(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = tiny.save(tmp_path / "model", "llama", tiny.LLAMA)
    ledger = wb.forecast(wb.open_model(folder), wb.TrainConfig(method="lora", compute_dtype="bfloat16"), device="cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert ledger["weights"] == sum(p.untyped_storage().nbytes() for p in model.parameters())


# --- exact: adapters and optimizer state ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        *((model, "all-linear") for model in ("llama", "llama-tied", "gpt2", "mixtral", "gpt-oss", "phi3", "opt", "falcon")),
        ("llama", ("q_proj", "v_proj")),
        ("llama", ("embed_tokens", "down_proj")),
        ("llama", r".*layers\.1\..*_proj"),
        ("mixtral", ("q_proj", "v_proj")),
        ("gpt2", ("c_attn", "wte")),
    ],
)
def test_adapters_are_forecast_to_the_element(tmp_path: Path, model: str, targets: Any) -> None:
    import peft

    model_type, config, _ = tiny.ARCHITECTURES[model]
    folder = tiny.save(tmp_path / model, model_type, config)
    plan = Plan(lora_r=4, target_modules=targets)
    source = wb.open_model(folder)
    forecast = trained(source.tensors(), plan, source.config)
    how = peft.LoraConfig(r=4, target_modules=targets if isinstance(targets, str) else list(targets), task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny.load_4bit(folder), how)
    real = [p.numel() for p in adapted.parameters() if p.requires_grad]
    assert sorted(forecast.values()) == sorted(real)


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch"])
def test_optimizer_state_is_forecast_to_the_byte(optim: str) -> None:
    """Sizes on both sides of the 4,096 elements below which 8-bit state is fp32, and of a block of 256."""
    import bitsandbytes as bnb
    import torch

    sizes = {"a": 4_095, "b": 4_096, "c": 4_097, "d": 65_536, "e": 100_000, "f": 1}
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in sizes.values()]
    if optim == "adamw_torch":
        optimizer: Any = torch.optim.AdamW(parameters)
    else:
        optimizer = bnb.optim.AdamW(parameters, optim_bits=8 if "8bit" in optim else 32)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(optimizer.state)}
    assert sum(p.bytes for p in optimizer_state(sizes, Plan(optim=optim))) == sum(held.values())


def _tensors(state: Any) -> list[Any]:
    import torch

    return [t for values in state.values() for t in values.values() if isinstance(t, torch.Tensor)]


def test_states_are_paged_from_page_min_numel_on_and_on_a_gpu_only() -> None:
    sizes = {"small": 99_999, "large": 100_000}
    paged = [p for p in optimizer_state(sizes, Plan(optim="paged_adamw_8bit")) if p.category == "optimizer state, paged"]
    assert [(p.tensor, p.bytes) for p in paged] == [("large", 200_000)]
    lower = optimizer_state(sizes, Plan(optim="paged_adamw_8bit", page_min_numel=4_096))
    assert {p.tensor for p in lower if p.category == "optimizer state, paged"} == {"small", "large"}
    for plan in (Plan(optim="paged_adamw_8bit", device="cpu"), Plan(optim="adamw_8bit")):
        assert {p.category for p in optimizer_state(sizes, plan)} == {"optimizer state"}


# --- the ledger ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_every_category_is_in_one_group(llama_7b: Shapes, method: str) -> None:
    ledger = wb.forecast(llama_7b, Plan(method=method))
    gathered = [category for categories in GROUPS.values() for category in categories]
    assert len(gathered) == len(set(gathered))
    assert {row.category for row in ledger.rows} <= set(gathered)
    assert sum(ledger.groups.values()) == ledger.total


def test_every_row_says_how_it_is_known(llama_7b: Shapes) -> None:
    ledger = wb.forecast(llama_7b, wb.TrainConfig())
    assert {row.category: row.known for row in ledger.rows} == {
        "4-bit weights": "computed",
        "absmax scales": "computed",
        "second-level scales": "computed",
        "codebooks": "computed",
        "weights": "computed",
        "weights upcast to fp32": "computed",
        "adapters": "computed",
        "gradients": "computed",
        "optimizer state": "computed",
        "optimizer state, paged": "computed",
        "activations": "estimated",
        "logits and loss": "estimated",
        "dequantized weight": "estimated",
        "16-bit casts": "estimated",
        "cuBLAS workspace": "estimated",
        "spare": "estimated",
        "CUDA context": "estimated",
    }
    assert all(row.note for row in ledger.rows)
    assert ledger.total == sum(ledger.at_peak.values()) == sum(ledger.groups.values()) < sum(row.bytes for row in ledger.rows)
    assert ledger.managed == ledger["optimizer state, paged"]
    frame = ledger.to_frame()
    assert list(frame.columns) == ["category", "bytes", "at the peak", "known", "place", "note"]
    assert frame["at the peak"].sum() == ledger.total
    for category in ("4-bit weights", "codebooks", "adapters", "optimizer state, paged"):
        assert sum(p.bytes for p in ledger.pieces if p.category == category) == ledger[category]


def test_a_cpu_computes_in_float32_pages_nothing_and_has_no_context(llama_7b: Shapes) -> None:
    ledger = wb.forecast(llama_7b, wb.TrainConfig(), device="cpu")
    assert (ledger.managed, ledger["CUDA context"], ledger.plan.compute_bytes) == (0, 0, 4)
    with pytest.raises(wb.ConfigError, match="'cuda' or 'cpu'"):
        wb.forecast(llama_7b, wb.TrainConfig(), device="tpu")


def test_each_method_takes_less_than_the_one_before(llama_7b: Shapes) -> None:
    ledgers = forecast_methods(llama_7b, wb.TrainConfig(lora_r=64))
    assert [ledger.title for ledger in ledgers] == [
        "Full fine-tuning, 16-bit",
        "LoRA on a 16-bit base",
        "QLoRA, NF4",
        "+ double quantization",
        "+ paged 8-bit optimizer",
    ]
    totals = [ledger.total for ledger in ledgers]
    assert totals == sorted(totals, reverse=True)
    assert ledgers[-1].managed > 0 == ledgers[-2].managed


def test_what_the_upcast_costs_a_mixture_of_experts(tmp_path: Path) -> None:
    """Fused experts stay out of 4 bits: as they are on disk, or as peft makes them, in fp32."""
    model_type, config, _ = tiny.ARCHITECTURES["mixtral"]
    source = wb.open_model(tiny.save(tmp_path / "mixtral", model_type, config))
    experts = sum(t.nbytes for t in source.tensors() if ".experts." in t.name)
    ledger = wb.forecast(source, wb.TrainConfig())
    assert ledger["weights"] > experts > ledger["weights upcast to fp32"]
    assert wb.forecast(source, wb.TrainConfig(upcast_to_fp32=True))["weights upcast to fp32"] > 2 * experts
    assert wb.forecast(tmp_path / "mixtral", wb.TrainConfig()) == ledger


def test_a_7b_model_fits_a_16_gb_gpu_and_a_70b_model_does_not(llama_7b: Shapes) -> None:
    cfg = wb.TrainConfig()
    assert fit(wb.forecast(llama_7b, cfg), "T4 16 GB").verdict == "fits"
    big = wb.forecast(llama("70b", 8192, 28_672, 80, 32_000, keys=1024), cfg)
    assert fit(big, "RTX 4090 24 GB").verdict == "does not fit"
    on_an_a100 = fit(big, GPUS["A100 80 GB"])
    assert on_an_a100.headroom == int(0.91 * GPUS["A100 80 GB"].usable) - on_an_a100.ledger.needed
    assert on_an_a100.ledger["CUDA context"] == GPUS["A100 80 GB"].context
    with pytest.raises(wb.ConfigError, match="is no GPU known here"):
        fit(big, "T5")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_several_processes_hold_their_gradients_twice(llama_7b: Shapes, device: str) -> None:
    one, two = (wb.forecast(llama_7b, wb.TrainConfig(nproc_per_node=n), device) for n in (1, 2))
    assert (one["gradient buckets"], two["gradient buckets"]) == (0, two["gradients"])
    assert two.total == one.total + two["gradients"]


def test_verdicts_at_their_bounds(llama_7b: Shapes) -> None:
    ledger = fit(wb.forecast(llama_7b, wb.TrainConfig(lora_r=64)), Gpu("any", 1)).ledger
    assert ledger.managed > 0
    resident = ledger.needed - ledger.managed
    for usable, verdict in (
        (ledger.needed / 0.8499, "fits"),
        (ledger.needed / 0.8501, "close"),
        (ledger.needed / 0.9099, "close"),
        (ledger.needed / 0.9101, "pages"),
        (resident / 0.9099, "pages"),
        (resident / 0.9101, "does not fit"),
    ):
        assert fit(ledger, Gpu("any", int(usable))).verdict == verdict


def test_changes_that_make_it_fit_are_found_and_do(llama_7b: Shapes) -> None:
    cfg = wb.TrainConfig(
        method="lora", per_device_train_batch_size=16, max_length=1024, gradient_checkpointing=False, optim="adamw_torch"
    )
    gpu = Gpu("12 GB", 12 * GIB)
    assert fit(wb.forecast(llama_7b, cfg), gpu).verdict == "does not fit"
    changes = ways_to_fit(llama_7b, cfg, gpu)
    assert changes
    before = wb.forecast(llama_7b, cfg)
    for change in changes:
        cfg = dataclasses.replace(cfg, **change.fields)
        after = wb.forecast(llama_7b, cfg)
        assert before.total - after.total == change.saved > 0
        before = after
    assert fit(before, gpu).verdict == "fits"
    assert ways_to_fit(llama_7b, cfg, gpu) == ()
    assert ways_to_fit(llama_7b, cfg, Gpu("tiny", GIB)) is None


def test_what_cannot_fit_with_room_to_spare_is_made_to_fit_closely_or_by_paging(llama_7b: Shapes) -> None:
    cfg = wb.TrainConfig(
        lora_r=64,
        optim="adamw_torch",
        per_device_train_batch_size=1,
        max_length=256,
        norms_in_16_bits=True,
        inputs_on_host=True,
    )
    least = fit(wb.forecast(llama_7b, dataclasses.replace(cfg, optim="paged_adamw_8bit")), Gpu("any", 1)).ledger
    resident = least.needed - least.managed
    for usable, verdict in ((least.needed / 0.9, "close"), (resident / 0.9099, "pages")):
        (change,) = ways_to_fit(llama_7b, cfg, Gpu("any", int(usable))) or ()
        assert dict(change.fields) == {"optim": "paged_adamw_8bit"}
        assert fit(least, Gpu("any", int(usable))).verdict == verdict
    assert ways_to_fit(llama_7b, cfg, Gpu("any", int(resident / 0.9101))) is None


def test_the_cheapest_change_is_one_alone_where_one_is_enough(llama_7b: Shapes) -> None:
    """Those before it that save too little are passed over."""
    cfg = wb.TrainConfig(double_quant=False, gradient_checkpointing=False, per_device_train_batch_size=8)
    before = wb.forecast(llama_7b, cfg)
    (change,) = cheapest(llama_7b, cfg, before.total - GIB) or ()
    assert dict(change.fields) == {"gradient_checkpointing": True}
    assert change.saved == before.total - wb.forecast(llama_7b, dataclasses.replace(cfg, **change.fields)).total
    (change,) = cheapest(llama_7b, cfg, before.total - 1) or ()
    assert dict(change.fields) == {"double_quant": True}


def test_several_changes_hold_none_that_is_not_needed(llama_7b: Shapes) -> None:
    cfg = wb.TrainConfig(method="lora", gradient_checkpointing=False, per_device_train_batch_size=8, max_length=1024)
    most = 8 * GIB
    changes = cheapest(llama_7b, cfg, most)
    assert changes
    assert len(changes) > 1

    def total(fields: list[Any]) -> int:
        changed = cfg
        for some in fields:
            changed = dataclasses.replace(changed, **some)
        return wb.forecast(llama_7b, changed).total

    fields = [change.fields for change in changes]
    assert total(fields) <= most
    assert total([]) - total(fields) == sum(change.saved for change in changes)
    for i in range(len(fields)):
        assert total(fields[:i] + fields[i + 1 :]) > most
    assert cheapest(llama_7b, cfg, GIB) is None


def test_a_forecast_needs_neither_torch_nor_numba(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "llama", tiny.LLAMA)
    code = (
        "import sys, workbench as wb; wb.forecast(wb.open_model(sys.argv[1]), wb.TrainConfig()).total;"
        "print(sorted({'torch', 'numba', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_integers_are_counted_as_stored() -> None:
    info = TensorInfo("mask", (10,), "U8", 10, 10, False, "stored as U8", "as stored")
    assert [(p.category, p.bytes) for p in base_weights([info], Plan())] == [("integer tensors", 10)]
