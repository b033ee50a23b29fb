"""How far a run's base is from the model in 16 bits before anything is trained: what its method costs by itself.

Covers the base as a QLoRA run holds it, on the run's own held-out rows, measured as ``evaluate`` does and kept in a folder; not
one that its adapter is a part of. The base of the other methods is the model in 16 bits.
"""

from __future__ import annotations

from pathlib import Path

from workbench.cost.assignments import Assignment
from workbench.cost.jobs import job_of
from workbench.cost.measurements import Measurements
from workbench.cost.row_costs import RowCosts
from workbench.errors import WorkbenchError
from workbench.memory.footprint import leaves_out
from workbench.progress import Cancelled
from workbench.quant.spec import QuantSpec
from workbench.sources import open_model
from workbench.training.choices import BEGINNINGS, NOT_ZERO
from workbench.training.config import TrainConfig


def before_training(config: TrainConfig, folder: Path, cancelled: Cancelled) -> tuple[RowCosts | None, str]:
    """The sums of the held-out rows of a QLoRA run's base against the model in 16 bits; what was measured before is read.

    Without them the text says why: where the adapter begins as a part of the base or as what makes up for it, there are no
    held-out rows, or the checkpoint is in 4 bits itself. Neither where ``cancelled()`` says yes.
    """
    if config.init_lora_weights in NOT_ZERO:
        title = BEGINNINGS[config.init_lora_weights]
        return None, f"with {title} base and adapter begin as one: wb.repairs measures them together, as step 0."
    spec = QuantSpec(config.quant_type, config.block_size, double_quant=config.double_quant)
    try:
        job = job_of(open_model(config.model, config.model_revision), config, None, None)
        out = tuple(module for module in job.weights if leaves_out(config.llm_int8_skip_modules, module))
        found = Measurements(job, folder)
        base = Assignment(spec, but=out)
        list(found.measured([Assignment(), base], (), lambda done, total: None, cancelled))
    except WorkbenchError as error:  # the runs' own results stand without it
        return None, str(error)
    return found.rows.get(base.key), ""
