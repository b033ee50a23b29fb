"""What a run on a GPU leaves for later forecasts on it: its context, and the slack of its allocator, out of its receipt."""

from __future__ import annotations

import time
from pathlib import Path

from workbench.memory.learnt import Learnt
from workbench.memory.learnt import learn as keep
from workbench.memory.ledger import CONTEXT, SPARE
from workbench.training.events import read_events
from workbench.training.results.receipt_meter import ReceiptMeter


def learn(run: Path) -> Learnt | None:
    """Keeps what the run in a folder measured of its GPU; None where it measured no context, as on a CPU."""
    meter, device = ReceiptMeter(), ""
    for event in read_events(run):
        meter.feed([event])
        if event["k"] == "hello":
            device = str(event.get("device") or "")
    receipt = meter.receipt()
    context = receipt[CONTEXT].measured if receipt.device != "cpu" else None
    if not context:
        return None
    spare = receipt[SPARE].measured
    allocated = next((total.bytes for total in receipt.totals if total.how == "allocator"), 0)
    found = Learnt(
        context, spare / allocated if spare is not None and allocated else None, f"{run.name}, {time.strftime('%Y-%m-%d')}"
    )
    keep(device, found)
    return found
