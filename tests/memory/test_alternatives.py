"""What would change a forecast: each change by itself, with the verdict that a forecast of it has."""

from __future__ import annotations

import dataclasses

import pytest

import workbench as wb

MODEL = wb.PublishedShapes("Qwen/Qwen3-8B")
LARGE = wb.TrainConfig(max_length=2048, lora_r=64)


@pytest.mark.parametrize(
    ("config", "gpu"), [(wb.TrainConfig(), "A100 40 GB"), (LARGE, "T4"), (wb.TrainConfig(method="lora"), "T4")]
)
def test_each_has_the_verdict_of_its_own_forecast(config: wb.TrainConfig, gpu: str) -> None:
    found = wb.alternatives(MODEL, config, gpu)
    assert len({tuple(alternative.fields.items()) for alternative in found}) == len(found) > 3
    for alternative in found:
        judged = wb.fit(wb.forecast(MODEL, dataclasses.replace(config, **alternative.fields)), gpu)
        assert (alternative.fit.verdict, alternative.total) == (judged.verdict, judged.ledger.total)
    assert {a.fields["method"] for a in found if "method" in a.fields} == {"qlora", "lora", "full"} - {config.method}


def test_where_there_is_room_more_is_offered_and_where_there_is_none_less() -> None:
    roomy, short = (wb.alternatives(MODEL, LARGE, gpu) for gpu in ("H100", "T4"))
    assert [a.fields.get("max_length") for a in roomy if "max_length" in a.fields] == [4096]
    assert [a.fields.get("max_length") for a in short if "max_length" in a.fields] == [1024]
    assert all(a.total < wb.forecast(MODEL, LARGE).total for a in short if "method" not in a.fields)


@pytest.mark.parametrize("length", [4096, 8192])
def test_what_makes_it_fit_comes_first(length: int) -> None:
    config = dataclasses.replace(LARGE, max_length=length, per_device_train_batch_size=8)
    first, *others = wb.alternatives(MODEL, config, "T4")
    ways = wb.ways_to_fit(MODEL, config, "T4")
    assert ways is not None
    assert dict(first.fields) == {name: value for way in ways for name, value in way.fields.items()}
    assert first.fit.verdict == "fits"
    assert not any(a.fit.verdict == "fits" for a in others)


def test_no_length_beyond_the_model_s_positions_is_offered() -> None:
    source = wb.open_model("builtin")
    most = source.config["max_position_embeddings"]
    found = wb.alternatives(source, wb.TrainConfig(max_length=most), "T4")
    assert not any("max_length" in a.fields for a in found)
