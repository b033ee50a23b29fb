// Draws the figure that widgets/plot.py holds. One copy of plotly.js serves the whole document; figures arrive as trees whose arrays
// are binary buffers (widgets/wire.py), and change by patches. Nothing here reaches for the network.

const shared = (globalThis[Symbol.for("qlora-workbench.plots")] ??= { plotly: new Map(), turn: Promise.resolve() });

// ---------------------------------------------------------------- plotly.js

/** plotly.js out of the library model: inflated and evaluated once a document, without leaving a global behind. */
function loadPlotly(library) {
  const version = library.get("version");
  if (!shared.plotly.has(version)) {
    const loading = evaluate(library.get("gzipped"));
    loading.catch(() => shared.plotly.delete(version));
    shared.plotly.set(version, loading);
  }
  return shared.plotly.get(version);
}

async function evaluate(gzipped) {
  const inflated = new Blob([gzipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(inflated).text();
  const present = Object.getOwnPropertyDescriptor(globalThis, "Plotly");
  const module = { exports: {} };
  // define and require are hidden: under JupyterLab's or Colab's AMD loader plotly.js would register itself there instead.
  new Function("module", "exports", "define", "require", source)(module, module.exports, undefined, undefined);
  if (present) Object.defineProperty(globalThis, "Plotly", present);
  else delete globalThis.Plotly;
  return module.exports;
}

async function findLibrary(model) {
  const reference = model.get("library");
  if (typeof reference !== "string") return reference;
  return model.widget_manager.get_model(reference.replace("IPY_MODEL_", ""));
}

/** One piece of drawing per task, in order, so that ten plots do not keep messages and input waiting. */
function inTurn(work) {
  shared.turn = shared.turn.then(() => new Promise((resolve) => setTimeout(resolve))).then(() => void work());
}

// ---------------------------------------------------------------- the figure

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

/** A copy that plotly may write into; arrays and lists of scalars keep their identity. */
function decode(node) {
  if (node === null || typeof node !== "object") return node;
  if (Array.isArray(node)) return node.some((item) => item !== null && typeof item === "object") ? node.map(decode) : node;
  if (node.$array) return decodeArray(node);
  return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, decode(item)]));
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

/** A live curve: the first `start` elements as they were, and new ones after them. */
function withTail(node, start, tail) {
  const bytesOf = ({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength);
  const kept = bytesOf(node.data).subarray(0, start * KINDS[node.$array].BYTES_PER_ELEMENT);
  const whole = new Uint8Array(kept.length + tail.data.byteLength);
  whole.set(kept);
  whole.set(bytesOf(tail.data), kept.length);
  return { $array: node.$array, shape: [start + tail.shape[0]], data: new DataView(whole.buffer) };
}

// ---------------------------------------------------------------- the page

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

/** The theme's template in the page's own font and colours. */
function themed(themes, element) {
  const template = themes[isDark() ? "dark" : "light"];
  const style = getComputedStyle(element);
  const own = (...names) => names.map((name) => style.getPropertyValue(name).trim()).find(Boolean);
  const font = { ...template.layout.font, family: style.fontFamily };
  const colour = own("--jp-ui-font-color1", "--vscode-foreground");
  if (colour) font.color = colour;
  const modebar = { bgcolor: own("--jp-layout-color1", "--vscode-editor-background") ?? "rgba(0,0,0,0)" };
  return { ...template, layout: { ...template.layout, font, modebar } };
}

// ---------------------------------------------------------------- what the reader does

function describePoint(point) {
  const { curveNumber: curve, x, y, z, customdata } = point;
  const plain = ArrayBuffer.isView(customdata) ? Array.from(customdata) : customdata;
  return { curve, name: point.data?.name, index: point.pointIndex ?? point.pointNumber, x, y, z, customdata: plain };
}

/** Axis ranges out of a relayout event; null where it is about something else, such as plotly fitting its own size. */
function describeZoom(change) {
  const ranges = {};
  for (const [key, value] of Object.entries(change ?? {})) {
    const [, axis, what, end] = key.match(/^([xy]axis\d*)\.(range|autorange)(?:\[([01])\])?$/) ?? [];
    if (what === "autorange") ranges[axis] = null;
    else if (end !== undefined) (ranges[axis] ??= [null, null])[Number(end)] = value;
    else if (what === "range") ranges[axis] = value;
  }
  return Object.keys(ranges).length ? ranges : null;
}

function listen(view, model) {
  const send = (type, detail) => model.get("_listening").includes(type) && model.send({ type, detail });
  const { plot } = view;
  plot.on("plotly_click", (event) => event.points.length && send("click", describePoint(event.points[0])));
  plot.on("plotly_selected", (event) => send("select", (event?.points ?? []).map(describePoint)));
  plot.on("plotly_relayout", (change) => {
    const ranges = describeZoom(change);
    if (ranges) send("zoom", ranges);
  });
  plot.on("plotly_hover", (event) => {
    clearTimeout(view.hover);
    view.hover = setTimeout(() => event.points.length && send("hover", describePoint(event.points[0])), 50);
  });
}

// ---------------------------------------------------------------- drawing

const states = new Map(); // a model's key -> its state: initialize and render see different proxies of one model

function schedule(view) {
  if (view.scheduled || view.gone) return;
  view.scheduled = true;
  inTurn(async () => {
    view.scheduled = false;
    if (view.drawing) return void (view.again = true);
    view.drawing = true;
    try {
      await draw(view);
    } finally {
      view.drawing = false;
      if (view.again) schedule(view);
      view.again = false;
    }
  });
}

async function draw(view) {
  const { state, plot } = view;
  if (view.gone) return;
  plot.setAttribute("aria-label", state.content.summary || "Plot");
  if (!plot.clientWidth) return void (view.stale = true); // hidden: the size observer draws it when it appears
  view.stale = false;
  try {
    const library = await (view.library ??= findLibrary(view.model));
    const plotly = (view.plotly = await loadPlotly(library));
    if (view.gone) return;
    const { data, layout, frames } = decode({ ...state.content });
    layout.template ??= themed(library.get("themes"), plot);
    layout.uirevision ??= "kept";
    layout.autosize = true;
    const config = { displaylogo: false, responsive: false };
    await plotly.react(plot, frames ? { data, layout, config, frames } : { data, layout, config });
    if (!view.listening) listen(view, view.model);
    view.listening = true;
    complain(view, state.content.error);
    plot.dataset.revision = state.revision;
  } catch (error) {
    view.library = undefined;
    complain(view, `The plot could not be drawn. ${error}`);
    console.error("[workbench] plot", error);
  }
}

function complain(view, text) {
  if (view.alert.textContent !== text) view.alert.textContent = text;
  view.alert.hidden = !text;
}

/** The place the plot takes, at its full height from the start. */
function build(model, el) {
  const frame = document.createElement("div");
  frame.className = "workbench-plot";
  frame.style.cssText = "position:relative;width:100%;min-width:0;overflow:hidden";
  const plot = document.createElement("div");
  plot.setAttribute("role", "figure");
  plot.style.cssText = "width:100%;height:100%";
  const alert = document.createElement("div");
  alert.setAttribute("role", "alert");
  alert.hidden = true;
  alert.style.cssText = `position:absolute;left:8px;right:8px;top:8px;padding:8px 12px;white-space:pre-wrap;overflow:auto;max-height:80%;
    background:var(--jp-layout-color1, Canvas);color:var(--jp-error-color1, #b3261e);border:1px solid currentColor;border-radius:4px;
    font:var(--jp-ui-font-size1, 13px)/1.4 var(--jp-ui-font-family, system-ui, sans-serif)`;
  frame.append(plot, alert);
  el.style.minWidth = "0";
  el.append(frame);
  const resize = () => (frame.style.height = `${model.get("height")}px`);
  resize();
  model.on("change:height", resize);
  return { plot, alert, frame };
}

export default {
  initialize({ model }) {
    const state = { ...model.get("_current"), views: new Set() };
    states.set(model.get("_key"), state);
    const redraw = () => state.views.forEach(schedule);
    const greet = () => model.send({ type: "hello", revision: state.revision });
    const replaced = () => {
      Object.assign(state, model.get("_current"));
      redraw();
    };
    const received = (message, buffers) => {
      if (message.type !== "patch" || message.to <= state.revision) return;
      if (message.from !== state.revision) return void greet(); // one was missed: ask for everything
      applyPatch(state.content, message.operations, buffers);
      // The model's own copy is the same tree: what a saved notebook keeps stays current too.
      state.revision = model.get("_current").revision = message.to;
      redraw();
    };
    model.on("change:_current", replaced);
    model.on("msg:custom", received);
    greet();
    return () => {
      model.off("change:_current", replaced);
      model.off("msg:custom", received);
      states.delete(model.get("_key"));
    };
  },

  render({ model, el }) {
    const view = { model, state: states.get(model.get("_key")), ...build(model, el) };
    view.state.views.add(view);
    // Keys pressed here are not the notebook's shortcuts; Escape still leaves to the notebook, and Tab keeps its default.
    view.frame.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
    const unwatch = watchTheme(() => schedule(view));
    const sizes = new ResizeObserver(() => {
      if (!view.plot.clientWidth) return;
      if (view.stale || !view.listening) schedule(view);
      else view.plotly.Plots.resize(view.plot).catch(() => {}); // rejected only when the plot was hidden meanwhile
    });
    sizes.observe(view.frame);
    schedule(view);
    return () => {
      view.gone = true;
      clearTimeout(view.hover);
      unwatch();
      sizes.disconnect();
      view.state.views.delete(view);
      view.plotly?.purge(view.plot);
    };
  },
};
