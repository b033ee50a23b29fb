"""How Sphinx builds the documentation: ``make docs``. Nothing in its pages is fetched from elsewhere, mathematics included.

Covers the notebooks as they are committed, with their pictures, which are copied in without being run; formulas as MathML,
which browsers draw themselves; and the options. The pages' Python is run by tests/test_docs.py.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring, register_namespace, tostring

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config as GoogleConfig
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.inspect import signature, stringify_signature
from sphinx.writers.html5 import HTML5Translator
from traitlets import HasTraits

ROOT = Path(__file__).parents[1]
MATHML = "http://www.w3.org/1998/Math/MathML"
register_namespace("", MATHML)
sys.path.insert(0, str(ROOT))

from workbench._version import __version__  # noqa: E402

project = "QLoRA Workbench"
author = copyright = "QLoRA Workbench contributors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["img"]
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, Any] = {}  # by default these are fetched from a CDN, for widgets that no page here has
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # a field may have the name of another class's: it is no link then

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 96
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "QLoRA Workbench"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_extra_path = ["explore.html"]  # made by scripts/explore/page.py
html_css_files = ["docs.css"]
html_sidebars: dict[str, list[str]] = {page: [] for page in ("index", "start", "verified")}  # pages without a section
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "show_prev_next": True,
}


def copy_notebooks() -> None:
    """The committed notebooks, into docs/notebooks: without the cell that installs on Colab, their pictures with words."""
    target = Path(__file__).parent / "notebooks"
    target.mkdir(exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text("utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if "google.colab" not in "".join(cell["source"])]
        for cell in notebook["cells"]:
            said = ["".join(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", ())]
            if texts := [text for text in said if text]:
                cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(texts[0].split())[:300]}}
        text = json.dumps(notebook)
        own = target / path.name
        if not own.exists() or own.read_text("utf-8") != text:  # Sphinx reads a page again if its file is newer
            own.write_text(text, "utf-8")


def _mathml(writer: HTML5Translator, node: nodes.Element, block: bool) -> None:
    """A formula. A bar over several letters is a border: browsers stretch the sign for it only where a mathematical font is."""
    math = fromstring(convert(node.astext(), display="block" if block else "inline"))
    for over in math.iter(f"{{{MATHML}}}mover"):
        if over[1].text == "―":
            over.tag = f"{{{MATHML}}}mrow"
            over.set("class", "overline")
            over.remove(over[1])
    writer.body.append(tostring(math, "unicode"))
    raise nodes.SkipNode


def _sections(app: Sphinx, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    """Args, Returns and Raises as Google's style writes them; a field's text has none, and may begin with words and a colon."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring("\n".join(lines), GoogleConfig(), app, what, name, value, options).lines()


def _signature(app: Sphinx, what: str, name: str, value: object, *_: object) -> tuple[str, None] | None:
    """A dataclass's fields are described one by one below it, and not here too; traitlets hides what a widget is made with."""
    if not isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return "", None
    if issubclass(value, HasTraits):
        return stringify_signature(
            signature(value.__init__, bound_method=True), show_return_annotation=False, unqualified_typehints=True
        ), None
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Copies the notebooks, and adds what is above."""
    copy_notebooks()
    app.connect("autodoc-process-docstring", _sections)
    app.connect("autodoc-process-signature", _signature)
    app.add_html_math_renderer(
        "mathml",
        (lambda writer, node: _mathml(writer, node, False), None),
        (lambda writer, node: _mathml(writer, node, True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
