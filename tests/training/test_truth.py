"""The truth meter: every byte with its source, every step its own, and why nothing pages when nothing does."""

from __future__ import annotations

import json
from typing import Any

import pytest

import workbench as wb
from workbench.training.events import Event
from workbench.training.paging import paged_state, paging_facts
from workbench.training.results.truth import PagingMeter, paging_truth

MB = 2**20
SMALL, LARGE = 65_536, 262_144
CUPTI = {"works": True, "why": "CUPTI unified-memory counters: h2d, d2h"}


def hello(config: wb.TrainConfig, sizes: list[int], cuda: bool = True, cupti: dict[str, Any] | None = None) -> Event:
    can = {"cupti": cupti or (CUPTI if cuda else {"works": False, "why": "no CUDA device"})}
    can["paged optimizer state"] = paged_state(config, cuda, sizes).to_dict()
    return {"k": "hello", "t": 0, "attempt": 1, "capabilities": can}


def step(n: int, t: int, attempt: int = 1) -> Event:
    return {"k": "step", "n": n, "t": t, "attempt": attempt}


def request(t: int, size: int, attempt: int = 1) -> Event:
    return {"k": "prefetch_req", "name": "optimizer", "t": t, "bytes": size, "count": 2, "attempt": attempt}


def page(start: int, direction: str, size: int | None, cause: str = "user", attempt: int = 1, source: str = "cupti") -> Event:
    return {
        "k": "page", "source": source, "direction": direction, "bytes": size, "count": 1, "cause": cause, "start": start,
        "end": start + 1, "t": start + 50, "attempt": attempt,
    }  # fmt: skip


def sample(managed: int, used: int) -> Event:
    return {"k": "sample", "source": "worker", "t": 1, "managed": managed, "nvml_used": used, "nvml_total": 16_384 * MB}


PAGES = wb.TrainConfig()


def test_a_run_that_pages_is_told_step_by_step() -> None:
    events = [
        hello(PAGES, [SMALL, LARGE, LARGE]),
        sample(4 * MB, 16_380 * MB),
        request(10, 4 * MB),
        page(12, "h2d", 1 * MB),
        step(1, 20),
        page(22, "d2h", 3 * MB, "eviction"),
        page(23, "gpu fault", None, ""),
        page(24, "fault", None, "minor", source="host faults"),
        request(30, 4 * MB),
        page(31, "h2d", 3 * MB),
        step(2, 40),
        page(38, "d2h", 1 * MB, "coherence"),  # collected late: it began within the second step
        page(45, "d2h", 2 * MB, "eviction"),  # after the last step
    ]
    truth = paging_truth(PAGES, events)
    assert {r.what: r.bytes for r in truth.readings} == {
        "eligible to page": 2 * 8 * LARGE,  # Adam's two moments in fp32
        "allocated as managed": 4 * MB,
        "prefetch requested": 8 * MB,
        "migrated host → GPU": 4 * MB,
        "migrated GPU → host": 6 * MB,
        "evicted": 5 * MB,
    }
    assert [(s.n, s.requested, s.h2d, s.d2h, s.evicted) for s in truth.steps] == [
        (1, 4 * MB, MB, 0, 0), (2, 4 * MB, 3 * MB, 4 * MB, 3 * MB),
    ]  # fmt: skip
    assert truth.reasons == ()
    assert "5.00 MiB were evicted" in truth.summary
    sources = {r.what: r.source for r in truth.readings}
    assert "computed" in sources["eligible to page"]
    assert "allocated" in sources["allocated as managed"]
    assert "requested" in sources["prefetch requested"]
    assert all("measured by CUPTI" in sources[w] for w in ("migrated host → GPU", "migrated GPU → host", "evicted"))
    assert list(truth.to_frame().columns) == ["what", "bytes", "source"]
    assert [s.evicted for s in truth.steps] == [0, 3 * MB]
    assert json.loads(json.dumps(truth.to_dict()))["steps"][1]["n"] == 2


def test_piece_by_piece_it_is_the_same() -> None:
    events = [hello(PAGES, [LARGE]), request(10, 5), page(12, "d2h", 7, "eviction"), step(1, 20), page(15, "h2d", 3)]
    meter = PagingMeter(PAGES)
    for event in events:
        meter.feed([event])
    assert meter.truth() == paging_truth(PAGES, events)
    assert meter.truth().steps[0].h2d == 3


def test_of_a_step_taken_again_the_newest_attempt_counts_and_what_moved_has_moved() -> None:
    events = [hello(PAGES, [LARGE]), request(5, 10), step(1, 10), request(15, 10), step(2, 20)]
    events += [{**hello(PAGES, [LARGE]), "attempt": 2}, request(35, 90, 2), step(2, 40, 2), request(45, 10, 2), step(3, 50, 2)]
    truth = paging_truth(PAGES, events)
    assert [(s.n, s.requested) for s in truth.steps] == [(1, 10), (2, 90), (3, 10)]
    assert truth["prefetch requested"] == 120


def test_measured_stands_beside_simulated() -> None:
    model = wb.open_model("builtin")
    config = wb.TrainConfig(page_min_numel=1)
    short = wb.simulate_paging(model, config, wb.simulate_paging(model, config, 2**40).enough - 1)
    moves = [page(15, "h2d", 2), step(1, 20), page(25, "h2d", 4), step(2, 30), page(35, "h2d", 9), step(3, 40)]
    beside = paging_truth(config, [hello(config, [LARGE]), *moves]).beside(short)
    assert beside["simulated"].tolist() == short.per_step[-1].tolist()
    assert beside["simulated"].min() > 0
    assert beside["measured"].tolist() == [4, 0]
    unseen = paging_truth(config, [hello(config, [LARGE], cuda=False), step(1, 20)]).beside(short)
    assert unseen["measured"].isna().all()


# Why nothing pages.


@pytest.mark.parametrize(
    ("fields", "sizes", "cuda", "names", "told"),
    [
        ({"optim": "adamw_8bit"}, [LARGE], True, ["optimizer"], "adamw_8bit pages nothing"),
        ({}, [LARGE], False, ["cuda"], "no CUDA device"),
        ({}, [SMALL], True, ["rule"], "lora_r to 25, or lower page_min_numel to 65,536"),
        ({}, [SMALL], False, ["cuda", "rule"], "the largest here has 65,536"),
        ({"method": "full"}, [SMALL], True, ["rule"], "page_min_numel to 65,536"),
        ({}, [LARGE], True, ["not yet"], "first optimizer step"),
        ({"page_min_numel": 65_536}, [SMALL], True, ["not yet"], "first optimizer step"),
    ],
)
def test_the_reasons(fields: dict[str, Any], sizes: list[int], cuda: bool, names: list[str], told: str) -> None:
    config = wb.TrainConfig(**fields)
    truth = paging_truth(config, [hello(config, sizes, cuda), step(1, 10)])
    assert [r.name for r in truth.reasons] == names
    assert told in truth.summary


def test_room_enough_is_told_with_what_was_free() -> None:
    events = [hello(PAGES, [LARGE]), sample(4 * MB, 3_000 * MB), sample(4 * MB, 5_000 * MB), request(5, 10), step(1, 10)]
    truth = paging_truth(PAGES, events)
    assert [r.name for r in truth.reasons] == ["no pressure"]
    assert "at least 11.12 GiB of the GPU were free" in truth.summary
    assert truth["evicted"] == 0  # seen, and none


def test_what_cannot_be_seen_is_unknown_and_not_zero() -> None:
    refused = {"works": False, "why": "cuptiActivityEnable answered CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"}
    truth = paging_truth(PAGES, [hello(PAGES, [LARGE], cupti=refused), sample(4 * MB, 0), request(5, 10), step(1, 10)])
    assert truth["evicted"] is None
    assert (truth.steps[0].requested, truth.steps[0].h2d, truth.steps[0].evicted) == (10, None, None)
    assert [r.name for r in truth.reasons] == ["unseen"]
    assert "INSUFFICIENT_PRIVILEGES" in truth.summary


def test_before_a_run_the_shapes_tell() -> None:
    model = wb.open_model("builtin")
    truth = paging_truth(PAGES, src=model)
    assert [r.name for r in truth.reasons] == ["rule"]
    rank = truth.smallest_rank
    assert rank is not None
    for r, pages in ((rank - 1, 0), (rank, 1)):  # the rank that it names is the smallest at which something pages
        config = wb.TrainConfig(lora_r=r)
        told = paging_truth(config, src=model)
        assert bool(told["eligible to page"]) == bool(pages)
        assert bool(wb.forecast(model, config).managed) == bool(pages)
        assert told["eligible to page"] == wb.forecast(model, config).managed
    assert "forecast" in truth.readings[0].source


def test_without_anything_nothing_is_claimed() -> None:
    truth = paging_truth(PAGES)
    assert truth.smallest_rank is None
    assert truth["eligible to page"] is None
    assert "not known" in truth.readings[0].source


def test_eight_bit_states_are_a_quarter_and_small_ones_are_not_kept_in_eight() -> None:
    config = wb.TrainConfig(optim="paged_adamw_8bit", page_min_numel=1)
    assert paging_facts(config, True, [LARGE, 4_095])["eligible_bytes"] == 2 * LARGE + 8 * 4_095
