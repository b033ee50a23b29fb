"""The report is one page that needs nothing else, says what was measured, and runs nothing that a model's names hold."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import html
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers.surveys import checkpoint, two_shards, weights
from tests.helpers.texts import missing
from workbench.atomic import replacing_for_user
from workbench.errors import WorkbenchError
from workbench.memory.forecast import forecast_methods
from workbench.quant import formats
from workbench.report.page import embedded
from workbench.sources.local import LocalSource
from workbench.surveys.duel import of_survey
from workbench.text import memory_size

SPECS = (wb.QuantSpec("nf4", double_quant=True), wb.QuantSpec("int4-asym"))
HOSTILE = {
    "q": "model.layers.0.self_attn.<script>globalThis.hacked=1</script>.weight",
    "k": "model.layers.0.self_attn.</script><script>hacked=1</script>\u2028\u202e.weight",
    "v": 'model.layers.1.mlp."onmouseover="hacked=1.weight',
    "o": "model.layers.1.mlp.<a href='javascript:hacked=1'>%{x}<br>&lt;b&gt;.weight",
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every element with its attributes and text, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1][2])

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for texts in self.open:
            texts.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        return [(tag, attributes, "".join(texts)) for tag, attributes, texts in self.elements if tag in tags]

    def one(self, tag: str, **attributes: str) -> str:
        (text,) = [t for _, found, t in self.all(tag) if attributes.items() <= found.items()]
        return text

    def table(self, caption: str) -> list[list[str]]:
        """The rows of the table whose caption begins so, its head first."""
        (table,) = (text for text in self.source_tables if f"<caption>{html.escape(caption)}" in text)
        rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        return [
            [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in rows
        ]

    def feed(self, data: str) -> None:
        self.source_tables = re.findall("<table>.*?</table>", data, re.DOTALL)
        super().feed(data)


def written(path: Path, model: Any = "builtin", **how: Any) -> str:
    return wb.write_report(wb.survey(model, SPECS, progress=False), path, progress=False, **how).read_text("utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


class Renamed(LocalSource):
    """A folder whose tensors have other names: such as no file could give, since opening one refuses them."""

    def __init__(self, folder: Path, names: Mapping[str, str], name: str) -> None:
        self._names = names
        super().__init__(folder, name=name)

    def entries(self) -> Any:
        entries = super().entries()
        return {self._names[k]: (file, dataclasses.replace(e, name=self._names[k])) for k, (file, e) in entries.items()}


def hostile(folder: Path) -> Renamed:
    """A model whose name and tensors' names are scripts."""
    plain = {f"model.layers.{i}.mlp.{name}_proj.weight": name for i, name in enumerate(HOSTILE)}
    checkpoint(folder, {name: weights((64, 640), seed=i) for i, name in enumerate(plain)})
    return Renamed(folder, {name: HOSTILE[short] for name, short in plain.items()}, "<img src=x onerror=hacked=1>")


# --- one file -----------------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_two_scripts(text, page):
    assert 1.5e6 < len(text.encode()) < 3e6
    for tag, attributes, _ in page.elements:
        assert not {"src", "srcset", "action", "background"} & attributes.keys(), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page.one("style")
    assert "@import" not in page.one("style")
    (policy,) = (a["content"] for _, a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    scripts = [body for _, attributes, body in page.all("script") if "type" not in attributes]
    library = gzip.decompress(base64.b64decode(page.one("script", id="plotly")))
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in (scripts[0].encode(), library)]
    assert len(scripts) == 1
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert b"plotly.js" in library[:200]


def test_every_plot_has_a_figure_a_description_and_colours_of_the_page(text, page):
    figures = json.loads(page.one("script", id="figures"))
    plots = {a["id"]: a for _, a, _ in page.all("div") if a.get("role") == "img"}
    assert set(figures) == set(plots)
    assert {"layer-lines", "error-maps", "duel-bars", "memory-bars", "kurtosis-map"} <= set(figures)
    assert all(plot["aria-label"] for plot in plots.values())
    style = page.one("style")
    for name in re.findall(r'"\$css":"(--[\w-]+)"', text):
        assert style.count(f"{name}:") == 2, "in light and in dark"
    assert len(figures["error-maps"]["data"]) == len(SPECS)
    [heat, *_] = figures["error-maps"]["data"]
    assert (heat["y"], heat["x"]) == ([0, 1, 2, 3, 4, 5], ["q", "k", "v", "o", "gate", "up", "down"]), "as in the app"
    assert "NaN" not in page.one("script", id="figures")


def test_headings_are_in_order_tables_have_captions_and_ids_are_unique(page):
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for _, a, _ in page.all("a")]
    assert len(targets) == 6
    assert set(targets) <= set(ids)
    tables = page.all("table")
    assert len(tables) == len(page.all("caption"))
    assert all(a.get("scope") for _, a, _ in page.all("th"))
    assert all(a.get("lang") == "en" for _, a, _ in page.all("html"))


# --- what it says -------------------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_survey_the_duel_and_the_forecast(page):
    surveyed, duel = wb.survey("builtin", SPECS, progress=False), wb.duel("builtin", 4.5)
    totals = page.table("All tensors together")
    for spec, line in zip(SPECS, totals[1:], strict=True):
        score = of_survey(surveyed.run()).score(spec)
        assert line[0] == spec.title
        assert line[1] == f"{score.bits:.4f}"
        assert line[3] == f"{100 * score.relative_rmse:.3f} %"
    contenders = page.table("Formats at no more than 4.5 bits")
    ranked = sorted(duel.contenders, key=lambda score: score.rmse)
    assert [line[0] for line in contenders[1:]] == [score.spec.title for score in ranked]
    assert contenders[1][0].startswith(wb.FORMATS[duel.winners()[0]].title)
    worst = page.table("The worst tensors")
    assert [line[0] for line in worst[1:6]] == surveyed.worst(5)["tensor"].tolist()
    memory = page.table("Forecast memory by method")
    total = forecast_methods(wb.open_model("builtin"), wb.TrainConfig())[0].total
    assert memory[-1][:2] == ["total", memory_size(total)]
    heaviest = page.table("The 8 tensors with the heaviest tails")
    name, kurtosis = surveyed.worst(1, by="kurtosis")[["tensor", "kurtosis"]].iloc[0]
    assert heaviest[1][:2] == [name, f"{kurtosis:.2f}"]
    (beyond, *_) = wb.outliers(wb.open_model("builtin").read(name), SPECS[0]).beyond
    assert heaviest[1][3:6] == ["3 σ", f"{100 * beyond.share:.3f} %", f"{100 * beyond.block_share:.2f} %"]


def test_it_says_what_was_measured_with_what_and_what_was_left_out(page):
    told = " ".join(text for _, _, text in page.all("p"))
    assert not missing(told, "42 tensors", "4.42 million weights", "81 % of the model", "measured whole")
    assert "none was sampled" in told
    for word in (f"qlora-workbench {wb.__version__}", "plotly", "numba", "Python"):
        assert word in told
    assert page.table("Tensors that QLoRA leaves as they are")[1][1:] == ["13", "3,328"]


def test_the_python_in_it_runs(page, tmp_path):
    code = next(text for _, _, text in page.all("pre"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(wb.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = Page((tmp_path / "report.html").read_text("utf-8"))
    assert again.table("All tensors together") == page.table("All tensors together")
    assert again.source_tables == page.source_tables


def test_writing_a_report_imports_no_plotly(tmp_path):
    code = (
        "import sys, workbench as wb\n"
        "wb.write_report(wb.survey('builtin', wb.QuantSpec(), progress=False), 'r.html', progress=False)\n"
        "assert not {'plotly', 'torch', 'widgets'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(wb.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=300)


def test_a_model_without_layers_has_tables_in_place_of_maps(tmp_path):
    folder = checkpoint(tmp_path / "model", {"proj.weight": weights((64, 640))})
    surveyed = wb.survey(folder, SPECS, progress=False)
    page = Page(wb.write_report(surveyed, tmp_path / "r.html", progress=False).read_text("utf-8"))
    figures = json.loads(page.one("script", id="figures"))
    assert not {"layer-lines", "error-maps", "kurtosis-map", "winner-map"} & set(figures)
    assert page.table("The worst tensors")[1][0] == "proj.weight"


def test_a_part_of_a_model_is_told_as_one(tmp_path):
    name = "model.layers.0.self_attn.k_proj.weight"
    surveyed = wb.survey("builtin", SPECS, tensors=[name], progress=False)
    page = Page(wb.write_report(surveyed, tmp_path / "r.html", progress=False).read_text("utf-8"))
    told = " ".join(text for _, _, text in page.all("p"))
    assert not missing(told, "1 tensor with 32,768 weights", "1 % of the model")
    assert f"tensors=['{name}']" in next(text for _, _, text in page.all("pre"))


def test_tensors_that_could_not_be_read_are_named(tmp_path):
    names = list(two_shards(tmp_path))
    surveyed = wb.survey(tmp_path, SPECS, progress=False)
    (tmp_path / "1.safetensors").unlink()
    page = Page(wb.write_report(surveyed, tmp_path / "r.html", progress=False).read_text("utf-8"))
    failed = page.table("Tensors that could not be measured")
    assert [line[0] for line in failed[1:]] == names[2:]
    assert "2 tensors could not be read." in " ".join(text for _, _, text in page.all("p"))


# --- what it does not run -----------------------------------------------------------------------------------------------------


def test_names_out_of_a_model_are_text(tmp_path):
    wb.register_format("evil", np.linspace(-1, 1, 16), title="<b onclick=hacked=1>", source="&lt;")
    try:
        surveyed = wb.survey(
            hostile(tmp_path / "m"), [*SPECS, wb.QuantSpec("evil")], tensors=[*HOSTILE.values()], progress=False
        )
        text = wb.write_report(surveyed, tmp_path / "r.html", progress=False).read_text("utf-8")
    finally:
        del formats._formats["evil"]
    page = Page(text)
    assert [a.get("id") for _, a, _ in page.all("script")] == ["figures", "plotly", None]
    assert page.one("h1") == "<img src=x onerror=hacked=1>"
    allowed = {
        "html", "head", "meta", "title", "style", "body", "header", "p", "h1", "dl", "div", "dt", "dd", "strong", "span", "nav",
        "ul", "li", "a", "main", "section", "h2", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure",
        "figcaption", "details", "summary", "code", "em", "var", "h3", "pre", "noscript", "script",
    }  # fmt: skip
    assert {tag for tag, _, _ in page.elements} <= allowed
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    names = {line[0] for line in page.table("The worst tensors")[1:]}
    assert HOSTILE["q"] in names
    assert any("\\u2028\\u202e" in name for name in names), "what is not printable is made visible"
    data = page.one("script", id="figures")
    assert "<" not in data
    labels = re.findall(r"<[a-z/]", json.dumps(json.loads(data)), re.IGNORECASE)
    assert set(labels) <= {"<b", "<e", "</"}, "only our own line breaks and empty extras"


def test_json_cannot_end_its_script_element():
    value = {"</script>": ["<!--", "]]>", "&amp;", float("nan"), (1, float("inf"))]}
    text = embedded(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script>": ["<!--", "]]>", "&amp;", None, [1, None]]}


# --- writing ------------------------------------------------------------------------------------------------------------------


def test_a_report_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("the old one")
    with pytest.raises(WorkbenchError, match="takes the fewest"):
        written(target, bits=2)

    def stop_halfway() -> None:
        with replacing_for_user(target) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop_halfway()
    assert target.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_where_nothing_can_be_written_it_is_told(tmp_path):
    for path in (tmp_path / "no such folder" / "r.html", tmp_path):
        with pytest.raises(WorkbenchError, match="Cannot be written") as told, replacing_for_user(path) as draft:
            draft.write_text("text")
        assert told.value.where == str(path)
    assert not list(tmp_path.iterdir())


def test_links_are_followed_and_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "there" / "file.txt")
    for text in ("one", "two"):
        with replacing_for_user(link) as draft:
            draft.write_text(text)
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file.txt").read_text() == "two"
    assert (tmp_path / "there" / "file.txt").stat().st_mode == plain.stat().st_mode
    with replacing_for_user(Path("/dev/null")) as draft:
        assert draft == Path("/dev/null"), "a device is written to and not replaced"
