"""What the survey's tests share: checkpoints of random weights, specifications, and comparing rows bit for bit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import workbench as wb
from workbench.sources.header import DTYPES
from workbench.surveys.survey import Row

SPECS = (wb.QuantSpec("nf4"), wb.QuantSpec("int4", 128), wb.QuantSpec("fp4", double_quant=True), wb.QuantSpec("nvfp4"))
"""Two that need one pass over a tensor, and two that must look at all of it first."""
NAMES = {np.dtype(d.numpy): d.name for d in DTYPES.values() if d.numpy is not None}


def weights(shape: tuple[int, ...] | int, dtype: Any = ml_dtypes.bfloat16, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, shape) * 0.02).astype(dtype)


def checkpoint(folder: Path, tensors: Mapping[str, np.ndarray], model_type: str = "llama") -> Path:
    """One safetensors file with these tensors, and a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def layers(count: int, shape: tuple[int, ...] = (64, 640)) -> dict[str, np.ndarray]:
    """``count`` matrices, two a layer."""
    parts = ("self_attn.q_proj", "mlp.down_proj")
    return {f"model.layers.{i // 2}.{parts[i % 2]}.weight": weights(shape, seed=i) for i in range(count)}


def two_shards(folder: Path) -> dict[str, np.ndarray]:
    """Four matrices in a checkpoint of two files, ``0.safetensors`` and ``1.safetensors``, the first two in the first."""
    whole = layers(4)
    for shard in (0, 1):
        checkpoint(folder / f"{shard}", {name: x for i, (name, x) in enumerate(whole.items()) if i // 2 == shard})
        (folder / f"{shard}" / "model.safetensors").rename(folder / f"{shard}.safetensors")
    index = {"weight_map": {name: f"{i // 2}.safetensors" for i, name in enumerate(whole)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return whole


def assert_same_totals(found: Any, expected: Any) -> None:
    """Every field of ``Totals``, bit for bit."""
    for field in dataclasses.fields(wb.Totals):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert np.array_equal(a, b, equal_nan=field.name not in ("spec", "occupancy", "sampled")), field.name


def assert_same(found: Iterable[Row], expected: Iterable[Row]) -> None:
    """The same rows in any order."""
    by_name = {row.tensor.name: row for row in found}
    others = {row.tensor.name: row for row in expected}
    assert by_name.keys() == others.keys()
    for name, row in by_name.items():
        other = others[name]
        assert (row.tensor, row.layer, row.kind, row.error) == (other.tensor, other.layer, other.kind, other.error)
        np.testing.assert_equal(row.kurtosis, other.kurtosis)
        assert len(row.totals) == len(other.totals)
        for mine, theirs in zip(row.totals, other.totals, strict=True):
            assert_same_totals(mine, theirs)
