"""What double quantization saves, tensor by tensor and on models from 0.5B to 70B."""

import pytest

import workbench as wb
from workbench.memory.savings import double_quant_savings, savings_of_published

# What the linear layers of each model hold, and what is saved on them at blocks of 64 and 256, worked out by hand:
# weights · (32/64 − 8/64 − 32/(64·256)) bits.
KNOWN = {
    "Qwen/Qwen2.5-0.5B": (357.8e6, 16.7e6),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (968.9e6, 45.2e6),
    "Qwen/Qwen2.5-1.5B": (1_310.2e6, 61.1e6),
    "huggyllama/llama-7b": (6_476.0e6, 302.0e6),
    "huggyllama/llama-65b": (64_760e6, 3_020e6),
}


def test_the_tensors_savings_add_up_to_the_model_s():
    src = wb.open_model("builtin")
    for block, nested in ((64, 256), (128, 32)):
        whole = double_quant_savings(src, block, nested)
        assert sum(row.saved for row in whole.tensors) == whole.saved
        assert [row.tensor for row in whole.tensors] == [t.name for t in src.tensors() if t.quantizable]
        plain, double = wb.QuantSpec("nf4", block), wb.QuantSpec("nf4", block, double_quant=True, nested_block_size=nested)
        for row in whole.tensors:
            assert row.saved == plain.nbytes(row.weights) - double.nbytes(row.weights)


def test_published_models_save_what_their_shapes_say():
    found = savings_of_published()
    for name, (weights, saved) in KNOWN.items():
        assert found[name].weights == pytest.approx(weights, rel=1e-3)
        assert found[name].saved == pytest.approx(saved, rel=3e-3)
    sizes = [s.weights for s in found.values()]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.5e9
    assert sizes[-1] > 65e9
