// @ts-check
// Draws the figure that widgets/drawing/plot.py holds; drawing.js and plotly_once.js come before it. Nothing here reaches for the network.

// ---------------------------------------------------------------- the figure

async function findLibrary(model) {
  const reference = model.get("library");
  if (typeof reference !== "string") return reference;
  return model.widget_manager.get_model(reference.replace("IPY_MODEL_", ""));
}

/** A copy that plotly may write into; arrays and lists of scalars keep their identity. */
function decode(node) {
  if (node === null || typeof node !== "object") return node;
  if (Array.isArray(node)) return node.some((item) => item !== null && typeof item === "object") ? node.map(decode) : node;
  if (node.$array) return decodeArray(node);
  return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, decode(item)]));
}

// ---------------------------------------------------------------- the page's look

/** The theme's template in the page's own font and colours. */
function themed(themes, element) {
  const template = themes[isDark() ? "dark" : "light"];
  const { font: family, text } = pageColours(element);
  const font = { ...template.layout.font, family, color: text };
  return { ...template, layout: { ...template.layout, font } };
}

// ---------------------------------------------------------------- what the reader does

function describePoint(point) {
  const { curveNumber: curve, x, y, z, customdata } = point;
  const plain = ArrayBuffer.isView(customdata) ? Array.from(/** @type {any} */ (customdata)) : customdata;
  return { curve, name: point.data?.name, index: point.pointIndex ?? point.pointNumber, x, y, z, customdata: plain };
}

/** A point as `describePoint` has it, by its place in the figure. */
function pointAt(plot, curve, index) {
  const trace = plot._fullData[curve], [x, y, customdata] = [trace.x, trace.y, trace.customdata].map((values) => values?.[index]);
  return describePoint({ curveNumber: curve, data: trace, pointIndex: index, x: x ?? index, y, customdata });
}

/** What a point is called aloud. */
function spoken({ name, x, y, z }) {
  const plain = (value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);
  return [name, ...Object.entries({ x, y, z }).map(([axis, value]) => value !== undefined && `${axis} ${plain(value)}`)]
    .filter(Boolean).join(", ");
}

function click({ model }, point) {
  model.send({ type: "click", detail: point });
}

function listen(view) {
  view.plot.on("plotly_click", (event) => event.points.length && click(view, describePoint(event.points[0])));
  view.plot.on("plotly_hover", (event) => {
    if (event.points.length) view.picked = describePoint(event.points[0]);
  });
  for (const moved of ["plotly_afterplot", "plotly_relayout"]) view.plot.on(moved, () => readOut(view));
}

// ---------------------------------------------------------------- the readout

/** Traces that can be read off: their `meta` names the values that each of their points has in `customdata`, parted by tabs. */
function readable(plot) {
  return plot.data.flatMap((trace, curve) => (Array.isArray(trace.meta) && trace.x.length ? [{ ...trace, curve }] : []));
}

/** The point of a trace at x: the bar that covers it, else the nearest point. */
function indexAt({ x: places, width }, x) {
  let found = 0, least = Infinity;
  for (let i = 0; i < places.length; i += 1) {
    const away = Math.abs(places[i] - x) - (width?.[i] ?? 0) / 2;
    if (away < least) [found, least] = [i, away];
  }
  return found;
}

/** Shows every readable trace at the x that was read last: at first where the first bars are highest. */
function readOut(view) {
  const { plot, readout } = view, traces = readable(plot);
  readout.hidden = view.band.hidden = !traces.length;
  if (!traces.length) return;
  let read = traces.find(({ curve }) => curve === view.reading?.curve);
  if (!read) {
    read = traces.find(({ type }) => type === "bar") ?? traces[0];
    view.reading = { curve: read.curve, x: read.x[read.y.indexOf(Math.max(...read.y))] };
  }
  const { x } = view.reading, cell = (text) => element("td", {}, text);
  const rows = traces.map((trace) => {
    const swatch = element("i", { style: `background: ${trace.marker?.color ?? trace.line?.color ?? "currentColor"}` });
    const name = element("th", { scope: "row" }, swatch, trace.name);
    const cells = trace.customdata[indexAt(trace, x)].split("\t").map(cell);
    return element("tr", trace === read ? { "aria-current": "true" } : {}, name, ...cells);
  });
  const head = read.meta.map((name) => element("th", { scope: "col" }, name));
  const at = Number(x.toPrecision(3)).toString().replace("-", "−");
  readout.replaceChildren(
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, `at ${at}`), ...head)), element("tbody", {}, ...rows),
  );
  mark(view, read, indexAt(read, x));
}

/** A band over the whole picture, as wide as the bar that is read, or a line at the point. */
function mark({ plot, band }, { x, width }, i) {
  const { xaxis, _size: { t, h } } = plot._fullLayout;
  const [from, to] = [-1, 1].map((side) => {
    const at = xaxis.d2p(x[i] + (side * (width?.[i] ?? 0)) / 2);
    return Math.min(Math.max(at, 0), xaxis._length);
  });
  Object.assign(band.style, { left: `${xaxis._offset + from}px`, width: `${Math.max(to - from, 1)}px`, top: `${t}px`, height: `${h}px` });
}

/** Reads at the pointer: of the traces, the one in whose part of the picture it is. */
function readPointer(view, event) {
  const { plot } = view, traces = view.listening ? readable(plot) : [];
  if (!traces.length) return;
  const box = plot.getBoundingClientRect(), { xaxis, ...layout } = plot._fullLayout;
  const x = event.clientX - box.left - xaxis._offset, y = event.clientY - box.top;
  if (x < 0 || x > xaxis._length) return;
  const inside = ({ yaxis = "y" }) => {
    const { _offset, _length } = layout[yaxis.replace("y", "yaxis")];
    return y >= _offset && y <= _offset + _length;
  };
  const { curve } = traces.find(inside) ?? traces[0], value = xaxis.p2d(x);
  view.reading = { curve, x: value };
  view.picked = pointAt(plot, curve, indexAt(plot.data[curve], value));
  readOut(view);
}

/** What the keys have come to, aloud: the row of the readout, or the point's own values, which plotly then also shows. */
function tell(view, { curve, index, x }) {
  const { plot } = view, trace = plot._fullData[curve];
  if (Array.isArray(plot.data[curve].meta)) {
    view.reading = { curve, x };
    readOut(view);
    const { name, meta, customdata } = plot.data[curve], cells = customdata[index].split("\t");
    return say(view, [name, ...meta.map((label, i) => cells[i] && `${label} ${cells[i]}`)].filter(Boolean).join(", "));
  }
  say(view, spoken(view.picked)); // plotly shows the label without an event: its events are the pointer's
  const subplot = (trace.xaxis ?? "x") + (trace.yaxis ?? "y");
  view.plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: index }], subplot);
}

// ---------------------------------------------------------------- drawing

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
  const { data, layout, summary, error, waiting } = state.content;
  plot.setAttribute("aria-label", summary || waiting || "Plot");
  view.waiting.textContent = waiting;
  if (!data.length && !Object.keys(layout).length) return clear(view, error); // its figure is on the way
  if (!plot.clientWidth) {
    view.stale = true; // hidden: the size observer draws it when it appears
    requestAnimationFrame(() => plot.clientWidth && schedule(view)); // it sees nothing of what lasts less than a frame
    return;
  }
  view.stale = false;
  try {
    if (!view.plotly) {
      await prepare(view);
      return schedule(view); // and not all that waited for it in one long task
    }
    const figure = figureOf(state, view.library, plot);
    await view.plotly.react(plot, { ...figure, config: { displayModeBar: false, responsive: false } });
    if (!view.listening) listen(view);
    view.listening = true;
    readOut(view);
    complain(view, state.content.error);
    plot.dataset.revision = state.revision;
  } catch (error) {
    complain(view, `The plot could not be drawn. ${error}`);
    console.error("[workbench] plot", error);
  }
}

/** No figure, and no axes either. */
function clear(view, error) {
  if (view.listening) view.plotly.purge(view.plot);
  view.listening = view.picked = view.reading = null;
  view.readout.hidden = view.band.hidden = true;
  complain(view, error);
  view.plot.dataset.revision = view.state.revision;
}

async function prepare(view) {
  view.library = await findLibrary(view.model);
  view.plotly = await loadPlotly(view.library);
}

/** The figure as plotly takes it. */
function figureOf(state, library, element) {
  const { data, layout, frames } = state.content;
  const figure = decode(frames ? { data, layout, frames } : { data, layout });
  figure.layout.template ??= themed(library.get("themes"), element);
  figure.layout.uirevision ??= "kept";
  figure.layout.autosize = true;
  return figure;
}

/** The plot as it is on screen, or as it would be, on the page's own background and twice as fine as the screen. */
async function pictureOf(state, model) {
  const view = shownView(state), shown = view?.listening && view.plot.clientWidth ? view.plot : null;
  const library = await findLibrary(model), plotly = await loadPlotly(library);
  const { data, layout } = shown ?? figureOf(state, library, document.body);
  const { page } = pageColours(view?.frame ?? document.body);
  const size = { width: shown?.clientWidth ?? PICTURE_WIDTH, height: model.get("height") };
  const picture = { data, layout: { ...layout, ...size, autosize: false, paper_bgcolor: page } };
  return (await fetch(await plotly.toImage(picture, { format: "png", scale: 2, ...size }))).blob();
}

const PICTURE_WIDTH = 800; // of a plot that is on no screen

const READOUT = `
.workbench-waiting {
  position: absolute; inset: 0; display: grid; place-content: center; margin: 0; padding: 0 12%; text-align: center; pointer-events: none;
  color: color-mix(in srgb, currentColor 72%, transparent); font: 12px/1.5 var(--jp-ui-font-family, system-ui, sans-serif);
}
.workbench-waiting:empty, .workbench-band[hidden], .workbench-readout[hidden] { display: none; }
.workbench-band { position: absolute; pointer-events: none; background: rgb(42 134 200 / 16%); }
.workbench-readout {
  width: 100%; margin: 2px 0 0; border-collapse: collapse; table-layout: fixed; color: inherit; white-space: nowrap;
  font: 11px/18px var(--jp-ui-font-family, system-ui, sans-serif); font-variant-numeric: tabular-nums;
}
.workbench-readout :is(th, td) { padding: 0 4px; border: 0; text-align: right; font-weight: 400; overflow: hidden; text-overflow: ellipsis; }
.workbench-readout thead th { color: color-mix(in srgb, currentColor 72%, transparent); }
.workbench-readout th:first-child { width: 17%; text-align: left; }
.workbench-readout :is(th, td):last-child { width: 19%; }
.workbench-readout [aria-current] > * { background: rgb(42 134 200 / 16%); }
.workbench-readout i { display: inline-block; width: 8px; height: 8px; margin-right: 6px; border-radius: 2px; }
`;

// ---------------------------------------------------------------- keys

/** Left and right go from point to point, up and down from trace to trace, Enter clicks: what the mouse does. */
function pressed(view, event) {
  const { plot } = view;
  if (event.key === "p" && !event.ctrlKey && !event.metaKey) return void view.state.insert();
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === "Enter" && view.picked) return void click(view, view.picked);
  if (event.target !== plot || (step === undefined && turn === undefined) || !view.listening) return;
  const lengths = plot.calcdata.map(([first], i) => (first.trace.hoverinfo === "skip" || first.z ? 0 : plot.calcdata[i].length));
  const curves = lengths.flatMap((length, i) => (length ? [i] : []));
  if (!curves.length) return;
  event.preventDefault();
  const place = curves.indexOf(view.picked?.curve ?? -1);
  const curve = curves[(Math.max(place, 0) + (place < 0 ? 0 : turn ?? 0) + curves.length) % curves.length];
  const from = curve === view.picked?.curve ? view.picked.index : turn ? view.picked?.index ?? 0 : -1;
  const index = Math.min(Math.max(from + (step ?? 0), 0), lengths[curve] - 1);
  view.picked = pointAt(plot, curve, index);
  tell(view, view.picked);
}

export default {
  initialize: ({ model }) => keepState(model, { redraw: schedule, picture: pictureOf }),

  render({ model, el }) {
    const plot = element("div", { role: "figure", tabindex: "0", style: "width:100%;height:100%" });
    const waiting = element("p", { class: "workbench-waiting" }), band = element("div", { class: "workbench-band", hidden: "" });
    const readout = element("table", { class: "workbench-readout", hidden: "" });
    /** @type {Record<string, any>} */
    const view = { plot, waiting, band, readout, ...buildFrame(model, el, "workbench-plot", plot) };
    view.frame.append(waiting, band);
    el.append(element("style", {}, READOUT), readout);
    view.state.views.add(view);
    view.frame.addEventListener("keydown", (event) => pressed(view, event));
    for (const move of ["pointermove", "pointerdown"]) view.frame.addEventListener(move, (event) => readPointer(view, event));
    const unwatch = watchTheme(() => schedule(view));
    const sizes = new ResizeObserver(() => {
      if (!view.plot.clientWidth) return;
      if (view.stale) schedule(view);
      else if (view.listening) view.plotly.Plots.resize(view.plot).catch(() => {}); // rejected only when the plot was hidden meanwhile
    });
    sizes.observe(view.frame);
    prepare(view).catch(() => {}); // ahead of the figure; drawing says what is wrong
    schedule(view);
    return () => {
      view.gone = true;
      unwatch();
      view.unframe();
      sizes.disconnect();
      view.state.views.delete(view);
      view.plotly?.purge(view.plot);
    };
  },
};
