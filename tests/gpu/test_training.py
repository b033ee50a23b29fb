"""What ``make gpu-check`` trains: whole runs, and what watching a step costs."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.gpu.step import Facts, blow_up, scratch_folder
from tests.helpers.stretches import ratio_of

_OVERHEAD_BOUND = 1.03


@pytest.mark.gpu(seconds=900)
def test_run(facts: Facts) -> None:
    """A run with paged state: eligible, allocated and requested agree, also after Pause and Resume."""
    import workbench as wb

    # Enough steps that Pause comes before the end, and no bound to the size of what is paged.
    config = wb.TrainConfig(max_steps=60, save_steps=20, page_min_numel=1, max_length=128, max_eval_rows=0, sample_prompts=())
    with scratch_folder() as folder:
        going = wb.launch(config, folder / "run")
        for event in going.follow():
            if event["k"] == "step" and event["n"] >= 3:
                going.pause()
                break
        facts["paused as"] = going.wait(300).state
        status = going.resume().wait(600)
        assert status.state == "finished", f"{status.state}: {status.message}"
        events = going.events()
        truth = wb.paging_truth(config, events)
    facts |= {reading.what: reading.bytes for reading in truth.readings}
    facts["told"] = truth.summary
    facts["attempts"] = max(e.get("attempt", 1) for e in events)
    assert facts["paused as"] == "paused", "It was not paused and resumed."
    assert facts["attempts"] == 2, "It was not paused and resumed."
    eligible = truth["eligible to page"]
    for attempt in (1, 2):
        managed = max((e["managed"] for e in events if "managed" in e and e["attempt"] == attempt), default=0)
        assert managed == eligible, f"Attempt {attempt} allocated {managed:,} managed bytes of {eligible:,} eligible."
    assert all(s.requested == eligible for s in truth.steps), "Not every step requested every paged state."


@pytest.mark.gpu(seconds=900)
def test_pressure(facts: Facts) -> None:
    """A run whose state has too little room pages in every step; measured beside simulated."""
    import torch

    import workbench as wb

    # A rank at which the embedded model's optimizer state fills many of the driver's pages.
    config = wb.TrainConfig(
        max_steps=40, save_steps=0, page_min_numel=1, lora_r=1024, max_length=128, max_eval_rows=0, sample_prompts=()
    )
    source = wb.open_model(config.model)
    room = wb.simulate_paging(source, config, torch.cuda.get_device_properties(0).total_memory)
    taken = (room.enough - room.least) // 2
    held: list[Any] = []
    with scratch_folder() as folder:
        going = wb.launch(config, folder / "run")
        for event in going.follow():
            if event["k"] == "step" and event["n"] == 10:  # its state is all there
                held = blow_up(facts, taken)
        status = going.wait(600)
        truth = wb.paging_truth(config, going.events())
    held.clear()
    facts |= {"eligible to page": truth["eligible to page"], "told": truth.summary}
    assert status.state == "finished", f"{status.state}: {status.message}"
    simulated = wb.simulate_paging(source, config, room.enough - taken).per_step[-1].tolist()
    squeezed = [step for step in truth.steps if step.n > 20]
    for way, name, of_step in zip(("h2d", "evicted"), ("to the GPU", "evicted"), simulated, strict=True):
        measured = [getattr(step, way) for step in squeezed]
        facts[f"{name} in a step, simulated"] = of_step
        facts[f"{name} in a step, measured (median)"] = None if None in measured else int(np.median(measured))
    assert any(step.evicted for step in squeezed), "Nothing was evicted while the GPU was full."


@pytest.mark.gpu(seconds=600)
def test_half(facts: Facts) -> None:
    """A run in float16, as on a T4."""
    import torch

    import workbench as wb
    from workbench.training.worker.model import compute_dtype

    facts["auto is"] = str(compute_dtype(wb.TrainConfig()))
    facts["native bfloat16"] = torch.cuda.is_bf16_supported(including_emulation=False)
    config = wb.TrainConfig(
        max_steps=8, save_steps=0, compute_dtype="float16", max_length=128, max_eval_rows=0, sample_prompts=()
    )
    with scratch_folder() as folder:
        going = wb.launch(config, folder / "run")
        status = going.wait(500)
        losses = [e["loss"] for e in going.events() if e["k"] == "step"]
    facts["losses"] = ", ".join(f"{loss:.4f}" if loss is not None else "none" for loss in losses)
    assert status.state == "finished", f"{status.state}: {status.message}"
    assert all(loss is not None and math.isfinite(loss) for loss in losses), "A loss is no number."


@pytest.mark.gpu(seconds=600)
def test_merged(facts: Facts) -> None:
    """An adapter trained on the GPU, exported to 16 bits, gives the run's held-out loss."""
    import torch
    from transformers import AutoModelForCausalLM

    import workbench as wb
    from workbench.training import data
    from workbench.training.worker import batches, trainer

    config = wb.TrainConfig(max_steps=20, save_steps=0, max_length=128, max_eval_rows=32, sample_prompts=())
    with scratch_folder() as folder:
        going = wb.launch(config, folder / "run")
        status = going.wait(500)
        assert status.state == "finished", f"{status.state}: {status.message}"
        facts["held-out loss"] = [e["loss"] for e in going.events() if e["k"] == "eval"][-1]
        facts["largest error"] = max(wb.export(going, folder / "merged").errors.values())
        net = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.bfloat16, device_map={"": 0})
        tokenizer = data.open_tokenizer(folder / "merged")
        held_out = data.load(config, tokenizer, data.held_out_files(config), config.max_eval_rows).rows
        collator = batches.Collator.of(tokenizer)
        with trainer.measuring(net, torch.bfloat16):
            loss = trainer.held_out_loss(net, held_out, collator, config.per_device_train_batch_size, lambda: None)
    facts["held-out loss, merged"] = loss
    assert loss is not None, "The merged model has another loss."
    assert abs(loss - facts["held-out loss"]) < 0.02, "The merged model has another loss."
    assert facts["largest error"] < 2**-8, "A merged weight differs by more than rounding."


@pytest.mark.gpu(seconds=900)
def test_processes(facts: Facts) -> None:
    """A run on several GPUs (DDP); with one GPU nothing is checked."""
    import torch

    import workbench as wb

    facts["GPUs"] = count = torch.cuda.device_count()
    if count < 2:
        facts["told"] = "one GPU: runs on several were not checked"
        return
    config = wb.TrainConfig(nproc_per_node=count, max_steps=8, save_steps=4, max_length=128, max_eval_rows=0, sample_prompts=())
    with scratch_folder() as folder:
        status = wb.launch(config, folder / "run").wait(300)
    facts["DDP"] = f"{status.state}: {status.message}"
    assert status.state == "finished", "The run on several GPUs did not finish."


@pytest.mark.gpu(seconds=600)
def test_overhead(facts: Facts) -> None:
    """What collecting and sampling cost a step."""
    import torch

    from workbench.training.events import EventWriter
    from workbench.training.worker import telemetry
    from workbench.training.worker.cupti import open_cupti
    from workbench.training.worker.optimizers import TracedAdamW, managed_bytes

    net = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).cuda()
    opt = TracedAdamW(net.parameters(), lr=1e-5, optim_bits=32, is_paged=True)
    x = torch.randn(512, 2048, device="cuda")

    def step() -> float:
        began = time.perf_counter()
        net(x).square().mean().backward()
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def stretch(watched: bool, writer: EventWriter) -> list[float]:
        if not watched:
            return [step() for _ in range(20)]
        collector, capability = open_cupti(True)
        facts["CUPTI"] = capability.why
        sampler = telemetry.Sampler(writer, lambda: None)
        sampler.gpu, sampler.managed = telemetry.CudaMemory(), managed_bytes
        sampler.collectors = (collector,) if collector else ()
        sampler.start()
        try:
            return [step() for _ in range(20)]
        finally:
            if collector:
                collector.close()
            sampler.close()

    with scratch_folder() as folder:
        writer = EventWriter(folder / "events.jsonl", 1)
        stretch(True, writer)  # the first one pays for what is made once
        times = [(stretch(True, writer), stretch(False, writer)) for _ in range(12)]
        writer.close()
    ratio, low, high = ratio_of([on for on, _ in times], [off for _, off in times])
    facts |= {"ratio": f"{ratio:.4f}", "95 % interval": f"{low:.4f} to {high:.4f}", "threads left": threading.active_count()}
    assert high <= _OVERHEAD_BOUND, f"The interval's upper end is above {_OVERHEAD_BOUND}."
