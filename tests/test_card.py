"""The model card's measures on cases with known answers, and the card against the model that is shipped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import workbench as wb
from scripts import card

CARD = card.HERE / "README.md"


def test_the_bigram_is_a_distribution_over_the_next_token() -> None:
    stream = np.random.default_rng(0).integers(0, 40, 500) % 37
    bigram = card.Bigram.fit(stream, 50)
    for before in (0, 5, 36, 49):  # 49 was never seen: the unigram answers
        assert bigram(np.full(50, before), np.arange(50)).sum() == pytest.approx(1)
    np.testing.assert_allclose(bigram(np.full(50, 49), np.arange(50)), card.unigram(stream, 50))


def test_the_bigram_by_hand() -> None:
    # a b a b a c: pairs ab 2, ba 2, ac 1; seen once 1, twice 2, so d = 1/5; p(b) = (2 + 1) / (6 + 3).
    bigram = card.Bigram.fit(np.array([0, 1, 0, 1, 0, 2]), 3)
    assert bigram.discount == pytest.approx(0.2)
    assert bigram(np.array([0]), np.array([1]))[0] == pytest.approx((2 - 0.2) / 3 + 0.2 * 2 / 3 * 3 / 9)


def test_a_uniform_guess_has_the_vocabulary_as_perplexity() -> None:
    assert card.perplexity(np.full(10, 1 / 64)) == pytest.approx(64)


@pytest.mark.parametrize(("draw", "expected"), [("standard_normal", 3.0), ("random", 1.8)])
def test_kurtosis_of_known_distributions(draw: str, expected: float) -> None:
    assert card.kurtosis(getattr(np.random.default_rng(0), draw)(400_000)) == pytest.approx(expected, rel=0.02)


def test_a_sample_becomes_one_quoted_line() -> None:
    assert card.quoted("Psalms 151\n", "O LORD,\nhear") == "> **Psalms 151**<br>O LORD,<br>hear"
    assert card.quoted("love, n.", " a feeling\n") == "> **love, n.** a feeling"


def test_the_card_is_of_the_model_that_is_shipped() -> None:
    source, text = wb.open_model("builtin"), CARD.read_text("utf-8")
    assert source.path is not None
    assert hashlib.sha256((source.path / "model.safetensors").read_bytes()).hexdigest() in text
    assert f"{sum(t.numel for t in source.tensors()):,} parameters" in text
    rows = card.kurtoses({t.name: source.read(t.name) for t in source.tensors() if len(t.shape) == 2})
    for layer, values in rows:
        assert f"| {layer} | " + " | ".join(f"{v:.2f}" for v in values) + " |" in text


def test_the_shipped_weights_look_trained() -> None:
    # An initialised network's linears lie within 3 ± 0.1 (the card measures it); training gives them heavier tails.
    source = wb.open_model("builtin")
    linears = [card.kurtosis(source.read(t.name)) for t in source.tensors() if t.quantizable]
    assert np.median(linears) > 3.1
    assert max(linears) > 4


def test_the_held_out_rows_are_as_many_as_the_card_says() -> None:
    text = " ".join(CARD.read_text("utf-8").split())
    for name, said in (("heldout-bible", "27 chapters"), ("heldout-wordnet", "210 entries"), ("heldout", "137 entries")):
        rows = (card.HERE / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()
        assert f"`{name}.jsonl` ({len(rows)} {said.split()[1]}" in text
        assert said.split()[0] == str(len(rows))
