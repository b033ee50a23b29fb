"""A run's form as data: its groups of fields, the switches among them, and how a control's value becomes a configuration's.

Covers which controls mean something as the others stand, and which field a fault belongs to. Labels, kinds, choices and groups
are declared with the fields of ``TrainConfig``. Holds no widgets (``panels.train.form`` does) and no rules about values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.errors import ConfigError
from workbench.training.checks import schedule_faults
from workbench.training.config import TrainConfig
from workbench.training.row_kinds import COLUMNS
from workbench.training.settings import Group, Setting, settings_of


def _switch(label: str, group: Group, titles: Mapping[Any, str], place: int = 0) -> Setting:
    return Setting(next(iter(titles)), label, "choice", group, place, choices=titles)


SWITCHES = {
    "run_for": _switch("Run for", Group.OPTIMIZER, {"max_steps": "steps", "num_train_epochs": "epochs"}, place=-1),
}  # fmt: skip
"""Controls that choose which of several fields counts; the others are as they come."""
FIELDS = SWITCHES | {name: declared for name, declared in settings_of(TrainConfig).items() if not declared.not_shown}
"""Every control: the field of ``TrainConfig`` that it sets, or one of ``SWITCHES``."""
GROUPS: Mapping[Group, tuple[str, ...]] = {
    group: tuple(sorted((name for name in FIELDS if FIELDS[name].group == group), key=lambda name: FIELDS[name].place))
    for group in Group
}
"""Controls that belong together, by name; those with a title stand behind More settings."""
MORE = tuple(name for group, names in GROUPS.items() if group for name in names)
_ALWAYS_SAID = {
    "completion_only_loss", "target_modules", "lora_dropout", "optim", "lr_scheduler_type", "gradient_checkpointing",
    "save_steps", "seed",
}  # fmt: skip
_CHOSEN_BY = {name: ("run_for", (name,)) for name in SWITCHES["run_for"].choices} | {
    name: ("row_shape", tuple(shape for shape, names in COLUMNS.items() if name in names and shape != "auto"))
    for name in COLUMNS["auto"]
}
"""The fields that another control chooses among, each with that control and its values that make it count."""


_NAME = re.compile(r"(?<![\w./\\~-])[a-z0-9]+(?:_[a-z0-9]+)*(?![\w/\\-]|\.\w)")
"""A word that may name a field: not a part of a path or of a file's name."""


def shown_values(config: TrainConfig) -> dict[str, Any]:
    """What the controls say for a configuration."""
    return {name: _control_value(name, config) for name in FIELDS}


def _control_value(name: str, config: TrainConfig) -> Any:
    if name == "run_for":
        return "max_steps" if config.num_train_epochs is None else "num_train_epochs"
    if name == "row_shape":
        return config.row_shape if config.dataset == "builtin" else config.shape or "auto"
    value = getattr(config, name)
    if name == "max_steps" and config.num_train_epochs is not None:
        return TrainConfig().max_steps
    if name == "num_train_epochs":
        return 1.0 if value is None else value
    if isinstance(value, tuple):
        return ", ".join(value)
    return "" if value is None else value


def config_of(base: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that the controls say; what has no control is the base's. ``ConfigError`` with every fault."""
    said = {name: _config_value(name, value) for name, value in values.items() if name not in SWITCHES}
    if values["run_for"] == "max_steps":
        said["num_train_epochs"] = None
    else:
        said["max_steps"] = -1
    said |= {name: None for name in COLUMNS["auto"] if values["row_shape"] not in _CHOSEN_BY[name][1]}
    said |= {name: field.default for name, field in FIELDS.items() if field.refused and not in_use(name, values)}
    config = TrainConfig.from_dict(base.to_dict() | said)
    if faults := schedule_faults(config):
        raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and try again.")
    return config


def _config_value(name: str, value: Any) -> Any:
    field = FIELDS[name]
    if field.kind in ("names", "patterns"):
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        return field.default if names in ((), (field.default,)) else names
    if field.kind == "lines":  # white space at its ends is meant
        return value if value.strip() else None
    if field.kind == "text":
        return value.strip() or ("" if field.default is not None else None)
    return value


def in_labels(text: str) -> str:
    """A text that names fields of a configuration, with the controls' labels in their place."""
    text = "the settings" if text == "TrainConfig" else text
    return _NAME.sub(lambda found: label(found[0]) if found[0] in FIELDS and "_" in found[0] else found[0], text)


def label(name: str) -> str:
    """What a field's control is called, without its unit."""
    return FIELDS[name].label.partition(" (")[0]


def faults_by_field(faults: Iterable[str]) -> dict[str, list[str]]:
    """Each fault beside the control of the field that it names first; under "" those of no control."""
    found: dict[str, list[str]] = {}
    for fault in faults:
        named = next((word for word in _NAME.finditer(fault) if word[0] in FIELDS), None)
        if named is not None:
            fault = f"{fault[: named.start()]}{label(named[0])}{fault[named.end() :]}"
        found.setdefault(named[0] if named is not None else "", []).append(in_labels(fault))
    return found


def summary(names: Iterable[str], values: Mapping[str, Any]) -> str:
    """What a folded group says, in a line: the values as the controls have them, and the flags that are on."""
    used = (name for name in names if in_use(name, values) and name not in SWITCHES)
    return ", ".join(filter(None, (_said(FIELDS[name], values[name]) for name in used)))


def changed_from_usual(values: Mapping[str, Any]) -> str:
    """What the fold says: of its fields those that are not as usual, and a few that say what is done."""
    usual = shown_values(TrainConfig())
    names = [name for name in MORE if name in _ALWAYS_SAID or values[name] != usual[name]]
    return summary(names, values)


def _said(field: Setting, value: Any) -> str:
    called = field.label.partition(" (")[0]
    name = called if called[1:2].isupper() else called[:1].lower() + called[1:]
    if field.kind == "flag":
        return name if value else ""
    if field.kind == "choice":
        chosen = next(title for title, option in field.options if option == value)
        return f"{name} {chosen}" if isinstance(value, int) and not isinstance(value, bool) else chosen
    if field.kind in ("whole", "real"):
        return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:g}"
    return f"{name} {value}" if value else ""


def in_use(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a field's control is there, as the switches and the method stand."""
    chooser, among = _CHOSEN_BY.get(name, ("", ()))
    chosen = not among or values[chooser] in among
    return chosen and values["method"] in FIELDS[name].methods
