"""What ``TensorInfo`` says of quantization is what a 4-bit load really does, and the codes shown are the loaded model's.

The judge is content, not names: every tensor on disk is quantized here with bitsandbytes, as it is stored and transposed, and
is called quantized if exactly those bytes are the packed weight of a layer of the loaded model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers import tiny
from workbench.sources.packed import weights
from workbench.sources.rule import left_in_16_bits


@dataclass(frozen=True)
class Loaded:
    """A saved model, and what is left of it once transformers has loaded it in 4 bits."""

    source: wb.Source
    layouts: dict[str, str]
    """The layout of each tensor that the loaded model holds in 4 bits."""
    packed: set[bytes]
    """The packed weights of its 4-bit layers."""
    left: int
    """How many other numbers a checkpoint of it has."""


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    import bitsandbytes as bnb

    model_type, config, cls = tiny.ARCHITECTURES[request.param]
    folder = tiny.save(tmp_path_factory.mktemp(request.param) / "model", model_type, config, cls)
    model = tiny.load_4bit(folder, cls)
    packed = {bytes(m.weight.data.numpy()) for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)}
    saved = model.state_dict()
    buffers = [b for name, b in model.named_buffers() if name in saved and b.is_floating_point()]
    left = sum(p.numel() for p in (*model.parameters(), *buffers) if not isinstance(p, bnb.nn.Params4bit))
    return Loaded(wb.open_model(folder), _layouts(folder, packed), packed, left)


def _layouts(folder: Path, held: set[bytes]) -> dict[str, str]:
    import bitsandbytes as bnb
    from safetensors.torch import load_file

    found: dict[str, str] = {}
    matched = set()
    for name, tensor in load_file(folder / "model.safetensors").items():
        for layout, weight in (("as stored", tensor), ("transposed", tensor.T)) if tensor.ndim == 2 else ():
            codes, _ = bnb.functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
            if (code := bytes(codes.numpy())) in held:
                found[name] = layout
                matched.add(code)
                break
    assert matched == held, "a 4-bit layer of the loaded model comes from no single tensor on disk"
    return found


@pytest.mark.parametrize("exact", [False, True], ids=["rule", "exact"])
def test_quantizable_is_what_a_4bit_load_does(loaded: Loaded, exact: bool) -> None:
    infos = loaded.source.tensors(exact=exact)
    assert {t.name: t.layout for t in infos if t.quantizable} == loaded.layouts
    assert all(t.reason for t in infos)


@pytest.mark.parametrize("exact", [False, True], ids=["rule", "exact"])
def test_the_codes_we_show_are_the_packed_weights_of_the_loaded_model(loaded: Loaded, exact: bool) -> None:
    spec = wb.QuantSpec("nf4", 64, double_quant=True)
    infos = [t for t in loaded.source.tensors(exact=exact) if t.quantizable]
    ours = [wb.quantize(weights(loaded.source, t.name, t.layout), spec).packed.tobytes() for t in infos]
    assert set(ours) == loaded.packed
    assert len(set(ours)) == len(ours)
    for t in infos:  # without a layout the rule's is taken
        assert weights(loaded.source, t.name).tobytes() == weights(loaded.source, t.name, t.layout).tobytes()


@pytest.mark.parametrize("exact", [False, True], ids=["rule", "exact"])
def test_what_is_left_in_16_bits_is_what_the_loaded_model_holds_besides(loaded: Loaded, exact: bool) -> None:
    left = left_in_16_bits(loaded.source.tensors(exact=exact))
    assert sum(out.numel for out in left) == loaded.left
    assert all(out.nbytes == 2 * out.numel > out.extra for out in left)
    assert [out.nbytes for out in left] == sorted((out.nbytes for out in left), reverse=True)


def test_a_model_of_any_kind_is_surveyed_whole(loaded: Loaded) -> None:
    """Decoders, encoders, pictures and speech: every floating-point tensor has a row, and no row a fault."""
    rows = list(wb.survey(loaded.source, [wb.QuantSpec("nf4")], tensors="all", progress=False))
    assert {row.tensor.name for row in rows} == {t.name for t in loaded.source.tensors() if t.dtype == "BF16"}
    assert {row.error for row in rows} == {None}
    assert all(np.isfinite(row.totals[0].rmse) for row in rows)


def test_weights_that_a_user_may_expect_in_4_bits_are_told_apart(tmp_path: Path) -> None:
    model_type, config, _ = tiny.ARCHITECTURES["mixtral"]
    left = left_in_16_bits(wb.open_model(tiny.save(tmp_path / "m", model_type, config)).tensors())
    surprising = [out for out in left if out.unexpected]
    assert [(out.tensors, out.numel, out.nbytes) for out in surprising] == [(2 * 4 * 3, 2 * 4 * 3 * 64 * 128, 393_216)]
    assert surprising[0].reason.startswith("an expert: fused with the others")
    assert surprising[0].extra == 393_216 - 24 * wb.QuantSpec("nf4", 64, double_quant=True).nbytes(64 * 128)
    assert {out.reason for out in left if not out.unexpected} == {
        "an embedding: looked up, not multiplied",
        "the output head: transformers skips it",
        "an expert router: a parameter of its own, not a linear layer",
        "a bias, norm or other vector",
    }


def test_experts_are_fused_on_loading_and_say_so(tmp_path: Path) -> None:
    model_type, config, _ = tiny.ARCHITECTURES["mixtral"]
    source = wb.open_model(tiny.save(tmp_path / "mixtral", model_type, config))
    for exact in (False, True):
        experts = [t for t in source.tensors(exact=exact) if ".experts." in t.name]
        assert len(experts) == 2 * 4 * 3
        assert {t.layout for t in experts} == {"fused"}
        assert {t.reason for t in experts} == {
            "an expert: fused with the others into one 3-D parameter on loading, which stays in 16 bits"
        }


def test_the_rule_tells_a_tied_head_from_its_own(tmp_path: Path) -> None:
    tied = wb.open_model(tiny.save(tmp_path / "tied", "llama", {**tiny.LLAMA, "tie_word_embeddings": True}))
    own = wb.open_model(tiny.save(tmp_path / "own", "llama", tiny.LLAMA))
    reasons = {t.name: t.reason for t in tied.tensors()}
    assert "lm_head.weight" not in reasons
    assert reasons["model.embed_tokens.weight"] == "an embedding, tied to the output head"
    assert {t.name: t.reason for t in own.tensors()}["lm_head.weight"] == "the output head: transformers skips it"


def test_a_tensor_that_is_split_on_loading_has_the_codes_of_its_parts(tmp_path: Path) -> None:
    config = {**tiny.LLAMA, "num_key_value_heads": 4}
    folder = tiny.save(tmp_path / "model", "nomic_bert", config, "NomicBertModel")
    source, model = wb.open_model(folder), tiny.load_4bit(folder, "NomicBertModel")
    split = [t for t in source.tensors(exact=True) if t.layout == "split"]
    assert [(t.name, t.shape, t.quantizable) for t in split] == [
        (f"encoder.layers.{layer}.attn.Wqkv.weight", (3 * 64, 64), True) for layer in (0, 1)
    ]
    for t, layer in zip(split, model.layers, strict=True):
        parts = [getattr(layer.self_attn, name).weight.data for name in ("q_proj", "k_proj", "v_proj")]
        ours = wb.quantize(weights(source, t.name, t.layout), wb.QuantSpec("nf4")).packed
        np.testing.assert_array_equal(ours, np.concatenate([part.numpy() for part in parts]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_type": "no-such-model"}, "has no model type 'no-such-model'"),
        ({"model_type": ["llama"]}, "has no model type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is '1000000000', for a checkpoint of"),
        ({"hidden_size": "wide"}, "transformers cannot build the model"),
        ({"num_attention_heads": 0}, "transformers cannot build the model"),
    ],
)
def test_an_exact_answer_that_cannot_be_had_is_a_model_error(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    source = wb.open_model(tiny.save(tmp_path / "model", "llama", tiny.LLAMA))
    source.config = {**source.config, **change}
    with pytest.raises(wb.ModelError, match=fault):
        source.tensors(exact=True)
    assert len(source.tensors()) == 21


@pytest.mark.parametrize("named", [["EvilModel"], ["Trainer"], "LlamaForCausalLM", None])
def test_an_exact_answer_runs_no_code_of_the_models(tmp_path: Path, named: Any) -> None:
    folder = tiny.save(tmp_path / "model", "llama", tiny.LLAMA)
    (folder / "evil.py").write_text("raise SystemExit('the model ran')")
    source = wb.open_model(folder)
    auto = {"AutoModel": "evil.EvilModel", "AutoModelForCausalLM": "evil.EvilModel", "AutoConfig": "evil.EvilConfig"}
    source.config = {**source.config, "auto_map": auto, "architectures": named}
    assert sum(t.quantizable for t in source.tensors(exact=True)) == 14
