"""KL divergence and flipped tokens: against plain float64 on whole logits, by hand, and on heads that bend their logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import tiny
from workbench.cost import divergence
from workbench.cost.divergence import Reference, RowSums
from workbench.errors import ModelError

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {**tiny.LLAMA}),
    "tied": ("llama", {**tiny.LLAMA, "tie_word_embeddings": True}),
    "scaled up": ("granite", {**tiny.LLAMA, "logits_scaling": 0.1}),
    "scaled down": ("cohere", {**tiny.LLAMA, "logit_scale": 0.25}),
    "capped": ("gemma2", {**tiny.LLAMA, "head_dim": 16, "final_logit_softcapping": 5.0}),
    "unknown to the workbench": ("llama", {**tiny.LLAMA}),
}


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, config = HEADS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).to(dtype).eval()
    for parameter in model.parameters():  # far from uniform, so that there is something to diverge from
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2)
    model.config.use_cache = False
    if name.startswith("unknown"):
        forward = model.forward

        def squared(**arguments: Any) -> Any:
            found = forward(**arguments)
            found.logits = found.logits * found.logits.abs()
            return found

        model.forward = squared
    return model


def changed(model: Any, by: float) -> Any:
    """The model, with other weights in its layers."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "layers" in name and parameter.ndim == 2:
            parameter.data.add_(by * torch.randn_like(parameter))
    return model


def batches_of(vocabulary: int, lengths: tuple[tuple[int, ...], ...] = ((9, 5, 3), (17,), (2, 30))) -> list[dict[str, Any]]:
    """Padded rows; the first tokens of each bear no loss."""
    torch.manual_seed(2)
    batches = []
    for rows in lengths:
        ids = torch.randint(0, vocabulary, (len(rows), max(rows)))
        mask = torch.tensor([[1] * n + [0] * (max(rows) - n) for n in rows])
        labels = torch.where(mask.bool(), ids, -100)
        labels[:, : min(rows) // 2] = -100
        batches.append({"input_ids": ids, "labels": labels, "attention_mask": mask})
    return batches


def whole_logits(model: Any, batches: list[dict[str, Any]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits.double() for b in batches]


def plainly(ours: list[torch.Tensor], reference: list[torch.Tensor], batches: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """(4, rows): tokens, loss, KL, flips, written down as they are defined."""
    found = []
    for z, r, batch in zip(ours, reference, batches, strict=True):
        for row in range(len(z)):
            sums = np.zeros(4)
            for at in range(z.shape[1] - 1):
                if (wanted := int(batch["labels"][row, at + 1])) != -100:
                    q, p = z[row, at].log_softmax(0), r[row, at].log_softmax(0)
                    sums += [1, -q[wanted], (p.exp() * (p - q)).sum(), q.argmax() != p.argmax()]
            found.append(sums)
    return np.array(found).T


def together(parts: list[RowSums]) -> np.ndarray[Any, Any]:
    return np.array([np.concatenate(values) for values in zip(*parts, strict=True)], np.float64)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("by", [0.3, 0.003], ids=["far", "near"])
def test_they_are_those_of_float64_on_whole_logits(name: str, by: float) -> None:
    model = model_of(name)
    batches = batches_of(tiny.LLAMA["vocab_size"])
    base, reference = whole_logits(model, batches), Reference(batches)
    own = together(list(reference.take(model)))
    np.testing.assert_allclose(own, plainly(base, base, batches), rtol=1e-5, atol=1e-12)
    another = by > 0.1 and not name.startswith("unknown")  # and not the same model with its weights changed
    other = changed(copy.deepcopy(model) if another else model, by)
    found, expected = together(list(reference.compare(other))), plainly(whole_logits(other, batches), base, batches)
    np.testing.assert_array_equal(found[[0, 3]], expected[[0, 3]])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-3, atol=2e-7 * expected[0].max())
    assert expected[2].sum() > 0
    assert by < 0.1 or name == "capped" or expected[3].sum() > 0  # the capped one's embedding outweighs its layers


def test_a_model_does_not_diverge_from_itself() -> None:
    model, batches = model_of("tied"), batches_of(tiny.LLAMA["vocab_size"])
    reference = Reference(batches)
    base = together(list(reference.take(model)))
    for again in (model, copy.deepcopy(model)):
        found = together(list(reference.compare(again)))
        np.testing.assert_allclose(found, base, atol=1e-5)
        assert not found[3].any()


class Written:
    """A model whose logits are written down: its head is the identity over the vocabulary."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.head, self.given, self.device = torch.nn.Identity(), logits, torch.device("cpu")
        self.config = type("Config", (), {"get_text_config": lambda self: self})()

    def get_output_embeddings(self) -> Any:
        return self.head

    def __call__(self, input_ids: torch.Tensor, **more: Any) -> Any:
        return type("Output", (), {"logits": self.head(self.given[: len(input_ids)])})()


def test_flips_and_divergence_counted_by_hand() -> None:
    half, tenth = np.log(0.5), np.log(0.1)
    base = torch.tensor([[[half, half - 1e-3, tenth], [0.0, 1.0, 2.0], [5.0, 1.0, 1.0], [9.0, 9.0, 9.0]]])
    other = base.clone()
    other[0, 0] = torch.tensor([half, half + 1e-3, tenth])  # the second token becomes the likeliest: a flip
    other[0, 1] = base[0, 1] + 7  # the same distribution
    other[0, 2] = torch.tensor([1.0, 1.0, 1.0])  # the first token is still a likeliest one: no flip
    batch = {"input_ids": torch.tensor([[0, 1, 2, 0]]), "labels": torch.tensor([[0, 1, 2, 0]])}
    reference = Reference([batch])
    list(reference.take(Written(base)))
    (found,) = reference.compare(Written(other))
    p = np.exp([5.0, 1.0, 1.0]) / np.exp([5.0, 1.0, 1.0]).sum()
    third = float((p * np.log(3 * p)).sum())
    assert (list(found.tokens), list(found.flips)) == ([3], [1])  # the last position predicts nothing
    assert found.kl[0] == pytest.approx(third, abs=5e-6)


def test_what_is_impossible_to_both_and_what_is_no_number() -> None:
    base = torch.tensor([[[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, 0.0, -torch.inf], [0.0, torch.nan, 2.0], [0.0, 0.0, 0.0]]])
    p = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    for length, expected in ((2, float((p * np.log(p / p[::-1])).sum())), (3, np.nan)):
        batch = {"input_ids": torch.zeros(1, length, dtype=torch.long), "labels": torch.zeros(1, length, dtype=torch.long)}
        reference = Reference([batch])
        list(reference.take(Written(base[:, :length])))
        (found,) = reference.compare(Written(other[:, :length]))
        assert found.kl[0] == pytest.approx(expected, nan_ok=True)


def test_a_head_in_16_bits_is_taken_as_the_model_gives_it() -> None:
    for name in ("plain", "scaled up", "capped"):
        model, batches = model_of(name, torch.bfloat16), batches_of(tiny.LLAMA["vocab_size"])
        reference = Reference(batches)
        base = whole_logits(model, batches)
        list(reference.take(model))
        other = changed(copy.deepcopy(model), 0.1)
        found, expected = together(list(reference.compare(other))), plainly(whole_logits(other, batches), base, batches)
        np.testing.assert_allclose(found[1:3], expected[1:3], rtol=2e-2)


def test_large_states_lie_in_a_file_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_IN_MEMORY", 0)
    model, batches = model_of("plain"), batches_of(tiny.LLAMA["vocab_size"])
    on_disk, in_memory = Reference(batches, tmp_path), Reference(batches)
    list(on_disk.take(model))
    monkeypatch.undo()
    list(in_memory.take(model))
    other = changed(model, 0.1)
    np.testing.assert_array_equal(together(list(on_disk.compare(other))), together(list(in_memory.compare(other))))
    assert not list(tmp_path.iterdir())


def test_nothing_is_compared_before_there_is_something_to_compare_with() -> None:
    model, batches = model_of("plain"), batches_of(tiny.LLAMA["vocab_size"])
    reference = Reference(batches)
    next(reference.take(model))
    assert not reference.taken
    with pytest.raises(RuntimeError, match="No reference"):
        next(reference.compare(model))


def test_logits_that_do_not_follow_from_the_head_are_refused() -> None:
    model, batches = model_of("plain"), batches_of(tiny.LLAMA["vocab_size"])
    forward = model.forward

    def by_length(**arguments: Any) -> Any:
        found = forward(**arguments)
        found.logits = found.logits + arguments["input_ids"].shape[1] * torch.arange(found.logits.shape[-1])
        return found

    model.forward = by_length
    with pytest.raises(ModelError, match="do not follow"):
        list(Reference(batches).take(model))
