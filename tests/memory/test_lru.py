"""Pages under a budget: cases worked out by hand, the same as a plain page-by-page list, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.memory.lru import Extent, Moment, Movement, demand, move

PAGE = 4096


def managed(pages: int, name: str = "") -> Extent:
    return Extent("state", name, pages * PAGE - 1, True)  # the last page is not quite full


def fixed(pages: float) -> Extent:
    return Extent("weights", "", int(pages * PAGE))


def use(*extents: int) -> Moment:
    return Moment("step", "", extents, extents)


def pages(moved: Movement) -> tuple[list[int], list[int]]:
    """Pages brought and evicted, a number a moment."""
    return (moved.h2d // PAGE).tolist(), (moved.d2h // PAGE).tolist()


def test_what_fits_stays() -> None:
    moved = move([managed(3), fixed(2)], [use(0, 1)] * 3, 5 * PAGE, PAGE)
    assert pages(moved) == ([0, 0, 0], [0, 0, 0])
    assert (moved.resident // PAGE).tolist() == [[3, 2]] * 3


def test_one_page_too_few_moves_all_of_them_where_they_are_used_in_a_circle() -> None:
    # A B C in a circle with room for two: the one that is needed next is always the one that has just left.
    extents = [managed(1, name) for name in "ABC"]
    moved = move(extents, [use(0), use(1), use(2)] * 3, 2 * PAGE, PAGE)
    assert pages(moved) == ([0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 1])


def test_the_least_recently_used_leaves_first() -> None:
    extents = [managed(1, name) for name in "ABC"]
    moved = move(extents, [use(0), use(1), use(0), use(2), use(0), use(1)], 2 * PAGE, PAGE)
    # C drives out B, for A was used after it; A is still there; B comes back and drives out C.
    assert pages(moved) == ([0, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1])


def test_fixed_memory_drives_pages_out_and_lets_them_back_only_if_it_is_given_back() -> None:
    extents = [managed(4), fixed(2)]
    spike = Moment("forward", "", (1,), (), (1,))
    moments = [use(0), spike, use(0), spike, use(0)]
    breathes = move(extents, moments, 4 * PAGE, PAGE, keeps_freed=False)
    assert pages(breathes) == ([0, 0, 2, 0, 2], [0, 2, 0, 2, 0])
    keeps = move(extents, moments, 4 * PAGE, PAGE, keeps_freed=True)
    # Two pages are left to work in: the four pages go round in them.
    assert pages(keeps) == ([0, 0, 4, 0, 4], [0, 2, 4, 0, 4])
    assert (keeps.host // PAGE).tolist() == [0, 2, 2, 2, 2]


def test_an_extent_larger_than_the_device_goes_round_in_it() -> None:
    moved = move([managed(5)], [use(0)] * 2, 3 * PAGE, PAGE)
    assert pages(moved) == ([0, 5], [2, 5])
    assert (moved.resident // PAGE).tolist() == [[3], [3]]


def test_what_is_freed_is_gone_from_both_sides() -> None:
    moments = [Moment("step", "", (0, 1), (0, 1), (0, 1))] * 2
    moved = move([managed(3), managed(2)], moments, 4 * PAGE, PAGE)
    assert pages(moved) == ([0, 0], [1, 1])  # new pages come into being, nothing is brought back
    assert (moved.host // PAGE).tolist() == [1, 1]


@pytest.mark.parametrize(("budget", "moments"), [(1.5, 0), (2.0, 1), (2.5, 1), (3.0, 2)])
def test_it_ends_where_fixed_memory_leaves_no_page_to_work_in(budget: float, moments: int) -> None:
    moved = move([fixed(2), managed(1)], [Moment("load", "", (0,)), use(1)], int(budget * PAGE), PAGE)
    assert len(moved.host) == moments


def test_demand_is_what_is_taken_and_not_yet_freed() -> None:
    moments = [use(0), Moment("forward", "", (1,), (), (1,)), use(0)]
    need = demand([managed(3), fixed(2)], moments, PAGE, keeps_freed=True)
    assert (need.fixed // PAGE).tolist() == [0, 2, 0]
    assert (need.reserved // PAGE).tolist() == [0, 2, 2]
    assert (need.managed // PAGE).tolist() == [3, 3, 3]


# Anything at all.

extents = st.lists(
    st.builds(Extent, st.just("c"), st.just("n"), st.integers(1, 5 * PAGE), st.booleans()), min_size=1, max_size=5
)


@st.composite
def work(draw: st.DrawFn) -> tuple[list[Extent], list[Moment]]:
    """Some extents, and moments that take whatever they touch."""
    have = draw(extents)
    some = st.lists(st.sampled_from(range(len(have))), max_size=4, unique=True).map(tuple)
    moments = draw(st.lists(st.tuples(some, some), min_size=1, max_size=12))
    return have, [Moment("p", "n", touched, touched, freed) for touched, freed in moments]


def plain(have: list[Extent], moments: list[Moment], budget: int, keeps: bool) -> list[tuple[int, int, int, int]]:
    """The same by the book, a list of pages: (on the device, on the host, brought, evicted) after each moment."""
    lru: list[tuple[int, int]] = []
    away: set[tuple[int, int]] = set()
    told = []
    for moment, reserved in zip(moments, demand(have, moments, PAGE, keeps).reserved, strict=True):
        room = (budget - int(reserved)) // PAGE
        if room < 0 or (room == 0 and any(have[e].managed for e in moment.touches)):
            break
        brought = evicted = 0
        while len(lru) > room:
            away.add(lru.pop(0))
            evicted += 1
        for page in [(e, i) for e in moment.touches for i in range(have[e].pages(PAGE))]:
            if page in lru:
                lru.remove(page)
            else:
                if len(lru) == room:
                    away.add(lru.pop(0))
                    evicted += 1
                brought += page in away
                away.discard(page)
            lru.append(page)
        told.append((len(lru), len(away), brought, evicted))
        lru = [page for page in lru if page[0] not in moment.frees]
        away = {page for page in away if page[0] not in moment.frees}
    return told


@given(work(), st.integers(0, 25 * PAGE), st.booleans())
def test_it_is_least_recently_used_replacement_page_by_page(
    what: tuple[list[Extent], list[Moment]], budget: int, keeps: bool
) -> None:
    have, moments = what
    moved = move(have, moments, budget, PAGE, keeps)
    movable = [i for i, e in enumerate(have) if e.managed]
    on_device = moved.resident[:, movable].sum(1)
    counted = [tuple(int(v) // PAGE for v in row) for row in zip(on_device, moved.host, moved.h2d, moved.d2h, strict=True)]
    assert counted == plain(have, moments, budget, keeps)


@given(work(), st.integers(0, 25 * PAGE), st.integers(0, 3 * PAGE), st.booleans())
def test_what_always_holds(what: tuple[list[Extent], list[Moment]], budget: int, more: int, keeps: bool) -> None:
    have, moments = what
    need = demand(have, moments, PAGE, keeps)
    moved = move(have, moments, budget, PAGE, keeps)
    done = len(moved.host)
    assert (moved.resident.sum(1) <= budget).all()
    if budget >= (need.reserved + need.managed).max():
        assert done == len(moments)
        assert not moved.d2h.any()
        assert not moved.h2d.any()
    larger = move(have, moments, budget + more, PAGE, keeps)
    assert len(larger.host) >= done
    assert larger.h2d[:done].sum() <= moved.h2d.sum()
    assert larger.d2h[:done].sum() <= moved.d2h.sum()
    never_freed = [Moment(m.phase, m.name, m.takes, m.touches) for m in moments]
    kept = move(have, never_freed, budget, PAGE, keeps)
    movable = [i for i, e in enumerate(have) if e.managed]
    exist = demand(have, never_freed, PAGE, keeps).managed[: len(kept.host)]
    assert np.array_equal(kept.resident[:, movable].sum(1) + kept.host, exist)  # every byte is on one side
    assert np.array_equal(np.cumsum(kept.d2h - kept.h2d), kept.host)  # and moves from one to the other
