// @ts-check
// What every drawing of widgets/drawing/drawing.py does on the page: keep the state that Python holds and apply its patches, follow the
// theme, take a frame with an error, tools and a live region, and give a picture. plot.js and blockmap.js come after it.

const shared = (globalThis[Symbol.for("qlora-workbench.page")] ??= {
  waiting: [], page: `page-${Math.random().toString(36).slice(2)}`,
});

const TASK = 50; // milliseconds of drawing until messages and input get their turn

/** Drawings in order, as many in one task as are soon done: between two tasks the page lays out and paints a frame. */
function inTurn(work) {
  shared.waiting.push(work);
  if (shared.waiting.length === 1) setTimeout(drawWaiting);
}

function drawWaiting() {
  const end = performance.now() + TASK;
  try {
    while (shared.waiting.length && performance.now() < end) void shared.waiting.shift()();
  } finally { // one that fails must not hold up the others
    if (shared.waiting.length) setTimeout(drawWaiting);
  }
}

// ---------------------------------------------------------------- arrays and patches (widgets/drawing/wire.py)

const KINDS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
};
const decoded = new WeakMap(); // array node -> typed array: plotly redraws only the arrays whose identity changed

function decodeArray(node) {
  if (!decoded.has(node)) {
    const Kind = KINDS[node.$array];
    const { buffer, byteOffset, byteLength } = node.data;
    const aligned = byteOffset % Kind.BYTES_PER_ELEMENT === 0;
    const flat = aligned
      ? new Kind(buffer, byteOffset, byteLength / Kind.BYTES_PER_ELEMENT)
      : new Kind(buffer.slice(byteOffset, byteOffset + byteLength));
    const [rows, columns] = node.shape;
    const table = node.shape.length === 2;
    decoded.set(node, table ? Array.from({ length: rows }, (_, i) => flat.subarray(i * columns, (i + 1) * columns)) : flat);
  }
  return decoded.get(node);
}

/** Put each buffer back where `detach` took it from. */
function attach(value, buffers) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map((item) => attach(item, buffers));
  if (value.$array) return { $array: value.$array, shape: value.shape, data: buffers[value.buffer] };
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, attach(item, buffers)]));
}

function applyPatch(content, operations, buffers) {
  for (const [path, verb, value, rest] of operations) {
    const parent = path.slice(0, -1).reduce((node, key) => node[key], content);
    const key = path[path.length - 1];
    if (verb === "set") parent[key] = attach(value, buffers);
    else if (verb === "del") delete parent[key];
    else if (verb === "cut") parent[key].length = value;
    else if (verb === "tail") parent[key] = withTail(parent[key], value, attach(rest, buffers));
  }
}

/** A live curve: the first `start` elements as they were, and new ones after them; the room for them grows by doubling. */
function withTail(node, start, tail) {
  const bytesIn = ({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength);
  const keep = start * KINDS[node.$array].BYTES_PER_ELEMENT, length = keep + tail.data.byteLength;
  // Nobody looks at what lies behind a curve's last element, so that a mere addition needs no copy.
  const fits = node.room && keep === node.data.byteLength && length <= node.room.byteLength;
  const room = fits ? node.room : new ArrayBuffer(2 * length);
  const bytes = new Uint8Array(room);
  if (!fits) bytes.set(bytesIn(node.data).subarray(0, keep));
  bytes.set(bytesIn(tail.data), keep);
  const grown = { $array: node.$array, shape: [start + tail.shape[0]], data: new DataView(room, 0, length) };
  return Object.defineProperty(grown, "room", { value: room }); // not enumerable: no part of what a notebook keeps
}

// ---------------------------------------------------------------- state

const ANSWER_WITHIN = 2000, GREETINGS = 6; // milliseconds until a greeting is repeated, doubled each time; and how often

/**
 * Greets a model's kernel until `heard` is called: a busy one may lose what it hears while a widget is being made, and what the
 * page sends before its subshell has started waits for the cell that runs.
 */
function greeter(model, greeting) {
  let unanswered;
  const greet = (tries = 0) => {
    try {
      model.send({ type: "hello", ...greeting() });
    } catch {
      return; // the kernel is gone
    }
    clearTimeout(unanswered);
    if (tries < GREETINGS) unanswered = setTimeout(greet, ANSWER_WITHIN * 2 ** tries, tries + 1);
  };
  return { greet: () => greet(), heard: () => clearTimeout(unanswered) };
}

const states = new Map(); // a model's key -> its state: initialize and render see different proxies of one model

/**
 * Hold a model's state for all its views: `redraw(view)` after a change, `picture(state, model)` a PNG blob of it as it is now,
 * `received(state, message, buffers)` for what only this kind of drawing is sent.
 * @param {any} model
 * @param {{redraw: Function, picture: Function, received?: Function}} acts
 */
function keepState(model, { redraw, picture, received }) {
  const state = { ...model.get("_current"), views: new Set() };
  states.set(model.get("_key"), state);
  const redrawAll = () => state.views.forEach((view) => redraw(view));
  const { greet, heard: answered } = greeter(model, () => ({ revision: state.revision }));
  const replaced = () => {
    answered();
    Object.assign(state, model.get("_current"));
    redrawAll();
  };
  const heard = (message, buffers) => {
    answered();
    if (message.type === "patch") patched(message, buffers);
    else if (message.type === "picture") void sendPicture(message.id);
    else if (message.type === "say") state.views.forEach((view) => say(view, message.text));
    else received?.(state, message, buffers);
  };
  const patched = (message, buffers) => {
    if (message.to <= state.revision) return;
    if (message.from !== state.revision) return void greet(); // one was missed: ask for everything
    applyPatch(state.content, message.operations, buffers);
    // The model's own copy is the same tree: what a saved notebook keeps stays current too.
    state.revision = model.get("_current").revision = message.to;
    redrawAll();
  };
  const sendPicture = async (id) => {
    try {
      model.send({ type: "picture", id }, undefined, [await bytesOf(picture(state, model))]);
    } catch (error) {
      model.send({ type: "picture", id, error: String(error) });
    }
  };
  state.insert = async () => {
    try {
      model.send({ type: "insert" }, undefined, [await bytesOf(picture(state, model))]);
    } catch (error) {
      state.views.forEach((view) => say(view, `No picture could be taken. ${error}`));
    }
  };
  model.on("change:_current", replaced);
  model.on("msg:custom", heard);
  greet();
  return () => {
    answered();
    model.off("change:_current", replaced);
    model.off("msg:custom", heard);
    states.delete(model.get("_key"));
  };
}

async function bytesOf(blob) {
  return (await blob).arrayBuffer();
}

/** The view from which a picture is taken: one that is on screen, else any. */
function shownView(state) {
  const views = [...state.views];
  return views.find((view) => view.frame.checkVisibility()) ?? views[0];
}

// ---------------------------------------------------------------- theme

function isDark() {
  const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
  if (jpThemeLight !== undefined) return jpThemeLight === "false";
  if (vscodeThemeKind) return ["vscode-dark", "vscode-high-contrast"].includes(vscodeThemeKind);
  const colab = document.documentElement.getAttribute("theme");
  return colab ? colab === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function watchTheme(changed) {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind"] });
  observer.observe(document.documentElement, { attributes: true, attributeFilter: ["theme"] });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    system.removeEventListener("change", changed);
  };
}

/** The first of these CSS properties that the page sets. */
function pageColour(style, ...names) {
  return names.map((name) => style.getPropertyValue(name).trim()).find(Boolean);
}

/** Text, background, quiet line and accent of the page around an element. */
function pageColours(element) {
  const style = getComputedStyle(element), dark = isDark();
  return {
    dark,
    font: style.fontFamily,
    text: pageColour(style, "--jp-ui-font-color1", "--vscode-foreground") ?? (dark ? "#e3e3e3" : "#202124"),
    page: pageColour(style, "--jp-layout-color1", "--vscode-editor-background") ?? (dark ? "#1e1e1e" : "#ffffff"),
  };
}

// ---------------------------------------------------------------- the frame

const LOOK = `
.workbench-drawing { position: relative; width: 100%; min-width: 0; overflow: hidden; }
.workbench-drawing > [role=alert] {
  position: absolute; left: 8px; right: 8px; top: 8px; padding: 8px 12px; white-space: pre-wrap; overflow: auto; max-height: 80%;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-error-color1, #b3261e); border: 1px solid currentColor;
  border-radius: 4px; font: var(--jp-ui-font-size1, 13px)/1.4 var(--jp-ui-font-family, system-ui, sans-serif);
}
.workbench-drawing > [role=alert][hidden] { display: none; }
.workbench-drawing > [role=toolbar] { position: absolute; right: 2px; bottom: 2px; display: flex; gap: 2px; opacity: 0; }
.workbench-drawing:is(:hover, :focus-within) > [role=toolbar] { opacity: 1; }
.workbench-drawing > [role=toolbar] button {
  min-width: 24px; height: 24px; padding: 0 6px; border: 1px solid var(--jp-border-color1, GrayText); border-radius: 3px;
  background: var(--jp-layout-color1, Canvas); color: var(--jp-ui-font-color1, CanvasText); cursor: pointer;
  font: 12px/1 var(--jp-ui-font-family, system-ui, sans-serif);
}
.workbench-drawing :is(button, canvas, [role=figure]):focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: -2px;
}
.workbench-drawing > [role=status] { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

/** The place a drawing takes, at its full height from the start: `body`, an error over it, tools, and what is said of it. */
function buildFrame(model, el, kind, body, tools = []) {
  const style = element("style", {}, LOOK);
  const alert = element("div", { role: "alert", hidden: "" });
  const live = element("div", { role: "status", "aria-live": "polite" });
  const state = states.get(model.get("_key"));
  const picture = ["▣", "Insert picture", "Insert a picture into the notebook, below this cell (p)", () => state.insert()];
  const buttons = [...tools, picture].map(([sign, name, title, act]) => {
    const button = element("button", { type: "button", "aria-label": name, title }, sign);
    button.addEventListener("click", act);
    return button;
  });
  const toolbar = element("div", { role: "toolbar", "aria-label": "Drawing" }, ...buttons);
  const frame = element("div", { class: `workbench-drawing ${kind}` }, style, body, alert, toolbar, live);
  el.style.minWidth = "0";
  el.append(frame);
  const resize = () => (frame.style.height = model.get("height") ? `${model.get("height")}px` : ""); // 0: what it needs
  resize();
  model.on("change:height", resize);
  // Keys pressed here are not the notebook's shortcuts; Escape still leaves to the notebook, and Tab keeps its default.
  frame.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
  return { model, state, frame, alert, live, unframe: () => model.off("change:height", resize) };
}

function complain(view, text) {
  if (view.alert.textContent !== text) view.alert.textContent = text;
  view.alert.hidden = !text;
}

/** A sentence for screen readers, as things happen. */
function say(view, text) {
  view.live.textContent = text;
}
