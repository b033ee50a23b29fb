"""What ``TensorInfo`` says of quantization is what a 4-bit load really does.

The judge is content, not names: every tensor on disk is quantized here with bitsandbytes, as it is stored and transposed, and
is called quantized if exactly those bytes are the packed weight of a layer of the loaded model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests import tiny


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[wb.Source, dict[str, str]]:
    """The source, and the layout of each tensor that the loaded model holds in 4 bits."""
    model_type, config, cls = tiny.ARCHITECTURES[request.param]
    folder = tiny.save(tmp_path_factory.mktemp(request.param) / "model", model_type, config, cls)
    return wb.open_model(folder), _really_quantized(folder, cls)


def _really_quantized(folder: Path, cls: str) -> dict[str, str]:
    import bitsandbytes as bnb
    from safetensors.torch import load_file

    def packed(weight: Any) -> bytes:
        codes, _ = bnb.functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
        return bytes(codes.numpy())

    model = tiny.load_4bit(folder, cls)
    held = {bytes(m.weight.data.numpy()) for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)}
    found: dict[str, str] = {}
    matched = set()
    for name, tensor in load_file(folder / "model.safetensors").items():
        for layout, weight in (("as stored", tensor), ("transposed", tensor.T)) if tensor.ndim == 2 else ():
            if (code := packed(weight)) in held:
                found[name] = layout
                matched.add(code)
                break
    assert matched == held, "a 4-bit layer of the loaded model comes from no single tensor on disk"
    return found


@pytest.mark.parametrize("exact", [False, True], ids=["rule", "exact"])
def test_quantizable_is_what_a_4bit_load_does(loaded: tuple[wb.Source, dict[str, str]], exact: bool) -> None:
    source, really = loaded
    infos = source.tensors(exact=exact)
    assert {t.name: t.layout for t in infos if t.quantizable} == really
    assert all(t.reason for t in infos)


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


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model_type": "no-such-model"}, "has no model type 'no-such-model'"),
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
