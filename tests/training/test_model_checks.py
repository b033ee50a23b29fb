"""What launch knows of a model before it is loaded, held against transformers and peft, and what the loaded model adds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench.training import model_checks
from workbench.training.model_checks import auto_mappings, causal_fault, model_faults, positions

LENGTH = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def faults_of(folder: Path, **fields: Any) -> list[str]:
    return model_faults(wb.TrainConfig(model=str(folder), **fields), wb.open_model(folder))


def saved(folder: Path, name: str) -> Path:
    kind, config, cls = tiny.ARCHITECTURES[name]
    return tiny.save(folder, kind, config, cls)


# --- what kind of model it is -------------------------------------------------------------------------------------------------


def test_the_tables_read_without_importing_torch_are_those_that_transformers_has() -> None:
    from transformers.models.auto import modeling_auto

    found = auto_mappings()
    for task in ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "SEQUENCE_CLASSIFICATION"):
        assert found[task] == getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")


@pytest.mark.parametrize("name", sorted(tiny.ARCHITECTURES))
def test_what_is_no_causal_language_model_is_known_from_its_configuration(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config, _ = tiny.ARCHITECTURES[name]
    values = AutoConfig.for_model(kind, **config)
    causal = type(values) in AutoModelForCausalLM._model_mapping and name not in ("bert", "whisper")
    assert (causal_fault(values.to_dict()) is None) == causal


def test_an_encoder_is_refused_because_its_tokens_see_those_that_follow() -> None:
    import torch
    from transformers import AutoModelForCausalLM, BertConfig

    ids = torch.arange(3, 11)[None]
    changed = ids.clone()
    changed[0, -1] = 50
    tiny.quiet()
    for decodes in (False, True):
        config = BertConfig(**tiny._PLAIN, is_decoder=decodes)
        net = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            blind = torch.equal(net(ids).logits[0, 0], net(changed).logits[0, 0])
        assert blind == decodes == (causal_fault(config.to_dict()) is None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "names no model_type"),
        ({"model_type": "made_up"}, "no causal language model of its type, 'made_up'"),
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}, "code of its own"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "an encoder with a decoder"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "no output head over the vocabulary"),
        ({"model_type": "mistral", "architectures": ["MistralModel"], "tie_word_embeddings": False}, "begin at random"),
    ],
)
def test_other_models_are_told_what_they_are(config: dict[str, Any], told: str) -> None:
    assert told in (causal_fault(config) or "")


@pytest.mark.parametrize("cls", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_checkpoint_without_a_head_is_not_trained_on_a_random_one(cls: str, tmp_path: Path) -> None:
    import torch

    from workbench.training.worker.model import load_base

    tiny.save(tmp_path, "llama", tiny.LLAMA)
    import transformers

    getattr(transformers, cls)(transformers.LlamaConfig(**tiny.LLAMA)).save_pretrained(tmp_path)
    for method in ("lora", "qlora"):
        with pytest.raises(wb.ModelError, match=r"lacks 'lm_head\.weight', which would be random"):
            load_base(wb.TrainConfig(model=str(tmp_path), method=method), tmp_path, torch.float32, lambda: None)


# --- positions ----------------------------------------------------------------------------------------------------------------

_SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "pad_token_id": 1}
_BERT = {**_SMALL, "intermediate_size": 32, "max_position_embeddings": LENGTH, "is_decoder": True}
_GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": LENGTH}
_BART = {
    "d_model": 32, "decoder_layers": 1, "encoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
    "vocab_size": 64, "max_position_embeddings": LENGTH, "is_encoder_decoder": False, "is_decoder": True,
}  # fmt: skip
WITH_POSITIONS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT, "gpt_bigcode": _GPT, "openai-gpt": _GPT, "gptj": {**_GPT, "rotary_dim": 8},
    "codegen": {**_GPT, "n_head": 4, "rotary_dim": 4}, "ctrl": {**_GPT, "dff": 32},
    "mpt": {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 64, "max_seq_len": LENGTH},
    "opt": {**_SMALL, "ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": LENGTH},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64, "max_position_embeddings": LENGTH,
        "attention_types": [[["global"], 1]],
    },
    "bert": _BERT, "roberta": _BERT, "xlm-roberta": _BERT, "camembert": _BERT, "electra": {**_BERT, "embedding_size": 32},
    "biogpt": {**_SMALL, "intermediate_size": 32, "max_position_embeddings": LENGTH}, "bart": _BART, "plbart": _BART,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(WITH_POSITIONS))
def test_a_model_takes_as_many_tokens_as_it_has_positions_and_not_one_more(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny.quiet()
    config = AutoConfig.for_model(kind, **WITH_POSITIONS[kind])
    net = AutoModelForCausalLM.from_config(config).eval()
    most = positions(config.to_dict())
    assert most is not None
    with torch.no_grad():
        net(input_ids=torch.full((1, most), 5), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)):
            net(input_ids=torch.full((1, most + 1), 5), use_cache=False)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt-neox", "phi", "falcon", "bloom", "mamba", "stablelm"])
def test_positions_that_are_computed_as_they_come_do_not_end(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config, _ = tiny.ARCHITECTURES[name]
    tiny.quiet()
    values = AutoConfig.for_model(kind, **config)
    assert positions(values.to_dict()) is None
    with torch.no_grad():
        AutoModelForCausalLM.from_config(values).eval()(input_ids=torch.full((1, 200), 5))


def test_rows_and_samples_longer_than_the_positions_are_told_by_field(tmp_path: Path) -> None:
    folder = saved(tmp_path, "gpt2")
    told = faults_of(folder, max_length=65, sample_max_new_tokens=64)
    assert [fault.split()[0] for fault in told] == ["max_length", "sample_max_new_tokens"]
    assert faults_of(folder, max_length=64, sample_prompts=()) == []


# --- packed checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in 8 bits, NF4 and FP4 as bitsandbytes saves it, in FP8; and a tiny gpt-oss in MXFP4."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    tiny.quiet()
    folder = tmp_path_factory.mktemp("packed")
    for name, how in (
        ("int8", {"load_in_8bit": True}),
        ("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("fp4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}),
    ):
        quantization = transformers.BitsAndBytesConfig(**how)
        net = transformers.AutoModelForCausalLM.from_pretrained(model, quantization_config=quantization, dtype=torch.bfloat16)
        net.save_pretrained(folder / name)
    fp8, mxfp4 = shutil.copytree(model, folder / "fp8"), saved(folder / "mxfp4", "gpt-oss")
    held = load_file(fp8 / "model.safetensors")
    for name in [name for name, weight in held.items() if weight.ndim == 2 and "embed" not in name]:
        scale = held[name].float().abs().max().reshape(1, 1) / 448
        held |= {name: (held[name].float() / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    save_file(held, fp8 / "model.safetensors", {"format": "pt"})
    held = load_file(mxfp4 / "model.safetensors")
    for name in [name for name in held if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = held.pop(name).shape
        held[f"{name}_blocks"] = torch.zeros((experts, rows, columns // 32, 16), dtype=torch.uint8)
        held[f"{name}_scales"] = torch.full((experts, rows, columns // 32), 118, dtype=torch.uint8)
    save_file(held, mxfp4 / "model.safetensors", {"format": "pt"})
    for path, method in (
        (fp8, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        (mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}),
    ):
        config = json.loads((path / "config.json").read_text("utf-8"))
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": method}), "utf-8")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["int8", "fp8", "mxfp4"])
def test_what_is_packed_otherwise_is_no_base_for_qlora_as_transformers_says_after_loading(
    name: str, packed: dict[str, Path]
) -> None:
    import torch

    from workbench.training.worker.model import load_base

    (told,) = faults_of(packed[name])
    assert told.startswith('method "qlora" ')
    assert '"lora"' in told
    with pytest.raises(wb.ModelError):
        load_base(wb.TrainConfig(model=str(packed[name])), packed[name], torch.float32, lambda: None)


def test_what_an_adapter_can_be_trained_on_is_not_refused(packed: dict[str, Path]) -> None:
    """Each was trained so on a CPU, and ``full`` on 8-bit weights refused by transformers' Trainer."""
    for name in ("int8", "mxfp4", "nf4", "fp4"):
        assert faults_of(packed[name], method="lora") == []
    for name in ("int8", "nf4", "fp4"):
        assert [fault.split()[0] for fault in faults_of(packed[name], method="full")] == ["method"]
    assert faults_of(packed["fp8"], method="lora", compute_dtype="bfloat16") == []
    assert [fault.split()[0] for fault in faults_of(packed["fp8"], method="lora", compute_dtype="float32")] == ["compute_dtype"]


def test_a_4_bit_checkpoint_keeps_its_own_format_and_is_trained_in_no_other(packed: dict[str, Path]) -> None:
    assert faults_of(packed["nf4"], double_quant=False) == []
    assert [fault.split()[0] for fault in faults_of(packed["fp4"], block_size=128)] == ["quant_type", "block_size"]
    for begin in ("loftq", "pissa"):
        (told,) = faults_of(packed["nf4"], double_quant=False, init_lora_weights=begin, lora_alpha=16)
        assert "there is no weight to begin from" in told


def test_patterns_that_leave_nothing_or_everything_out_of_4_bits_are_told(model: Path) -> None:
    assert faults_of(model, llm_int8_skip_modules=("lm_head", "down_proj", r"model\.layers\.1")) == []
    told = faults_of(model, llm_int8_skip_modules=("down_porj",))
    assert len(told) == 1
    assert "'down_proj'" in told[0]
    (everything,) = faults_of(model, llm_int8_skip_modules=("model",))
    assert "every module" in everything


# --- modules to adapt ---------------------------------------------------------------------------------------------------------

_SSM = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8}
STATE_SPACE: dict[str, dict[str, Any]] = {
    "mamba": _SSM, "falcon_mamba": _SSM, "mamba2": {**_SSM, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "falcon_h1": {
        **tiny.LLAMA, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(STATE_SPACE))
def test_state_space_models_are_told_which_modules_peft_adapts_in_them(kind: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tiny.save(tmp_path, kind, STATE_SPACE[kind])
    (told,) = faults_of(tmp_path)
    assert told.startswith("target_modules ")
    names = [word for word in told.replace("'", " ").split() if word.endswith("_proj")]
    assert faults_of(tmp_path, target_modules=tuple(names)) == []
    (refused,) = faults_of(tmp_path, target_modules=("out_proj", *names))
    assert "'out_proj'" in refused

    def adapted(targets: str | list[str]) -> Any:
        torch.manual_seed(0)
        how = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
        return get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), how)

    for targets in ("all-linear", ["out_proj"]):
        with pytest.raises(ValueError, match="incompatible"):
            adapted(targets)

    def untrained(targets: list[str]) -> set[str]:
        net = adapted(targets)
        ids = torch.arange(3, 30)[None]
        net(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {
            n.split(".lora_")[0].rpartition(".")[2] for n, p in net.named_parameters() if p.requires_grad and p.grad is None
        }

    assert untrained(names) == set()
    if "dt_proj" in model_checks._NOT_ADAPTED[kind]:
        assert untrained([*names, "dt_proj"]) == {"dt_proj"}


@pytest.mark.filterwarnings("ignore")  # of peft
@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_dropout_and_dora_on_experts_are_refused_as_peft_does_after_loading(kind: str, tmp_path: Path) -> None:
    from tests.helpers import meta

    model_type, config, _ = tiny.ARCHITECTURES[kind]
    tiny.save(tmp_path, model_type, config)
    for asked in ({"lora_dropout": 0.05}, {"lora_dropout": 0.0, "use_dora": True}):
        (told,) = faults_of(tmp_path, **asked)
        assert told.startswith(("lora_dropout", "use_dora"))
        assert "'gate_up_proj'" in told
        with pytest.raises(ValueError, match="does not work with"):
            meta.trainable(meta.build(model_type, **config), "all-linear", **asked)
        assert faults_of(tmp_path, target_modules=("q_proj", "o_proj"), **asked) == []
    assert faults_of(tmp_path, lora_dropout=0.0) == []


def test_every_name_that_gets_no_adapter_is_told_though_peft_passes_over_it_where_others_fit(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.training.loaded_checks import check_targets

    targets = ("q_proj", "v_porj", "mlp", "input_layernorm", "lm_head")
    told = faults_of(model, target_modules=targets)
    assert [fault.split()[2].strip("',") for fault in told] == ["v_porj", "mlp", "input_layernorm"]
    assert "'v_proj'" in told[0]
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with pytest.raises(wb.ConfigError) as caught:
        check_targets(net, wb.TrainConfig(model=str(model), target_modules=targets))
    assert [fault.split()[2].strip("',") for fault in caught.value.faults] == ["v_porj"]
    check_targets(net, wb.TrainConfig(target_modules=("q_proj", "layers.1.mlp.down_proj")))


# --- the length of the run, and all of it together ----------------------------------------------------------------------------


def test_a_warm_up_longer_than_the_run_is_told_once_its_steps_are_known(model: Path) -> None:
    assert faults_of(model, warmup_steps=100, max_steps=100) == []
    assert [fault.split()[0] for fault in faults_of(model, warmup_steps=101, max_steps=100)] == ["warmup_steps"]
    epochs = wb.TrainConfig(model=str(model), warmup_steps=101, num_train_epochs=1)
    assert model_faults(epochs, wb.open_model(model)) == []
    assert model_faults(epochs.for_rows(400), wb.open_model(model)) == faults_of(model, warmup_steps=101, max_steps=100)


SCRIPT = """
import sys, workbench as wb
try:
    wb.launch(wb.TrainConfig(model=sys.argv[1], max_length=512, target_modules=("c_atn",), warmup_steps=200), sys.argv[2])
except wb.ConfigError as error:
    print(*[fault.split()[0] for fault in error.faults], "torch" in sys.modules, sep=chr(10))
"""


def test_launch_tells_all_of_it_at_once_without_loading_anything(tmp_path: Path) -> None:
    folder = saved(tmp_path / "gpt2", "gpt2")
    tiny_tokenizer(128).save_pretrained(folder)
    arguments = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["warmup_steps", "max_length", "model:", "target_modules", "False"]
    assert not (tmp_path / "run").exists()


# --- beside the fields -------------------------------------------------------------------------------------------------------


def test_the_panel_shows_what_launch_knows_beside_the_fields_until_the_next_edit(tmp_path: Path) -> None:
    from widgets import TrainingCell

    folder = saved(tmp_path / "gpt2", "gpt2")
    tiny_tokenizer(128).save_pretrained(folder)
    panel = TrainingCell(folder, config=wb.TrainConfig(model=str(folder), target_modules=("c_atn",)))
    panel.setup.run_folder.value = str(tmp_path / "run")
    panel._launch.click()

    def told(name: str) -> str:
        return "".join(child.value for child in panel.form._cells[name].children[1:])

    assert "Length is 512; this model has positions for 64 tokens" in told("max_length")
    assert "c_attn" in told("target_modules")
    assert panel.run is None
    panel.form.controls["warmup_steps"].value = 200
    assert "the run has 100 steps" in told("warmup_steps")
    assert told("max_length") == ""
    panel.close()
