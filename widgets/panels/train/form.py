"""The form of a training run: every field of a ``TrainConfig``, the usual ones in sight and the rest in folds.

Covers the controls, which of them apply given the others, and the faults beside their fields, all at once. What the fields are
is declared with them in ``TrainConfig``; which values are right is for ``workbench.training.checks``. Launches nothing.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets

from widgets.background.tasks import UI
from widgets.controls.binding import Quiet
from widgets.controls.style import column, fields, fold, set_fold
from widgets.panels.train.fields import FIELDS, GROUPS, config_of, faults_by_field, in_use, shown_values, summary
from workbench.errors import ConfigError
from workbench.training.config import TrainConfig
from workbench.training.settings import Group, Setting

_NUMBERS = {"whole": ipywidgets.IntText, "real": ipywidgets.FloatText}


class RunForm:
    """``widget`` holds the controls, ``controls`` has each by its field's name.

    ``changed(config)`` is called after every change by the reader, with None where there is a fault, under ``UI``.
    """

    def __init__(
        self, config: TrainConfig, changed: Callable[[TrainConfig | None], None], *, beside: Iterable[Any] = ()
    ) -> None:
        self._base, self._changed = config, changed
        self._quiet = Quiet()
        self.controls: dict[str, Any] = {name: _control(field) for name, field in FIELDS.items()}
        self._cells = {name: _cell(control, FIELDS[name].wide) for name, control in self.controls.items()}
        self._folds = {group.value: self._fold(group) for group in GROUPS if group}
        usual = [self._cells[name] for name in GROUPS[Group.USUAL]]
        self.widget = column(fields(*usual, *beside, width=118), *self._folds.values())
        self.widget.add_class("wb-form")
        self.show(config)
        for control in self.controls.values():
            self._quiet.on_change(control, self._edited)

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values, by name."""
        return {name: control.value for name, control in self.controls.items()}

    @property
    def config(self) -> TrainConfig:
        """What the controls say; raises ``ConfigError`` with every fault at once."""
        return config_of(self._base, self.values)

    def show(self, config: TrainConfig, before: TrainConfig | None = None) -> None:
        """Set the controls to ``config``; with ``before``, only those for which the two differ."""
        with UI:
            self._base = config
            known = shown_values(before) if before is not None else {}
            with self._quiet:
                for name, value in shown_values(config).items():
                    if name not in known or known[name] != value:
                        self.controls[name].value = value
            self._refresh()

    def _fold(self, group: Group) -> ipywidgets.Box:
        return fold(group.value, fields(*(self._cells[name] for name in GROUPS[group]), width=150))

    def _edited(self, _: Any) -> None:
        with UI:
            self._changed(self._refresh())

    def show_faults(self, found: Iterable[str]) -> None:
        """Show faults that were found elsewhere, as by a launch, beside their fields until the next edit."""
        with UI:
            self._refresh(found)

    def _refresh(self, found: Iterable[str] = ()) -> TrainConfig | None:
        """Show what is in use, what the folds hold and every fault; the configuration where there is none."""
        values, faults, config = self.values, faults_by_field(found), None
        try:
            config = config_of(self._base, values)
        except ConfigError as error:
            faults = faults_by_field(error.faults)
        for name, cell in self._cells.items():
            cell.layout.display = "" if in_use(name, values) else "none"
            _set_fault(cell, " ".join(faults.get(name, ())))
        for title, box in self._folds.items():
            group = Group(title)
            names = GROUPS[group]
            box.layout.display = "" if values["method"] in group.methods else "none"
            set_fold(box, title, summary(names, values), wrong=any(name in faults for name in names))
        return config


def _control(field: Setting) -> Any:
    if field.kind == "choice":
        return ipywidgets.Dropdown(description=field.label, options=field.options)
    if field.kind == "flag":
        return ipywidgets.Checkbox(description=field.label, indent=False)
    if number := _NUMBERS.get(field.kind):
        return number(description=field.label, continuous_update=False)
    return ipywidgets.Text(description=field.label, continuous_update=False, placeholder=field.hint)


def _cell(control: Any, wide: bool) -> ipywidgets.Box:
    cell = ipywidgets.Box([control])
    cell.add_class("wb-cell")
    if wide:
        cell.add_class("wb-span")
    return cell


def _set_fault(cell: ipywidgets.Box, fault: str) -> None:
    control, *shown = cell.children
    if not fault and not shown:
        return
    if not fault:
        cell.children = (control,)
        cell.remove_class("wb-wrong")
        shown[0].close()
        shown[0].layout.close()
        return
    text = f'<div class="wb-fault" role="alert">{html.escape(fault)}</div>'
    if shown:
        shown[0].value = text
    else:
        cell.children = (control, ipywidgets.HTML(text))
        cell.add_class("wb-wrong")
