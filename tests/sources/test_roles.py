"""A tensor's role decides what becomes of it; its reason only says so. Rewording a reason changes no number."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from tests.helpers.shapes import Shapes
from widgets.figures.flow import boxes_of
from workbench.memory.adapters import adapters
from workbench.memory.footprint import taken
from workbench.memory.forecast import forecast
from workbench.memory.pager import working_set
from workbench.sources import TensorInfo
from workbench.sources.rule import left_in_16_bits
from workbench.sources.tensor_info import QUANTIZED, Role
from workbench.training.config import TrainConfig

_ATTENTION = {f"model.layers.{i}.self_attn.{part}_proj.weight": (64, 64) for i in range(2) for part in "qkvo"}
_EXPERTS = {
    f"model.layers.0.block_sparse_moe.experts.{i}.{part}.weight": (128, 64) if part != "w2" else (64, 128)
    for i in range(2)
    for part in ("w1", "w2", "w3")
}
_MIXTRAL = {
    "model.embed_tokens.weight": (320, 64),
    **_ATTENTION,
    **_EXPERTS,
    "model.layers.0.block_sparse_moe.gate.weight": (2, 64),
    "model.layers.1.mlp.experts.gate_up_proj": (2, 64, 128),
    "model.layers.1.conv.weight": (64, 1, 4),
    "model.layers.1.scale_shift": (2, 64),
    "model.layers.1.input_norm.weight": (2, 64),
    "model.norm.weight": (64,),
    "model.empty.weight": (0, 64),
    "lm_head.weight": (320, 64),
}
_GPT2 = {
    "wte.weight": (320, 64),
    "wpe.weight": (32, 64),
    "h.0.attn.c_attn.weight": (64, 192),
    "h.0.attn.c_proj.weight": (64, 64),
    "h.0.ln_1.weight": (64,),
}
_MODELS = {
    "mixtral": (_MIXTRAL, {"model_type": "mixtral", "num_local_experts": 2}),
    "tied": (_MIXTRAL, {"model_type": "llama", "tie_word_embeddings": True}),
    "gpt2": (_GPT2, {"model_type": "gpt2", "tie_word_embeddings": True}),
    "t5": ({"shared.weight": (320, 64), "h.0.wo.weight": (64, 128), "h.0.q.weight": (64, 64)}, {"model_type": "t5"}),
}


class Reworded(Shapes):
    """A model whose tensors all have the same reason."""

    def tensors(self, exact: bool = False) -> list[TensorInfo]:
        return [dataclasses.replace(info, reason="x") for info in super().tensors(exact)]


@pytest.mark.parametrize("name", _MODELS)
def test_rewording_every_reason_changes_no_number(name: str) -> None:
    shapes, config = _MODELS[name]
    told, reworded = Shapes(name, shapes, **config), Reworded(name, shapes, **config)
    assert {info.reason for info in reworded.tensors()} == {"x"} != {info.reason for info in told.tensors()}
    for method in ("qlora", "lora", "full"):
        plan = TrainConfig(method=method)
        ledger = forecast(told, plan)
        assert forecast(reworded, plan) == ledger
        assert boxes_of(reworded, ledger) == boxes_of(told, ledger)
        assert working_set(reworded, plan) == working_set(told, plan)
    for targets in ("all-linear", ("q_proj", "w1", "gate", "c_attn", "wte", "embed_tokens", "lm_head")):
        found = [adapters(taken(model.tensors(), model.config), model.config, targets, 8) for model in (told, reworded)]
        assert found[0] == found[1] != []
    left = left_in_16_bits(told.tensors())
    assert left_in_16_bits(reworded.tensors()) == [dataclasses.replace(out, reason="x") for out in left]


def test_a_tensor_is_quantizable_by_its_role_and_every_role_has_its_sentence() -> None:
    found = [info for shapes, config in _MODELS.values() for info in Shapes("m", shapes, **config).tensors()]
    assert all(info.quantizable is (info.role in QUANTIZED) for info in found)
    assert {info.role for info in found} >= {
        Role.LINEAR, Role.CONV1D, Role.FP32_LINEAR, Role.EMBEDDING, Role.TIED_EMBEDDING, Role.HEAD, Role.TIED_HEAD, Role.EXPERT,
        Role.FUSED_EXPERTS, Role.ROUTER, Role.NORM, Role.VECTOR, Role.PARAMETER, Role.HIGH_RANK, Role.EMPTY,
    }  # fmt: skip
    sentences = [role.sentence("…") for role in Role if role is not Role.OTHER]
    assert all(sentences)
    assert len(set(sentences)) == len(sentences)


def test_no_code_searches_a_reason() -> None:
    """Not even in part: ``.reason`` is shown, grouped by and handed on."""
    root = Path(__file__).parents[2]
    searched = []
    for path in (*root.glob("workbench/**/*.py"), *root.glob("widgets/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            searching = isinstance(node, ast.Attribute) and node.attr in ("startswith", "endswith", "find", "index")
            within = [node.value] if searching else node.comparators if isinstance(node, ast.Compare) else []
            searched += [
                f"{path}:{node.lineno}" for part in within if isinstance(part, ast.Attribute) and part.attr == "reason"
            ]
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                searched += [f"{path}:{node.lineno}"] * (isinstance(node.left, ast.Attribute) and node.left.attr == "reason")
    assert searched == []
