"""A run is tried out: base and adapter answer as plain transformers and peft do, from a process that ends when it should."""

from __future__ import annotations

import dataclasses
import html
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.live_runs import until_gone
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench import compat
from workbench.training.answers.asking import answering
from workbench.training.answers.process import Answering
from workbench.training.answers.values import Answer, Loading, Sampling, Voice
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
        return ended(in_process.train(config, tmp_path_factory.mktemp("run")))

    return train


def ended(run: wb.Run, state: str = "finished") -> wb.Run:
    """A run's status is its supervisor's, which there is none of in this process."""
    RunFolder(run.dir).write_status(RunStatus(state))
    return run


@pytest.fixture(scope="module")
def run(train: Train) -> wb.Run:
    return train()


@pytest.fixture(scope="module")
def process(run: wb.Run) -> Iterator[Answering]:
    """One process for all tests that leave it as it was."""
    with answering(run) as process:
        yield process


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
        {"method": "lora", "init_lora_weights": "pissa"},
    ],
    ids=["qlora", "lora", "dora", "olora", "pissa"],
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
    why = voices_of(run, free=lambda device: 1_000_000).lacking()
    assert "1.00 MB are free on this machine" in why


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
    ended(handle)
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
        ("a", {"temperature": -1}), ("a", {"temperature": float("nan")}), ("a", {"seed": -1}), ("a", {"seed": 2**32}),
    ],
)  # fmt: skip
def test_what_is_no_prompt_and_no_sampling_is_refused(run: wb.Run, prompts: Any, sampling: dict[str, Any]) -> None:
    with pytest.raises(wb.DataError) as refused:
        wb.try_out(run, prompts, **sampling)
    assert refused.value.remedy


# --- how answers show themselves ----------------------------------------------------------------------------------------------


def test_answers_show_themselves_and_nothing_in_them_is_html() -> None:
    hostile = "<img src=x onerror=alert(1)>\x1b[31m" + "word " * 400
    answers = {voice: Answer(voice, hostile, 300, 1.25) for voice in ALL}
    tried = wb.Tried(hostile, answers)
    shown = wb.Answers((tried,) * 30, "4-bit base", Sampling())
    for value in (shown, tried, tried["adapter"]):
        assert len(repr(value).encode()) <= 2048
        assert "\x1b" not in repr(value)
        page = value._repr_html_()
        assert "<img" not in page
        assert html.escape(hostile) in page
        assert "300 tokens · 1.2 s" in page
    assert shown._repr_html_().count("<th ") == 4
    assert len(shown.to_frame()) == 90
    alone = wb.Answers(
        (dataclasses.replace(tried, answers={Voice.BASE: answers[Voice.BASE]}, without="No room."),), "base", Sampling()
    )
    assert "No room." in repr(alone)
    assert "No room." in alone._repr_html_()


# --- the process --------------------------------------------------------------------------------------------------------------


def test_a_run_is_tried_out(run: wb.Run) -> None:
    done: list[tuple[int, int]] = []
    answers = wb.try_out(run, [PROMPT, "lawyer, n."], max_new_tokens=12, progress=lambda *at: done.append(at))
    assert [row.prompt for row in answers.rows] == [PROMPT, "lawyer, n."]
    assert {voice: answers[0][voice].text for voice in ALL} == {voice: plainly(run, PROMPT, voice) for voice in ALL}
    assert answers[0]["base"].tokens == 12
    assert answers.without == ""
    assert done == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_answers_stream_from_one_process_that_is_loaded_once(process: Answering) -> None:
    heard: list[Answer | Loading] = []
    first = process.ask(PROMPT, Sampling(200), ALL, heard.append)
    pid = process.pid
    partial = [one for one in heard if isinstance(one, Answer) and not one.complete]
    assert {one.voice for one in partial} == set(ALL), "each is heard of before it is whole"
    for voice in BOTH:
        counts = [one.tokens for one in partial if one.voice is voice]
        assert counts == sorted(counts)
    assert Loading(Voice.ORIGINAL) in heard
    heard.clear()
    assert {v: a.text for v, a in process.ask(PROMPT, Sampling(200), ALL, heard.append).answers.items()} == {
        voice: answer.text for voice, answer in first.answers.items()
    }
    assert process.pid == pid
    assert not any(isinstance(one, Loading) for one in heard)


@pytest.mark.slow
def test_an_answer_is_broken_off_and_the_next_question_answered(process: Answering) -> None:
    process.ask(PROMPT, Sampling(1), BOTH)
    pid, begun = process.pid, threading.Event()
    with pytest.raises(InterruptedError):
        process.ask(PROMPT, Sampling(200), BOTH, lambda heard: begun.set(), begun.is_set)
    again = process.ask(PROMPT, Sampling(3), BOTH)
    assert [answer.tokens for answer in again.answers.values()] == [3, 3]
    assert process.pid == pid, "what is loaded stays"
    with pytest.raises(wb.RunError, match="seconds"):
        process.ask(PROMPT, Sampling(10**6), BOTH, timeout=0.01)


@pytest.mark.slow
def test_what_is_cancelled_while_it_loads_is_loaded_for_the_next_question(run: wb.Run) -> None:
    with answering(run) as process:
        pids: list[int | None] = []
        with pytest.raises(InterruptedError):
            process.ask(PROMPT, Sampling(200), BOTH, lambda heard: pids.append(process.pid), lambda: bool(pids))
        heard: list[Answer | Loading] = []
        assert process.ask(PROMPT, Sampling(2), BOTH, heard.append)["adapter"].tokens == 2
        assert heard[0] == Loading(Voice.BASE)
        assert [process.pid] == pids


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_and_the_next_question_starts_another(run: wb.Run) -> None:
    with answering(run) as process:
        process.ask(PROMPT, Sampling(1), BOTH)

        def kill(heard: object) -> None:
            if process.pid:
                os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(wb.RunError, match="killed") as died:
            process.ask(PROMPT, Sampling(200), BOTH, kill)
        assert "memory" in died.value.remedy
        assert process.ask(PROMPT, Sampling(2), BOTH)["adapter"].tokens == 2
    assert process.pid is None


@pytest.mark.slow
def test_closing_ends_it_while_it_answers_and_twice_is_fine(run: wb.Run) -> None:
    process = answering(run)
    process.ask(PROMPT, Sampling(1), BOTH)
    pid = process.pid
    with pytest.raises(InterruptedError):
        process.ask(PROMPT, Sampling(200), BOTH, lambda heard: process.close())
    process.close()
    assert create_time(pid or 0) is None
    with pytest.raises(InterruptedError):
        process.ask(PROMPT, Sampling(1), BOTH)


@pytest.mark.slow
def test_a_process_that_nobody_asks_ends_and_is_started_again(run: wb.Run) -> None:
    assert run.adapter_dir is not None
    with Answering(run.dir, run.adapter_dir, idle=0.01) as process:
        process.ask(PROMPT, Sampling(1), BOTH)
        first = process.pid
        until_gone(run, first)
        assert process.ask(PROMPT, Sampling(1), BOTH)["base"].tokens == 1
        assert process.pid != first


@pytest.mark.slow
def test_it_dies_with_its_parent(run: wb.Run) -> None:
    script = (
        "import os, signal, sys\n"
        "from workbench.training.answers.asking import answering\n"
        "from workbench.training.answers.values import Sampling, Voice\n"
        "process = answering(sys.argv[1])\n"
        "process.ask('a', Sampling(1), (Voice.BASE,))\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run.dir)], capture_output=True, text=True)
    until_gone(run, int(done.stdout))


@pytest.mark.slow
def test_what_the_embedded_model_says_is_what_plain_peft_says(tmp_path: Path) -> None:
    config = wb.TrainConfig(max_steps=3, learning_rate=5e-3, warmup_steps=0, max_length=48, max_eval_rows=0, sample_prompts=())
    run = ended(in_process.train(config, tmp_path), "stopped")
    answers = wb.try_out(run, PROMPT, max_new_tokens=16, original=False)
    assert {voice: answers[0][voice].text for voice in BOTH} == {
        voice: plainly(run, PROMPT, voice, tokens=16) for voice in BOTH
    }
