"""A run is tried out: its base and its adapter answer as plain transformers and peft do; what cannot be tried out is named."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.texts import missing
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench import compat
from workbench.errors import from_fields, to_fields
from workbench.training.answers.asking import answering
from workbench.training.answers.values import Answer, Sampling, Voice
from workbench.training.chats import Refused
from workbench.training.fingerprints import Changed
from workbench.training.folder import RunFolder, RunStatus
from workbench.training.host import create_time

PROMPT = "happiness, n."
BOTH = (Voice.BASE, Voice.ADAPTER)
ALL = (*BOTH, Voice.ORIGINAL)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
Train = Callable[..., wb.Run]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def train(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a few steps to the end, in this process."""

    def train(of: Path = model, **fields: Any) -> wb.Run:
        config = in_process.config_of(of, **{"max_eval_rows": 0, "max_steps": 3, **fields})
        return in_process.ended(in_process.train(config, tmp_path_factory.mktemp("run")))

    return train


@pytest.fixture(scope="module")
def run(train: Train) -> wb.Run:
    return train()


def voices_of(run: wb.Run, **how: Any) -> Any:
    from workbench.training.answers.voices import Voices

    assert run.adapter_dir is not None
    tiny.quiet()
    return Voices(run.dir, run.config, run.adapter_dir, **how)


def said(voices: Any, voice: Voice, prompt: str = PROMPT, **sampling: Any) -> str:
    sampling = {"max_new_tokens": 12, **sampling}
    return str(voices.answer(voice, prompt, Sampling(**sampling), lambda: None, lambda part: None).text)


def plainly(run: wb.Run, text: str, voice: Voice, *, special: bool = True, tokens: int = 12) -> str:
    """What plain transformers, peft and bitsandbytes say, greedily."""
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tiny.quiet()
    config, how = run.config, {}
    folder = str(wb.open_model(config.model).path)
    if config.method == "qlora" and voice is not Voice.ORIGINAL:
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    for module in net.modules():
        if isinstance(module, Linear4bit):
            compat.never_repack(module)  # another rounding, on processors with bfloat16
    if voice is Voice.ADAPTER:
        net = PeftModel.from_pretrained(net, str(run.adapter_dir))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special)
    inputs.pop("token_type_ids", None)
    out = net.eval().generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


# --- what is said -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"method": "lora"},
        {"use_dora": True},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq", "lora_alpha": 16},
        {"method": "lora", "init_lora_weights": "pissa"},
    ],
    ids=["qlora", "lora", "dora", "olora", "loftq", "pissa"],
)
def test_each_model_answers_as_plain_transformers_and_peft_do(train: Train, fields: dict[str, Any]) -> None:
    run = train(**fields)
    voices = voices_of(run)
    answers = {voice: said(voices, voice) for voice in BOTH}
    assert answers == {voice: plainly(run, PROMPT, voice) for voice in BOTH}
    assert answers[Voice.BASE] != answers[Voice.ADAPTER]


def test_the_16_bit_base_answers_as_it_does_alone(run: wb.Run) -> None:
    voices = voices_of(run)
    assert not voices.has(Voice.ORIGINAL)
    assert voices.lacking() == ""
    voices.load_original()
    assert said(voices, Voice.ORIGINAL) == plainly(run, PROMPT, Voice.ORIGINAL)


def test_the_16_bit_base_is_left_out_where_memory_does_not_allow_it(run: wb.Run) -> None:
    why = voices_of(run, free=lambda device: 2**20).lacking()
    assert "1.00 MiB are free on this machine" in why


def test_a_seed_makes_a_sampled_answer_repeatable(run: wb.Run) -> None:
    voices = voices_of(run)
    first = said(voices, Voice.ADAPTER, temperature=1.5, seed=7)
    assert said(voices, Voice.BASE, temperature=1.5, seed=7) != first
    assert said(voices, Voice.ADAPTER, temperature=1.5, seed=7) == first
    assert said(voices, Voice.ADAPTER, temperature=1.5, seed=8) != first


def test_a_prompt_goes_through_the_chat_template_where_the_run_learnt_from_chats(train: Train, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "chatty")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    turn = '{"messages": [{"role": "user", "content": "happiness"}, {"role": "assistant", "content": "the state of joy"}]}\n'
    rows.write_text(turn * 8)
    run = train(folder, dataset=str(rows), messages_column="messages")
    answer = said(voices_of(run), Voice.ADAPTER, "happiness")
    assert answer == plainly(run, "<user>happiness</s><assistant>", Voice.ADAPTER, special=False)
    assert answer != plainly(run, "happiness", Voice.ADAPTER)


def test_an_answer_ends_where_a_table_of_positions_does(train: Train, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "gpt2", "gpt2", {**tiny.ARCHITECTURES["gpt2"][1], "vocab_size": 512})
    tiny_tokenizer().save_pretrained(folder)
    voices = voices_of(train(folder))
    answer = voices.answer(Voice.BASE, "a b c", Sampling(200), lambda: None, lambda part: None)
    assert answer.tokens < 64
    with pytest.raises(wb.DataError, match="positions for 64"):
        said(voices, Voice.BASE, "word " * 70)


def test_a_damaged_adapter_is_named(run: wb.Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir, tmp_path / "copy")
    (tmp_path / "copy" / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(wb.RunError, match="the adapter cannot be loaded"):
        voices_of(wb.attach(tmp_path / "copy"))


# --- what is refused before anything is loaded --------------------------------------------------------------------------------


def test_what_cannot_be_tried_out_is_named(train: Train, run: wb.Run, tmp_path: Path) -> None:
    with pytest.raises(wb.RunError, match="no run in this folder"):
        wb.try_out(tmp_path / "nothing", PROMPT)
    with pytest.raises(wb.RunError, match="trained every weight"):
        wb.try_out(train(method="full"), PROMPT)
    moved = tmp_path / "moved"
    shutil.copytree(run.dir, moved)
    handle, here = wb.attach(moved), os.getpid()
    RunFolder(moved).write_status(RunStatus("running", pid=here, create_time=create_time(here)))
    with pytest.raises(wb.RunError, match="is still going"):
        answering(handle)
    in_process.ended(handle)
    shutil.rmtree(moved / "adapter")
    with pytest.raises(wb.RunError, match="no adapter"):
        answering(handle)
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(wb.RunError, match="no run in this folder"):
        answering(handle)


def test_a_base_that_is_gone_or_another_one_is_named(model: Path, train: Train, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    run = train(base)
    from workbench.sources import open_model
    from workbench.training import data, fingerprints, origins

    fingerprints.write(run.dir, origins.take(run.config, open_model(base), data.training_files(run.config)))
    answering(run).close()
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x01")
    with pytest.raises(wb.RunError, match="has changed"):
        answering(run)
    answering(run, changed_ok=True).close()
    shutil.rmtree(base)
    with pytest.raises(wb.ModelError):
        answering(run)


@pytest.mark.parametrize(
    ("prompts", "sampling"),
    [
        ([], {}), (3, {}), (["a", None], {}), ("\ud83d", {}), ("a", {"max_new_tokens": 0}), ("a", {"max_new_tokens": True}),
        ("a", {"temperature": -1}), ("a", {"temperature": float("nan")}), ("a", {"seed": -1}), ("a", {"seed": 2**63}),
    ],
)  # fmt: skip
def test_what_is_no_prompt_and_no_sampling_is_refused(run: wb.Run, prompts: Any, sampling: dict[str, Any]) -> None:
    with pytest.raises(wb.DataError) as refused:
        wb.try_out(run, prompts, **sampling)
    assert refused.value.remedy


@pytest.mark.parametrize("kind", [wb.WorkbenchError, wb.ModelError, wb.DataError, wb.RunError, Refused, Changed])
def test_an_error_of_the_process_is_raised_here(kind: type[wb.WorkbenchError]) -> None:
    raised = from_fields(**to_fields(kind("It is wrong.", where="a file", remedy="Mend it.")))
    assert isinstance(raised, wb.WorkbenchError)
    assert issubclass(kind, type(raised))
    assert str(raised) == "a file: It is wrong. Mend it."
    assert str(from_fields(**to_fields(wb.ConfigError(["One.", "Two."], where="w")))) == "w: One. Two."


# --- how answers show themselves ----------------------------------------------------------------------------------------------


def test_answers_show_themselves_side_by_side_and_nothing_in_them_is_html() -> None:
    hostile = "<img src=x onerror=alert(1)>\n" + "word " * 40
    answers = {voice: Answer(voice, f"{voice} {hostile}", 300, 1.25) for voice in ALL}
    tried = wb.Tried(hostile, answers)
    shown = wb.Answers((tried,) * 30, "4-bit base", Sampling(temperature=0.5, seed=3))
    page = shown._repr_html_()
    assert not missing(
        page, "prompt</th>", "4-bit base</th>", "with the adapter</th>", "16-bit base</th>", "word (300 tokens · 1.2 s)"
    )
    assert "<img" not in page
    assert not missing(repr(shown), "30 prompts", "temperature 0.5, seed 3", "with the adapter")
    assert not missing(repr(tried), "base", "adapter", "original")
    assert len(shown.to_frame()) == 90
    alone = {Voice.BASE: answers[Voice.BASE]}
    short = wb.Answers((dataclasses.replace(tried, answers=alone, without="No room."),), "base", Sampling())
    assert not missing(repr(short), "No room.", "greedy, at most 64 tokens")
    assert "No room." in short._repr_html_()
    assert "16-bit" not in short._repr_html_()


# --- all of it ----------------------------------------------------------------------------------------------------------------


def test_a_run_is_tried_out(run: wb.Run) -> None:
    done: list[tuple[int, int]] = []
    answers = wb.try_out(run, [PROMPT, "lawyer, n."], max_new_tokens=12, progress=lambda *at: done.append(at))
    assert [row.prompt for row in answers.rows] == [PROMPT, "lawyer, n."]
    assert {voice: answers[0][voice].text for voice in ALL} == {voice: plainly(run, PROMPT, voice) for voice in ALL}
    assert answers[0]["base"].tokens == 12
    assert answers.without == ""
    assert done == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_what_the_embedded_model_says_is_what_plain_peft_says(tmp_path: Path) -> None:
    config = wb.TrainConfig(max_steps=3, learning_rate=5e-3, warmup_steps=0, max_length=48, max_eval_rows=0, sample_prompts=())
    run = in_process.ended(in_process.train(config, tmp_path), "stopped")
    answers = wb.try_out(run, PROMPT, max_new_tokens=16, original=False)
    assert {voice: answers[0][voice].text for voice in BOTH} == {
        voice: plainly(run, PROMPT, voice, tokens=16) for voice in BOTH
    }
