"""What a training run is asked to do, as one frozen value that is checked whole.

Covers the fields, their checks (all faults told together) and the JSON form. Does not look at the disk: whether the model and
the dataset exist is ``runs.launch``'s question. Names are those of transformers, peft and bitsandbytes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError
from workbench.formats import BLOCK_SIZES, FORMATS

METHODS = ("qlora", "lora")
QUANT_TYPES = tuple(name for name, form in FORMATS.items() if form.trainable)
COMPUTE_DTYPES = ("auto", "bfloat16", "float16", "float32")
OPTIMIZERS = ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")
PAGE_MIN_NUMEL = 100_000
"""Elements from which bitsandbytes pages an optimizer state (its own constant)."""

_WHOLE = {  # field: smallest value
    "max_length": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1, "save_steps": 0,
    "save_total_limit": 1, "eval_steps": 0, "max_eval_rows": 0, "lora_r": 1, "lora_alpha": 1, "page_min_numel": 1, "seed": 0,
    "sample_max_new_tokens": 1,
}  # fmt: skip
_REAL: dict[str, tuple[float, float, bool]] = {  # field: lowest, highest, whether the lowest itself is allowed
    "learning_rate": (0.0, math.inf, False), "warmup_steps": (0.0, math.inf, True), "weight_decay": (0.0, math.inf, True),
    "adam_beta1": (0.0, 1.0, True), "adam_beta2": (0.0, 1.0, True), "max_grad_norm": (0.0, math.inf, True),
    "lora_dropout": (0.0, 1.0, True),
}  # fmt: skip
_CHOICE = {
    "method": METHODS, "quant_type": QUANT_TYPES, "block_size": BLOCK_SIZES, "compute_dtype": COMPUTE_DTYPES,
    "optim": OPTIMIZERS, "lr_scheduler_type": SCHEDULES,
}  # fmt: skip
_FLAG = ("double_quant", "gradient_checkpointing")


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run. Raises ``ConfigError`` with every fault at once.

    >>> TrainConfig(max_steps=20).to_dict()["optim"]
    'paged_adamw_32bit'
    """

    model: str = "builtin"
    """``"builtin"`` or a local folder as transformers saves it."""
    dataset: str = "builtin"
    """``"builtin"`` or a local file: .jsonl, .json, .csv, .parquet, or .txt (a row a line)."""
    eval_dataset: str | None = None
    """A held-out file with the same columns; None: the builtin dataset's own held-out rows, nothing for a local file."""
    text_column: str | None = None
    """The column to learn whole. None with no prompt column: ``text`` for a local file."""
    prompt_column: str | None = None
    """The column shown to the model without loss (builtin: ``prompt``)."""
    completion_column: str | None = None
    """The column appended to the prompt, on which the loss is taken (builtin: ``completion``)."""
    max_length: int = 512
    """Tokens a row may have; longer rows are cut at the end."""

    method: str = "qlora"
    """``"qlora"``: a 4-bit frozen base; ``"lora"``: the base in the compute dtype."""
    quant_type: str = "nf4"
    """4-bit format of the frozen base, ``"nf4"`` or ``"fp4"`` (bitsandbytes' FP4, which is not E2M1)."""
    block_size: int = 64
    """Weights that share one absmax. bitsandbytes' own configuration has no such field: it is set on every ``Params4bit``."""
    double_quant: bool = True
    """Quantize the absmax values too, in blocks of 256."""
    compute_dtype: str = "auto"
    """Dtype of activations. ``"auto"``: bfloat16 on a GPU that has it, float16 on other GPUs, float32 on CPUs."""

    lora_r: int = 16
    """Rank of each adapter."""
    lora_alpha: int = 32
    """The adapter's product is scaled by alpha / rank."""
    lora_dropout: float = 0.05
    """Dropout before the adapter's first matrix."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """``"all-linear"`` (every linear but the head) or names of modules."""

    optim: str = "paged_adamw_32bit"
    """Optimizer by transformers' name: ``paged_adamw_32bit``, ``paged_adamw_8bit``, ``adamw_8bit`` or ``adamw_torch``."""
    page_min_numel: int = PAGE_MIN_NUMEL
    """Smallest parameter, in elements, whose optimizer state is paged on a GPU; lower it and small models page too."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: str = "constant_with_warmup"
    """Schedule by transformers' name."""
    warmup_steps: float = 0.03
    """Steps of linear warm-up; below 1 a share of ``max_steps``."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    max_grad_norm: float = 0.3
    """Gradients are scaled down to this norm; 0 turns that off."""
    per_device_train_batch_size: int = 4
    """Rows in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes whose gradients make one step."""
    max_steps: int = 100
    """Optimizer steps of the whole run."""
    gradient_checkpointing: bool = True
    """Keep only each layer's input and compute the rest again in the backward pass."""

    save_steps: int = 50
    """Steps between checkpoints; 0: none (a run that is paused writes one all the same)."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    eval_steps: int = 0
    """Steps between evaluations; 0: only before and after."""
    max_eval_rows: int = 64
    """Held-out rows measured at most; 0: no evaluation."""
    sample_prompts: tuple[str, ...] | None = None
    """Prompts completed before and after. None: a few held-out prompts where there are any; ``()``: no samples."""
    sample_max_new_tokens: int = 40
    """Tokens generated for each prompt."""
    seed: int = 42
    """Seed of the adapters' initialisation, the order of rows and dropout."""

    def __post_init__(self) -> None:
        for name in ("target_modules", "sample_prompts"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if faults := [*self._field_faults(), *self._cross_faults()]:
            raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")

    def _field_faults(self) -> list[str]:
        faults = []

        def fault(name: str, wanted: str) -> None:
            faults.append(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")

        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                fault(name, f"a whole number, {least} or more")
        for name, (low, high, with_low) in _REAL.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not (low <= value if with_low else low < value) or not value < high:
                above = f"{low:g} or more" if with_low else f"above {low:g}"
                fault(name, f"a number, {above}" + (f" and below {high:g}" if math.isfinite(high) else ""))
        for name, choices in _CHOICE.items():
            if getattr(self, name) not in choices:
                fault(name, "one of " + ", ".join(map(repr, choices)))
        for name in _FLAG:
            if not isinstance(getattr(self, name), bool):
                fault(name, "True or False")
        for name in ("model", "dataset"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                fault(name, '"builtin" or a path')
        for name in ("eval_dataset", "text_column", "prompt_column", "completion_column"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                fault(name, "None or a name")
        if self.target_modules != "all-linear" and not _names(self.target_modules):
            fault("target_modules", '"all-linear" or a tuple of module names')
        if self.sample_prompts is not None and self.sample_prompts != () and not _names(self.sample_prompts):
            fault("sample_prompts", "None or a tuple of texts that are not empty")
        return faults

    def _cross_faults(self) -> list[str]:
        faults = []
        if (self.prompt_column is None) != (self.completion_column is None):
            faults.append("prompt_column and completion_column go together: name both or neither.")
        if self.text_column is not None and self.prompt_column is not None:
            faults.append("text_column and prompt_column exclude each other: learn the whole text or completions only.")
        if self.dataset != "builtin" and self.eval_dataset == "builtin":
            faults.append('eval_dataset is "builtin" but dataset is a file: name a held-out file with the same columns.')
        return faults

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read: ``(text,)`` or ``(prompt, completion)``."""
        if self.text_column is not None:
            return (self.text_column,)
        if self.prompt_column is not None and self.completion_column is not None:
            return self.prompt_column, self.completion_column
        return ("prompt", "completion") if self.dataset == "builtin" else ("text",)

    @property
    def warmup(self) -> int:
        """Whole steps of warm-up."""
        return math.ceil(self.warmup_steps * self.max_steps) if self.warmup_steps < 1 else int(self.warmup_steps)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; ``from_dict`` gives the same configuration back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """The configuration that ``to_dict`` wrote. Unknown names raise ``ConfigError`` with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        faults = []
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                faults.append(f"{name!r} is no field." + (f" Did you mean {near[0]!r}?" if near else ""))
        if faults:
            raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")
        return cls(**fields)


def _names(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) and v for v in value)
