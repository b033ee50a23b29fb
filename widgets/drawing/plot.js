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
  plot.setAttribute("aria-label", state.content.summary || "Plot");
  const empty = !view.listening && !state.content.data.length && !Object.keys(state.content.layout).length;
  if (empty) return void complain(view, state.content.error); // its figure is on the way
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
    const { data, layout, frames } = figureOf(state, view.library, plot);
    const config = { displayModeBar: false, responsive: false };
    await view.plotly.react(plot, frames ? { data, layout, config, frames } : { data, layout, config });
    if (!view.listening) listen(view);
    view.listening = true;
    complain(view, state.content.error);
    plot.dataset.revision = state.revision;
  } catch (error) {
    complain(view, `The plot could not be drawn. ${error}`);
    console.error("[workbench] plot", error);
  }
}

async function prepare(view) {
  view.library = await findLibrary(view.model);
  view.plotly = await loadPlotly(view.library);
}

/** The figure as plotly takes it. */
function figureOf(state, library, element) {
  const figure = decode({ data: state.content.data, layout: state.content.layout, frames: state.content.frames });
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

// ---------------------------------------------------------------- keys

/** Left and right go from point to point, up and down from trace to trace, Enter clicks: what the mouse does. */
function pressed(view, event) {
  const { plot, plotly } = view;
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
  say(view, spoken(view.picked)); // plotly shows the label without an event: its events are the pointer's
  plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: index }], Object.keys(plot._fullLayout._plots)[0]);
}

export default {
  initialize: ({ model }) => keepState(model, { redraw: schedule, picture: pictureOf }),

  render({ model, el }) {
    const plot = element("div", { role: "figure", tabindex: "0", style: "width:100%;height:100%" });
    /** @type {Record<string, any>} */
    const view = { plot, ...buildFrame(model, el, "workbench-plot", plot) };
    view.state.views.add(view);
    view.frame.addEventListener("keydown", (event) => pressed(view, event));
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
