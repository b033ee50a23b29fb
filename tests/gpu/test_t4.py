"""What ``make gpu-check`` does on a larger GPU as if it were a T4: an 8B's shapes, its memory capped to a T4's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.step import Facts, scratch_folder

_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
_TOKENS = 2_048


def long_rows(path: Path, count: int, together: int) -> Path:
    """Rows of so many of the embedded dataset's texts, each longer than what is trained on."""
    import workbench as wb

    source = Path(wb.__file__).parent / "builtin" / "data" / "train.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    rows = ("\n".join((texts * 2)[i * together : (i + 1) * together]) for i in range(count))
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
    return path


def capped(config: Any, folder: Path, share: float | None) -> tuple[Any, int]:
    """A run's status, and the most that the allocator had given it in a step; of the GPU it may take that share."""
    import workbench as wb

    before = os.environ.get("PYTORCH_ALLOC_CONF")
    if share is not None:
        os.environ["PYTORCH_ALLOC_CONF"] = f"expandable_segments:True,per_process_memory_fraction:{share:.4f}"
    try:
        run = wb.launch(config, folder)
        status = run.wait(1_500)
    finally:
        os.environ.pop("PYTORCH_ALLOC_CONF", None)
        if before is not None:
            os.environ["PYTORCH_ALLOC_CONF"] = before
    return status, max((event["peak"] or 0 for event in run.events() if event["k"] == "step"), default=0)


@pytest.mark.gpu(seconds=3_600)
def test_an_8b_in_a_t4s_memory(facts: Facts) -> None:
    """QLoRA of Llama-3.1-8B's shapes in 14.56 GiB, in float16 and bfloat16: it fits, and takes what is forecast."""
    import torch

    import workbench as wb
    from tests.helpers.random_weights import write
    from workbench.memory.gpus import find
    from workbench.memory.ledger import CONTEXT

    t4, here = find("T4").usable, torch.cuda.get_device_properties(0).total_memory
    facts["memory of this GPU"] = here
    with scratch_folder() as folder:
        shapes = wb.PublishedShapes(_MODEL)
        model = write(folder / "model", shapes)
        rows = long_rows(folder / "rows.jsonl", 8, 100)
        for dtype in ("float16", "bfloat16"):
            config = wb.TrainConfig(
                model=str(model), dataset=str(rows), text_column="text", max_length=_TOKENS, per_device_train_batch_size=1,
                max_steps=3, save_steps=0, max_eval_rows=0, sample_prompts=(), compute_dtype=dtype, optim="adamw_8bit",
            )  # fmt: skip
            ledger = wb.fit(wb.forecast(shapes, config), "T4").ledger
            status, peak = capped(config, folder / dtype, min(t4 / here, 1.0))
            facts[f"{dtype}, forecast"], facts[f"{dtype}, measured"] = ledger.needed - ledger[CONTEXT], peak
            assert status.state == "finished", f"{dtype}: {status.state}: {status.message}"
            assert abs(peak / facts[f"{dtype}, forecast"] - 1) < 0.05, f"{dtype}: the forecast is more than 5 % off."


@pytest.mark.gpu(seconds=300)
def test_heads_by_turns(facts: Facts) -> None:
    """The one fast kernel that a T4 has takes heads in turn, answers as with repeated keys, and takes no more memory."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import AttentionInterface

    from workbench import compat

    heads, shared, width = 32, 4, 128
    torch.manual_seed(0)
    shapes = [(1, count, _TOKENS, width) for count in (heads, heads // shared, heads // shared)]
    given = [torch.randn(shape, dtype=torch.float16, device="cuda", requires_grad=True) for shape in shapes]

    def answered(keys_of_all: bool) -> list[torch.Tensor]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        query, *pair = given
        if keys_of_all:
            pair = [part.repeat_interleave(shared, dim=1) for part in pair]
        answer, _ = AttentionInterface._global_mapping["sdpa"](torch.nn.Module(), query, *pair, None)
        gradients = torch.autograd.grad(answer.float().square().sum(), given)
        facts["repeated, peak" if keys_of_all else "by turns, peak"] = torch.cuda.max_memory_allocated() - before
        return [answer.float(), *(part.float() for part in gradients)]

    compat.heads_by_turns()
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        torch.testing.assert_close(answered(False), answered(True), rtol=1e-2, atol=1e-2)
    assert facts["by turns, peak"] <= facts["repeated, peak"]
