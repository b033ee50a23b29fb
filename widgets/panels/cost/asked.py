"""What the cost view asks of ``wb.evaluate`` and ``wb.sensitivity``: a model, its held-out rows, a folder to keep answers in.

Covers the question as a value that can be compared, and where its answers are kept. Measures nothing itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from widgets.panels.train.words import duration
from widgets.state import State
from workbench.cost.curve import kl_curve
from workbench.cost.evaluation import Evaluation, evaluate
from workbench.cost.jobs import OF_DATA, Job, effort, rows_named
from workbench.cost.sensitivities import Sensitivity, sensitivity
from workbench.errors import WorkbenchError
from workbench.quant.spec import QuantSpec
from workbench.sources import Source
from workbench.surveys.places import Places
from workbench.text import memory_size
from workbench.training.config import TrainConfig


@dataclass(frozen=True)
class Asked:
    """A model, how it is quantized, and the rows that its loss is measured on."""

    source: Source
    model: str
    """As ``wb.open_model`` takes it."""
    data: TrainConfig
    """Only its fields about data differ from their defaults."""
    spec: QuantSpec
    """What modules are quantized to: what training holds them in."""
    folder: Path

    @classmethod
    def of(cls, source: Source, state: State) -> Asked:
        """What the state asks of the open model."""
        training = state.training
        if state.cost_text:
            data = rows_named(state.cost_text)
            data = dataclasses.replace(data, max_eval_rows=training.max_eval_rows, max_length=training.max_length)
        else:
            data = TrainConfig(**{name: getattr(training, name) for name in OF_DATA})
        spec = QuantSpec(training.quant_type, training.block_size, double_quant=training.double_quant)
        return cls(source, state.model, data, spec, Path(state.cost_folder or f"costs/{_name(state.model, data)}"))

    def evaluation(self, bits: str, **how: Any) -> Evaluation:
        """The formats for a key of ``COST_BITS``, with ``progress`` and ``cancelled`` as ``wb.evaluate`` has them."""
        how |= {"data": self.data, "folder": self.folder}
        return kl_curve(self.source, **how) if bits == "curve" else evaluate(self.source, equal_bits=bits == "equal", **how)

    def sensitivity(self, **how: Any) -> Sensitivity:
        """Module by module."""
        return sensitivity(self.source, self.spec, data=self.data, folder=self.folder, **how)

    def cost_of(self, losses: int) -> str:
        """What a press will cost, or why it cannot be measured, as text for the reader."""
        try:
            forecast = effort(self.source, self.data, losses)
        except WorkbenchError as error:
            return f"This cannot be measured: {error}"
        return (
            f"{losses:,} passes over {self.on}, in a process of its own. Forecast: about "
            f"{duration(forecast.seconds)} and {memory_size(forecast.nbytes)} of memory. It can be cancelled and gone on with: "
            f"what is measured is kept in {self.folder}."
        )

    @property
    def kept(self) -> bool:
        """Whether anything was measured before."""
        return (self.folder / "job.json").is_file()

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """What a QLoRA load quantizes."""
        return tuple(t.name.removesuffix(".weight") for t in self.source.tensors() if t.quantizable)

    @cached_property
    def places(self) -> Places:
        """Where each module stands on the map."""
        return Places.named(self.modules)

    @property
    def on(self) -> str:
        """The rows, as text for the reader."""
        text = Job(self.source, self.data).text
        return f"at most {self.data.max_eval_rows:,} {text}, each of at most {self.data.max_length:,} tokens"


def _name(model: str, data: TrainConfig) -> str:
    """A folder's name: the same for the same model and rows, another one for others."""
    digest = hashlib.sha256(repr((model, dataclasses.astuple(data))).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(model).name)[:40]}-{digest}"
