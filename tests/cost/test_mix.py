"""Which modules a mix leaves out, what that is predicted and measured to give, and that a load leaves out exactly these."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench.cost.assignments import Assignment
from workbench.cost.mixing import CHOSEN_ON, REPORTED_ON
from workbench.cost.row_costs import RowCosts
from workbench.cost.skip_names import names_for
from workbench.memory.footprint import leaves_out
from workbench.memory.forecast import fit

pytestmark = pytest.mark.usefixtures("measured_here")

ROWS: dict[str, Any] = {"max_rows": 4, "max_length": 48}


@pytest.fixture(scope="module")
def sens() -> wb.Sensitivity:
    """Of the embedded model, every module of it."""
    return wb.sensitivity("builtin", max_rows=8, max_length=48).run()


@pytest.fixture(scope="module")
def tiny_sens(tmp_path_factory: pytest.TempPathFactory) -> wb.Sensitivity:
    return wb.sensitivity(write_tiny_model(tmp_path_factory.mktemp("cost")), **ROWS).run()


def all_4bit(sens: wb.Sensitivity) -> int:
    return sens.job.nbytes(Assignment(sens.spec))


# --- predicted and measured ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_predicted_order_of_mixes_is_the_measured_one(sens: wb.Sensitivity) -> None:
    start, end = all_4bit(sens), sens.job.nbytes_16bit
    mixes = [wb.mix(sens, int(start + share * (end - start))) for share in (0.0, 0.06, 0.16, 0.4)]
    for mix in mixes:
        mix.measure()
    assert all(a.predicted_kl > b.predicted_kl for a, b in itertools.pairwise(mixes))
    kls = [mix.measured_kl or 0.0 for mix in mixes]
    assert all(a > b for a, b in itertools.pairwise(kls))
    for mix, kl in zip(mixes, kls, strict=True):
        assert kl == pytest.approx(mix.predicted_kl, abs=0.2 * kls[0])  # four rows to choose by, and four others


@pytest.mark.slow
def test_modules_by_their_costs_beat_modules_by_chance(sens: wb.Sensitivity) -> None:
    chosen = wb.mix(sens, all_4bit(sens) + 1_000_000)
    chosen.measure()
    modules = [row.name for row in sens.rows]
    random.Random(0).shuffle(modules)
    left, taken = 1_000_000, []
    for row in (row for name in modules for row in sens.rows if row.name == name):
        if row.saved_bytes <= left:
            taken.append(row.name)
            left -= row.saved_bytes
    by_chance = Assignment(sens.spec, but=tuple(taken))
    list(sens.measurements.measured([by_chance], (), lambda done, total: None, lambda: False))
    assert chosen.measured is not None
    assert sens.measurements.rows[by_chance.key].of(REPORTED_ON).further(chosen.measured)[0] > 0


@pytest.mark.slow
def test_the_shares_add_up_to_what_quantizing_everything_adds(sens: wb.Sensitivity) -> None:
    assert sens.quantized is not None
    assert sum(row.share for row in sens.rows) == pytest.approx(sens.quantized.kl, rel=0.1)


def test_modules_are_chosen_by_some_rows_and_judged_on_the_others(tiny_sens: wb.Sensitivity) -> None:
    mix = wb.mix(tiny_sens, all_4bit(tiny_sens) + 60_000)
    found = tiny_sens.measurements.rows
    assert (mix.rows, len(mix.in_4_bits.tokens)) == ((2, 2), 2)
    whole = found[Assignment(tiny_sens.spec).key]
    assert mix.in_4_bits.tokens == whole.tokens[1::2]
    assert mix.in_4_bits.kl == pytest.approx(sum(whole.kls[1::2]) / sum(whole.tokens[1::2]))
    mix.measure()
    plain = found[mix.point.key]
    assert mix.measured_kl == pytest.approx(sum(plain.kls[1::2]) / sum(plain.tokens[1::2]))
    # Other figures of the rows that are reported change what is reported, and no choice.
    for key, rows in list(found.items()):
        kls = tuple(kl * (1 if row % 2 == 0 else 3) for row, kl in enumerate(rows.kls))
        found[key] = RowCosts(rows.tokens, rows.losses, kls, rows.flipped)
    again = wb.mix(tiny_sens, all_4bit(tiny_sens) + 60_000)
    assert again.modules_left_out == mix.modules_left_out
    assert again.predicted_kl == pytest.approx(3 * mix.predicted_kl)
    for key, rows in list(found.items()):
        kls = tuple(kl / (1 if row % 2 == 0 else 3) for row, kl in enumerate(rows.kls))
        found[key] = RowCosts(rows.tokens, rows.losses, kls, rows.flipped)


# --- as another checkpoint has it ---------------------------------------------------------------------------------------------


def dynamic(folder: Path, base: Path, **quantization: Any) -> Path:
    """A checkpoint whose configuration says how it was quantized."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}), "utf-8")
    return folder


def test_a_mix_as_another_checkpoint_has_it(tiny_sens: wb.Sensitivity, tmp_path: Path) -> None:
    base = tiny_sens.job.source.path
    assert base is not None
    names = ["lm_head", "merger", "model.layers.1.mlp", "layers.0.self_attn.q_proj"]
    folder = dynamic(tmp_path / "dynamic", base, quant_method="bitsandbytes", load_in_4bit=True, llm_int8_skip_modules=names)
    mix = wb.mix(tiny_sens, like=folder)
    expected = {f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")} | {"model.layers.0.self_attn.q_proj"}
    assert set(mix.modules_left_out) == expected
    assert mix.like == "dynamic"
    mix.measure()
    ours = wb.mix(tiny_sens, mix.nbytes)
    assert ours.nbytes <= mix.nbytes
    assert ours.predicted_kl < mix.predicted_kl
    config = mix.to_config(wb.TrainConfig(model=str(base)))
    assert {row.name for row in tiny_sens.rows if leaves_out(config.llm_int8_skip_modules, row.name)} == expected
    other = dynamic(tmp_path / "other", base, quant_method="fp8", modules_to_not_convert=["model.layers.0"])
    assert len(wb.mix(tiny_sens, like=str(other)).modules_left_out) == 7


@pytest.mark.parametrize(
    ("quantization", "told"),
    [
        ({}, "no list of modules"),
        ({"llm_int8_skip_modules": "lm_head"}, "no list of modules"),
        ({"llm_int8_skip_modules": ["lm_head"]}, "none that a QLoRA load"),
        ({"llm_int8_skip_modules": ["(a+)+$", "model.layers.0"]}, "no plain name"),
        ({"llm_int8_skip_modules": [7]}, "no plain name"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    tiny_sens: wb.Sensitivity, tmp_path: Path, quantization: dict[str, Any], told: str
) -> None:
    assert tiny_sens.job.source.path is not None
    folder = dynamic(tmp_path / "odd", tiny_sens.job.source.path, **quantization)
    with pytest.raises(wb.ConfigError, match=told):
        wb.mix(tiny_sens, like=folder)


# --- the choice ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_curve_goes_from_all_in_4_bits_to_all_in_16(sens: wb.Sensitivity) -> None:
    mix = wb.mix(sens, sens.job.nbytes_16bit)
    assert (mix.all_4bit.nbytes, mix.all_4bit.modules) == (all_4bit(sens), ())
    assert mix.all_4bit.predicted_kl == mix.in_4_bits.kl
    assert (mix.all_16bit.nbytes, len(mix.all_16bit.modules)) == (sens.job.nbytes_16bit, len(sens))
    assert mix.all_16bit.predicted_kl == pytest.approx(0, abs=1e-9)
    assert (mix.bits_per_weight(mix.all_16bit), round(mix.bits_per_weight(mix.all_4bit), 3)) == (16, 4.127)
    steps = [
        (a.predicted_kl - b.predicted_kl) / (b.nbytes - a.nbytes) for a, b in itertools.pairwise(mix.curve)
    ]  # nats a byte, the most first
    assert steps == sorted(steps, reverse=True) or all(a >= b - 1e-15 for a, b in itertools.pairwise(steps))
    assert len(mix.to_frame()) == 1 + len(sens)


@pytest.mark.slow
def test_a_budget_is_kept_and_only_what_helps_is_left_out(sens: wb.Sensitivity) -> None:
    gains = sens.shares_on(CHOSEN_ON)
    for more in (0, 100_000, 700_000, 10**9):
        mix = wb.mix(sens, all_4bit(sens) + more)
        assert mix.nbytes <= all_4bit(sens) + more
        assert all(gains[name] > 0 for name in mix.modules_left_out)
    assert set(mix.modules_left_out) == {name for name, gain in gains.items() if gain > 0}


def test_for_a_gpu_the_budget_is_what_training_leaves(tiny_sens: wb.Sensitivity) -> None:
    config = wb.TrainConfig(max_length=64)
    whole = wb.mix(tiny_sens, gpu="T4 16 GB", config=config)
    assert whole.gpu is not None
    assert whole.ledger is not None
    assert fit(whole.ledger, whole.gpu).verdict == "fits"
    # A GPU with room for two modules more than everything in 4 bits takes.
    from workbench.memory.gpus import Gpu

    training = whole.to_config(config) if whole.modules_left_out else config
    base = wb.forecast(tiny_sens.job.source, wb.TrainConfig.from_dict(training.to_dict() | {"llm_int8_skip_modules": []}))
    needed = fit(base, Gpu("any", 1)).ledger.needed
    tight = wb.mix(tiny_sens, gpu=Gpu("tight", int((needed + 40_000) / 0.85)), config=config)
    assert tight.ledger is not None
    assert base.total < tight.ledger.total <= base.total + 40_000
    assert 0 < len(tight.modules_left_out) < len(whole.modules_left_out)
    with pytest.raises(wb.ConfigError, match="need more than 85 %"):
        wb.mix(tiny_sens, gpu=Gpu("too small", needed), config=config)


def test_what_makes_no_sense_is_refused(tiny_sens: wb.Sensitivity, tmp_path: Path) -> None:
    with pytest.raises(wb.ConfigError, match="takes a budget"):
        wb.mix(tiny_sens)
    with pytest.raises(wb.ConfigError, match="in 4 bits takes"):
        wb.mix(tiny_sens, 1000)
    with pytest.raises(wb.ConfigError, match="takes a budget"):
        wb.mix(tiny_sens, 10**9, like="builtin")
    with pytest.raises(wb.DataError, match="no second held-out row"):
        wb.mix(wb.sensitivity(tiny_sens.job.source, modules=["model.layers.0.mlp.up_proj"], max_rows=1).run(), 10**9)
    with pytest.raises(wb.RunError, match="not complete"):
        wb.mix(wb.sensitivity("builtin"), 10**9)
    everything = wb.mix(tiny_sens, 10**9)
    everything.modules_left_out = tuple(row.name for row in tiny_sens.rows)
    with pytest.raises(wb.ConfigError, match="Everything is left in 16 bits"):
        everything.to_config(wb.TrainConfig())


# --- handed on ----------------------------------------------------------------------------------------------------------------


def linears_in_4_bits(net: Any) -> set[str]:
    from bitsandbytes.nn import Linear4bit

    return {name for name, module in net.named_modules() if isinstance(module, Linear4bit)}


@pytest.mark.slow
def test_the_code_leaves_out_exactly_these_modules(sens: wb.Sensitivity) -> None:
    tiny.quiet()
    mix = wb.mix(sens, all_4bit(sens) + 1_500_000)
    cell: dict[str, Any] = {}
    exec(mix.as_code(), cell)
    assert 0 < len(mix.modules_left_out) < len(sens)
    assert linears_in_4_bits(cell["model"]) == {row.name for row in sens.rows} - set(mix.modules_left_out)


def test_so_does_a_run_and_its_forecast(tiny_sens: wb.Sensitivity) -> None:
    from workbench.training.worker.model import load_base

    tiny.quiet()
    mix = wb.mix(tiny_sens, all_4bit(tiny_sens) + 60_000)
    config = mix.to_config(wb.TrainConfig(model=str(tiny_sens.job.source.path), block_size=128, method="lora"))
    assert (config.method, config.quant_type, config.block_size, config.double_quant) == ("qlora", "nf4", 64, True)
    import torch

    net = load_base(config, Path(config.model), torch.float32, lambda: None)
    left = {row.name for row in tiny_sens.rows} - set(mix.modules_left_out)
    assert linears_in_4_bits(net) == left
    ledger = wb.forecast(tiny_sens.job.source, config)
    assert {piece.tensor for piece in ledger.pieces if piece.category == "4-bit weights"} == {f"{name}.weight" for name in left}


def test_a_format_that_bitsandbytes_has_not_cannot_be_trained(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "one", "llama", {**tiny.LLAMA, "num_hidden_layers": 1, "vocab_size": 512})
    tiny_tokenizer().save_pretrained(folder)
    mix = wb.mix(wb.sensitivity(folder, "int4", max_rows=4, max_length=16).run(), 10**9)
    with pytest.raises(wb.ConfigError, match="INT4"):
        mix.to_config(wb.TrainConfig())


# --- names --------------------------------------------------------------------------------------------------------------------

LAYERS = [f"model.layers.{n}.{part}" for n in range(12) for part in ("mlp.up_proj", "mlp.down_proj", "attn.q_proj")]


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ([m for m in LAYERS if m.startswith("model.layers.1.")], ("model.layers.1",)),
        ([m for m in LAYERS if m.endswith("up_proj")], ("up_proj",)),
        (["model.layers.1.mlp.up_proj"], ("model.layers.1.mlp.up_proj",)),
        (["model.layers.3.mlp.up_proj", "model.layers.3.mlp.down_proj"], ("model.layers.3.mlp",)),
    ],
    ids=["a layer", "a kind", "a module", "a block"],
)
def test_names_are_few_and_exact(modules: list[str], names: tuple[str, ...]) -> None:
    assert names_for(modules, LAYERS) == names


def test_a_module_that_others_end_like_or_begin_like_is_named_alone() -> None:
    known = ["up", "block.up", "block.up.gate", "block.xup"]
    for module in known:
        names = names_for([module], known)
        assert [m for m in known if leaves_out(names, m)] == [module]


def test_names_mean_the_same_where_transformers_puts_a_part_before_them() -> None:
    known = [f"h.{n}.attn.{part}" for n in range(12) for part in ("c_attn", "c_proj")]
    for modules in (known[2:4], known[1::2], [known[0], known[20]]):
        names = names_for(modules, known, "transformer.")
        for prefix in ("", "transformer."):
            assert [m for m in known if leaves_out(names, prefix + m)] == [m for m in known if m in modules]
