"""Names that leave exactly some modules out of 4 bits, as ``llm_int8_skip_modules`` takes them.

transformers leaves a module out where a name matches it from its beginning up to a dot or its end, as a regular expression, or
where it ends in the name, at no boundary at all. So ``layers.1`` leaves ``layers.1.mlp`` out and not ``layers.11``, ``proj``
everything that ends so. Covers finding few and readable names, and making sure that they leave out these modules and no others;
the rule itself is ``footprint.leaves_out``. Covers also reading the names that another checkpoint's configuration lists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable

from workbench.errors import ConfigError
from workbench.given import is_several
from workbench.memory.footprint import leaves_out
from workbench.sources import Source, open_model
from workbench.text import short

_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")
_PLAIN = re.compile(r"[\w.-]{1,300}")


def names_for(modules: Collection[str], known: Iterable[str], prefix: str = "") -> tuple[str, ...]:
    """Few names that leave ``modules`` out, and no other of the ``known`` ones: of whole layers, of a kind, or of one module.

    They mean the same with ``prefix`` before every module, as transformers names those of a checkpoint of the bare model.
    ConfigError where no names separate these modules from the others.
    """
    wanted, known = frozenset(modules), tuple(known)
    exact = {}
    for name in _candidates(wanted):
        reach = frozenset(m for m in known if leaves_out((name,), m))
        if reach <= wanted and reach == frozenset(m for m in known if leaves_out((name,), prefix + m)):
            exact[name] = reach
    chosen: list[str] = []
    left = set(wanted)
    while left:
        # Of names that leave out as many, the shorter reads better; the name itself settles what is left.
        best = max(exact, key=lambda name: (len(exact[name] & left), -len(name), name), default="")
        if not best or not exact[best] & left:
            what = f"No name leaves out {min(left)} and none of the others."
            raise ConfigError([what], where="llm_int8_skip_modules", remedy="Leave other modules out.")
        chosen.append(best)
        left -= exact[best]
    return tuple(sorted(chosen, key=lambda name: min(map(known.index, exact[name]))))


def _candidates(modules: Iterable[str]) -> set[str]:
    """Names to choose from: what modules lie under, their kinds, and each module by a pattern that no other name matches."""
    found = set()
    for module in modules:
        parts = module.split(".")
        found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        found.add(parts[-1])
        found |= {f"{re.escape(module)}$", rf"(?:.*\.)?{re.escape(module)}$"}
    return found


def skipped_by(
    checkpoint: Source | str | os.PathLike[str], known: Iterable[str], prefix: str = ""
) -> tuple[str, frozenset[str]]:
    """The checkpoint's name, and the ``known`` modules that its configuration leaves out of quantization.

    Its ``quantization_config`` lists them as ``llm_int8_skip_modules`` or ``modules_to_not_convert``: so do 4-bit checkpoints
    that keep in 16 bits what their makers found sensitive. ``known`` are those of a model of the same architecture; ``prefix``
    as in ``names_for``. Raises ModelError as ``open_model`` does, and ConfigError where no list is there, where a name in it is
    no plain one, or where it leaves out none of these modules.
    """
    source = open_model(checkpoint)
    how = source.config.get("quantization_config")
    lists = [how[key] for key in _LISTS if how.get(key)] if isinstance(how, dict) else []
    if not lists or not is_several(lists[0]):
        what = "its configuration has no list of modules that are left out of quantization."
        raise ConfigError([what], where=source.name, remedy="Name a checkpoint with llm_int8_skip_modules in its config.json.")
    names = tuple(lists[0])
    if odd := [name for name in names if not isinstance(name, str) or not _PLAIN.fullmatch(name)]:
        what = f"its list of skipped modules holds {short(repr(odd[0]))}, which is no plain name."  # a pattern may run for ever
        raise ConfigError([what], where=source.name, remedy="Name a checkpoint whose list has names of modules alone.")
    patterns = tuple(map(re.escape, names))
    found = frozenset(m for m in known if any(leaves_out(patterns, n) or n.endswith(names) for n in (m, prefix + m)))
    if not found:
        what = (
            f"its list of skipped modules ({short(', '.join(names))}) has none that a QLoRA load of this model would quantize."
        )
        raise ConfigError([what], where=source.name, remedy="Name a checkpoint of the same architecture.")
    return source.name, found
