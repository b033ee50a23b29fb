"""Intervals over held-out rows, and ranks by what they distinguish."""

from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.cost.row_costs import RowCosts, difference_interval, interval, ranks


def test_an_interval_has_the_width_that_theory_gives_it() -> None:
    sums, tokens = np.random.default_rng(1).normal(100, 10, 400), [50] * 400
    low, high = interval(sums, tokens)
    theory = 2 * 1.96 * np.std(sums) / math.sqrt(400) / 50
    assert high - low == pytest.approx(theory, rel=0.1)
    assert low < sums.mean() / 50 < high


def test_of_many_rows_it_is_drawn_in_parts() -> None:
    sums = np.random.default_rng(1).normal(100, 10, 3000)
    low, high = interval(sums, [50] * 3000)
    assert high - low == pytest.approx(2 * 1.96 * np.std(sums) / math.sqrt(3000) / 50, rel=0.1)


def test_a_difference_that_is_the_same_in_every_row_is_certain() -> None:
    base = np.random.default_rng(2).normal(100, 10, 20)
    assert difference_interval(tuple(base + 5), tuple(base), (10,) * 20) == pytest.approx((0.5, 0.5))


def test_without_a_second_row_or_a_number_there_is_no_interval() -> None:
    assert all(map(math.isnan, interval([1.0], [2])))
    assert all(map(math.isnan, interval([1.0, math.nan], [2, 2])))


def test_what_an_interval_cannot_tell_apart_shares_a_rank() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(1, 0.3, 40)  # what makes a row hard is in all of them

    def model_of(kl: float, noise: float) -> RowCosts:
        return RowCosts((10,) * 40, (0.0,) * 40, tuple(hard * kl + rng.normal(0, noise, 40)), (0,) * 40)

    models = [
        model_of(2.0, 0.01),
        model_of(1.0, 0.2),
        model_of(1.001, 0.2),
        RowCosts((10,) * 40, (0.0,) * 40, (math.nan,) * 40, (0,) * 40),
    ]
    assert ranks([m.kl for m in models], lambda i, j: models[i].further(models[j])) == (3, 1, 1, 4)


def test_a_rank_is_one_more_than_how_many_are_smaller_beyond_the_interval() -> None:
    known = {(1, 0): (-1.0, 3.0), (2, 1): (-1.0, 3.0), (2, 0): (1.0, 3.0)}  # a chain, whose ends are distinguishable
    assert ranks([1.0, 2.0, 3.0], lambda i, j: known[i, j]) == (1, 1, 2)
    assert ranks([3.0, 1.0, 2.0], lambda i, j: (0.5, 1.5)) == (3, 1, 2)
    assert ranks([], lambda i, j: (0.0, 0.0)) == ()


def test_what_is_no_number_is_null_in_an_event() -> None:
    event = {"tokens": [3, 2], "losses": [1.5, None], "kls": [None, 0.25], "flipped": [1, 0.0]}
    found = RowCosts.from_event(event)
    assert (found.tokens, found.flipped, found.losses[0], found.kls[1]) == ((3, 2), (1, 0), 1.5, 0.25)
    assert np.isnan([found.losses[1], found.kls[0], found.loss, found.kl]).all()
    assert np.isnan(found.kl_interval).all()
