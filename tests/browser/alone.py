"""A drawing alone on an empty page, without JupyterLab: its script runs on a model that answers as ipywidgets' does.

Covers the page, the state as it is when the page opens, patches as they come, and what the page sends. For what depends on the
notebook around it (its keys, its themes' sheets, saving) there is lab.py.
"""

from __future__ import annotations

import base64
from typing import Any

from playwright.sync_api import Page

from widgets.drawing.drawing import Drawing
from widgets.drawing.wire import is_array

LIGHT, DARK = "true", "false"  # of JupyterLab's body

_PAGE = """<!doctype html><meta charset="utf-8"><style>
:root { --jp-ui-font-family: system-ui, sans-serif; }
body { margin: 0; }
body { background: var(--jp-layout-color1); }
[data-jp-theme-light="true"] { --jp-layout-color1: #fff; --jp-ui-font-color1: rgba(0,0,0,.87); --jp-border-color1: #bdbdbd; }
[data-jp-theme-light="false"] { --jp-layout-color1: #111; --jp-ui-font-color1: #fff; --jp-border-color1: #616161; }
</style><style>%s</style><body data-jp-theme-light="true"><div id="place"></div></body>"""

# The model: the state's arrays come as base64, a patch's buffers too. `sent` holds what the drawing says to Python.
_MODEL = """async ([source, state, height]) => {
    const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const opened = (node) => node === null || typeof node !== "object" ? node
        : Array.isArray(node) ? node.map(opened)
        : node.$array ? { ...node, data: bytes(node.data) }
        : Object.fromEntries(Object.entries(node).map(([key, item]) => [key, opened(item)]));
    const traits = { _key: "alone", _current: opened(state), height }, heard = new Map();
    window.sent = [];
    const model = {
        get: (name) => traits[name],
        set: (name, value) => { traits[name] = value; },
        save_changes: () => {},
        send: (message, _, buffers) => window.sent.push({ ...message, bytes: (buffers ?? []).map((b) => b.byteLength) }),
        on: (name, call) => heard.set(name, [...(heard.get(name) ?? []), call]),
        off: (name, call) => heard.set(name, (heard.get(name) ?? []).filter((other) => other !== call)),
    };
    window.tell = (message, buffers) => heard.get("msg:custom").forEach((call) => call(message, buffers.map(bytes)));
    window.replace = (state) => {
        traits._current = opened(state);
        heard.get("change:_current").forEach((call) => call());
    };
    const { default: widget } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    widget.initialize({ model });
    window.close_view = widget.render({ model, el: document.getElementById("place") });
}"""


class Alone:
    """A drawing's page; Python's changes reach it from now on."""

    def __init__(self, page: Page, drawing: Drawing, width: int = 940, theme: str = LIGHT) -> None:
        self.page, self.drawing = page, drawing
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))
        page.set_viewport_size({"width": width, "height": 620})
        page.set_content(_PAGE % drawing._css)
        self.theme(theme)
        page.evaluate(_MODEL, [drawing._esm, _plain(drawing._state), drawing.height])
        drawing.send = self._tell  # type: ignore[method-assign]
        drawing.send_state = self._replace  # type: ignore[method-assign]

    def beside(self, drawing: Drawing) -> None:
        """Another drawing on the same page; from now on its changes reach the page, the first one's no more."""
        self.page.evaluate("() => { document.getElementById('place').id = ''; }")
        self.page.evaluate("() => { document.body.append(Object.assign(document.createElement('div'), { id: 'place' })); }")
        self.page.evaluate(_MODEL, [drawing._esm, _plain(drawing._state), drawing.height])
        drawing.send = self._tell  # type: ignore[method-assign]

    def theme(self, light: str) -> None:
        """Choose the light or the dark one."""
        self.page.evaluate("(light) => { document.body.dataset.jpThemeLight = light; }", light)

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """What the page sent of a kind, since it was opened."""
        return [message for message in self.page.evaluate("window.sent") if message["type"] == kind]

    def hear(self) -> None:
        """Give Python what the page sent."""
        for message in self.page.evaluate("window.sent.splice(0)"):
            self.drawing._receive(self.drawing, message, [])

    def _tell(self, message: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.page.evaluate(
            "([message, buffers]) => window.tell(message, buffers)", [message, [_text(b) for b in buffers or []]]
        )

    def _replace(self, _: Any = None) -> None:
        self.page.evaluate("(state) => window.replace(state)", _plain(self.drawing._state))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _plain(node: Any) -> Any:
    if is_array(node):
        return node | {"data": _text(node["data"])}
    if isinstance(node, dict):
        return {key: _plain(item) for key, item in node.items()}
    return [_plain(item) for item in node] if isinstance(node, list) else node
