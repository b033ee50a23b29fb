"""Rows of different lengths: grouped into batches, or end to end in packs, and what padding that saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.live_runs import of
from tests.helpers.tiny_model import write_tiny_model
from widgets.panels.train.preview import counts_summary
from workbench.errors import ConfigError
from workbench.training.lengths import packs, padding
from workbench.training.rows.tokens import TokenRow
from workbench.training.worker.batches import Collator, summed_loss
from workbench.training.worker.packing import Packs, check_packing, tokens_of

LENGTHS = (7, 3, 12, 5, 9)
KEEP_ROWS_APART = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "mixtral", "gpt2")


def rows() -> list[TokenRow]:
    found = []
    for i, n in enumerate(LENGTHS):
        loss = np.arange(n) > 1
        found.append(TokenRow((np.arange(n) * 7 + i * 13) % 90 + 3, loss))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@given(some.lists(some.integers(1, 40), max_size=60))
def test_each_row_is_in_one_pack_and_no_pack_is_too_long(lengths: list[int]) -> None:
    made = packs(lengths, 40)
    assert sorted(row for pack in made for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= 40 for pack in made)
    rooms = sorted(40 - sum(lengths[row] for row in pack) for pack in made)
    assert len(rooms) < 2 or rooms[-1] < 40  # none is empty
    assert sum(room >= 20 for room in rooms) <= 1  # no two that are less than half full, which one would hold


@given(some.lists(some.integers(2, 64), min_size=1, max_size=200), some.integers(1, 8))
def test_grouping_never_pads_more_than_the_longest_row_would(lengths: list[int], batch: int) -> None:
    found = padding(lengths, batch, 64)
    most = 1 - sum(lengths) / (max(lengths) * len(lengths))
    assert all(-1e-9 <= share <= most + 1e-9 for share in (found.random, found.grouped))


def test_skewed_rows_lose_most_of_their_padding() -> None:
    lengths = np.random.default_rng(1).lognormal(4.4, 0.7, 2_000).clip(2, 512).astype(int).tolist()
    found = padding(lengths, 8, 512)
    assert found.random > 0.5
    assert found.grouped < 0.2
    assert found.packed < 0.05


@pytest.mark.parametrize("name", KEEP_ROWS_APART)
def test_the_loss_of_a_pack_is_that_of_its_rows_alone(tmp_path: Path, name: str) -> None:
    net = loaded(tmp_path, name)
    check_packing(net, rows())
    collator = Collator(0)
    with torch.no_grad():
        alone = [summed_loss(net, collator.batch([row])) for row in rows()]
        together = collator.batch(Packs(rows(), 20))
        assert "attention_mask" not in together
        total, tokens = summed_loss(net, together)
        run_together = summed_loss(net, {**together, "position_ids": torch.arange(together["input_ids"].shape[1])[None]})
    wanted = sum(loss for loss, _ in alone)
    assert tokens == sum(n for _, n in alone)
    assert total == pytest.approx(wanted, rel=3e-6)
    assert run_together[0] != pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_that_runs_rows_together_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_packing(loaded(tmp_path, name), rows())


def loaded(folder: Path, name: str) -> Any:
    import transformers

    tiny.save(folder, *tiny.ARCHITECTURES[name])
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    net.config.use_cache = False
    for weight in net.parameters():  # far from zero, so that attention sees what it should not
        weight.data *= 5
    return net


def test_padding_is_told_from_tokens_in_packs_too() -> None:
    collator = Collator(0)
    for items in (rows(), Packs(rows(), 20)):
        assert tokens_of(collator.batch(items)).sum(1).tolist() == [len(item.input_ids) for item in items]


def test_the_longest_row_comes_first_and_like_lengths_come_together(model: Path, tmp_path: Path) -> None:
    steps = {}
    for grouped in (True, False):
        config = in_process.config_of(model, max_length=64, max_steps=60, group_by_length=grouped)
        run = in_process.train(config, tmp_path / str(grouped))
        steps[grouped] = of(run, "step")
        (dataset,) = [event for event in of(run, "dataset") if event["split"] == "train"]
        assert dataset["padding"]["grouped"] < dataset["padding"]["random"]
    assert steps[True][0]["longest"] == dataset["longest"]
    shares = {how: sum(e["padded"] for e in some) / sum(e["padded"] + e["tokens"] for e in some) for how, some in steps.items()}
    assert shares[True] < shares[False] / 2


def test_a_packed_run_counts_packs_and_hardly_pads(model: Path, tmp_path: Path) -> None:
    config = in_process.config_of(model, max_length=64, packing=True, num_train_epochs=1.0)
    run = in_process.train(config, tmp_path / "run")
    steps, (dataset, *_) = of(run, "step"), of(run, "dataset")
    assert sum(step["tokens"] for step in steps) == dataset["tokens"]
    assert sum(step["padded"] for step in steps) < 0.05 * dataset["tokens"]
    assert 4 * len(steps) < dataset["kept"]


def test_the_preview_says_what_is_padding() -> None:
    seen = wb.preview(wb.TrainConfig(), rows=1, scan=200)
    assert 0 <= seen.padding.grouped < seen.padding.random < 1
    assert "padding" in repr(seen)


def test_the_preview_counts_the_packs_that_rows_make() -> None:
    config = wb.TrainConfig(packing=True, max_length=128)
    seen = wb.preview(config, rows=0, scan=200)
    assert seen.counts["tokens"] / 128 <= seen.counts["packs"] < 100
    assert f"joined into {seen.counts['packs']} packs" in counts_summary(seen, config)
