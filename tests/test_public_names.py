"""What the README, the docs, the notebooks and the code that the workbench writes use is public: a name of a package's root."""

from __future__ import annotations

import ast
import dataclasses
import html
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import widgets
import workbench as wb
from tests.helpers.public_names import ROOT, homes
from widgets import code
from widgets.session import Analysis, Rescaled
from widgets.state import State
from workbench.report.contents import gather
from workbench.report.sections import method
from workbench.training.answers.values import Sampling
from workbench.training.base_code import loading_code

PUBLIC = {"workbench": {*wb.__all__, "__version__"}, "widgets": set(widgets.__all__)}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def hidden(source: str) -> list[str]:
    """What code uses of the two packages that is not public: modules below their roots, names that a root does not list."""
    tree = ast.parse(source)
    aliases = {"wb": "workbench", "workbench": "workbench", "widgets": "widgets"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.startswith(("workbench.", "widgets."))]
        elif isinstance(node, ast.ImportFrom) and node.module:
            root, _, below = node.module.partition(".")
            if root in PUBLIC:
                names = [alias.name for alias in node.names]
                found += [f"{node.module}.{name}" for name in names if below or name not in PUBLIC[root]]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            root = aliases.get(node.value.id, "")
            if root and node.attr not in PUBLIC[root]:
                found.append(f"{node.value.id}.{node.attr}")
    return found


def python_in(page: str) -> Iterator[str]:
    """The blocks of Python in a page of Markdown."""
    return map(textwrap.dedent, re.findall(r"^ *```python\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE))


def calls_in(page: str) -> set[str]:
    """What inline code in a page calls on the alias: ``wb.launch`` of a `wb.launch(config)`."""
    return set(re.findall(r"`[^`\n]*?\bwb\.(\w+)", page))


def test_what_is_not_public_is_found() -> None:
    deep = "import workbench.memory.gpus\nfrom widgets.state import State\nfrom workbench import quant\nwb.kernels\nwb.fit"
    assert sorted(hidden(deep)) == ["wb.kernels", "widgets.state.State", "workbench.memory.gpus", "workbench.quant"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_public_names_alone(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not [name for block in python_in(text) for name in hidden(block)]
    assert calls_in(text) <= PUBLIC["workbench"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_public_names_alone(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    lines = ["\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in text.splitlines()) for text in sources]
    assert not [name for text in lines for name in hidden(text)]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """What a view shows of one tensor of the embedded model."""
    from tests.helpers.immediate import Immediate
    from widgets.session import Session

    session = Session(State(), Immediate())
    shown: list[Analysis] = []
    session.on_analysis(shown.append)
    session.start()
    return shown[-1]


SPEC = wb.QuantSpec("nf4", double_quant=True)


def rescaled(shown: Analysis) -> Rescaled:
    plain, doubled = wb.measure(shown.weights, ["nf4", SPEC])
    return Rescaled(plain, doubled, wb.double_quantize(plain.block_absmax))


COPIED: dict[str, Callable[[Analysis], str]] = {
    "model": code.model,
    "survey": lambda shown: code.survey(shown, SPEC),
    "distribution": lambda shown: code.distribution(shown, by_block=True),
    "block": lambda shown: code.block(shown, "block_rmse", 0, 0),
    "formats": lambda shown: code.formats(shown, "tensor", 4.5, None),
    "double_quant": lambda shown: code.double_quant(shown, rescaled(shown)),
    "memory": lambda shown: code.memory(shown, State()),
    "cost": lambda _: code.cost("builtin", wb.TrainConfig(), SPEC, "costs", "equal"),
    "methods": lambda _: code.methods(wb.TrainConfig(), ""),
    "repairs": lambda _: code.repairs("runs/1"),
    "try_out": lambda _: code.try_out(Path("runs/1"), "happiness, n.", Sampling(32, 0.7, 1), False),
    "export": lambda _: code.export(Path("runs/1"), "merged", "dequantized", "bfloat16"),
    "deployed": lambda _: code.deployed(Path("runs/1"), "base.gguf"),
}


def test_every_copy_as_code_is_looked_at() -> None:
    made = {name for name, value in vars(code).items() if callable(value) and value.__module__ == code.__name__}
    assert {name for name in made if not name.startswith("_")} - {"config"} == set(COPIED)


@pytest.mark.parametrize("view", COPIED)
def test_copy_as_code_uses_public_names_alone(view: str, analysis: Analysis) -> None:
    assert "wb." in COPIED[view](analysis)
    assert not hidden(COPIED[view](analysis))


def test_a_weight_that_is_stored_packed_is_read_by_a_public_name(analysis: Analysis) -> None:
    text = code.distribution(dataclasses.replace(analysis, packed="nf4"), by_block=False)
    assert "wb.weights(src" in text
    assert not hidden(text)


def test_the_code_of_a_run_needs_no_workbench() -> None:
    for text in (wb.as_code(wb.TrainConfig(max_steps=2)), loading_code(wb.TrainConfig())):
        assert not {line for line in text.splitlines() if re.match(r"\s*(import|from) (workbench|widgets)\b", line)}


def test_the_report_s_python_uses_public_names_alone() -> None:
    names = ["model.layers.0.mlp.down_proj.weight"]
    section = method(gather(wb.survey("builtin", "nf4", names, progress=False), 4.5, None, False))
    (shown,) = re.findall(r"<pre><code>(import workbench.*?)</code></pre>", section.html, re.DOTALL)
    assert not hidden(html.unescape(shown))


@pytest.mark.parametrize("package", ["workbench", "widgets"])
def test_public_names_stand_in_the_stub_alone(package: str) -> None:
    assert sorted(homes(package)) == sorted({"workbench": wb, "widgets": widgets}[package].__all__)
