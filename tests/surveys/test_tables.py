"""A survey's tables: every tensor and specification, the worst, pooled by layer and by kind, in files, and in a notebook."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

import workbench as wb
from tests.helpers.surveys import SPECS, checkpoint, weights
from workbench.sources.header import Entry
from workbench.sources.local import LocalSource
from workbench.surveys.rows import pooled
from workbench.surveys.survey import Survey

COLUMNS = [
    "tensor", "layer", "kind", "shape", "dtype", "numel", "format", "block_size", "spec", "bits_per_weight", "nbytes", "rmse",
    "mae", "max", "rms", "relative_rmse", "sqnr_db", "entropy_bits", "kurtosis", "nans", "infinities", "error",
]  # fmt: skip
MODEL = {
    "model.embed_tokens.weight": weights((32, 640), seed=9) * 3,
    "model.layers.0.self_attn.q_proj.weight": weights((64, 640), seed=0),
    "model.layers.0.mlp.down_proj.weight": weights((640, 64), seed=1),
    "model.layers.1.self_attn.q_proj.weight": weights((64, 640), seed=2) * 2,
    "model.layers.1.mlp.down_proj.weight": weights((100, 64), seed=3),
    "model.layers.1.ids": np.arange(7),
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return wb.survey(checkpoint(tmp_path_factory.mktemp("models") / "m", MODEL), SPECS, list(MODEL), progress=False).run()


def test_the_table_has_a_line_for_each_tensor_and_specification(survey: Survey) -> None:
    table = survey.to_frame()
    assert list(table.columns) == COLUMNS
    assert list(zip(table.tensor, table.spec, strict=True)) == [(row.tensor.name, s.title) for row in survey for s in SPECS]
    row, line = survey.rows[1], table.iloc[4 + 2]
    totals = row.totals[2]
    assert (line["layer"], line["kind"], line["shape"], line["dtype"], line["numel"]) == (0, "q", (64, 640), "BF16", 40960)
    assert (line["format"], line["block_size"], line["spec"]) == ("fp4", 64, "FP4, blocks of 64, double quantized")
    assert line["nbytes"] == SPECS[2].nbytes(40960)
    assert line["bits_per_weight"] == 8 * line["nbytes"] / 40960
    for name in ("rmse", "mae", "max", "rms", "relative_rmse", "sqnr_db", "entropy_bits", "nans", "infinities"):
        assert line[name] == getattr(totals, name)
    assert line["kurtosis"] == row.kurtosis
    assert table.layer.isna().sum() == len(SPECS), "the embedding is in no layer"


def test_an_error_leaves_the_numbers_missing(survey: Survey) -> None:
    lines = survey.to_frame().query("tensor == 'model.layers.1.ids'")
    assert len(lines) == len(SPECS)
    assert lines.error.str.contains("int64").all()
    assert lines[["rmse", "nbytes", "kurtosis", "nans"]].isna().all(axis=None)
    assert survey.to_frame().error.notna().sum() == len(SPECS)


def test_a_table_runs_a_survey_that_nobody_has_begun_and_shows_what_there_is_of_one_that_is_under_way(tmp_path: Path) -> None:
    survey = wb.survey(checkpoint(tmp_path, MODEL), SPECS, list(MODEL), progress=False)
    assert repr(survey).startswith(f"Survey of {tmp_path.name}: 0 of 6 tensors\n")
    assert len(survey.to_frame()) == 6 * len(SPECS)
    survey = wb.survey(tmp_path, SPECS, list(MODEL), progress=False)
    seen = [(len(survey.to_frame()), len(survey.worst(99)), len(survey.by_kind())) for _ in survey]
    assert seen[:2] == [(4, 4, 4), (8, 8, 8)]
    assert len(seen) == 6


def test_the_worst_come_first(survey: Survey) -> None:
    table = survey.to_frame().dropna(subset="rmse")
    for by, ascending in (("relative_rmse", False), ("max", False), ("kurtosis", False), ("sqnr_db", True), ("numel", False)):
        worst = survey.worst(3, by)
        assert len(worst) == 3
        assert list(worst[by]) == list(table[by].sort_values(ascending=ascending)[:3])
    assert len(survey.worst(99)) == 5 * len(SPECS), "without the tensor that could not be measured"
    assert survey.worst().equals(survey.worst(10, "relative_rmse"))
    with pytest.raises(wb.WorkbenchError, match="Choose one of: rmse"):
        survey.worst(3, by="tensor")
    for k in (0, -1, 1.5, True):
        with pytest.raises(wb.WorkbenchError, match="whole number"):
            survey.worst(k)  # type: ignore[arg-type]


def test_a_group_is_measured_as_if_its_tensors_were_one(survey: Survey) -> None:
    """All but the last tensor of a group are whole blocks, so that one after the other they have the blocks they had alone."""
    one_pass = SPECS[:2]
    survey = wb.survey(survey.source, one_pass, list(MODEL), progress=False)
    q, down = (np.concatenate([x.reshape(-1) for name, x in MODEL.items() if part in name]) for part in ("q_proj", "down_proj"))
    first = np.concatenate([x.reshape(-1) for name, x in MODEL.items() if "layers.0" in name])
    kinds, in_layers = survey.by_kind(), survey.by_layer()
    cases = [(kinds, "kind", "q", q), (kinds, "kind", "down", down), (in_layers, "layer", 0, first)]
    for table, by, value, together in cases:
        for (_, line), spec in zip(table[table[by] == value].iterrows(), one_pass, strict=True):
            expected = wb.measure(together, spec)
            assert line["spec"] == spec.title
            assert (line["tensors"], line["errors"], line["numel"]) == (2, 0, together.size)
            for name in ("rmse", "mae", "rms", "relative_rmse", "sqnr_db", "entropy_bits"):
                assert line[name] == pytest.approx(getattr(expected, name), rel=1e-6)
            assert line["max"] == expected.max
            assert line["bits_per_weight"] == pytest.approx(spec.bits_per_weight)


def test_groups_in_order_with_their_errors(survey: Survey) -> None:
    layers = survey.by_layer()
    assert [None if pd.isna(n) else n for n in layers.layer[:: len(SPECS)]] == [0, 1, None]
    assert list(layers.errors[:: len(SPECS)]) == [0, 1, 0]
    kinds = survey.by_kind()
    assert list(kinds.kind[:: len(SPECS)]) == ["embed_tokens", "q", "down", "ids"], "as they come in the model"
    failed = kinds[kinds.kind == "ids"]
    assert (failed.tensors == 0).all()
    assert failed.rmse.isna().all()
    largest = max(row.kurtosis for row in survey if row.kind == "q")
    assert (kinds[kinds.kind == "q"]["kurtosis"] == largest).all()


def test_pooling_leaves_out_what_is_not_finite() -> None:
    good, bad = weights(640, np.float32), weights(640, np.float32, seed=1)
    bad[:64] = np.nan
    stats = [wb.measure(x, wb.QuantSpec()) for x in (good, bad, np.full(64, np.inf, np.float32))]
    total = pooled(stats)
    assert (total.numel, total.nans, total.infinities, total.bad_blocks) == (1344, 64, 64, 2)
    assert total.rmse == pytest.approx(wb.measure(np.concatenate([good, bad[64:]]), wb.QuantSpec()).rmse)
    assert math.isnan(pooled(stats[2:]).rmse)
    with pytest.raises(wb.WorkbenchError, match="no totals"):
        pooled([])


def test_csv_and_parquet_read_back_as_the_table(survey: Survey, tmp_path: Path) -> None:
    table = survey.to_frame()
    survey.to_csv(tmp_path / "rows.csv")
    survey.to_parquet(tmp_path / "rows.parquet")
    csv = pd.read_csv(tmp_path / "rows.csv")
    parquet = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pandas()
    assert list(csv.columns) == list(parquet.columns) == COLUMNS
    assert list(csv.tensor) == list(parquet.tensor) == list(table.tensor)
    np.testing.assert_array_equal(csv.rmse, table.rmse)
    np.testing.assert_array_equal(parquet.rmse, table.rmse)
    assert csv["shape"][0] == "(32, 640)"
    assert [tuple(shape) for shape in parquet["shape"]] == list(table["shape"])
    assert list(parquet.error.isna()) == list(table.error.isna())


HOSTILE = ('"><script>alert(1)</script>', "a,b\n\"c'", "=1+1", "\u202e\x00\x1b[2J", "x" * 10_000, "layers.0.(" + ")" * 9, ".")


class Renamed(LocalSource):
    """A source that lets through what the header's own rules refuse."""

    def entries(self) -> dict[str, tuple[str, Entry]]:
        renamed = zip(HOSTILE, super().entries().values(), strict=True)
        return {name: (file, replace(entry, name=name)) for name, (file, entry) in renamed}


def test_hostile_names_break_neither_tables_nor_html(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.arange(4) if i == 0 else weights((2, 64)) for i in range(len(HOSTILE))}
    survey = wb.survey(Renamed(checkpoint(tmp_path / "m", tensors), name=HOSTILE[0]), SPECS, HOSTILE, progress=False)
    table = survey.to_frame()
    assert list(table.tensor[:: len(SPECS)]) == list(HOSTILE)
    assert list(table.error.notna()[:: len(SPECS)]) == [True, *[False] * (len(HOSTILE) - 1)]
    assert len(survey.by_kind()) + len(survey.by_layer()) + len(survey.worst(99)) > 0
    survey.to_csv(tmp_path / "rows.csv")
    survey.to_parquet(tmp_path / "rows.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet")["tensor"].to_pylist() == list(table.tensor)
    assert len(pd.read_csv(tmp_path / "rows.csv")) == len(table)
    assert "<script" not in survey._repr_html_()
    assert "&lt;script" in survey._repr_html_()
    assert len(survey._repr_html_()) < 3_000
