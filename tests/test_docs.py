"""The documentation: it builds without a warning and without a network, misses no public name, and what it shows can be done.

Its Python runs as it stands, and prints what stands below it, unless the comment above the block says why not. It is built as
``make docs`` does.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner

import workbench as wb
from tests.helpers.public_names import ROOT, homes
from workbench.cli.main import cli
from workbench.training.folder import RunFolder
from workbench.training.results import on_bases

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n$")
TRAINING = ("train", "adapter")
"""Pages that train or need what was trained, in this order."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    runs: bool
    prints: str | None
    """The ``text`` block that follows at once, if one does."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.DOTALL | re.MULTILINE):
        yield Block(found[1], found[2], not NOT_RUN.search(text[: found.start()]), found[3])


def run_page(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a page's Python from top to bottom, as in one kernel."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and block.runs:
            capsys.readouterr()
            exec(compile(block.text, page.name, "exec"), names)
            if block.prints is not None:
                assert capsys.readouterr().out == block.prints


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in TRAINING and any(b.language == "python" and b.runs for b in blocks(page))],
    ids=lambda page: page.stem,
)
def test_a_page_s_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, capsys)


@pytest.mark.slow
def test_the_pages_on_training_run_one_after_the_other_and_the_run_s_folder_is_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in TRAINING:
        run_page(DOCS / "tasks" / f"{name}.md", capsys)
    (run,) = wb.runs()
    described = {re.sub(r"/.*", "", name) for name in column("Files")} | {".lock"}
    assert {path.name for path in run.dir.iterdir()} <= described
    assert {event["k"] for event in run.events()} <= set(column("Events"))


def test_python_that_is_not_run_calls_what_there_is_with_arguments_that_it_takes() -> None:
    called = []
    for block in (block for page in PAGES for block in blocks(page)):
        for node in ast.walk(ast.parse(block.text if block.language == "python" and not block.runs else "")):
            if isinstance(node, ast.Call) and re.fullmatch(r"wb\.\w+", ast.unparse(node.func)):
                function = getattr(wb, ast.unparse(node.func)[3:])
                inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords if k.arg})
                called.append(function.__name__)
    assert {"evaluate", "attach"} <= set(called)


def test_a_block_that_is_not_run_says_why_and_others_are_of_a_kind_that_is_checked() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("python", "sh", "text"), page
            if block.language == "sh" and block.runs:
                assert all(line.split()[0] in ("make", "workbench") for line in block.text.splitlines()), page


SHELL = [
    line.split("#")[0] for page in PAGES for b in blocks(page) if b.language == "sh" and b.runs for line in b.text.splitlines()
]


def test_every_make_command_is_a_target() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {line.split()[1] for line in SHELL if line.startswith("make ")}
    named |= {name for page in PAGES for name in re.findall(r"`make ([\w-]+)", page.read_text("utf-8"))}
    assert {"lab", "app", "bench", "dist", "gpu-check"} <= named <= targets


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in SHELL if line.startswith("workbench ")])
def test_the_terminal_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert result.output


def test_every_command_that_a_page_names_is_one() -> None:
    named = {name for page in PAGES for name in re.findall(r"`workbench ([a-z]+)", page.read_text("utf-8"))}
    assert {"doctor", "cost", "export"} <= named <= set(cli.commands)


def test_every_public_name_stands_in_the_reference_once() -> None:
    found: list[str] = []
    for page in (DOCS / "reference").glob("*.md"):
        package = ""
        for directive, name in re.findall(r"^\.\. (currentmodule|auto\w+|data):: (\S+)", page.read_text("utf-8"), re.MULTILINE):
            package, found = (name, found) if directive == "currentmodule" else (package, [*found, f"{package}.{name}"])
    assert sorted(found) == sorted(f"{package}.{name}" for package in ("workbench", "widgets") for name in homes(package))


# What a run's folder holds, beside the code that writes it.


RUN_FOLDER = (DOCS / "reference" / "run-folder.md").read_text("utf-8")


def column(heading: str) -> list[str]:
    """The names in the first column of the last table under a heading of the page on a run's folder."""
    section = re.split(r"^## ", RUN_FOLDER.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    return [name for row in section.split("| --- |")[-1].splitlines() for name in re.findall(r"^\| `([^`]+)`", row)]


def test_the_files_and_folders_of_a_run_are_those_in_the_code() -> None:
    root = Path("run")
    named = [path for name in vars(RunFolder) if not name.startswith("_") for path in paths(root, name)]
    parts = {path.relative_to(root).parts[0] for path in named} | {on_bases.FOLDER, "lineage.json"}
    described = {re.sub(r"/.*", "", name) for name in column("Files")}
    assert {name for name in parts if not name.startswith(".")} <= described
    assert all(f"`{name}`" in RUN_FOLDER for name in parts if name.startswith("."))


def paths(root: Path, name: str) -> list[Path]:
    """What a property of a run's folder names, where that is a file or folder of it that is always called the same."""
    value = getattr(RunFolder(root), name) if isinstance(vars(RunFolder)[name], property) else None
    return [path for path in (value if isinstance(value, tuple) else (value,)) if isinstance(path, Path)]


def constants(path: Path) -> Iterator[tuple[str, str]]:
    """(what for, name) of the kinds of event and the phases that a file writes down."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            partial = called == "partial" and isinstance(node.args[0], ast.Attribute)
            what = node.args[0].attr if partial and isinstance(node.args[0], ast.Attribute) else called
            value = node.args[1 if partial else 0] if len(node.args) > partial else None
            if what.lstrip("_") in ("emit", "phase") and isinstance(value, ast.Constant):
                yield ("kind" if what.endswith("emit") else "phase"), str(value.value)
                named = {k.arg: k.value for k in node.keywords}.get("name")
                if value.value == "phase" and isinstance(named, ast.Constant):
                    yield "phase", str(named.value)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "k" and isinstance(value, ast.Constant):
                    yield "kind", str(value.value)


def test_the_kinds_of_event_and_the_phases_are_those_in_the_code() -> None:
    written: dict[str, set[str]] = {"kind": set(), "phase": set()}
    for path in (ROOT / "workbench" / "training").rglob("*.py"):
        if "answers" not in path.parts:  # whose messages go through a pipe, not into a run's folder
            for what, name in constants(path):
                written[what].add(name)
    assert written["kind"] == set(column("Events"))
    (row,) = re.findall(
        r"^\| `phase` .*`name`: ([\w, ]+);", (DOCS / "reference" / "run-folder.md").read_text("utf-8"), re.MULTILINE
    )
    assert written["phase"] == set(row.split(", "))


# The site, as it is built.


class Tags(HTMLParser):
    """What a page refers to: what a browser fetches by itself, where its links lead, what can be linked to, its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given["id"] or ""} if "id" in given else set()
        if tag == "a":
            self.links += [given["href"]] if given.get("href") else []
        else:
            self.fetched += [given[name] or "" for name in ("src", "href", "srcset", "data", "poster") if given.get(name)]
        self.pictures += [given] if tag == "img" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Tags]:
    """The pages, built as `make docs` does; a warning ends that."""
    folder = tmp_path_factory.mktemp("site")
    said = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "docs", f"DOCS={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (command,) = (line.partition("python ")[2] for line in said.splitlines() if "-m sphinx" in line)
    assert "--fail-on-warning" in command
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / ".doctrees", ignore_errors=True)
    return {path: Tags(path.read_text("utf-8")) for path in folder.rglob("*.html")}


def elsewhere(address: str) -> bool:
    return address.startswith(("http:", "https:", "//"))


@pytest.mark.slow
def test_nothing_in_a_page_is_fetched_from_elsewhere(site: dict[Path, Tags]) -> None:
    assert not {(path.name, address) for path, tags in site.items() for address in tags.fetched if elsewhere(address)}
    folder = next(path for path in site if path.name == "genindex.html").parent
    styles = list(folder.rglob("*.css"))
    assert styles
    for path in styles:
        text = path.read_text("utf-8")
        assert not re.search(r"""(url\(\s*['"]?|@import\s+['"]?)(https?:)?//""", text), path.name
    for path in site:
        assert not re.search(
            r"cdn\.|unpkg|googleapis|jsdelivr", re.sub(r"<pre>.*?</pre>", "", path.read_text("utf-8"), flags=re.DOTALL)
        )


@pytest.mark.slow
def test_every_link_inside_the_site_leads_to_a_page_and_a_place_in_it(site: dict[Path, Tags]) -> None:
    wrong = []
    for path, tags in site.items():
        for link in tags.links:
            parts = urlsplit(link)
            if elsewhere(link) or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = site.get(target)
            if not target.is_file() or (there and parts.fragment and unquote(parts.fragment) not in there.ids):
                wrong.append(f"{path.name}: {link}")
    assert not wrong


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser_itself(site: dict[Path, Tags]) -> None:
    formulas = [found for path in site for found in re.findall(r"<math.*?</math>", path.read_text("utf-8"), re.DOTALL)]
    assert len(formulas) > 50
    assert not [formula for formula in formulas if "&amp;" in formula or "<mover><mrow>" in formula]
    assert any('class="overline"' in formula for formula in formulas)


@pytest.mark.slow
def test_every_public_name_can_be_linked_to(site: dict[Path, Tags]) -> None:
    ids = [each for tags in site.values() for each in tags.ids]
    for package in ("workbench", "widgets"):
        assert all(ids.count(f"{package}.{name}") == 1 for name in homes(package))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_s_page_has_its_pictures_each_with_words_for_a_screen_reader(path: Path, site: dict[Path, Tags]) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    committed = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
    (page,) = (tags for built, tags in site.items() if built.stem == path.stem)
    pictures = [given for given in page.pictures if "_images" in (given.get("src") or "")]
    assert len(pictures) == committed
    assert all(len(given.get("alt") or "") > 10 and "_images" not in (given["alt"] or "") for given in pictures)
