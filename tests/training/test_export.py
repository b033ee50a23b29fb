"""A merged model is what peft merges, loads in plain transformers, and its error is told layer by layer before that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from click.testing import CliRunner

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench.cli.main import cli
from workbench.memory.footprint import Plan
from workbench.training import data
from workbench.training.folder import RunFolder
from workbench.training.held import held_exactly
from workbench.training.results.merging import relative

Train = Callable[..., wb.Run]
HALF_A_STEP = 2.0**-8
"""Of bfloat16, relative: 8 bits of significand. The norm of many roundings is smaller."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A llama with a tied head; a gpt2 with Conv1D layers and names that lack the first part, as on the Hub; fused experts."""
    llama = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
    gpt2 = tiny.save(llama.parent / "tiny-gpt2", "gpt2", {**tiny.ARCHITECTURES["gpt2"][1], "vocab_size": 512})
    weights = safetensors.torch.load_file(gpt2 / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in weights.items()}
    safetensors.torch.save_file(bare, gpt2 / "model.safetensors", {"format": "pt"})
    mixtral = tiny.save(llama.parent / "tiny-mixtral", "mixtral", {**tiny.ARCHITECTURES["mixtral"][1], "vocab_size": 512})
    for folder in (gpt2, mixtral):
        tiny_tokenizer().save_pretrained(folder)
    return {"llama": llama, "gpt2": gpt2, "mixtral": mixtral}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose router, embedding or head is not in 4 bits although a name or the configuration may say so."""
    folder = tmp_path_factory.mktemp("odd")
    kinds = {name: (*tiny.ARCHITECTURES[name][:2], {}) for name in ("ctrl", "hy-v3")}
    own_head = {"lm_head.weight": torch_normal(512, 64)}  # transformers ties only what is equal
    kinds["llama-own-head"] = ("llama", {**tiny.LLAMA, "tie_word_embeddings": True}, own_head)
    found = {}
    for name, (model_type, config, more) in kinds.items():
        found[name] = tiny.save(folder / f"tiny-{name}", model_type, {**config, "vocab_size": 512})
        file = found[name] / "model.safetensors"
        safetensors.torch.save_file(safetensors.torch.load_file(file) | more, file, {"format": "pt"})
        tiny_tokenizer().save_pretrained(found[name])
    return found


def torch_normal(*shape: int) -> Any:
    import torch

    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def train(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a few steps to the end, in this process."""

    def train(model: str = "llama", **fields: Any) -> wb.Run:
        config = in_process.config_of(models[model], **{"max_eval_rows": 0, "max_steps": 2, **fields})
        return in_process.train(config, tmp_path_factory.mktemp("run"))

    return train


@pytest.fixture(scope="module")
def plain(train: Train) -> wb.Run:
    """The usual QLoRA run, with its held-out loss."""
    return train(max_eval_rows=8, max_steps=4)


def loaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def of_peft(run: wb.Run, four_bit: bool) -> dict[str, Any]:
    """Every adapted weight as float32, merged by plain peft: on the 4-bit base, dequantized layer by layer, or in memory."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {}
    if four_bit:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=run.config.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
    base = AutoModelForCausalLM.from_pretrained(run.config.model, dtype=torch.float32, **how)
    model = PeftModel.from_pretrained(base, str(run.adapter_dir))
    if not four_bit:
        return {name: p.detach().numpy() for name, p in model.merge_and_unload().named_parameters()}
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            weight = layer.get_base_layer().weight
            merged = dequantize_4bit(weight.data, weight.quant_state) + layer.get_delta_weight("default")
            found[f"{name}.weight"] = merged.detach().numpy()
    return found


@pytest.mark.parametrize(
    ("model", "fields", "four_bit"),
    [
        ("llama", {}, True),
        pytest.param("llama", {"use_rslora": True, "double_quant": False}, True, marks=pytest.mark.slow),
        pytest.param("llama", {"init_lora_weights": "olora"}, True, marks=pytest.mark.slow),
        pytest.param("llama", {"init_lora_weights": "loftq", "lora_alpha": 16}, True, marks=pytest.mark.slow),
        ("llama", {"method": "lora", "use_dora": True}, False),
        pytest.param("llama", {"method": "lora", "init_lora_weights": "pissa"}, False, marks=pytest.mark.slow),
        pytest.param("gpt2", {}, True, marks=pytest.mark.slow),
        ("gpt2", {"method": "lora", "use_dora": True, "target_modules": ("c_attn", "c_fc")}, False),
    ],
    ids=["qlora", "rslora", "olora", "loftq", "lora-dora", "lora-pissa", "conv1d", "conv1d-lora-dora"],
)
def test_what_is_written_is_what_peft_merges_rounded_once(
    train: Train, plain: wb.Run, model: str, fields: dict[str, Any], four_bit: bool, tmp_path: Path
) -> None:
    run = train(model, **fields) if fields or model != "llama" else plain
    exported = wb.export(run, tmp_path / "merged")
    assert exported.base == ("dequantized" if four_bit else "original")
    peft = of_peft(run, four_bit)
    merged = loaded(tmp_path / "merged")
    written = {name: p.detach().numpy() for name, p in merged.named_parameters()}
    transposed = {f"{n}.weight" for n, m in merged.named_modules() if type(m).__name__ == "Conv1D"} if four_bit else set()
    adapted = [name for name in written if name.removeprefix("transformer.") in exported.errors or name in exported.errors]
    assert len(adapted) == len(exported.errors) > 3
    for name in adapted:
        value = peft[name].T if name in transposed else peft[name]
        np.testing.assert_allclose(written[name], value, rtol=HALF_A_STEP, atol=1e-6, err_msg=name)
    untouched = loaded(models_of(run)).state_dict()
    for name in set(written) - set(adapted):
        if name not in peft or not four_bit:
            np.testing.assert_array_equal(written[name], untouched[name].numpy(), err_msg=name)


def models_of(run: wb.Run) -> Path:
    return Path(run.config.model)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ctrl", {"target_modules": ("Wq", "Wv"), "gradient_checkpointing": False}),
        ("hy-v3", {"target_modules": ("q_proj", "v_proj"), "llm_int8_skip_modules": ("down_proj",)}),
        ("llama-own-head", {"target_modules": ("q_proj",)}),
    ],
)
def test_what_was_not_adapted_is_written_as_the_run_held_it(
    odd: dict[str, Path], name: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Against the base as transformers and bitsandbytes load it: dequantized where it is in 4 bits, and else as it is."""
    import torch

    (tmp_path / "run").mkdir()
    run = in_process.train(in_process.config_of(odd[name], max_steps=1, max_eval_rows=0, **fields), tmp_path / "run")
    exported = wb.export(run, tmp_path / "merged")
    skipped = fields.get("llm_int8_skip_modules", ())
    base = tiny.load_4bit(odd[name])
    original, merged = loaded(odd[name]).state_dict(), loaded(tmp_path / "merged").state_dict()
    four_bits = 0
    for parameter, written in merged.items():
        if parameter in exported.errors:
            continue
        path = parameter.removesuffix(".weight")
        held = getattr(base.get_submodule(path), "weight", None) if path != parameter else None
        if hasattr(held, "quant_state") and not path.endswith(tuple(skipped)):
            from bitsandbytes.functional import dequantize_4bit

            four_bits += 1
            reference = dequantize_4bit(held.data, held.quant_state).bfloat16().float()
        else:
            reference = original[parameter]
        torch.testing.assert_close(written, reference, rtol=0, atol=0, msg=parameter)
    assert four_bits > 3
    errors = wb.merge_errors(run)
    RunFolder(run.dir).held.unlink()  # as runs of before it have none
    again = wb.export(run, tmp_path / "again")
    assert (again, wb.merge_errors(run)) == (dataclasses.replace(exported, folder=again.folder), errors)
    assert (again.folder / "model.safetensors").read_bytes() == (exported.folder / "model.safetensors").read_bytes()


def test_a_checkpoint_in_4_bits_is_written_in_the_shape_that_its_class_stores(models: dict[str, Path], tmp_path: Path) -> None:
    """bitsandbytes keeps a Conv1D's weight turned, (out, in), where the 16-bit model has (in, out)."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    base = tiny.load_4bit(models["gpt2"])
    base.save_pretrained(tmp_path / "packed")
    tiny_tokenizer().save_pretrained(tmp_path / "packed")
    (tmp_path / "run").mkdir()
    config = in_process.config_of(tmp_path / "packed", max_steps=1, max_eval_rows=0, target_modules=("c_fc",))
    exported = wb.export(in_process.train(config, tmp_path / "run"), tmp_path / "merged")
    assert max(exported.errors.values()) < HALF_A_STEP
    for layer, merged in zip(base.transformer.h, loaded(tmp_path / "merged").transformer.h, strict=True):
        held = layer.attn.c_attn.weight
        reference = dequantize_4bit(held.data, held.quant_state).bfloat16().float().T
        torch.testing.assert_close(merged.attn.c_attn.weight.detach(), reference, rtol=0, atol=0)


def test_without_a_record_or_a_class_nothing_is_merged(plain: wb.Run) -> None:
    source = wb.open_model(plain.config.model)
    source.config = {**source.config, "model_type": "novel"}
    with pytest.raises(wb.RunError, match="'novel'") as caught:
        held_exactly(source, Plan.of(plain.config, "cpu"), str(plain.dir))
    assert caught.value.remedy


def test_errors_are_shown_first_and_are_those_of_what_is_written(plain: wb.Run, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    errors = wb.merge_errors(plain, progress=lambda done, total: seen.append((done, total)))
    frame = errors.to_frame()
    assert len(frame) == 14
    assert seen[-1][0] == seen[-1][1] == sum(np.prod(shape) for shape in frame["shape"])
    assert (frame["dequantized"] < HALF_A_STEP / 2).all()  # rounding to 16 bits alone
    assert (frame["original"] > 10 * frame["dequantized"]).all()  # what 4 bits had changed
    assert (frame["requantized"] > 0.05).all()  # and 4 bits again
    written = wb.export(plain, tmp_path / "merged").errors
    assert written == dict(zip(frame["tensor"], frame["dequantized"], strict=True))
    onto_original = wb.export(plain, tmp_path / "original", base="original", dtype="float16").errors
    other = wb.merge_errors(plain, "float16").to_frame()
    assert onto_original == dict(zip(other["tensor"], other["original"], strict=True))


def test_the_errors_are_those_of_bitsandbytes_and_peft(plain: wb.Run) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    trained, original = of_peft(plain, True), of_peft(plain, False)
    for row in wb.merge_errors(plain).rows:
        reference = trained[row.tensor]
        rounded = torch.from_numpy(reference).bfloat16()
        assert row.dequantized == pytest.approx(relative(rounded.float().numpy(), reference), rel=1e-3)
        on_original = torch.from_numpy(original[row.tensor]).bfloat16().float().numpy()
        assert row.original == pytest.approx(relative(on_original, reference), rel=1e-3)
        again = dequantize_4bit(*quantize_4bit(rounded, blocksize=64, quant_type="nf4", compress_statistics=True))
        assert row.requantized == pytest.approx(relative(again.float().numpy(), reference), rel=1e-2)


def test_the_merged_model_has_the_loss_that_was_trained(plain: wb.Run, tmp_path: Path) -> None:
    import torch

    from workbench.training.worker import trainer

    wb.export(plain, tmp_path / "merged")
    config = plain.config
    tokenizer = data.open_tokenizer(tmp_path / "merged")
    rows = data.load(config, tokenizer, data.held_out_files(config), config.max_eval_rows).rows
    net = loaded(tmp_path / "merged")
    with trainer.measuring(net, torch.float32):
        loss = trainer.held_out_loss(net, rows, trainer.Collator(tokenizer.pad_token_id), 4, lambda: None)
    assert loss == pytest.approx([e["loss"] for e in plain.events() if e["k"] == "eval"][-1], abs=2e-3)
    saved = json.loads((tmp_path / "merged" / "config.json").read_text("utf-8"))
    assert saved["dtype"] == "bfloat16"
    assert "quantization_config" not in saved
    assert wb.open_model(tmp_path / "merged").tensors()[0].dtype == "BF16"


def test_the_command_tells_the_error_first_and_writes_where_a_folder_is_named(plain: wb.Run, tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["export", str(plain.dir), "--worst", "3"])
    assert told.exit_code == 0, told.output
    assert "on dequantized base" in told.stdout
    assert len(told.stdout.splitlines()) == 5
    done = CliRunner().invoke(cli, ["export", str(plain.dir), str(tmp_path / "merged"), "--base", "original", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == [
        dataclasses.asdict(row) | {"shape": list(row.shape)} for row in wb.merge_errors(plain).rows
    ]
    assert "merged into the original base, in bfloat16" in done.stderr
    assert loaded(tmp_path / "merged").num_parameters() > 0
    assert CliRunner().invoke(cli, ["export", str(tmp_path)]).exit_code == 1  # no run


def test_shards_have_an_index_and_hold_the_same(plain: wb.Run, tmp_path: Path) -> None:
    one = wb.export(plain, tmp_path / "one")
    wb.export(plain, tmp_path / "many", max_shard_size=60_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    whole, parts = wb.open_model(tmp_path / "one"), wb.open_model(tmp_path / "many")
    assert one.nbytes == sum(t.nbytes for t in whole.tensors())
    for tensor in whole.tensors():
        np.testing.assert_array_equal(whole.read(tensor.name), parts.read(tensor.name))
    assert loaded(tmp_path / "many").num_parameters() == loaded(tmp_path / "one").num_parameters()


def test_a_cancelled_export_leaves_nothing(plain: wb.Run, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(InterruptedError):
        wb.export(plain, tmp_path / "merged", progress=lambda d, total: done.append(d), cancelled=lambda: len(done) > 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "how", "told"),
    [
        ({"target_modules": ("embed_tokens",), "method": "lora"}, {}, "no plain adapter of a linear layer"),
        ({"target_modules": ("lm_head", "q_proj"), "method": "lora"}, {}, "lm_head.*no plain adapter"),  # it is tied
        ({"model": "mixtral", "lora_dropout": 0.0}, {}, "experts.*no plain adapter"),
        ({"method": "full"}, {}, "every weight was trained"),
        ({"method": "lora"}, {"base": "dequantized"}, "was not in 4 bits"),
        ({"method": "lora"}, {"dtype": "float32"}, "float32"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_a_remedy(
    train: Train, fields: dict[str, Any], how: dict[str, str], told: str, tmp_path: Path
) -> None:
    run = train(**{"max_steps": 1, **fields})
    with pytest.raises(wb.RunError, match=told) as caught:
        wb.export(run, tmp_path / "merged", **how)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_kept(plain: wb.Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(wb.RunError, match="not empty"):
        wb.export(plain, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_cards_tell_what_was_done_and_nothing_of_this_machine(plain: wb.Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    wb.export(plain, tmp_path / "merged")
    assert plain.adapter_dir is not None
    first, last = (e["loss"] for e in plain.events() if e["k"] == "eval")
    for folder, library in ((plain.adapter_dir, "peft"), (tmp_path / "merged", "transformers")):
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == library
        assert card.data.base_model is None  # which only one on the Hub has a name for
        for told in (
            "`tiny-llama`", "| learning_rate | `0.02` |", "| quant_type | `nf4` |", f"after 0 steps | `{first:.4f}` |",
            f"after 4 steps | `{last:.4f}` |", "| completion_only_loss | `True` |", "| peft |", "| max_steps | `4` |",
        ):  # fmt: skip
            assert told in card.content, told
        assert str(models_of(plain).parent) not in card.content
        assert str(plain.dir.parent) not in card.content
        assert "More Information Needed" not in card.content


def test_a_base_from_the_hub_is_named_with_the_commit_that_was_trained_on(
    hub: HubServer, models: dict[str, Path], tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard, hf_hub_download

    files = {path.name: path.read_bytes() for path in models["llama"].iterdir()}
    card = b"---\nlicense: apache-2.0\n---\n"
    hub.add("org/tiny", {**files, "README.md": card}, card={"license": "apache-2.0"})
    (commit,) = {Path(hf_hub_download("org/tiny", name)).parent.name for name in (*files, "README.md")}
    (tmp_path / "run").mkdir()
    run = in_process.train(in_process.config_of(Path("org/tiny"), max_steps=1, max_eval_rows=0), tmp_path / "run")
    assert run.adapter_dir is not None
    named = json.loads((run.adapter_dir / "adapter_config.json").read_text("utf-8"))
    assert (named["base_model_name_or_path"], named["revision"]) == ("org/tiny", commit)
    told = ModelCard.load(run.adapter_dir / "README.md")
    assert (told.data.base_model, told.data.license) == ("org/tiny", "apache-2.0")
    assert f'MODEL = "org/tiny"\nREVISION = "{commit}"\n' in told.content
    before = {commit: {**files, "README.md": card}}
    hub.add("org/tiny", {**files, "model.safetensors": b"another one by now"}, commit="b" * 40, older=before)
    exported = wb.export(run, tmp_path / "merged")
    assert len(exported.errors) == 14
    assert loaded(tmp_path / "merged").num_parameters() > 0
