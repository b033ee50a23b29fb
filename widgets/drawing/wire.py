"""Figures as they cross the wire: plain trees whose arrays are binary, and the smallest patch from one tree to the next.

``encode`` turns a figure into a tree of dicts, lists, scalars and array nodes ``{"$array": dtype, "shape": [...], "data":
bytes}``. Trees are never changed after they are made, so one may be read while the next is being built. ``diff`` names what
separates two trees as operations: ``[path, "set", value]``, ``[path, "del"]``, ``[path, "cut", length]`` of a list, and
``[path, "tail", start, array]`` for what an array has from ``start`` on. ``detach`` moves the bytes out of a value so that it
can travel as JSON beside its buffers. Nothing here knows about widgets; plot.js holds the other half.
"""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

ARRAY = "$array"

# What a JavaScript typed array can hold; other kinds become the nearest of these that loses nothing that can be drawn.
_NATIVE = frozenset({"float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32"})


def encode(value: Any) -> Any:
    """A JSON-like tree with array nodes; the bytes are copies, so later changes to the caller's arrays do not show."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None  # JSON has no NaN
    if isinstance(value, Mapping):
        if "bdata" in value and "dtype" in value:
            return encode(_from_base64(value))
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if hasattr(value, "__array__"):
        return _encode_array(np.asarray(value))
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"A figure cannot hold a {type(value).__name__}.")


def encode_figure(figure: Any) -> dict[str, Any]:
    """``data``, ``layout`` and ``frames`` of a plotly figure, or of a mapping with the same keys.

    plotly's default template is dropped, so that the view can follow the page's theme; a template chosen by the author
    stays.
    """
    if isinstance(figure, Mapping):
        parts: dict[str, Any] = {key: figure.get(key) or empty for key, empty in (("data", []), ("layout", {}), ("frames", []))}
    else:  # not figure.to_plotly_json(): from plotly 6 on it turns every array into base64 text
        parts = {
            "data": [trace.to_plotly_json() for trace in figure.data],
            "layout": figure.layout.to_plotly_json(),
            "frames": [frame.to_plotly_json() for frame in figure.frames],
        }
    layout = encode(parts["layout"])
    template = layout.get("template")
    if isinstance(template, str):
        template = layout["template"] = template_json(template)
    if template is not None and (not template or template == template_json(None)):
        del layout["template"]
    tree = {"data": encode(parts["data"]), "layout": layout}
    return tree | {"frames": encode(parts["frames"])} if parts["frames"] else tree


@functools.cache
def template_json(name: str | None) -> Any:
    """The named plotly template (None: the default one) as an encoded tree; never change it."""
    import plotly.io as pio

    name = pio.templates.default if name is None else name
    return encode(pio.templates[name].to_plotly_json()) if name else {}


def is_array(node: Any) -> bool:
    """Whether a node of an encoded tree is an array."""
    return isinstance(node, dict) and ARRAY in node


def diff(old: Any, new: Any) -> list[list[Any]]:
    """The operations that turn ``old`` into ``new``, in the order in which they must be applied."""
    operations: list[list[Any]] = []
    _diff(old, new, [], operations)
    return operations


def detach(value: Any, buffers: list[bytes]) -> Any:
    """``value`` with each array's bytes appended to ``buffers`` and replaced by their place there."""
    if is_array(value):
        buffers.append(value["data"])
        return {ARRAY: value[ARRAY], "shape": value["shape"], "buffer": len(buffers) - 1}
    if isinstance(value, dict):
        return {key: detach(item, buffers) for key, item in value.items()}
    if isinstance(value, list):
        return [detach(item, buffers) for item in value]
    return value


def appended(table: Mapping[str, Any], tail: Mapping[str, np.ndarray], path: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """An encoded table at ``path`` with rows added to its columns, and the operations that add them: nothing is compared."""
    grown, operations = dict(table), []
    for name, column in tail.items():
        new = _encode_array(column)
        if (old := table.get(name)) is None:
            grown[name] = new
            operations.append([[*path, name], "set", new])
        else:
            start = old["shape"][0]
            grown[name] = {ARRAY: old[ARRAY], "shape": [start + new["shape"][0]], "data": old["data"] + new["data"]}
            operations.append([[*path, name], "tail", start, new])
    return grown, operations


def _encode_array(array: np.ndarray) -> Any:
    if array.dtype.kind == "M":
        texts = array.astype(str)
        return [None if text == "NaT" else text for text in texts.tolist()] if array.ndim == 1 else texts.tolist()
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        return encode(array.tolist())
    if array.dtype.name not in _NATIVE:
        array = array.astype(_narrow(array))
    return {ARRAY: array.dtype.name, "shape": list(array.shape), "data": np.ascontiguousarray(array).tobytes()}


def _narrow(array: np.ndarray) -> str:
    if array.dtype.kind == "b":
        return "uint8"
    if array.dtype.kind == "f":
        return "float32" if array.dtype.itemsize < 4 else "float64"
    bounds = np.iinfo(np.int32)
    fits = array.size == 0 or (int(array.min()) >= bounds.min and int(array.max()) <= bounds.max)
    return "int32" if fits else "float64"


def _from_base64(node: Mapping[str, Any]) -> np.ndarray:
    """plotly's own array spec, ``{"dtype", "bdata", "shape"}``, as a numpy array."""
    array = np.frombuffer(base64.b64decode(node["bdata"]), dtype=node["dtype"])
    shape = node.get("shape")
    if shape is None:
        return array
    return array.reshape([int(n) for n in str(shape).split(",")] if isinstance(shape, str) else shape)


def _diff(old: Any, new: Any, path: list[Any], operations: list[list[Any]]) -> None:
    if isinstance(old, dict) and isinstance(new, dict) and not is_array(old) and not is_array(new):
        operations.extend([[*path, key], "del"] for key in old if key not in new)
        for key, item in new.items():
            if key in old:
                _diff(old[key], item, [*path, key], operations)
            else:
                operations.append([[*path, key], "set", item])
    elif _holds_containers(old) and _holds_containers(new):
        for i, item in enumerate(new):
            if i < len(old):
                _diff(old[i], item, [*path, i], operations)
            else:
                operations.append([[*path, i], "set", item])
        if len(new) < len(old):
            operations.append([path, "cut", len(new)])
    elif type(old) is not type(new) or old != new:
        start = _shared_start(old, new)
        operations.append([path, "tail", start, _from(new, start)] if start else [path, "set", new])


def _shared_start(old: Any, new: Any) -> int:
    """How many elements two arrays begin with in common, where that saves at least half of the second; else 0."""
    if not (is_array(old) and is_array(new)) or old[ARRAY] != new[ARRAY] or len(old["shape"]) + len(new["shape"]) != 2:
        return 0
    length = min(len(old["data"]), len(new["data"]))
    unequal = np.frombuffer(old["data"], np.uint8, length) != np.frombuffer(new["data"], np.uint8, length)
    shared = int(unequal.argmax()) if unequal.any() else length
    return shared // np.dtype(new[ARRAY]).itemsize if shared * 2 >= len(new["data"]) else 0


def _from(node: dict[str, Any], start: int) -> dict[str, Any]:
    data = node["data"][start * np.dtype(node[ARRAY]).itemsize :]
    return {ARRAY: node[ARRAY], "shape": [node["shape"][0] - start], "data": data}


def _holds_containers(node: Any) -> bool:
    """Lists of traces, shapes, annotations are compared item by item; lists of scalars go as a whole."""
    return isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node)
