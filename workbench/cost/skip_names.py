"""Names that leave exactly some modules out of 4 bits, as ``llm_int8_skip_modules`` takes them.

transformers leaves a module out where a name matches it from its beginning up to a dot or its end, as a regular expression, or
where it ends in the name, at no boundary at all. So ``layers.1`` leaves ``layers.1.mlp`` out and not ``layers.11``, ``proj``
everything that ends so. Covers finding few and readable names, and making sure that they leave out these modules and no others;
the rule itself is ``footprint.leaves_out``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from workbench.errors import ConfigError
from workbench.memory.footprint import leaves_out


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
