"""The largest budget on which a fine-tune pages: one page more and nothing leaves."""

from __future__ import annotations

import pytest

import workbench as wb

PAGED = wb.TrainConfig(page_min_numel=1, per_device_train_batch_size=2, max_length=64)


def test_it_is_the_largest_budget_on_which_something_is_evicted() -> None:
    found = wb.under_pressure("builtin", PAGED)
    assert found is not None
    assert not found.every_state, "this run's state may page as it is"
    simulation = found.simulation
    assert simulation.evictions[-1] > 0
    more = wb.simulate_paging("builtin", PAGED, simulation.budget + simulation.page_size)
    assert more.evictions[-1] == 0


def test_its_moves_are_those_of_a_step_in_order() -> None:
    found = wb.under_pressure("builtin", PAGED)
    assert found is not None
    to_device, to_host = found.simulation.per_step[-1].tolist()
    shares = [share for share, _, _ in found.moves]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] < 1
    assert [sum(move[i] for move in found.moves) for i in (1, 2)] == [to_device, to_host]


@pytest.mark.parametrize("changes", [{}, {"optim": "adamw_torch"}])
def test_where_nothing_may_page_every_state_is_let(changes: dict[str, str]) -> None:
    found = wb.under_pressure("builtin", wb.TrainConfig(**changes))
    assert found is not None
    assert found.every_state
