"""What a training run is asked to do, as one frozen value that is checked whole.

Covers the fields, each with what it may be and how a form shows it, and the JSON form; which fields exclude each other is in
``checks``. Does not look at the disk: whether the model and the dataset exist is ``launch``'s question. Names are those of
transformers, peft, TRL and bitsandbytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import numpy as np

from workbench.errors import ConfigError, RunError
from workbench.given import described, is_a, unknown_fields
from workbench.quant.formats import BLOCK_SIZES
from workbench.show import Record, View, as_python, in_words
from workbench.training.checks import faults_of
from workbench.training.choices import (
    BEGINNINGS,
    COMPUTE_DTYPES,
    METHOD_TITLES,
    OPTIMIZERS,
    QUANT_TYPES,
    REPORTS,
    SCHEDULES,
    THOUGHTS,
)  # fmt: skip
from workbench.training.row_kinds import CHATS, ROW_SHAPES, as_now, columns_named, shape_named
from workbench.training.settings import ADAPTED, METHODS, QUANTIZED, Group, setting, settings_of

__all__ = ["METHODS", "OF_ADAPTERS", "PAGE_MIN_NUMEL", "TrainConfig"]

_PATH = '"builtin", a path or owner/name'
PAGE_MIN_NUMEL = 100_000
"""Elements from which bitsandbytes pages an optimizer state (its own constant)."""
_DEFAULT_STEPS = 100
_FORMER = ("bnb_4bit_quant_storage", "fsdp")
"""Fields that there once were, which a run's folder may still hold: no run was launched with another value than the default."""


@dataclass(frozen=True, repr=False)
class TrainConfig(Record):
    """One fine-tuning run. Raises ``ConfigError`` with every fault at once.

    >>> TrainConfig(max_steps=20).to_dict()["optim"]
    'paged_adamw_32bit'
    """

    model: str = setting(
        "builtin", "Model", "text", Group.USUAL, wanted=_PATH, hint="builtin, a folder, owner/name", wide=True,
        also="model_name_or_path model_name model_id base_model",
    )  # fmt: skip
    """``"builtin"``, a local folder as transformers saves it, or ``owner/name`` on the Hub, whose files the run fetches."""
    model_revision: str | None = setting(
        None, "Revision of the model (Hub)", "text", Group.USUAL, also="revision", not_shown="Python names another than main"
    )
    """A branch, tag or commit of a model on the Hub; ``launch`` writes the commit that it used here."""
    dataset: str = setting(
        "builtin", "Dataset", "text", Group.USUAL, wanted=_PATH, hint="builtin, a file or folder, owner/name", wide=True,
        rows=True, also="dataset_name data train_file",
    )  # fmt: skip
    """``"builtin"``; a local file: .jsonl, .json, .csv, .tsv or .txt (a row a line), also with .gz, .bz2 or .xz behind, or
    .parquet or .arrow; a folder of such files, or one of ``save_to_disk``; or ``owner/name`` on the Hub, whose files are
    fetched once, by ``launch`` or the preview. Values are learnt as they stand in the file."""
    dataset_config: str | None = setting(
        None, "Configuration of the dataset", "text", Group.DATA, place=1, hint="a folder inside it", also="dataset_config_name"
    )
    """A folder inside a dataset that has several (a Hub dataset's configuration); None: the whole dataset, which is refused
    where each of several folders has the split."""
    dataset_split: str = setting("train", "Split", "text", Group.DATA, place=1, also="dataset_train_split split")
    """The split of a folder or a Hub dataset: files whose path names it."""
    dataset_revision: str | None = setting(None, "Revision (Hub)", "text", Group.DATA, place=1, hint="branch, tag or commit")
    """A branch, tag or commit of a Hub dataset; ``launch`` writes the commit that it used here."""
    eval_dataset: str | None = setting(None, "Held-out dataset", "text", Group.DATA, place=1, hint="none, or the builtin's own")
    """A held-out dataset with the same columns; None: the builtin dataset's own held-out rows, or ``eval_split`` of
    ``dataset``, or none."""
    eval_split: str | None = setting(None, "Held-out split", "text", Group.DATA, place=1, also="dataset_test_split")
    """The split that is held out, of ``eval_dataset`` or else of ``dataset``."""
    row_shape: str = setting(
        "auto", "Shape of the rows", "choice", Group.DATA, choices=ROW_SHAPES, also="dataset_type dataset_format formatting"
    )
    """How a row becomes text: a key of ``row_kinds.ROW_SHAPES``. ``"auto"``: as the fields that name columns say, else as the
    file's columns and first rows show; ``launch`` writes here what it recognised."""
    text_column: str | None = setting(
        None, "Text column", "text", Group.DATA, hint="text", also="dataset_text_field text_field"
    )
    """The column to learn whole."""
    prompt_column: str | None = setting(None, "Prompt column", "text", Group.DATA, hint="prompt")
    """The column shown to the model without loss."""
    prompt_template: str | None = setting(None, "Template of the prompt", "lines", Group.DATA, hint="{question}", wide=True)
    """What is shown to the model without loss, with {column} where that column's text stands, as ``"Q: {question}\\nA: "``."""
    completion_column: str | None = setting(None, "Completion column", "text", Group.DATA, hint="completion")
    """The column appended to the prompt, on which the loss is taken; of a template, None: output, answer, … by its name."""
    messages_column: str | None = setting(None, "Messages column", "text", Group.DATA, hint="messages")
    """The column with a chat, a list of ``{"role", "content"}`` or ``{"from", "value"}``, put into text by the tokenizer's chat
    template. Chats that the template refuses are left out and counted."""
    thoughts: str = setting("keep", "Thoughts in chats", "choice", Group.DATA, choices=THOUGHTS)
    """``"keep"``: the assistant's thoughts are learnt with its answers; ``"drop"``: left out. Empty ones are never learnt."""
    max_train_rows: int = setting(0, "Rows at most (0: all)", "whole", Group.DATA, least=0, also="max_train_samples")
    """Learn from the first rows of the split, and read no more; of a Hub dataset only the files that hold them are fetched,
    each of them whole: nothing is streamed."""
    completion_only_loss: bool = setting(True, "Loss on completions only", "flag", Group.DATA)
    """Take the loss on completions (of a chat: on what the assistant says) only; False: on the prompts too."""
    max_length: int = setting(
        512, "Length (tokens)", "whole", Group.USUAL, place=4, least=2, rows=True, also="max_seq_length max_seq_len cutoff_len"
    )
    """Tokens a row may have; longer rows are cut at the end."""

    method: str = setting("qlora", "Method", "choice", Group.USUAL, place=1, choices=METHOD_TITLES, wide=True)
    """``"qlora"``: adapters on a frozen 4-bit base; ``"lora"``: on a base in the compute dtype; ``"full"``: every weight."""
    quant_type: str = setting(
        "nf4", "4-bit format", "choice", Group.QUANTIZATION, choices=QUANT_TYPES, also="bnb_4bit_quant_type"
    )
    """4-bit format of the frozen base, ``"nf4"`` or ``"fp4"`` (bitsandbytes' FP4, which is not E2M1)."""
    block_size: int = setting(64, "Block size (weights)", "choice", Group.QUANTIZATION, choices=BLOCK_SIZES, also="blocksize")
    """Weights that share one absmax. bitsandbytes' own configuration has no such field: it is set on every ``Params4bit``."""
    double_quant: bool = setting(
        True, "Double quantization", "flag", Group.QUANTIZATION, also="bnb_4bit_use_double_quant use_nested_quant"
    )
    """Quantize the absmax values too, in blocks of 256."""
    llm_int8_skip_modules: tuple[str, ...] = setting(
        (), "Modules left out of 4 bits", "patterns", Group.QUANTIZATION, refused=True, hint="the head is, always", wide=True,
        also="skip_modules",
    )  # fmt: skip
    """Modules left out of 4 bits besides the head, which always is: their names' beginnings (which may be regular
    expressions) or endings, as ``"down_proj"``."""
    compute_dtype: str = setting(
        "auto", "Compute dtype", "choice", Group.MEMORY, choices=COMPUTE_DTYPES, wide=True,
        also="bnb_4bit_compute_dtype torch_dtype dtype",
    )  # fmt: skip
    """Dtype of activations, and of weights that are not in 4 bits while they are loaded. ``"auto"``: bfloat16 on a GPU that has
    it, float16 on other GPUs (float32 with ``"full"``), float32 on CPUs."""

    lora_r: int = setting(16, "Rank", "whole", Group.USUAL, place=6, least=1, only=ADAPTED, also="r rank lora_rank")
    """Rank of each adapter."""
    lora_alpha: int = setting(32, "Alpha", "whole", Group.USUAL, place=7, least=1, only=ADAPTED, also="alpha")
    """The adapter's product is scaled by alpha / rank."""
    use_rslora: bool = setting(False, "Scale by α / √rank (rsLoRA)", "flag", Group.ADAPTERS, place=2, refused=True)
    """Scale it by alpha / √rank instead (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = setting(False, "Train magnitudes too (DoRA)", "flag", Group.ADAPTERS, place=2, refused=True)
    """Train each output's magnitude beside the adapter, which then learns directions (DoRA, arXiv 2402.09353)."""
    init_lora_weights: bool | str = setting(
        True, "Initialisation", "choice", Group.ADAPTERS, place=1, choices=BEGINNINGS, refused=True
    )
    """How adapters begin. True: A at random, B zero. ``"gaussian"``: the same with a normal A. ``"olora"``: from the QR
    decomposition of the weight, which the base then lacks (a 4-bit base is quantized again). ``"pissa"``: from its largest
    singular values; what is left is the base, quantized anew with ``"qlora"`` (QPiSSA). ``"loftq"``: from what 4 bits have lost
    of it, with ``"qlora"`` and alpha = rank. ``"eva"``: B zero, and A the directions in which a module's input varies most on
    128 training rows, drawn with ``seed``."""
    lora_dropout: float = setting(0.05, "Dropout (share)", "real", Group.ADAPTERS, least=0, below=1, also="dropout")
    """Dropout before the adapter's first matrix."""
    target_modules: str | tuple[str, ...] = setting(
        "all-linear", "Modules with an adapter", "names", Group.ADAPTERS, hint="all-linear", wide=True,
        also="lora_target_modules",
    )  # fmt: skip
    """``"all-linear"`` (every linear but the head) or names of modules."""

    init_adapter: str | None = setting(
        None, "Begin from an adapter", "text", Group.ADAPTERS, refused=True, hint="none, or a run's or adapter's folder",
        wide=True,
    )  # fmt: skip
    """A run, its folder, or a folder in which peft saved an adapter, whose weights adapters begin with. ``launch`` takes rank,
    alpha, targets, rsLoRA and DoRA from it, whatever they are here, and refuses one of another base."""

    optim: str = setting(
        "paged_adamw_32bit", "Optimizer", "choice", Group.OPTIMIZER, choices=OPTIMIZERS, wide=True, also="optimizer"
    )
    """Optimizer by transformers' name: ``paged_adamw_32bit``, ``paged_adamw_8bit``, ``adamw_8bit`` or ``adamw_torch``."""
    page_min_numel: int = setting(PAGE_MIN_NUMEL, "Page states from (elements)", "whole", Group.OPTIMIZER, least=1)
    """Smallest parameter, in elements, whose optimizer state is paged on a GPU; lower it and small models page too."""
    learning_rate: float = setting(2e-4, "Learning rate", "real", Group.USUAL, place=5, above=0, also="lr")
    """Peak learning rate."""
    lr_scheduler_type: str = setting(
        "constant_with_warmup", "Schedule", "choice", Group.OPTIMIZER, choices=SCHEDULES, wide=True,
        also="lr_scheduler scheduler",
    )  # fmt: skip
    """Schedule by transformers' name."""
    warmup_steps: float = setting(
        0.03, "Warm-up (steps; below 1 a share)", "real", Group.OPTIMIZER, least=0, also="warmup_ratio warmup"
    )
    """Steps of linear warm-up; below 1 a share of all steps."""
    weight_decay: float = setting(0.0, "Weight decay", "real", Group.OPTIMIZER, place=3, least=0)
    """Decoupled weight decay."""
    adam_beta1: float = setting(0.9, "Adam β₁", "real", Group.OPTIMIZER, place=3, least=0, below=1, also="beta1")
    """Decay of the first moment."""
    adam_beta2: float = setting(0.999, "Adam β₂", "real", Group.OPTIMIZER, place=3, least=0, below=1, also="beta2")
    """Decay of the second moment."""
    max_grad_norm: float = setting(
        0.3, "Clip gradients at (norm; 0: never)", "real", Group.OPTIMIZER, place=2, least=0, also="grad_clip gradient_clip"
    )
    """Gradients are scaled down to this norm; 0 turns that off."""
    per_device_train_batch_size: int = setting(
        4, "Batch (rows)", "whole", Group.USUAL, place=3, least=1, also="batch_size train_batch_size micro_batch_size"
    )
    """Rows in one forward pass."""
    gradient_accumulation_steps: int = setting(
        1, "Batches a step", "whole", Group.OPTIMIZER, place=1, least=1, also="grad_accum accumulate_grad_batches"
    )
    """Forward passes whose gradients make one step."""
    max_steps: int = setting(-1, "Steps", "whole", Group.USUAL, place=2, least=1, also="steps num_steps iters")
    """Optimizer steps of the whole run; -1: what ``num_train_epochs`` makes, or 100 without it."""
    num_train_epochs: float | None = setting(None, "Epochs", "real", Group.USUAL, place=2, above=0, also="epochs num_epochs")
    """Passes over the data, instead of ``max_steps``; parts of one are allowed."""
    upcast_to_fp32: bool = setting(False, "Embeddings and head in fp32 (peft's way)", "flag", Group.MEMORY, only=QUANTIZED)
    """Make every weight that is not in 4 bits fp32, as peft's ``prepare_model_for_kbit_training`` does. False: only norms and
    biases; most models' losses are the same to the last bit, with six bytes a weight of the head and two a weight of the
    embeddings less."""
    logits_at_once: int = setting(256, "Logits at a time (tokens; 0: all)", "whole", Group.MEMORY, least=0)
    """Tokens whose logits are made at a time where the head is frozen: the loss is the same but for the order of sums."""
    group_by_length: bool = setting(True, "Batches of rows of like lengths", "flag", Group.MEMORY)
    """Gather rows of like lengths into batches, which saves most of their padding; the longest row comes in the first step, so
    that a shortage of memory shows there."""
    packing: bool = setting(False, "Pack rows end to end", "flag", Group.MEMORY, also="sample_packing")
    """Put rows end to end, up to ``max_length`` tokens, each with positions of its own: what counts as a row everywhere else
    is then such a pack. Refused for models that do not keep the rows apart."""
    gradient_checkpointing: bool = setting(
        True, "Gradient checkpointing", "flag", Group.MEMORY, also="use_gradient_checkpointing grad_checkpoint"
    )
    """Keep only each layer's input and compute the rest again in the backward pass."""
    norms_in_16_bits: bool = setting(
        False, "Norms answer in 16 bits (not yet run on a GPU)", "flag", Group.MEMORY, wide=True, only=QUANTIZED
    )
    """Have norms answer in the compute dtype: a layer takes less while it is computed, and rounds as 16 bits do. What is summed
    from layer to layer stays float32."""
    rescale_mlp: int = setting(0, "Rescale MLPs for float16 (power of two; 0: not)", "whole", Group.MEMORY, wide=True, least=0)
    """Have up projections of gated MLPs answer so many powers of two less and down projections make up for it: the same
    function, within what float16 holds. For models whose MLPs overflow there; 6 is enough for most."""
    inputs_on_host: bool = setting(False, "Layers' inputs on the host (not yet run on a GPU)", "flag", Group.MEMORY, wide=True)
    """Hold what gradient checkpointing keeps of each layer in the host's memory until the backward pass: the same bits, for
    the time that moving it takes both ways. Means nothing on a CPU."""
    nproc_per_node: int = setting(1, "Processes (one a GPU)", "whole", Group.GPUS, least=1, also="num_processes num_gpus")
    """Processes that train together on this machine, one a GPU (or on its CPU), as torchrun names it. A step then takes
    ``per_device_train_batch_size`` rows in each, and the mean of their gradients (DDP) [not yet run on several GPUs]."""

    save_steps: int = setting(50, "Checkpoint every (steps; 0: never)", "whole", Group.CHECKPOINTS, least=0)
    """Steps between checkpoints; 0: none (a run that is paused writes one all the same)."""
    save_total_limit: int = setting(2, "Checkpoints kept", "whole", Group.CHECKPOINTS, least=1)
    """Checkpoints kept, the newest; the best one is kept besides, wherever there are evaluations by steps."""
    mirror_dir: str | None = setting(
        None, "Mirror folder", "text", Group.CHECKPOINTS, place=2, hint="none; a Drive folder, say"
    )
    """A folder, such as one of a mounted Drive, in which a folder of the run's name follows the run while it goes on: newest
    checkpoint, adapter, events and configuration. It is made where the folder around it is there. ``wb.resume_from`` goes on
    from it when this machine is gone."""
    push_to_hub: bool = setting(False, "Push to the Hub at the end", "flag", Group.CHECKPOINTS, place=2)
    """Push the adapter (or model), its card and the run's events to the Hub at the end; ``wb.push`` does it at any time."""
    hub_model_id: str | None = setting(None, "Repository (Hub)", "text", Group.CHECKPOINTS, place=2, hint="the run's name")
    """The repository, as ``name`` or ``owner/name``; None: the run's name, in the account that is logged in."""
    hub_private_repo: bool = setting(True, "Private repository", "flag", Group.CHECKPOINTS, place=2)
    """Whether a repository that the push makes is private."""
    eval_steps: int = setting(0, "Evaluate every (steps; 0: at both ends)", "whole", Group.CHECKPOINTS, least=0)
    """Steps between evaluations; 0: only before and after. One that is the best so far writes a checkpoint of its own."""
    load_best_model_at_end: bool = setting(False, "End with the best, not the last", "flag", Group.CHECKPOINTS)
    """Have the run end with the weights of the lowest held-out loss after a step, instead of the last ones."""
    early_stopping_patience: int = setting(
        0, "Finish early after (evaluations without a better one; 0: never)", "whole", Group.CHECKPOINTS, wide=True, least=0
    )
    """Evaluations in a row without a lower held-out loss after which the run finishes early; 0: it never does."""
    report_to: str = setting("none", "Logs besides the workbench's", "choice", Group.CHECKPOINTS, place=1, choices=REPORTS)
    """``"tensorboard"``: write its logs into the run's folder too; ``"trackio"``: into trackio's own, on this machine alone.
    Each needs the package of its name. They get numbers: alerts are the page's and the webhook's."""
    max_eval_rows: int = setting(
        64, "Held-out rows at most (0: no evaluation)", "whole", Group.CHECKPOINTS, least=0, rows=True, also="max_eval_samples"
    )
    """Held-out rows measured at most; 0: no evaluation."""
    sample_prompts: tuple[str, ...] | None = setting(
        None, "Sample prompts", "texts", Group.CHECKPOINTS, not_shown="a prompt may have several lines: Python sets them"
    )
    """Prompts completed before and after. None: a few held-out prompts where there are any; ``()``: no samples."""
    sample_max_new_tokens: int = setting(
        40, "Tokens generated for a sample", "whole", Group.CHECKPOINTS, least=1, also="max_new_tokens"
    )
    """Tokens generated for each prompt."""
    seed: int = setting(42, "Seed", "whole", Group.CHECKPOINTS, least=0, also="random_state")
    """Seed of the adapters' initialisation, the order of rows and dropout."""

    def __new__(cls, /, *_: Any, **given: Any) -> Self:
        """Refuses names that are no fields, with the nearest that are."""
        if faults := unknown_fields(given, {name: declared.also.split() for name, declared in settings_of(cls).items()}):
            raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic | np.ndarray):  # as a loop over a range of NumPy's gives them
                object.__setattr__(self, name, value.tolist())
        for name in ("model", "dataset", "eval_dataset", "init_adapter", "mirror_dir"):
            value = getattr(self, name)
            if isinstance(value := getattr(value, "dir", value), PathLike):  # a run's folder
                object.__setattr__(self, name, str(value))
        for name, declared in settings_of(self).items():
            object.__setattr__(self, name, declared.as_meant(getattr(self, name)))
        if self.row_shape == shape_named(self, implied=True):
            object.__setattr__(self, "row_shape", "auto")
        if self.max_steps == -1 and self.num_train_epochs is None:
            object.__setattr__(self, "max_steps", _DEFAULT_STEPS)
        if faults := faults_of(self):
            raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")

    @property
    def shape(self) -> str | None:
        """The shape of its rows, a key of ``ROW_SHAPES``; None where the file decides."""
        return shape_named(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, as far as the fields say: the prompt's, and then what is learnt."""
        return columns_named(self)

    @property
    def chats(self) -> bool:
        """Whether its rows go through the chat template, as far as the fields say."""
        return self.shape in CHATS

    @property
    def warmup(self) -> int:
        """Whole steps of warm-up, once ``max_steps`` is known."""
        return math.ceil(self.warmup_steps * self.max_steps) if self.warmup_steps < 1 else int(self.warmup_steps)

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the lowest held-out loss is kept."""
        return self.eval_steps > 0 and (self.save_steps > 0 or self.load_best_model_at_end)

    @property
    def rows_a_step(self) -> int:
        """Rows of all processes in one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.nproc_per_node

    def for_rows(self, rows: int) -> TrainConfig:
        """The same run on a dataset of so many rows in steps: epochs become ``max_steps`` as transformers counts them.

        Batches a pass, over all processes, rounded up; steps a pass, rounded up again where the last one gathers fewer batches.
        """
        if self.num_train_epochs is None:
            return self
        batches = -(-rows // (self.per_device_train_batch_size * self.nproc_per_node))
        steps = max(-(-batches // self.gradient_accumulation_steps), 1)
        return dataclasses.replace(self, max_steps=math.ceil(self.num_train_epochs * steps), num_train_epochs=None)

    def _chosen(self) -> dict[str, Any]:
        """The fields that are not as by default, and what they are then."""
        return {name: default for name, default in vars(TrainConfig()).items() if getattr(self, name) != default}

    def __repr__(self) -> str:
        return as_python(self, {name: getattr(self, name) for name in self._chosen()})

    def _show_(self) -> View:
        chosen, declared = self._chosen(), settings_of(self)
        shown = [name for name, each in declared.items() if name in chosen or each.group == Group.USUAL]
        lines = [
            {
                "field": name, "value": in_words(getattr(self, name)), "what it is": each.label,
                "by default": in_words(chosen[name]) if name in chosen else "",
            }
            for name, each in declared.items() if name in shown
        ]  # fmt: skip
        return View(
            "A training run's configuration",
            lines=lines,
            note=f"The other {len(declared) - len(shown)} fields are as by default.",
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; ``from_dict`` gives the same configuration back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """The configuration that ``to_dict`` wrote, now or when it had more fields.

        Raises:
            ConfigError: For unknown names, with the nearest known one.
        """
        if not is_a(fields, Mapping):
            remedy = "Give what to_dict returns."
            raise ConfigError([f"{described(fields)} holds no fields."], where="TrainConfig", remedy=remedy)
        return cls(**as_now({str(name): value for name, value in fields.items() if name not in _FORMER}))


OF_ADAPTERS = {
    name: declared.default
    for name, declared in settings_of(TrainConfig).items()
    if declared.refused and declared.methods == ADAPTED and name != "init_adapter"
}
"""Fields that only a ``LoraConfig`` has, beside rank, alpha, dropout and targets, and what they are unless given."""


def as_config(given: TrainConfig, where: str) -> TrainConfig:
    """The configuration itself; RunError on anything else, with where it is to be had."""
    if not is_a(given, TrainConfig):
        remedy = f"wb.{where}(wb.TrainConfig(…)); a run has its own, run.config, and of fields in a dict TrainConfig(**fields)."
        raise RunError(f"It takes a TrainConfig, not {described(given)}.", where=where, remedy=remedy)
    return given
