"""The model card of what a run trained: README.md of the adapter's, the trained model's or an exported folder.

Covers only what the run knows: base model and revision, data, settings, losses, versions. Says nothing of intended use or bias,
which were not measured, and names no path of this machine. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.atomic import replacing
from workbench.errors import RunError, WorkbenchError
from workbench.sources import open_model
from workbench.text import counted, printable
from workbench.training import lineage
from workbench.training.base_code import loading_code
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.events import Event, latest_steps, read_events
from workbench.training.fingerprints import Fingerprints, read
from workbench.training.folder import RunFolder, steps_of
from workbench.training.lineage import Lineage
from workbench.training.results.history import RunHistory
from workbench.training.row_kinds import ROW_SHAPES
from workbench.training.settings import settings_of

_OF_DATA = (
    "dataset_config", "dataset_split", "dataset_revision", "eval_split", "prompt_template", "completion_only_loss",
    "max_length",
)  # fmt: skip
_OF_BASE = ("quant_type", "block_size", "double_quant", "llm_int8_skip_modules")
_OF_LORA = ("lora_r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights")
_OF_TRAINING = (
    "method", "compute_dtype", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1",
    "adam_beta2", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps",
    "num_train_epochs", "load_best_model_at_end", "early_stopping_patience", "gradient_checkpointing", "seed",
)  # fmt: skip
_ELSEWHERE = (
    "model", "model_revision", "dataset", "eval_dataset", "row_shape", "text_column", "prompt_column", "completion_column",
    "messages_column", "thoughts", "max_train_rows", "init_adapter", "nproc_per_node",
)  # fmt: skip
"""Fields that the card states in words of its own."""
_NOT_STATED = (
    "mirror_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "report_to", "save_steps", "save_total_limit",
    "sample_prompts", "sample_max_new_tokens",
)  # fmt: skip
"""Fields that change nothing of what is trained: where it is kept, and what is asked of it meanwhile."""
_FILES_SHOWN = 40
_WHAT = {
    "adapter": ("LoRA adapter", "peft"),
    "model": ("Fine-tuned model", "transformers"),
    "merged": ("Merged model", "transformers"),
    "gguf": ("Merged model as GGUF", "gguf"),
    "gguf-adapter": ("LoRA adapter as GGUF", "gguf"),
}
_TAGS = {"adapter": "lora", "model": "full", "merged": "merged", "gguf": "merged", "gguf-adapter": "lora"}
_ON_BASE: dict[bool | str, str] = {
    "loftq": "  # makes up for what these 4 bits have lost: no adapter for a base in 16 bits",
    "pissa": "  # takes what the adapter begins with out of the base, which peft cannot do in 4 bits",
}
_USE_MODEL = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder")"""


def write_card(run: Path, folder: Path, what: str, notes: Sequence[str] = (), loading: str = "") -> None:
    """Writes ``folder/README.md`` for the run in ``run``.

    ``what``: ``"adapter"``, ``"model"``, ``"merged"``, ``"gguf"`` or ``"gguf-adapter"``. ``notes`` are sentences of Markdown
    for the head of the card, ``loading`` is its part on how the folder is loaded, where that is more than a line.
    """
    with replacing(folder / "README.md") as draft:
        draft.write_text(card_of(run, what, notes, loading), "utf-8")


def step_notes(run: RunFolder, config: TrainConfig, trained: Path) -> list[str]:
    """The note on which step's weights are in a folder of the run, where they are not those of its end."""
    if config.load_best_model_at_end and (best := run.best):
        return [f"The weights are those after step {steps_of(best):,}, of the lowest held-out loss."]
    if trained.parent == run.checkpoints:
        return [f"The weights are those after step {steps_of(trained):,}, of a run that had not ended."]
    return []


def card_of(run: Path, what: str, notes: Sequence[str] = (), loading: str = "") -> str:
    """The card of the run in ``run``, as ``write_card`` writes it."""
    config = TrainConfig.from_dict(json.loads((run / "config.json").read_text("utf-8")))
    return card(config, read_events(run), what, notes, _begun_with(run), _lineage(run), loading)


def card(
    config: TrainConfig,
    events: Iterable[Event],
    what: str,
    notes: Sequence[str] = (),
    begun_with: Fingerprints | None = None,
    came_before: Lineage | None = None,
    loading: str = "",
) -> str:
    """The card's Markdown, from a run's configuration, its events, its fingerprints and its lineage."""
    events = list(events)
    base, revision, licence = base_of(config, begun_with.commit if begun_with else None)
    title, library = _WHAT[what]
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if on_hub(config.model):
        front["base_model"] = config.model
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,40}", licence):  # a name as the Hub has them, and not a sentence
        front["license"] = licence.lower()
    if on_hub(config.dataset):
        front["datasets"] = [config.dataset]
    front["tags"] = [_TAGS[what], config.method]
    data: dict[str, Any] = {"dataset": shown_name(config.dataset), "eval_dataset": _named(config.eval_dataset)}
    data |= {"shape of the rows": ROW_SHAPES.get(config.shape or ""), "columns": config.columns, **_fields(config, _OF_DATA)}
    if config.max_train_rows:
        data["first rows"] = f"{config.max_train_rows:,}"
    if config.chats:
        data["thoughts in chats"] = "kept" if config.thoughts == "keep" else "left out"
    quantized = _fields(config, _OF_BASE) if config.method == "qlora" else {}
    tuned = _fields(config, _OF_LORA) if config.method != "full" else {}
    if config.init_adapter is not None:
        tuned["init_lora_weights"] = "those of the last adapter under What came before"
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items()) + "---",
        f"# {title} of {code(base)}",
        *notes,
        loading or f"```python\n{_use(config, base, revision) if what == 'adapter' else _USE_MODEL}\n```",
        "## Base model",
        _table({"model": base, "revision": revision or None, "licence": licence or None, **quantized}),
        *_before(came_before or Lineage()),
        "## Data",
        _table({**data, **_rows(events)}),
        "## Fingerprints",
        _fingerprints(begun_with),
        "## Training",
        _table({**_fields(config, _OF_TRAINING), **tuned, **_others(config), "processes": config.nproc_per_node}),
        "## Losses",
        _losses(events),
        "## Made with",
        _table(_versions(events)),
    ]
    return "\n\n".join(parts) + "\n"


def _use(config: TrainConfig, base: str, revision: str) -> str:
    said = _ON_BASE.get(config.init_lora_weights, "") if config.method == "qlora" else ""
    if config.init_lora_weights == "pissa":  # which peft takes out of 16-bit weights alone
        config = replace(config, method="lora", llm_int8_skip_modules=())
    config = replace(config, model_revision=revision or config.model_revision)
    model = config.model if on_hub(config.model) else f"the folder of {base}"
    return loading_code(config, model=model, adapter="this folder").rstrip() + said


def base_of(config: TrainConfig, commit: str | None = None) -> tuple[str, str, str]:
    """(name, commit, licence) of the base model; the commit is known for one from the Hub only, else it is empty.

    ``commit``: the one that the run was begun with, where that is recorded; it holds where the model cannot be opened, too.
    """
    name = shown_name(config.model)
    known = (commit or config.model_revision) if on_hub(config.model) else None
    try:
        source = open_model(config.model, known)
    except WorkbenchError:
        return name, known or "", ""
    path = source.path
    here = path.name if path is not None and path.parent.name == "snapshots" else ""
    return name, here or known or "", source.licence


def shown_name(name: str) -> str:
    """A model's or dataset's name without this machine's path."""
    if name == "builtin":
        return "builtin: what QLoRA Workbench embeds"
    return printable(name if on_hub(name) else Path(name).name)


def _named(name: str | None) -> str | None:
    return None if name is None else shown_name(name)


def _fields(config: TrainConfig, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _others(config: TrainConfig) -> dict[str, Any]:
    """Every other field that means something for the method and is not as by default."""
    stated = {*_OF_DATA, *_OF_BASE, *_OF_LORA, *_OF_TRAINING, *_ELSEWHERE, *_NOT_STATED}
    return {
        name: value
        for name, declared in settings_of(config).items()
        if name not in stated and config.method in declared.methods and (value := getattr(config, name)) != declared.default
    }


def _rows(events: Iterable[Event]) -> dict[str, str]:
    found = {}
    for event in events:
        if event["k"] == "dataset":
            counts = (
                f"{event['kept']:,} of {event['total']:,}, {event['loss_tokens']:,} of {event['tokens']:,} tokens with a loss"
            )
            found["rows" if event["split"] == "train" else "held-out rows"] = counts
    return found


def _begun_with(run: Path) -> Fingerprints | None:
    try:
        return read(run)
    except RunError:  # it cannot be read, but what was trained must still be saved
        return None


def _lineage(run: Path) -> Lineage:
    try:
        return lineage.read(run)
    except RunError:
        return Lineage()


def _before(known: Lineage) -> list[str]:
    """The adapters that the run was begun from, oldest first, and the steps that were added to it."""
    if not known.before and not known.extended:
        return []
    rows = {}
    for n, one in enumerate(known.before, 1):
        facts = [
            counted(one.steps, "step") if one.steps is not None else "", one.method, f"on {one.dataset}" if one.dataset else "",
            f"learning rate {one.learning_rate:g}" if one.learning_rate is not None else "",
            f"held-out loss {one.held_out:.4f}" if one.held_out is not None else "", f"base {one.base}",
            f"SHA-256 {one.sha256}",
        ]  # fmt: skip
        rows[f"{n}. adapter of {code(one.name)}"] = "; ".join(filter(None, facts))
    for each in known.extended:
        rows[f"this run, extended after {counted(each.after, 'step')}"] = f"to {each.to:,} steps"
    return ["## What came before", _table(rows)]


def _fingerprints(known: Fingerprints | None) -> str:
    """SHA-256 of each file; of a part with many files, one of them all."""
    if known is None:
        return "Not recorded."
    rows: dict[str, str] = {}
    for part, files in known.parts.items():
        if len(files) > _FILES_SHOWN:
            together = hashlib.sha256("".join(file.sha256 or file.sampled for file in files).encode()).hexdigest()
            rows[f"{part}, {len(files):,} files"] = f"{together} of their SHA-256, in their order"
            continue
        for file in files:
            name = file.name if file.path else f"{file.name}, its values"
            rows[f"{part}, {code(name)}"] = file.sha256 or f"{file.sampled} of {file.pieces} samples"
    changed = "".join(f"\n\nResumed all the same after a change: {code(change)}" for change in known.accepted)
    return f"SHA-256 of what the run was begun with.\n\n{_table(rows)}{changed}"


def _losses(events: Sequence[Event]) -> str:
    steps = [step for step in latest_steps(events) if step["loss"] is not None]
    history = RunHistory()
    history.feed(event for event in events if event["k"] == "eval")
    held_out = history.evals
    lines: dict[str, str] = {}
    if steps:
        for step in (steps[0], steps[-1]):
            lines[f"training, step {step['n']}"] = f"{step['loss']:.4f}"
    for n, loss in sorted(held_out.items()):
        best = ", the lowest" if len(held_out) > 2 and history.best and n == history.best[0] else ""
        lines[f"held out, after {counted(n, 'step')}{best}"] = "no number" if loss is None else f"{loss:.4f}"
    if not held_out:
        lines["held out"] = "not measured"
    return "Mean cross-entropy, in nats a token.\n\n" + _table(lines)


def _versions(events: Iterable[Event]) -> dict[str, Any]:
    hello: Mapping[str, Any] = next((e for e in reversed(list(events)) if e["k"] == "hello"), {})
    return {"device": hello.get("device"), **hello.get("versions", {})}


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {code(value)} |" for name, value in values.items() if value is not None and value != ()]
    return "\n".join(["| | |", "|---|---|", *rows])


def code(value: Any) -> str:
    """A value in Markdown's code, also in a table, whatever is in it."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = printable(text).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
