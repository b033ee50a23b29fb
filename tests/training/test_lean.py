"""Lean training is the same training: a base whose embeddings and head stay in 16 bits, and a loss without whole logits."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.helpers import tiny
from tests.helpers.in_process import config_of, train
from workbench.training.worker.batches import summed_loss
from workbench.training.worker.head import Head, LossWithoutLogits
from workbench.training.worker.preparation import prepare

SAME_BITS = (
    "llama", "llama-tied", "mistral", "qwen2", "qwen3", "phi", "phi3", "gpt2", "gpt-neox", "stablelm", "opt", "bloom",
)  # fmt: skip
"""Architectures whose losses and gradients do not change by a bit."""
NEARLY = ("gemma", "gemma3", "mixtral")
"""Those that scale embeddings in the weight's dtype, or whose experts multiply in 16 bits instead of fp32."""

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", tiny.LLAMA),
    "tied": ("llama", {**tiny.LLAMA, "tie_word_embeddings": True}),
    "granite, logits scaled": ("granite", {**tiny.LLAMA, "logits_scaling": 8.0}),
    "cohere, logits scaled": ("cohere", {**tiny.LLAMA, "logit_scale": 0.25}),
    "gemma2, logits capped": ("gemma2", {**tiny.LLAMA, "head_dim": 16, "final_logit_softcapping": 0.5}),
    "phi, a head with a bias": ("phi", {k: v for k, v in tiny.LLAMA.items() if k != "num_key_value_heads"}),
    "gpt2": tiny.ARCHITECTURES["gpt2"][:2],
}


def ids() -> torch.Tensor:
    return torch.arange(4 * 30).reshape(4, 30) * 7 % 100 + 3


def adapted(model: Any) -> Any:
    """With adapters whose B is not zero, so that every gradient is there."""
    import peft

    torch.manual_seed(1)
    how = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
    adapted = peft.get_peft_model(model, how).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
    return adapted


def step(
    model: Any, dtype: torch.dtype = torch.float32, loss: LossWithoutLogits | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch in a compute dtype, and every gradient."""
    labels = ids().clone()
    labels[:, :9] = -100
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)
    torch.manual_seed(2)  # some have dropout of their own
    with mixed, loss.around() if loss else contextlib.nullcontext():
        outputs = model(input_ids=ids(), **({} if loss else {"labels": labels}))
        value = loss(outputs, labels) if loss else outputs.loss
    value.backward()
    return value.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", [*SAME_BITS, *NEARLY])
def test_a_lean_base_gives_the_bits_of_pefts_preparation(tmp_path: Path, architecture: str) -> None:
    import peft

    model_type, config, cls = tiny.ARCHITECTURES[architecture]
    folder = tiny.save(tmp_path / "model", model_type, config, cls)
    lean = prepare(tiny.load_4bit(folder), torch.bfloat16)
    usual = peft.prepare_model_for_kbit_training(tiny.load_4bit(folder), use_gradient_checkpointing=False)
    (loss, gradients), (wanted, other) = (step(adapted(model), torch.bfloat16) for model in (lean, usual))
    assert gradients.keys() == other.keys() != set()
    if architecture in NEARLY:
        assert loss == pytest.approx(wanted, rel=1e-3)
        return
    assert loss == wanted
    assert all(torch.equal(gradients[name], other[name]) for name in other)


@pytest.mark.slow
def test_a_lean_run_is_the_same_run(tmp_path: Path) -> None:
    """On the embedded model, with dropout, checkpointing and bfloat16."""
    runs = []
    for lean in (True, False):
        config = config_of(
            Path("builtin"), compute_dtype="bfloat16", upcast_to_fp32=not lean, logits_at_once=0, lora_dropout=0.05, max_steps=8
        )
        run = train(config, tmp_path / str(lean))
        runs.append([(event["loss"], event["grad_norm"]) for event in run.events() if event["k"] == "step"])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 8


@pytest.mark.parametrize("at_a_time", [1, 7, 256])
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_without_logits_is_the_plain_loss(tmp_path: Path, name: str, at_a_time: int) -> None:
    import transformers

    folder = tiny.save(tmp_path / "model", *HEADS[name])
    plain, chunked = (adapted(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)) for _ in range(2))
    loss = LossWithoutLogits(chunked, at_a_time)
    with torch.no_grad():
        assert loss.refusal(chunked, ids()[:1, :8]) == ""
    (value, gradients), (wanted, other) = step(chunked, loss=loss), step(plain)
    assert value == pytest.approx(wanted, rel=1e-6)
    for parameter, gradient in other.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-4, atol=1e-6)


def test_it_counts_the_labels_of_a_whole_step(tmp_path: Path) -> None:
    """Three batches a step, of which each has its own number of labels; the last is not whole."""
    runs = []
    for some in (0, 5):
        config = config_of(Path("builtin"), gradient_accumulation_steps=3, logits_at_once=some, per_device_train_batch_size=2)
        run = train(config, tmp_path / str(some))
        runs.append([(event["loss"], event["grad_norm"]) for event in run.events() if event["k"] == "step"])
    for n, ((loss, norm), (wanted, other)) in enumerate(zip(*runs, strict=True)):
        assert loss == pytest.approx(wanted, rel=1e-4 if n > 1 else 1e-6)  # differences of rounding grow from step to step
        assert norm == pytest.approx(other, rel=1e-2 if n > 1 else 1e-5)


def test_where_the_head_is_trained_all_logits_are_made_and_the_run_says_so(tmp_path: Path) -> None:
    run = train(config_of(Path("builtin"), method="full", max_steps=1), tmp_path / "run")
    assert [event["level"] for event in run.events() if event["k"] == "log" and "logits" in event["text"]] == ["info"]


def _much_larger(module: Any, given: Any, answer: Any) -> Any:
    answer.logits = 50 * answer.logits
    return answer  # as a model that does something else to its logits


def test_a_model_that_does_more_to_its_logits_is_measured_with_all_of_them(tmp_path: Path) -> None:
    import transformers

    folder = tiny.save(tmp_path / "model", "llama", tiny.LLAMA)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batch = {"input_ids": ids(), "attention_mask": torch.ones_like(ids()), "labels": ids().clone()}
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(
            model(input_ids=ids()).logits[:, :-1].transpose(1, 2), ids()[:, 1:], reduction="sum"
        )
        assert summed_loss(model, batch) == (pytest.approx(float(plain), rel=1e-6), 4 * 29)
        model.register_forward_hook(_much_larger)
        assert LossWithoutLogits(model, 8).refusal(model, ids()) != ""
        larger = torch.nn.functional.cross_entropy(
            model(input_ids=ids()).logits[:, :-1].transpose(1, 2), ids()[:, 1:], reduction="sum"
        )
        assert summed_loss(model, batch)[0] == pytest.approx(float(larger), rel=1e-6) != pytest.approx(float(plain), rel=1e-5)


def test_the_head_sees_one_position_a_row(tmp_path: Path) -> None:
    import transformers

    folder = tiny.save(tmp_path / "model", "llama", tiny.LLAMA)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    head = Head(model)
    with torch.no_grad(), head.caught() as seen:
        assert model(input_ids=ids()).logits.shape == (4, 1, 128)
    assert [hidden.shape for hidden in seen] == [(4, 30, 64)]
    assert isinstance(wb.TrainConfig().logits_at_once, int)
