"""Checkpoints that transformers and bitsandbytes wrote in 4 and 8 bits: their codes, scales, and bitsandbytes' own values.

bitsandbytes' AVX-512 dequantize reads wrong scales where the last dimension is no multiple of the block size, so that its plain
implementation is the reference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

import workbench as wb
from tests.helpers import tiny
from tests.helpers.texts import missing
from workbench.sources.packed import logical, packed, weights
from workbench.sources.rule import left_in_16_bits

BF16 = torch.bfloat16
TAILS = {**tiny.LLAMA, "hidden_size": 76, "head_dim": 18, "intermediate_size": 101}  # rows that no block size divides
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], torch.dtype]] = {
    "nf4": ("llama", tiny.LLAMA, {"bnb_4bit_quant_type": "nf4"}, BF16),
    "fp4": ("llama", tiny.LLAMA, {"bnb_4bit_quant_type": "fp4"}, torch.float16),
    "nf4, double": ("llama", tiny.LLAMA, {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, BF16),
    "fp4, double, tails": ("llama", TAILS, {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}, torch.float32),
    "nf4, tails": ("llama", TAILS, {"bnb_4bit_quant_type": "nf4"}, BF16),
    "nf4 in bfloat16": ("llama", tiny.LLAMA, {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"}, BF16),
    "gpt2, transposed": ("gpt2", tiny.ARCHITECTURES["gpt2"][1], {"bnb_4bit_quant_type": "nf4"}, BF16),
}  # fmt: skip


def save_quantized(
    folder: Path, model_type: str, config: dict[str, Any], dtype: torch.dtype, shard: str = "1GB", **how: Any
) -> Path:
    """A tiny random model, loaded quantized and saved as it then is."""
    import transformers

    tiny.save(folder / "plain", model_type, config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "plain", quantization_config=transformers.BitsAndBytesConfig(**how), dtype=dtype
    )
    model.save_pretrained(folder / "packed", max_shard_size=shard)
    return folder / "packed"


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, config, how, dtype = CASES[request.param]
    return save_quantized(tmp_path_factory.mktemp("packed"), model_type, config, dtype, load_in_4bit=True, **how)


def theirs(folder: Path) -> dict[str, tuple[torch.Tensor, Any]]:
    """Weight name → packed tensor and QuantState, as bitsandbytes reads them out of the checkpoint."""
    from bitsandbytes.functional import QuantState

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    names = [name.partition(".quant_state.")[0] for name in tensors if ".quant_state." in name]
    parts = {name: {key: tensors[key] for key in tensors if key.startswith(f"{name}.")} for name in names}
    return {name: (tensors[name], QuantState.from_dict(dict(parts[name]), "cpu")) for name in names}


def dequantized(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """bitsandbytes' plain ``dequantize_4bit``."""
    import bitsandbytes as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    absmax = state.absmax
    if state.nested:
        absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    code = bnb.functional.get_4bit_type(state.quant_type, device="cpu")
    flat = packed.view(torch.uint8).reshape(-1)
    numel = (state.shape.numel(),)
    return _dequantize_4bit_compute(flat, absmax.float(), code, state.blocksize, numel, state.dtype).reshape(state.shape)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def test_codes_scales_and_values_are_those_of_bitsandbytes(checkpoint: Path) -> None:
    source, reference = wb.open_model(checkpoint), theirs(checkpoint)
    assert len(reference) >= 8
    for name, (codes, state) in reference.items():
        held = packed(source, name)
        assert held is not None
        assert (held.shape, held.tile) == (tuple(state.shape), (state.blocksize,))
        q = held.quantized()
        assert (q.spec.format, q.spec.double_quant, q.nbytes) == (state.quant_type, state.nested, q.spec.nbytes(held.numel))
        np.testing.assert_array_equal(q.packed.reshape(-1), codes.view(torch.uint8).reshape(-1).numpy())
        if state.nested:
            assert q.nested is not None
            np.testing.assert_array_equal(q.nested.codes, state.absmax.numpy())
            np.testing.assert_array_equal(q.nested.absmax, state.state2.absmax.numpy())
            assert q.nested.offset == state.offset.item()
        else:
            np.testing.assert_array_equal(held.scales, state.absmax.numpy())
        values = held.dequantize()
        assert values.dtype == array(torch.empty(0, dtype=state.dtype)).dtype
        np.testing.assert_array_equal(values, array(dequantized(codes, state)))
        np.testing.assert_array_equal(weights(source, name), values)


def test_chunks_and_occupancy_are_those_of_the_whole(checkpoint: Path) -> None:
    source = wb.open_model(checkpoint)
    name = max(theirs(checkpoint))
    held = packed(source, name)
    assert held is not None
    parts = list(held.chunks(1_008))
    assert {part.size for part in parts[:-1]} == {1_008}
    np.testing.assert_array_equal(np.concatenate(parts), held.dequantize().reshape(-1))
    np.testing.assert_array_equal(held.occupancy, np.bincount(held.codes, minlength=16))
    assert held.occupancy.sum() == held.numel
    with pytest.raises(wb.ModelError, match="multiples of 16"):
        next(held.chunks(1_000))


def test_what_is_packed_says_what_it_is(checkpoint: Path) -> None:
    source, reference = wb.open_model(checkpoint), theirs(checkpoint)
    stored = {t.name: t for t in source.tensors()}
    own = {t.name: t for t in logical(source)}
    plain = wb.open_model(checkpoint.parent / "plain")
    assert own.keys() == {t.name for t in plain.tensors()}
    assert sum(t.nbytes for t in own.values()) == sum(t.nbytes for t in stored.values())
    for name, (_, state) in reference.items():
        assert not missing(own[name].reason, "already in 4 bits", state.quant_type.upper(), "blocks of 64")
        assert ("double quantized" in own[name].reason) == state.nested
        assert (own[name].shape, own[name].numel) == (tuple(state.shape), state.shape.numel())
        assert stored[name].reason.startswith(f"already in 4 bits: {state.quant_type.upper()}")
        assert stored[f"{name}.absmax"].reason == f"a part of the packed weight {name}"
    assert not any(t.quantizable for t in (*own.values(), *stored.values()))
    assert source.tensors(exact=True) == source.tensors()


def test_reading_still_gives_the_stored_bytes(checkpoint: Path) -> None:
    source = wb.open_model(checkpoint)
    for name, tensor in safetensors.torch.load_file(checkpoint / "model.safetensors").items():
        assert source.read(name).tobytes() == array(tensor).tobytes()


def test_what_the_checkpoint_keeps_in_16_bits_is_told(tmp_path: Path) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["down_proj", "lm_head"]}
    source = wb.open_model(save_quantized(tmp_path, "llama", tiny.LLAMA, torch.bfloat16, **how))
    (kept,) = (out for out in left_in_16_bits(logical(source)) if "NF4, blocks of 64" in out.reason)
    assert (kept.tensors, kept.numel, kept.nbytes, kept.unexpected) == (2, 2 * 64 * 128, 4 * 64 * 128, True)


def test_llm_int8_is_dequantized_as_bitsandbytes_does(tmp_path: Path) -> None:
    import bitsandbytes as bnb

    folder = save_quantized(tmp_path, "llama", TAILS, torch.float16, load_in_8bit=True)
    source, tensors = wb.open_model(folder), safetensors.torch.load_file(folder / "model.safetensors")
    names = [t.name for t in source.tensors() if "LLM.int8" in t.reason and "a part of" not in t.reason]
    assert len(names) == 14
    for name in names:
        reference = bnb.functional.int8_vectorwise_dequant(tensors[name], tensors[f"{name.removesuffix('weight')}SCB"])
        held = packed(source, name)
        assert held is not None
        np.testing.assert_array_equal(held.dequantize(), reference.numpy())
        np.testing.assert_array_equal(held.codes.view(np.int8), tensors[name].numpy().reshape(-1))
        with pytest.raises(wb.ModelError, match="not a block-wise format"):
            held.quantized()
    assert {t.name for t in logical(source)} == {t.name for t in wb.open_model(tmp_path / "plain").tensors()}


def test_a_weight_and_its_scales_may_lie_in_different_shards(tmp_path: Path) -> None:
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    whole = save_quantized(tmp_path / "a", "llama", tiny.LLAMA, torch.bfloat16, **how)
    shards = save_quantized(tmp_path / "b", "llama", tiny.LLAMA, torch.bfloat16, shard="3KB", **how)
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    names = theirs(whole)
    assert any(index[name] != index[f"{name}.absmax"] for name in names)
    for name in names:
        assert weights(wb.open_model(shards), name).tobytes() == weights(wb.open_model(whole), name).tobytes()


@pytest.mark.parametrize("name", ["nf4", "nf4, double"])
def test_a_packed_checkpoint_is_forecast_as_the_plain_one_in_the_same_specification(name: str, tmp_path: Path) -> None:
    """What the configuration asks for does not matter: a load keeps the checkpoint's own."""
    model_type, config, how, dtype = CASES[name]
    folder = save_quantized(tmp_path, model_type, config, dtype, load_in_4bit=True, **how)
    asked = wb.TrainConfig(double_quant="double" in name)
    plain = wb.forecast(wb.open_model(tmp_path / "plain"), asked)
    other = wb.forecast(wb.open_model(folder), wb.TrainConfig(double_quant="double" not in name, quant_type="fp4"))
    assert other.to_frame().to_dict() == plain.to_frame().to_dict()
    assert plain["4-bit weights"] > 0
    assert plain["adapters"] > 0
