"""plotly.js as it crosses the wire: out of the installed plotly package, gzipped while the views are still being imported.

Covers finding, compressing and naming it. The model that carries it to the page is widgets/drawing/plot.py's, and what the page
does with it plotly_once.js's.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import pathlib
import threading

_making = threading.Lock()


@functools.cache
def begin() -> None:
    """Starts compressing on a thread of its own, once: gzip lets others run, and the first plot waits for it."""
    threading.Thread(target=gzipped, name="workbench-plotly", daemon=True).start()


def gzipped() -> tuple[bytes, str]:
    """plotly.js gzipped, and a short hash by which a page knows that it has it already."""
    with _making:
        return _gzipped()


@functools.cache
def _gzipped() -> tuple[bytes, str]:
    source = package_data("plotly.min.js")
    # Level 4 takes two thirds of the time of level 6, for four percent more bytes.
    return gzip.compress(source, 4, mtime=0), hashlib.sha256(source).hexdigest()[:16]


def package_data(name: str) -> bytes:
    """A file that the plotly package carries; read as it is, since plotly's own classes take long to import."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations
    return pathlib.Path(spec.submodule_search_locations[0], "package_data", name).read_bytes()
