"""Models of which there are only names and shapes, for forecasts."""

from __future__ import annotations

from typing import Any

from workbench.sources.base import Source


class Shapes(Source):
    """A model of which there are only names and shapes."""

    def __init__(self, name: str, shapes: dict[str, tuple[int, ...]], **config: Any) -> None:
        from workbench.sources.header import DTYPES, Entry

        self.name, self.config, self.path = name, config, None
        self._where = {}
        for tensor, shape in shapes.items():
            numel = 1
            for dim in shape:
                numel *= dim
            self._where[tensor] = ("", Entry(tensor, DTYPES["BF16"], shape, 0, 2 * numel))

    def entries(self) -> Any:
        return self._where

    def _open(self, file: str) -> Any:
        raise AssertionError("a forecast reads no weights")


def llama(name: str, hidden: int, intermediate: int, layers: int, vocabulary: int, keys: int | None = None) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    for i in range(layers):
        for part, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys or hidden, hidden),
            "self_attn.v_proj": (keys or hidden, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden), "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }.items():  # fmt: skip
            shapes[f"model.layers.{i}.{part}.weight"] = shape
        shapes[f"model.layers.{i}.input_layernorm.weight"] = shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (
            hidden,
        )
    return Shapes(name, {**shapes, "model.norm.weight": (hidden,)}, model_type="llama", hidden_size=hidden)
