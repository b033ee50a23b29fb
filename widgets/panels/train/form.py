"""The form of a training run: the fields that matter in sight, every other field of a ``TrainConfig`` behind one fold.

Covers the controls, which of them apply given the others, and the faults beside their fields, all at once. What the fields are
is declared with them in ``TrainConfig``; which values are right is for ``workbench.training.checks``. Launches nothing.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets

from widgets.background.tasks import UI, ErrorDisplay
from widgets.controls.binding import Quiet
from widgets.controls.lazy_fold import LazyFold
from widgets.controls.segments import Segments
from widgets.controls.style import column, fields, heading
from widgets.panels.train.fields import (
    FIELDS,
    GROUPS,
    MORE,
    changed_from_usual,
    config_of,
    faults_by_field,
    in_use,
    shown_values,
)
from workbench.errors import ConfigError
from workbench.training.config import TrainConfig
from workbench.training.settings import Group, Setting

_NUMBERS = {"whole": ipywidgets.IntText, "real": ipywidgets.FloatText}


class RunForm:
    """``usual`` holds the fields that matter, ``more`` all others, whose controls are made when it is opened.

    ``controls`` has each control that there is by its field's name. ``changed(config)`` is called after every change by the
    reader, with None where there is a fault, under ``UI``. ``hidden``: fields that the reader sets elsewhere. ``beside()``
    makes what else stands behind the fold.
    """

    def __init__(
        self,
        config: TrainConfig,
        changed: Callable[[TrainConfig | None], None],
        message: ErrorDisplay,
        *,
        hidden: Iterable[str] = (),
        beside: Callable[[], Iterable[Any]] = tuple,
    ) -> None:
        self._base, self._changed, self._beside = config, changed, beside
        self._quiet = Quiet()
        self.controls: dict[str, Any] = {}
        self._cells: dict[str, ipywidgets.Box] = {}
        self._groups: dict[Group, ipywidgets.Box] = {}
        self.usual = ipywidgets.Box(self._make(name for name in GROUPS[Group.USUAL] if name not in set(hidden)))
        for kind in ("wb-fields", "wb-usual"):
            self.usual.add_class(kind)
        self.more = LazyFold("More settings", self._build_more, message)
        self._refresh()

    @property
    def values(self) -> dict[str, Any]:
        """What all controls say, by name, those included that are not made yet."""
        return shown_values(self._base) | {name: control.value for name, control in self.controls.items()}

    @property
    def config(self) -> TrainConfig:
        """What the controls say; raises ``ConfigError`` with every fault at once."""
        return config_of(self._base, self.values)

    def with_fields(self, changes: Mapping[str, Any]) -> TrainConfig:
        """What the controls would say with some of them set otherwise; raises ``ConfigError`` as ``config`` does."""
        return config_of(self._base, self.values | dict(changes))

    def show(self, config: TrainConfig, before: TrainConfig | None = None) -> None:
        """Set the controls to ``config``; with ``before``, only those for which the two differ."""
        with UI:
            self._base = config
            known = shown_values(before) if before is not None else {}
            with self._quiet:
                for name, value in shown_values(config).items():
                    if name in self.controls and (name not in known or known[name] != value):
                        self.controls[name].value = value
            self._refresh()

    def show_faults(self, found: Iterable[str]) -> None:
        """Show faults that were found elsewhere, as by a launch, beside their fields until the next edit."""
        with UI:
            self._refresh(found)

    def _make(self, names: Iterable[str]) -> list[ipywidgets.Box]:
        """The cells of some fields, with their controls as the configuration has them."""
        cells, values = [], shown_values(self._base)
        for name in names:
            control = self.controls[name] = _control(name, FIELDS[name])
            control.value = values[name]
            self._cells[name] = _cell(control, FIELDS[name].wide)
            self._quiet.on_change(control, self._edited)
            cells.append(self._cells[name])
        return cells

    def _build_more(self) -> list[Any]:
        groups = [(group, names) for group, names in GROUPS.items() if group]
        self._groups = {group: column(heading(group.value), fields(*self._make(names))) for group, names in groups}
        self._show_cells(self.values, {})
        return [*self._groups.values(), *self._beside()]

    def _edited(self, _: Any) -> None:
        with UI:
            self._changed(self._refresh())

    def _refresh(self, found: Iterable[str] = ()) -> TrainConfig | None:
        """Show what is in use, what the fold holds and every fault; the configuration where there is none."""
        values, faults, config = self.values, faults_by_field(found), None
        try:
            config = config_of(self._base, values)
        except ConfigError as error:
            faults = faults_by_field(error.faults)
        wrong = any(name in faults for name in MORE)
        if wrong:
            self.more.fill()
        self._show_cells(values, faults)
        self.more.say(changed_from_usual(values), wrong=wrong)
        return config

    def _show_cells(self, values: Mapping[str, Any], faults: Mapping[str, list[str]]) -> None:
        for name, cell in self._cells.items():
            cell.layout.display = "" if in_use(name, values) else "none"
            _set_fault(cell, " ".join(faults.get(name, ())))
        for group, box in self._groups.items():
            box.layout.display = "" if values["method"] in group.methods else "none"


def _control(name: str, field: Setting) -> Any:
    if name == "method":
        return Segments(field.label, {value: title.partition(":")[0] for title, value in field.options})
    if field.kind == "choice":
        return ipywidgets.Dropdown(description=field.label, options=field.options)
    if field.kind == "flag":
        return ipywidgets.Checkbox(description=field.label, indent=False)
    if number := _NUMBERS.get(field.kind):
        return number(description=field.label, continuous_update=False)
    if field.kind == "lines":
        return ipywidgets.Textarea(description=field.label, continuous_update=False, placeholder=field.hint, rows=3)
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
