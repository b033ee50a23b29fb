// @ts-check
// The cockpit's view: when it draws, what the reader does with it, replay. The other cockpit files, which come before this one,
// know what a run holds and how it is drawn. Data is drawn four times a second at most; the crosshair follows the pointer.

const DATA_EVERY = 250; // milliseconds
const DRAG = 5; // pixels from which a press is a zoom
const HELP =
  "Left and Right go from step to step, plus and minus zoom, Home shows the whole run, End follows, P inserts a picture.";

// ---------------------------------------------------------------- drawing

/** The moment up to which there is anything to see. */
function limitOf(view, run) {
  return view.replay ? view.replay.at : endOf(run);
}

function schedule(view, rest = 0) {
  if (view.gone) return;
  const wait = Math.max(rest - (performance.now() - (view.drawnAt ?? -Infinity)), 0);
  if (view.waiting && view.due <= performance.now() + wait) return;
  clearTimeout(view.waiting);
  view.due = performance.now() + wait;
  view.waiting = setTimeout(() => {
    view.waiting = 0;
    requestAnimationFrame(() => {
      if (view.gone) return;
      try {
        draw(view);
      } catch (error) {
        complain(view, `The run could not be drawn. ${error}`);
        console.error("[workbench] cockpit", error);
      }
    });
  }, wait);
}

const redraw = (view) => {
  ring(view.state);
  schedule(view, DATA_EVERY);
};

function draw(view) {
  const { state, stage } = view,
    began = performance.now();
  complain(view, state.content.error);
  const width = view.frame.clientWidth;
  if (!width) return; // hidden: the size observer draws it when it appears
  view.inks ??= ink(view);
  const run = (view.run = runOf(state));
  if (view.of !== run.facts.run)
    Object.assign(view, { of: run.facts.run, zoom: null, follows: false, cursor: null, replay: null, reach: 0 });
  const narrow = width <= NARROW,
    low = Boolean(run.facts.ended) && !view.tall;
  const layout = (view.layout = layoutOf(narrow ? width : width - READOUT.width - READOUT.gap, low));
  place(view, layout, narrow);
  const limit = limitOf(view, run);
  const scene = (view.scene = {
    run,
    layout,
    limit,
    window: windowOf(view, run, limit),
    inks: view.inks,
    live: Boolean(run.facts.state) && (!run.facts.ended || Boolean(view.replay)),
  });
  drawLanes(freshInk(view.canvas, layout.width, layout.height, devicePixelRatio), scene);
  drawBar(view, run, limit);
  drawSegments(view, run);
  drawOver(view);
  view.drawnAt = performance.now();
  Object.assign(stage.dataset, {
    revision: state.revision,
    steps: countUntil(run.steps.t, limit),
    samples: countUntil(run.samples.t, limit),
    window: scene.window.join(),
    milliseconds: (view.drawnAt - began).toFixed(1),
  });
}

/** The page's colours, as the frame's style sheet takes them too; they are known once the frame is on the page. */
function ink({ frame }) {
  const inks = inksOf(frame);
  for (const [name, value] of [
    ["held-out", inks.heldOut],
    ["h2d", inks.h2d],
    ["evicted", inks.evicted],
  ]) {
    frame.style.setProperty(`--wbc-${name}`, value);
  }
  frame.dataset.dark = String(inks.dark);
  return inks;
}

/** The crosshair and what it reads. */
function drawOver(view) {
  const { run, scene, layout } = view;
  if (!scene) return;
  const context = freshInk(view.over, layout.width, layout.height, devicePixelRatio);
  if (view.cursor !== null) drawCross(context, scene, view.cursor);
  if (view.drag?.to !== undefined) {
    const { lanes } = layout,
      [from, to] = [view.drag.from, view.drag.to].sort((a, b) => a - b);
    context.fillStyle = scene.inks.step;
    context.fillRect(from, lanes.loss.top, to - from, lanes.time.top - lanes.loss.top);
  }
  drawReadout(view, run, scene.limit, view.cursor);
  describeLanes(view, run, scene.limit, view.cursor, drawOver);
  view.stage.dataset.cursor = view.cursor === null ? "" : view.cursor.toFixed(3);
}

function scheduleOver(view) {
  view.overRequest ||= requestAnimationFrame(() => {
    view.overRequest = 0;
    if (!view.gone) drawOver(view);
  });
}

/** Canvases, blocks and figures where the layout has them. */
function place(view, layout, narrow) {
  const key = [layout.width, layout.low, narrow].join();
  if (view.placed === key) return;
  view.placed = key;
  view.body.classList.toggle("wbc-narrow", narrow);
  view.body.classList.toggle("wbc-low", layout.low);
  view.stage.style.height = `${layout.height}px`;
  for (const part of [view.lanes, view.canvas, view.over])
    Object.assign(part.style, { width: `${layout.width}px`, height: `${layout.height}px` });
  for (const lane of LANES) {
    const { top, height } = layout.lanes[lane];
    Object.assign(view.figures[lane].style, { top: `${top}px`, height: `${height}px`, width: `${layout.width}px` });
    Object.assign(view.blocks[lane].style, narrow ? { top: "", height: "" } : { top: `${top}px`, height: `${height}px` });
  }
}

function drawSegments(view, run) {
  const { follow, whole, size } = view.segments,
    live = !run.facts.ended || Boolean(view.replay);
  put(follow, `Follow ${tailOf(run).toLocaleString("en")} s`);
  follow.hidden = !live;
  follow.setAttribute("aria-pressed", String(view.follows && !view.zoom));
  whole.setAttribute("aria-pressed", String(!view.follows && !view.zoom));
  size.hidden = !run.facts.ended;
  size.setAttribute("aria-pressed", String(Boolean(view.tall)));
}

// ---------------------------------------------------------------- what the reader does

function read(view, cursor) {
  view.cursor = cursor;
  scheduleOver(view);
}

function show(view, change) {
  Object.assign(view, { zoom: null, follows: false, ...change });
  schedule(view);
}

function pointing(view) {
  const at = (event) => event.clientX - view.over.getBoundingClientRect().left;
  const time = (x) => {
    const { layout, window, limit } = view.scene;
    return Math.min(
      Math.max(scaleOf(layout, window).at(Math.min(Math.max(x, layout.left), layout.right)), 0),
      Math.max(limit, 0),
    );
  };
  view.over.addEventListener("pointermove", (event) => {
    if (!view.scene) return;
    const x = at(event);
    if (view.drag && (view.drag.to !== undefined || Math.abs(x - view.drag.from) >= DRAG)) view.drag.to = x;
    read(view, time(x));
  });
  view.over.addEventListener("pointerleave", () => !view.drag && read(view, null));
  view.over.addEventListener("pointerdown", (event) => {
    if (event.button || !view.scene) return;
    view.over.setPointerCapture(event.pointerId);
    view.drag = { from: at(event) };
  });
  const end = (event) => {
    const { drag } = view;
    view.drag = null;
    if (drag?.to !== undefined && event.type === "pointerup" && Math.abs(drag.to - drag.from) >= DRAG) {
      const { layout, window } = view.scene,
        scale = scaleOf(layout, window);
      const [from, to] = [drag.from, drag.to]
        .map((x) => scale.at(Math.min(Math.max(x, layout.left), layout.right)))
        .sort((a, b) => a - b);
      if (to - from > 0.05) return show(view, { zoom: [from, to] });
    }
    scheduleOver(view);
  };
  view.over.addEventListener("pointerup", end);
  view.over.addEventListener("pointercancel", end);
  view.over.addEventListener("dblclick", () => show(view, {}));
}

/** What a key does; false where it means nothing here. */
function pressed(view, { key }) {
  const { run, scene } = view;
  if (!scene) return false;
  const until = countUntil(run.steps.t, scene.limit);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    if (!until) return true;
    const row = view.cursor === null ? until : stepAt(run, view.cursor, scene.limit);
    const next = Math.min(Math.max(row + (key === "ArrowLeft" ? -1 : view.cursor === null ? 0 : 1), 0), until - 1);
    reveal(view, run.steps.t[next]);
    read(view, run.steps.t[next]);
    view.said = undefined;
  } else if (key === "+" || key === "=" || key === "-") {
    const [from, to] = scene.window,
      middle = view.cursor ?? (from + to) / 2,
      half = ((to - from) / 2) * (key === "-" ? 2 : 0.5);
    const [, whole] = windowOf({ ...view, zoom: null, follows: false }, run, scene.limit),
      begin = Math.max(middle - half, 0);
    show(view, 2 * half >= whole ? {} : { zoom: [begin, begin + 2 * half] });
  } else if (key === "Home") show(view, {});
  else if (key === "End") {
    show(view, { follows: !run.facts.ended || Boolean(view.replay) });
    read(view, null);
  } else if (key === "p") void view.state.insert();
  else return false;
  return true;
}

/** Move the window so far that a moment is in it. */
function reveal(view, at) {
  const [from, to] = view.scene.window;
  if (at >= from && at <= to) return;
  const shift = at < from ? at - from - (to - from) * 0.1 : at - to + (to - from) * 0.1;
  show(view, { zoom: [Math.max(from + shift, 0), Math.max(from + shift, 0) + to - from] });
}

// ---------------------------------------------------------------- pictures

const PICTURE = { width: 940, scale: 2 };

/** The lanes as they are on screen, or as they would be, with what the bar says above them. */
function pictureOf(state) {
  const view = shownView(state),
    shown = view?.scene ? view : null,
    run = runOf(state);
  const layout = layoutOf(shown ? shown.layout.width : PICTURE.width, shown ? shown.layout.low : false);
  const inks = inksOf(view?.frame ?? document.body),
    head = 20;
  const scene = shown
    ? { ...shown.scene, inks }
    : { run, layout, limit: endOf(run), window: windowOf({}, run, endOf(run)), inks, live: false };
  const canvas = document.createElement("canvas"),
    context = freshInk(canvas, layout.width, layout.height + head, PICTURE.scale);
  context.fillStyle = inks.page;
  context.fillRect(0, 0, layout.width, layout.height + head);
  write(context, [STATES[run.facts.state], run.facts.settings, run.facts.label].filter(Boolean).join(" · "), 4, head / 2, {
    font: inks.font,
    ink: inks.text,
    room: layout.width - 8,
  });
  context.translate(0, head);
  drawLanes(context, scene);
  if (shown && shown.cursor !== null) drawCross(context, scene, shown.cursor);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("This page gives no pictures.")))),
  );
}

// ---------------------------------------------------------------- the view

function buildView(model, el) {
  /** @type {Record<string, any>} */
  const view = { redraw: () => schedule(view), cursor: null, follows: false, zoom: null, replay: null, tall: false };
  const { bar, parts } = buildBar(actsOf(view)),
    { blocks, figures } = buildReadout();
  const segment = (text, title, act) => {
    const made = element("button", { type: "button", title, "aria-pressed": "false" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const segments = {
    follow: segment("Follow", "Show the last seconds and keep up (End)", () => show(view, { follows: true })),
    whole: segment("Whole run", "Show all of it (Home)", () => show(view, {})),
    size: segment("⤢", "Higher lanes", () => schedule(Object.assign(view, { tall: !view.tall }))),
  };
  segments.size.setAttribute("aria-label", "Higher lanes");
  const tools = element(
    "div",
    { class: "wbc-tools" },
    element(
      "span",
      { class: "wbc-segments", role: "group", "aria-label": "What the time axis shows" },
      segments.follow,
      segments.whole,
    ),
    segments.size,
  );
  const canvas = element("canvas", { "aria-hidden": "true" }),
    over = element("canvas", { "aria-hidden": "true" });
  const lanes = element(
    "div",
    { class: "wbc-lanes", role: "group", tabindex: "0", "aria-label": `Lanes of the run. ${HELP}` },
    canvas,
    over,
    ...Object.values(figures),
  );
  const stage = element(
    "div",
    { class: "wbc-stage", role: "figure", "aria-label": "The run over time" },
    lanes,
    tools,
    ...Object.values(blocks),
  );
  const body = element("div", { class: "wbc" }, bar, stage);
  return Object.assign(view, buildFrame(model, el, "workbench-cockpit", body), {
    parts,
    blocks,
    figures,
    segments,
    tools,
    canvas,
    over,
    lanes,
    stage,
    body,
  });
}

export default {
  initialize: ({ model }) => keepState(model, { redraw, picture: pictureOf }),

  render({ model, el }) {
    const view = buildView(model, el);
    const toolbar = /** @type {Element} */ (view.frame.querySelector(":scope > [role=toolbar]"));
    view.tools.prepend(toolbar);
    view.state.views.add(view);
    pointing(view);
    view.lanes.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && pressed(view, event)) event.preventDefault();
    });
    view.lanes.addEventListener("blur", () => read(view, null));
    const unwatch = watchTheme(() => schedule(Object.assign(view, { inks: null })));
    const sizes = new ResizeObserver(() => schedule(view));
    sizes.observe(view.frame);
    const finer = watchRatio(() => schedule(view));
    schedule(view);
    return () => {
      view.gone = true;
      clearTimeout(view.waiting);
      clearTimeout(view.ticking);
      clearTimeout(view.saying);
      unwatch();
      finer();
      view.unframe();
      sizes.disconnect();
      view.state.views.delete(view);
    };
  },
};

/** Call back when the screen becomes finer or coarser. */
function watchRatio(changed) {
  let query;
  const again = () => {
    query?.removeEventListener("change", again);
    query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", again);
    changed();
  };
  again();
  return () => query.removeEventListener("change", again);
}
