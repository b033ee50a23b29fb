"""Real files with anything done to them: a model opens, or it is a ModelError that can be shown, in bounded time and memory."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors

import workbench as wb
from tests.helpers import tiny
from tests.helpers.fuzzing import CASES, MemorySource, altered, fuzz, mutated, raw_of, resized
from workbench.sources.header import read_header
from workbench.sources.packed import logical, packed, parse_state
from workbench.sources.rule import left_in_16_bits

pytestmark = pytest.mark.slow

SLOW = CASES // 4
"""How many cases where each one takes a while: writes a file, or dequantizes a tensor."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as transformers saves it."""
    return tiny.save(tmp_path_factory.mktemp("fuzz") / "plain", "llama", {**tiny.LLAMA, "vocab_size": 32})


@pytest.fixture(scope="module")
def in_4_bits(folder: Path) -> Path:
    """The same, doubly quantized, in shards."""
    out = folder.parent / "in-4-bits"
    tiny.load_4bit(folder).save_pretrained(out, max_shard_size="40KB")
    return out


def header_of(path: Path) -> tuple[bytes, int]:
    """The header of a file, and how many bytes follow it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length], len(raw) - 8 - length


@pytest.mark.parametrize("kind", ["plain", "in 4 bits", "builtin"])
def test_a_mutated_header_opens_or_is_a_model_error(kind: str, folder: Path, in_4_bits: Path) -> None:
    """And what opens is what the reference implementation reads out of the same bytes."""
    builtin = wb.open_model("builtin").path
    assert builtin is not None
    path = {"plain": folder, "in 4 bits": in_4_bits, "builtin": builtin}[kind]
    header, data = header_of(sorted(path.glob("*.safetensors"))[0])
    rest = bytes(data) if kind != "builtin" else b""

    def case(draw: random.Random) -> None:
        text = mutated(header, draw)
        length = (
            len(text) if draw.random() < 0.95 else draw.choice([0, len(text) + data + 9, 2**40, 2**63, draw.getrandbits(16)])
        )
        raw = length.to_bytes(8, "little") + text
        found = read_header(lambda at, count: raw[at : at + count], len(raw) + data, "somewhere/model.safetensors")
        if rest:
            reference = dict(safetensors.deserialize(raw + rest))
            assert {n: (e.dtype.name, list(e.shape), e.end - e.begin) for n, e in found.entries.items()} == {
                n: (view["dtype"], view["shape"], len(view["data"])) for n, view in reference.items()
            }

    cases = SLOW if kind == "builtin" else CASES  # its header is the longest
    outcomes = fuzz(case, cases)
    assert min(outcomes["success"], outcomes["ModelError"]) > cases // 50


def test_a_mutated_index_opens_or_is_a_model_error(in_4_bits: Path, tmp_path: Path) -> None:
    for path in in_4_bits.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    good = index.read_bytes()
    fields = json.loads(good)
    elsewhere = [
        "../x.safetensors",
        "/etc/x.safetensors",
        "config.json",
        "none.safetensors",
        "a/../../b.safetensors",
        "\0.safetensors",
    ]

    def case(draw: random.Random) -> None:
        if draw.random() < 0.5:
            index.write_bytes(mutated(good, draw))
        else:
            weights = fields["weight_map"]
            changed = {**weights, draw.choice(list(weights)): draw.choice([*elsewhere, *weights.values(), *elsewhere])}
            text = json.dumps(altered(fields, draw) if draw.random() < 0.5 else {**fields, "weight_map": changed})
            index.write_text(text, "utf-8", "surrogatepass")
        wb.open_model(tmp_path).tensors()

    outcomes = fuzz(case, SLOW)
    assert min(outcomes["success"], outcomes["ModelError"]) > SLOW // 50


def test_a_mutated_configuration_opens_or_is_a_model_error(in_4_bits: Path, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = tmp_path / "config.json"
    good = (in_4_bits / "config.json").read_bytes()
    fields = json.loads(good)
    fields["quantization_config"]["weight_block_size"] = [128, 128]
    fields["text_config"] = {"tie_word_embeddings": True, "model_type": "llama"}

    def case(draw: random.Random) -> None:
        if draw.random() < 0.5:
            config.write_bytes(mutated(good, draw))
        else:
            config.write_text(json.dumps(altered(altered(fields, draw), draw)), "utf-8", "surrogatepass")
        source = wb.open_model(tmp_path)
        assert len(logical(source)) == len(source.tensors()) == 21
        left_in_16_bits(source.tensors())

    outcomes = fuzz(case, SLOW)
    assert min(outcomes["success"], outcomes["ModelError"]) > SLOW // 50


def test_a_mutated_configuration_has_an_exact_answer_or_is_a_model_error(folder: Path) -> None:
    source = wb.open_model(folder)
    good = source.config

    def case(draw: random.Random) -> None:
        source.config = altered(altered(good, draw), draw)
        if not isinstance(source.config, dict):
            source.config = {}
        assert len(source.tensors(exact=True)) == 21

    source.tensors(exact=True)  # imports torch, which takes time and memory of its own
    outcomes = fuzz(case, SLOW // 5)
    assert min(outcomes["success"], outcomes["ModelError"]) > SLOW // 100


STATE = (
    b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 100], "nested_blocksize": 256, '
    b'"nested_dtype": "float32", "nested_offset": 0.052276611328125}'
)


def test_a_mutated_quantization_state_is_read_or_is_a_model_error() -> None:
    fields = json.loads(STATE)

    def case(draw: random.Random) -> None:
        raw = mutated(STATE, draw) if draw.random() < 0.6 else json.dumps(altered(fields, draw)).encode()
        state = parse_state(raw, "nf4", "a.weight.quant_state.bitsandbytes__nf4", "somewhere")
        assert state.quant_type == "nf4"
        assert state.block_size in (32, 64, 128, 256, 512, 1024, 2048, 4096)
        assert state.shape
        assert min(state.shape) > 0

    outcomes = fuzz(case)
    assert min(outcomes["success"], outcomes["ModelError"]) > CASES // 50


PACKED: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "nf4": {
        "a.weight": ("U8", (3200, 1)), "a.weight.absmax": ("U8", (100,)), "a.weight.quant_map": ("F32", (16,)),
        "a.weight.nested_absmax": ("F32", (1,)), "a.weight.nested_quant_map": ("F32", (256,)),
        "a.weight.quant_state.bitsandbytes__nf4": ("U8", (len(STATE),)),
    },
    "llm.int8": {"a.weight": ("I8", (12, 40)), "a.SCB": ("F32", (12,)), "a.weight_format": ("U8", ())},
    "mxfp4": {"a_blocks": ("U8", (2, 6, 3, 16)), "a_scales": ("U8", (2, 6, 3))},
    "fp8": {"a.weight": ("F8_E4M3", (150, 40)), "a.weight_scale_inv": ("F32", (2, 1))},
    "int8": {"a.weight": ("I8", (30, 20)), "a.weight_scale": ("BF16", (30, 1)), "a.input_scale": ("F32", (1,))},
}  # fmt: skip


@pytest.mark.parametrize("scheme", PACKED)
def test_packed_weights_with_parts_of_any_kind_are_read_or_are_a_model_error(scheme: str) -> None:
    good = PACKED[scheme]
    dtypes = ["U8", "I8", "F32", "BF16", "F16", "F8_E8M0", "F8_E4M3", "F64", "I64", "BOOL", "C64", "F4"]
    maps = {
        "a.weight.quant_map": wb.FORMATS["nf4"].level_of_code.tobytes(),
        "a.weight.nested_quant_map": _dynamic_map(),
        "a.weight.quant_state.bitsandbytes__nf4": STATE,
        "a.weight_format": b"\0",
    }

    def case(draw: random.Random) -> None:
        tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        for name, (dtype, shape) in good.items():
            if draw.random() < 0.05:
                continue
            if draw.random() < 0.15:
                dtype = draw.choice(dtypes)
            if draw.random() < 0.2:
                shape = tuple(resized(shape, draw))
            as_it_was = (dtype, shape) == good[name] and name in maps and draw.random() < 0.9
            tensors[name] = (dtype, shape, maps[name] if as_it_was else raw_of(dtype, shape, draw))
        size: Any = draw.choice([None, [128, 128], [10**12, 1], [1, 1], "x"])
        source = MemorySource(tensors, {"quantization_config": {"weight_block_size": size}})
        source.tensors()
        for name in tensors:
            if tensors[name][0] != "F4" and (held := packed(source, name)) is not None:
                whole = held.dequantize()
                assert whole.shape == held.shape
                assert sum(part.size for part in held.chunks(1_024)) == whole.size == held.occupancy.sum()
        logical(source)

    outcomes = fuzz(case, SLOW)
    assert min(outcomes["success"], outcomes["ModelError"]) > SLOW // 50


def _dynamic_map() -> bytes:
    from workbench.quant.double_quant import dynamic_levels

    return dynamic_levels().tobytes()
