"""Checkpoints as big models ship them: MXFP4 blocks and scales, FP8 and INT8 with scales; and GPTQ, AWQ and others, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.sources.packed import logical, packed, weights
from workbench.sources.packed_names import refuse, tile_of

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def checkpoint(folder: Path, tensors: dict[str, np.ndarray], method: Any = None, **config: Any) -> wb.Source:
    folder.mkdir()
    safetensors.numpy.save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")
    more = {} if method is None else {"quantization_config": method}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **more, **config}))
    return wb.open_model(folder)


def opened(source: wb.Source, name: str) -> Any:
    held = packed(source, name)
    assert held is not None
    return held


def mxfp4(tmp_path: Path, scales: np.ndarray, experts: int = 3, rows: int = 10) -> tuple[wb.Source, np.ndarray]:
    blocks = np.random.default_rng(0).integers(0, 256, (experts, rows, 4, 16), np.uint8)
    tensors = {
        f"{EXPERTS}_blocks": blocks,
        f"{EXPERTS}_scales": scales,
        f"{EXPERTS}_bias": np.ones((experts, rows), np.float32),
    }
    return checkpoint(tmp_path / "m", tensors, {"quant_method": "mxfp4"}, model_type="gpt_oss"), blocks


def test_mxfp4_is_dequantized_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    scales = np.random.default_rng(1).integers(0, 252, (3, 10, 4), np.uint8)  # of all magnitudes that bfloat16 has
    source, blocks = mxfp4(tmp_path, scales)
    held = opened(source, f"{EXPERTS}_blocks")
    assert (held.title, held.shape, held.dtype) == ("MXFP4, blocks of 32", (3, 10, 128), ml_dtypes.bfloat16)
    reference = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    ours = held.dequantize().transpose(0, 2, 1)  # transformers turns the experts' matrices round
    np.testing.assert_array_equal(np.ascontiguousarray(ours).view(np.uint16), reference.view(torch.uint16).numpy())
    np.testing.assert_array_equal(np.concatenate(list(held.chunks(48))), held.dequantize().reshape(-1))


def test_mxfp4_is_ocps_definition_in_ml_dtypes(tmp_path: Path) -> None:
    scales = np.random.default_rng(2).integers(0, 256, (3, 10, 4), np.uint8)
    scales[0, 0, 0] = 255  # NaN, and with it its block
    source, blocks = mxfp4(tmp_path, scales)
    held = opened(source, f"{EXPERTS}_blocks")
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(3, 10, 4, 32)
    np.testing.assert_array_equal(held.codes, nibbles.reshape(-1))
    np.testing.assert_array_equal(held.occupancy, np.bincount(nibbles.reshape(-1), minlength=16))
    with np.errstate(over="ignore", invalid="ignore"):
        exact = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
        exact = exact * scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)[..., None]
        np.testing.assert_array_equal(held.dequantize(np.float32).reshape(exact.shape), exact.astype(np.float32))
    assert np.isnan(held.dequantize()[0, 0, :32]).all()


def test_mxfp4_blocks_are_a_format_of_the_workbench(tmp_path: Path) -> None:
    source, _ = mxfp4(tmp_path, np.random.default_rng(3).integers(100, 150, (3, 10, 4), np.uint8))
    held = opened(source, f"{EXPERTS}_blocks")
    q = held.quantized()
    assert (q.spec, q.stored_scales.dtype) == (wb.QuantSpec("mxfp4"), ml_dtypes.float8_e8m0fnu)
    np.testing.assert_array_equal(q.dequantize(held.dtype), held.dequantize())
    np.testing.assert_array_equal(q.absmax, np.abs(held.dequantize(np.float32)).reshape(-1, 32).max(axis=1))


def test_mxfp4_experts_are_listed_with_their_own_shape(tmp_path: Path) -> None:
    source, blocks = mxfp4(tmp_path, np.full((3, 10, 4), 120, np.uint8))
    stored = {t.name: t for t in source.tensors()}
    assert stored[f"{EXPERTS}_blocks"].reason == "already in 4 bits: MXFP4, blocks of 32"
    assert stored[f"{EXPERTS}_scales"].reason == f"a part of the packed weight {EXPERTS}_blocks"
    own = {t.name: t for t in logical(source)}
    assert own.keys() == {f"{EXPERTS}_blocks", f"{EXPERTS}_bias"}
    experts = own[f"{EXPERTS}_blocks"]
    assert (experts.shape, experts.dtype, experts.numel) == ((3, 10, 128), "BF16", 3 * 10 * 128)
    assert experts.nbytes == blocks.nbytes + 3 * 10 * 4


def fp8(shape: tuple[int, ...], scales: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    return values, np.exp2(rng.uniform(-12, -4, scales)).astype(np.float32)


def in_double_precision(values: np.ndarray, scales: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The definition: element (i, j) of a matrix times the scale of its tile."""
    rows, columns = values.shape[-2:]
    grid = scales.astype(np.float64)[..., np.arange(rows)[:, None] // tile[0], np.arange(columns) // tile[1]]
    return values.astype(np.float64) * grid


@pytest.mark.parametrize(
    ("shape", "scales", "tile", "title"),
    [
        ((576, 256), (5, 2), (128, 128), "FP8, E4M3, tiles of 128 × 128"),  # DeepSeek-V3 has such a one: the last tile is cut
        ((300, 200), (3, 2), (128, 128), "FP8, E4M3, tiles of 128 × 128"),
        ((64, 48), (1, 1), (64, 48), "FP8, E4M3, one scale"),
        ((4, 256, 128), (4, 2, 1), (128, 128), "FP8, E4M3, tiles of 128 × 128"),
        ((6, 96), (3, 2), (2, 48), "FP8, E4M3, tiles of 2 × 48"),
    ],
)  # fmt: skip
def test_fp8_with_scale_tiles_is_its_definition(
    tmp_path: Path, shape: tuple[int, ...], scales: tuple[int, ...], tile: tuple[int, int], title: str
) -> None:
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    values, grid = fp8(shape, scales)
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
    source = checkpoint(tmp_path / "m", {name: values, f"{name}_scale_inv": grid}, method, torch_dtype="bfloat16")
    held = opened(source, name)
    assert (held.title, held.shape, held.tile, held.dtype) == (title, shape, tile, ml_dtypes.bfloat16)
    exact = in_double_precision(values, grid, tile).astype(np.float32)
    np.testing.assert_array_equal(held.dequantize(np.float32), exact)
    np.testing.assert_array_equal(weights(source, name), exact.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(np.concatenate(list(held.chunks(112, np.float32))), exact.reshape(-1))
    assert {t.name: t.reason for t in logical(source)} == {name: f"already in 8 bits: {title}"}


def test_fp8_is_dequantized_as_transformers_does(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    values, grid = fp8((300, 200), (3, 2))
    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    source = checkpoint(tmp_path / "m", {"a.weight": values, "a.weight_scale_inv": grid}, method, dtype="float32")
    whole = np.zeros((3 * 128, 2 * 128), np.uint8)  # it takes whole tiles only
    whole[:300, :200] = values.view(np.uint8)
    theirs = torch.from_numpy(whole).view(torch.float8_e4m3fn)
    reference = Fp8Dequantize(None)._dequantize_one(theirs, torch.from_numpy(grid), torch.float32)
    np.testing.assert_array_equal(weights(source, "a.weight"), reference[:300, :200].numpy())


@pytest.mark.parametrize("size", [[64, 32], [10**12, 1], "128", [0, 0], [True, 1], None])
def test_a_block_size_that_does_not_fit_is_not_believed(tmp_path: Path, size: Any) -> None:
    values, grid = fp8((64, 64), (1, 2))
    source = checkpoint(tmp_path / "m", {"a.weight": values, "a.weight_scale_inv": grid}, {"weight_block_size": size})
    assert opened(source, "a.weight").tile == (64, 32)


@pytest.mark.parametrize(
    ("scales", "tile"), [((), (64, 48)), ((1,), (64, 48)), ((64,), (1, 48)), ((64, 1), (1, 48)), ((1, 48), (64, 1))]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_fp8_with_a_scale_per_tensor_row_or_column(tmp_path: Path, scales: Any, tile: tuple[int, int], dtype: Any) -> None:
    values, grid = fp8((64, 48), scales)
    grid = np.asarray(grid).astype(dtype)
    method = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    source = checkpoint(
        tmp_path / "m", {"a.weight": values, "a.weight_scale": grid, "a.input_scale": np.ones(1, np.float32)}, method
    )
    held = opened(source, "a.weight")
    assert held.tile == tile
    spread = np.broadcast_to(grid.reshape((64, 1) if scales == (64,) else grid.shape), (64, 48))
    exact = values.astype(np.float64) * spread.astype(np.float64)
    np.testing.assert_array_equal(held.dequantize(np.float32), exact.astype(np.float32))
    assert [t.name for t in logical(source)] == ["a.weight"]


def test_scales_in_powers_of_two_and_weights_in_whole_numbers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (8, 64)).astype(np.int8)
    exponents = np.arange(120, 128, dtype=np.uint8)[:, None]
    source = checkpoint(tmp_path / "m", {"a.weight": values, "a.weight_scale": exponents})
    exact = values * np.exp2(exponents.astype(np.float64) - 127)
    np.testing.assert_array_equal(opened(source, "a.weight").dequantize(np.float32), exact.astype(np.float32))
    assert source.tensors()[0].reason == "already in 8 bits: INT8, a scale per row"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    shape=st.lists(st.integers(0, 700), min_size=0, max_size=4).map(tuple),
    scales=st.lists(st.integers(0, 12), max_size=4).map(tuple),
    size=st.one_of(st.none(), st.lists(st.integers(-1, 300), max_size=3)),
)
def test_whatever_the_shapes_a_tile_covers_the_weight_or_there_is_none(
    shape: tuple[int, ...], scales: tuple[int, ...], size: Any
) -> None:
    tile = tile_of(shape, scales, {"quantization_config": {"weight_block_size": size}})
    if tile is not None:
        across = [-(-side // step) for side, step in zip(shape[-2:], tile, strict=True)]
        assert int(np.prod(across)) * int(np.prod(shape[:-2])) == int(np.prod(scales))


U32, U8, ONE = np.zeros((8, 64), np.uint32), np.zeros((8, 64), np.uint8), np.ones(1, np.float32)
F8 = np.zeros((8, 64), ml_dtypes.float8_e4m3fn)
I32, F16 = np.zeros((8, 64), np.int32), np.zeros((1, 64), np.float16)
FOREIGN: dict[str, tuple[dict[str, np.ndarray], Any, str]] = {
    "GPTQ by both": (
        {"a.qweight": I32, "a.qzeros": I32[:1, :8], "a.scales": F16, "a.g_idx": I32[0]},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
        r"quantized with GPTQ \(4 bits, groups of 128\)",
    ),
    "GPTQ by its names": (
        {"a.qweight": I32, "a.qzeros": I32[:1, :8], "a.scales": F16},
        None,
        r"quantized with GPTQ: ",
    ),
    "AWQ by both": (
        {"a.qweight": I32[:, :8], "a.qzeros": I32[:1, :8], "a.scales": F16},
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"},
        r"quantized with AWQ \(4 bits, groups of 64\)",
    ),
    "AWQ by its names": ({"a.qweight": I32[:, :8], "a.qzeros": I32[:1, :8], "a.scales": F16}, None, r"quantized with AWQ: "),
    "HQQ": ({"a.W_q": I32}, {"quant_method": "hqq"}, "quantized with HQQ: "),
    "packed": ({"a.weight_packed": I32}, {"quant_method": "compressed-tensors"}, "quantized with compressed-tensors: "),
    "AQLM": ({"a.codes": I32, "a.codebooks": F16}, {"quant_method": "aqlm"}, "quantized with AQLM: "),
    "MLX": ({"a.weight": U32, "a.scales": F16, "a.biases": F16}, None, "quantized with MLX: "),
    "MLX in FP4": ({"a.weight": U32, "a.scales": U8}, None, "quantized with MLX: "),
    "Metal": ({"a.weight": U32, "a.scales": F16, "a.qbiases": F16}, {"quant_method": "metal"}, "quantized with Metal: "),
    "ModelOpt": (
        {"a.weight": U8, "a.weight_scale": F8, "a.weight_scale_2": ONE, "a.input_scale": ONE}, None, "quantized with ModelOpt: "
    ),
    "ModelOpt in FP8": (
        {"a.weight": F8, "a.weight_scale": ONE, "a.input_scale": ONE}, {"quant_method": "modelopt"}, "quantized with ModelOpt: "
    ),
    "packed in FP4": ({"a.weight_packed": U8, "a.weight_scale": F8, "a.weight_global_scale": ONE}, None, "compressed-tensors"),
    "sparse": ({"a.compressed": F16, "a.bitmask": U8}, None, "quantized with compressed-tensors: "),
    "HQQ by its names": ({"a.W_q": U8, "a.scale": F16, "a.zero": F16}, None, "quantized with HQQ: "),
    "SINQ": ({"a.W_q": U8, "a.scale": F16}, {"quant_method": "sinq"}, "quantized with SINQ: "),
    "Quanto": ({"a.weight._data": U8, "a.weight._scale": F16, "a.input_scale": ONE}, None, "quantized with Quanto: "),
    "torchao": ({"a._weight_qdata": U8, "a._weight_scale": F16}, None, "quantized with torchao: "),
    "torchao in FP8": ({"a._weight_qdata": F8, "a._weight_scale": ONE}, None, "quantized with torchao: "),
    "AQLM by its names": ({"a.codes": U8, "a.codebooks": F16, "a.scales": F16}, None, "quantized with AQLM: "),
    "VPTQ": ({"a.indices": I32, "a.centroids.weight": F16}, None, "quantized with VPTQ: "),
    "EETQ": ({"a.weight": I32.astype(np.int8), "a.weight_scales": F16[0]}, None, "quantized with EETQ: "),
    "HIGGS": ({"a.weight": I32.astype(np.int16), "a.scales": F16, "a.tables": F16, "a.tables2": F16}, None, "with HIGGS: "),
    "FP-Quant": ({"a.qweight": U8, "a.scales": U8}, {"quant_method": "fp_quant"}, "quantized with FP-Quant: "),
    "BitNet": ({"a.weight": U8, "a.weight_scale": ONE}, {"quant_method": "bitnet"}, "quantized with BitNet: "),
    "Quark": ({"a.weight": U8, "a.weight_scale": U8}, {"quant_method": "quark"}, "quantized with Quark: "),
    "AutoRound": ({"a.qweight": I32, "a.scales": F16}, {"quant_method": "auto-round", "bits": 2}, r"AutoRound \(2 bits\): "),
    "SpQR": ({"a.dense_weights": I32.astype(np.int64), "a.row_offsets": I32[0], "a.col_vals": I32[0]}, None, "with SpQR: "),
    "EXL2": ({"a.q_weight": I32, "a.q_scale": I32, "a.q_groups": I32[0]}, None, "quantized with EXL2: "),
    "EXL3": ({"a.trellis": I32.astype(np.int16), "a.suh": F16, "a.svh": F16}, None, "quantized with EXL3: "),
    "QuIP#": ({"a.Qidxs": I32, "a.SU": F16, "a.SV": F16}, None, "quantized with QuIP#: "),
    "Marlin": ({"a.B": I32, "a.s": F16}, None, "quantized with Marlin: "),
    "nobody's bytes": ({"a.weight": U8, "a.weight_scale": ONE}, None, "a method that config.json does not name: "),
    "nobody's": ({"a.qweight": I32}, {"quant_method": "x\x1b[2J", "bits": "4"}, r"quantized with 'x\\x1b\[2j': "),
    "nobody's at all": ({"a.qweight": I32}, ["gptq"], "a method that config.json does not name"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_cannot_be_decoded_is_named_and_refused_with_the_remedy(tmp_path: Path, case: str) -> None:
    tensors, method, told = FOREIGN[case]
    with pytest.raises(wb.ModelError, match=told) as caught:
        checkpoint(tmp_path / "m", {**tensors, "model.norm.weight": F16}, method)
    assert "QLoRA cannot use" in caught.value.what
    assert "the model that it was made from" in caught.value.remedy
    assert caught.value.where == str(tmp_path / "m")
    assert str(caught.value).isprintable()


def test_the_groups_that_mlx_names_in_its_own_place_are_told(tmp_path: Path) -> None:
    with pytest.raises(wb.ModelError, match=r"MLX \(4 bits, groups of 64\)"):
        checkpoint(tmp_path / "m", {"a.weight": U32, "a.scales": F16}, quantization={"group_size": 64, "bits": 4})


@pytest.mark.parametrize("said", [{"quant_algo": "FP8", "kv_cache_quant_algo": None}, None])
def test_a_quantization_that_modelopt_keeps_in_a_file_of_its_own_is_read(tmp_path: Path, said: Any) -> None:
    tensors = {"a.weight": F8, "a.weight_scale": ONE}
    assert "a.weight" in {t.name for t in checkpoint(tmp_path / "plain", tensors).tensors()}
    folder = tmp_path / "plain"
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    with pytest.raises(wb.ModelError, match="quantized with ModelOpt"):
        wb.open_model(folder)


@pytest.mark.parametrize(
    "method",
    [
        None,
        3,
        [],
        {},
        {"quant_method": 3},
        {"quant_method": "no-such"},
        {"quant_method": "gptq"},
        {"quant_method": "g" * 9_999},
    ],
)
def test_weights_that_are_not_packed_are_not_refused_for_what_config_says(tmp_path: Path, method: Any) -> None:
    source = checkpoint(tmp_path / "m", {"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.float32)}, method)
    assert [t.quantizable for t in source.tensors()] == [True]
    refuse({}, {"quantization_config": method}, "somewhere")


def test_integers_that_are_no_weights_are_refused_and_others_are_read(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", {"ids.weight": I32, "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)})
    with pytest.raises(wb.ModelError, match="stored as I32 and holds no weights"):
        weights(source, "ids.weight")
    assert packed(source, "a.weight") is None
    assert weights(source, "a.weight").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights(source, "a.weight", "transposed").tolist() == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(wb.ModelError, match="no tensor 'b'"):
        weights(source, "b")
