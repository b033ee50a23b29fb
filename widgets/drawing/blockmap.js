// @ts-check
// What the reader does on a block map and what the page asks Python for; drawing.js and blockmap_canvas.js come before it, a
// widget that has such a map in it after it: a view is its `state`, `body`, `canvas`, `tip`, `look` and `draw`.

const MAX_CELLS = 200000; // of one view, as widgets/drawing/blockmap.py has it
const REST = 60; // ms that the pointer, the cursor or the zoom rests before Python is asked
const LEAST = 4; // blocks that the window holds at least
const OVERDUE = 5000; // ms after which an unanswered request no longer holds up the next
const PICTURE = { width: 800, scale: 2 };
const HELP = "Arrow keys go from block to block, Enter chooses one, plus and minus zoom, Home shows the whole, P inserts a picture.";
let views = 0;

/** The map as canvas code takes it: typed cells, one object as long as the cells are the same. */
const opened = new WeakMap();
function overviewOf(map) {
  const node = map.overview.cells;
  if (!opened.has(node)) opened.set(node, { ...map.overview, cells: decodeArray(node) });
  return opened.get(node);
}

const wholeOf = ({ shape }) => ({ rows: [0, shape[0]], columns: [0, shape[1]] });

function sceneOf(view, map) {
  const focused = document.activeElement === view.canvas;
  const marks = { selected: map.selected, cursor: focused ? cursorOf(view, map) : null, box: view.box ?? null };
  const detail = view.detail?.number === map.number ? view.detail : null;
  return { map, overview: overviewOf(map), detail, window: view.window, look: view.look, marks };
}

function cursorOf(view, map) {
  const first = blockAt(map, Math.floor(view.window.rows[0]), Math.floor(view.window.columns[0]));
  return Math.min(view.cursor ?? map.selected ?? first, map.count - 1);
}

// ---------------------------------------------------------------- drawing

function schedule(view) {
  if (view.frameRequest || view.gone) return;
  view.frameRequest = requestAnimationFrame(() => {
    view.frameRequest = 0;
    view.draw(view);
    // While a theme changes there may be no width for less than a frame, of which the size observer sees nothing.
    if (!view.body.clientWidth) requestAnimationFrame(() => view.body.clientWidth && schedule(view));
  });
}

/** A PNG of what was drawn on a canvas, on the page's own ground. */
function asPicture(canvas, colours) {
  const context = inkOf(canvas);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = colours.page;
  context.fillRect(0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no PNG"))), "image/png"));
}

function drawBlocks(view) {
  const { state, body, canvas } = view, { map } = state.content;
  if (!map || !body.clientWidth) return; // hidden: the size observer draws it when it appears
  follow(view, map);
  const width = body.clientWidth, height = body.clientHeight;
  const context = sized(canvas, width, height);
  const scene = sceneOf(view, map), area = plotArea(width, height, view.look);
  drawMap(context, width, height, scene, pageColours(body));
  const finest = scene.detail ?? scene.overview;
  Object.assign(body.dataset, {
    revision: state.revision, map: map.number, window: [...view.window.rows, ...view.window.columns].join(),
    cells: extent(finest).join(), covers: `${finest.tall},${finest.wide}`, selected: map.selected ?? "",
    area: [area.left, area.top, area.width, area.height].join(),
  });
  refine(view);
}

/** Fit window and cursor to a map that changed: another shape is seen whole, another choice is brought into view. */
function follow(view, map) {
  if (String(view.shape) !== String(map.shape)) {
    Object.assign(view, { shape: [...map.shape], window: wholeOf(map), cursor: null });
  }
  if (view.selected !== map.selected) {
    Object.assign(view, { selected: map.selected, cursor: null });
    if (map.selected !== null) reveal(view, map, map.selected);
  }
}

// ---------------------------------------------------------------- asking Python

const areaOf = ({ body, look }) => plotArea(body.clientWidth, body.clientHeight, look);

/** Ask for the part in the window at the screen's resolution, unless it is there already; one request at a time, the newest wins. */
function refine(view) {
  clearTimeout(view.refining);
  view.refining = setTimeout(() => {
    const { map } = view.state.content;
    if (view.gone || !map || !view.body.clientWidth) return;
    const area = areaOf(view);
    const ends = ([low, high], count) => [Math.max(Math.floor(low), 0), Math.min(Math.ceil(high), count)];
    const rows = ends(view.window.rows, map.shape[0]), columns = ends(view.window.columns, map.shape[1]);
    const [most, broadest] = [Math.min(area.height, rows[1] - rows[0]), Math.min(area.width, columns[1] - columns[0])];
    const shrink = Math.min(1, Math.sqrt(MAX_CELLS / (most * broadest)));
    const [height, width] = [most, broadest].map((side) => Math.max(Math.floor(side * shrink), 1));
    const tall = Math.ceil((rows[1] - rows[0]) / height), wide = Math.ceil((columns[1] - columns[0]) / width);
    const within = (part) =>
      part && part.rows[0] <= rows[0] && part.rows[1] >= rows[1] && part.columns[0] <= columns[0] && part.columns[1] >= columns[1];
    const fine = (part) => within(part) && part.tall <= tall && part.wide <= wide;
    const key = [map.number, ...rows, ...columns, height, width].join();
    const detail = view.detail?.number === map.number ? view.detail : null;
    if (detail && fine(map.overview)) {
      view.detail = null;
      schedule(view);
    } else if (!fine(map.overview) && !fine(detail) && key !== view.answered) {
      ask(view, key, map, { rows, columns, height, width });
    }
  }, REST);
}

function ask(view, key, { number }, wanted) {
  if (view.asked && performance.now() - view.asked.at < OVERDUE) return; // its answer calls `refine` again
  view.asked = { id: `${view.name}-${key}`, key, number, at: performance.now() };
  view.model.send({ type: "view", id: view.asked.id, number, ...wanted });
}

function received(state, message, buffers) {
  for (const view of state.views) {
    if (message.type === "refined" && message.id === view.asked?.id) {
      const { key, number } = view.asked;
      Object.assign(view, { asked: null, answered: key });
      if (message.view) view.detail = { ...message.view, number, cells: bytesAt(buffers[0]) };
      schedule(view);
    } else if (message.type === "described" && message.id === view.describing) {
      if (view.hovering) showTip(view, message.text);
      else say(view, message.text);
    }
  }
}

const bytesAt = ({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength);

/** Ask Python for the worst block in a cell, in words; the answer goes to the tip at the pointer or to the screen reader. */
function askAbout(view, cell) {
  askNoMore(view);
  view.resting = setTimeout(() => {
    view.describing = `${view.name}-${performance.now()}`;
    view.model.send({ type: "describe", id: view.describing, number: view.state.content.map.number, ...cell });
  }, REST);
}

/** Drop the answer that is still to come: something else is said now. */
function askNoMore(view) {
  clearTimeout(view.resting);
  view.describing = null;
}

function pick(view, { rows, columns }) {
  view.model.send({ type: "pick", number: view.state.content.map.number, rows, columns });
}

// ---------------------------------------------------------------- window and cursor

function moveTo(view, map, rows, columns) {
  const fit = ([low, high], count) => {
    const length = Math.min(Math.max(high - low, LEAST), count), middle = (low + high) / 2;
    const start = Math.min(Math.max(middle - length / 2, 0), count - length);
    return [start, start + length];
  };
  view.window = { rows: fit(rows, map.shape[0]), columns: fit(columns, map.shape[1]) };
  schedule(view);
}

/** Zoom by a factor: the place under the pointer stays, or the cursor, if it is in sight, comes to the middle. */
function zoom(view, factor, at) {
  const { map } = view.state.content;
  if (!map || !view.window) return;
  const { rows, columns } = view.window, cursor = cursorOf(view, map);
  const about = ([low, high], fixed, place) => {
    if (fixed !== undefined) return [fixed - (fixed - low) * factor, fixed + (high - fixed) * factor];
    const centre = place >= low && place <= high ? place : (low + high) / 2;
    return [centre - ((high - low) * factor) / 2, centre + ((high - low) * factor) / 2];
  };
  const [row, column] = placeOfBlock(map, cursor);
  moveTo(view, map, about(rows, at?.row, row + 0.5), about(columns, at?.column, column + 0.5));
  const { rows: [top, bottom], columns: [left, right] } = view.window;
  askNoMore(view);
  say(view, `Rows ${Math.floor(top)} to ${Math.ceil(bottom) - 1}, columns ${Math.floor(left)} to ${Math.ceil(right) - 1}`);
}

function showAll(view) {
  const { map } = view.state.content;
  if (!map) return;
  view.window = wholeOf(map);
  askNoMore(view);
  say(view, "The whole map");
  schedule(view);
}

/** Move the window as little as needed for a block to be in it. */
function reveal(view, map, block) {
  const into = ([low, high], place) => {
    const by = place < low ? place - low : Math.max(place + 1 - high, 0);
    return [low + by, high + by];
  };
  const [row, column] = placeOfBlock(map, block);
  moveTo(view, map, into(view.window.rows, row), into(view.window.columns, column));
}

function pressed(view, event) {
  const { map } = view.state.content;
  if (!map || event.ctrlKey || event.metaKey || event.altKey) return;
  const [row, column] = placeOfBlock(map, cursorOf(view, map));
  const cells = sceneOf(view, map), { tall, wide } = cells.detail ?? cells.overview;
  const [down, across] = event.shiftKey ? [10 * tall, 10 * wide] : [1, 1];
  const steps = { ArrowUp: [-down, 0], ArrowDown: [down, 0], ArrowLeft: [0, -across], ArrowRight: [0, across] };
  const step = steps[event.key];
  const block = { rows: [row, row + 1], columns: [column, column + 1] };
  const acts = {
    "+": () => zoom(view, 0.5), "=": () => zoom(view, 0.5), "-": () => zoom(view, 2), Home: () => showAll(view),
    Enter: () => pick(view, block), " ": () => pick(view, block), p: () => view.state.insert(),
  };
  if (step) {
    const place = (at, by, count) => Math.min(Math.max(at + by, 0), count - 1);
    view.cursor = Math.min(blockAt(map, place(row, step[0], map.shape[0]), place(column, step[1], map.shape[1])), map.count - 1);
    reveal(view, map, view.cursor);
    const [atRow, atColumn] = placeOfBlock(map, view.cursor);
    view.hovering = false;
    askAbout(view, { rows: [atRow, atRow + 1], columns: [atColumn, atColumn + 1] });
  } else if (acts[event.key]) acts[event.key]();
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- pointer

function placeOf(view, event) {
  const box = view.canvas.getBoundingClientRect(), x = event.clientX - box.x, y = event.clientY - box.y;
  const area = areaOf(view), to = transform(area, view.window);
  const inside = x >= area.left && y >= area.top && x < area.left + area.width && y < area.top + area.height;
  return { x, y, row: to.row(y), column: to.column(x), inside };
}

/** The drawn cell at a place: its blocks and its code; null where there is none. */
function cellAt(view, map, { row, column, inside }) {
  if (!inside || row >= map.shape[0] || column >= map.shape[1]) return null;
  const { detail, overview } = sceneOf(view, map);
  const holds = (part) => part && row >= part.rows[0] && row < part.rows[1] && column >= part.columns[0] && column < part.columns[1];
  const part = holds(detail) ? detail : overview;
  const down = Math.floor((row - part.rows[0]) / part.tall), across = Math.floor((column - part.columns[0]) / part.wide);
  const range = (first, length, end) => [first, Math.min(first + length, end)];
  return {
    rows: range(part.rows[0] + down * part.tall, part.tall, part.rows[1]),
    columns: range(part.columns[0] + across * part.wide, part.wide, part.columns[1]),
    code: part.cells[down * extent(part)[1] + across],
  };
}

function hover(view, event) {
  const { map } = view.state.content;
  if (!map || !view.window) return;
  const place = placeOf(view, event), cell = cellAt(view, map, place);
  if (!cell || cell.code === NO_BLOCK) return void hideTip(view);
  const value = cell.code === NOT_FINITE ? "not finite" : `≈ ${short(map.low + (cell.code / TOP) * (map.high - map.low))} ${map.unit}`;
  const span = (/** @type {number[]} */ [first, end]) => (end - first > 1 ? `${first}–${end - 1}` : first);
  view.hovering = place;
  showTip(view, `${map.rows.split(" ")[0]} ${span(cell.rows)}, ${map.columns.split(" ")[0]} ${span(cell.columns)}: ${map.name} ${value}`);
  askAbout(view, { rows: cell.rows, columns: cell.columns });
}

function showTip(view, text) {
  const { tip, body, hovering: { x, y } } = view;
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.max(Math.min(x + 14, body.clientWidth - tip.offsetWidth - 4), 0)}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > body.clientHeight ? Math.max(y - tip.offsetHeight - 10, 0) : y + 18}px`;
}

function hideTip(view) {
  askNoMore(view);
  view.hovering = null;
  view.tip.hidden = true;
}

const sorted = (a, b) => [Math.min(a, b), Math.max(a, b)];

function followPointer(view) {
  const { canvas } = view;
  let from = null; // where the button went down, and the window then
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !view.window) return;
    from = { ...placeOf(view, event), window: view.window, pans: event.shiftKey };
    if (from.inside) canvas.setPointerCapture(event.pointerId);
    else from = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return hover(view, event);
    const to = placeOf(view, event), { map } = view.state.content;
    if (!from.moved && Math.hypot(to.x - from.x, to.y - from.y) < 5) return;
    from.moved = true;
    hideTip(view);
    if (from.pans) {
      const { rows, columns } = from.window, scale = transform(areaOf(view), from.window);
      const [down, across] = [(from.y - to.y) / scale.down, (from.x - to.x) / scale.across];
      moveTo(view, map, rows.map((end) => end + down), columns.map((end) => end + across));
    } else {
      view.box = [Math.min(from.x, to.x), Math.min(from.y, to.y), Math.abs(to.x - from.x), Math.abs(to.y - from.y)];
      schedule(view);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const began = from, to = placeOf(view, event), { map } = view.state.content;
    from = view.box = null;
    if (!began || !map) return;
    const cell = began.moved ? null : cellAt(view, map, to);
    if (cell && cell.code !== NO_BLOCK) pick(view, cell);
    else if (began.moved && !began.pans) moveTo(view, map, sorted(began.row, to.row), sorted(began.column, to.column));
    schedule(view);
  });
  canvas.addEventListener("pointercancel", () => (from = view.box = null));
  canvas.addEventListener("pointerleave", () => hideTip(view));
  canvas.addEventListener("dblclick", () => showAll(view));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the plain wheel scrolls the notebook
    event.preventDefault();
    const place = placeOf(view, event);
    if (place.inside) zoom(view, 1.002 ** Math.max(-200, Math.min(event.deltaY, 200)), place);
  }, { passive: false });
}

// ---------------------------------------------------------------- its elements

const CANVAS = "display:block;width:100%;height:100%;touch-action:pan-y;cursor:crosshair";
const TIP = `position:absolute;pointer-events:none;max-width:90%;padding:4px 8px;border-radius:3px;font-size:12px;line-height:1.35;
  background:var(--jp-layout-color1, Canvas);color:var(--jp-ui-font-color1, CanvasText);border:1px solid var(--jp-border-color1, GrayText)`;

/** What a block map is made of; `followMap` makes it live. */
function mapElements() {
  const canvas = element("canvas", { tabindex: "0", role: "application", style: CANVAS });
  const tip = element("div", { style: TIP, hidden: "" });
  return { canvas, tip, body: element("div", { role: "figure", style: "position:relative;width:100%;height:100%" }, canvas, tip) };
}

/** Begin to follow the reader, the theme and the size; returns what ends that. */
function followMap(view) {
  view.state.views.add(view);
  view.canvas.addEventListener("keydown", (event) => pressed(view, event));
  for (const event of ["focus", "blur"]) view.canvas.addEventListener(event, () => schedule(view));
  followPointer(view);
  const unwatch = watchTheme(() => schedule(view));
  const sizes = new ResizeObserver(() => schedule(view));
  sizes.observe(view.body);
  schedule(view);
  return () => {
    view.gone = true;
    cancelAnimationFrame(view.frameRequest);
    clearTimeout(view.refining);
    hideTip(view);
    unwatch();
    view.unframe();
    sizes.disconnect();
    view.state.views.delete(view);
  };
}

/** The buttons for what a touch screen has no wheel and keys for; `view` is asked when one is pressed. */
const zoomTools = (view) => [
  ["+", "Zoom in", "Zoom in (+)", () => zoom(view(), 0.5)],
  ["−", "Zoom out", "Zoom out (−)", () => zoom(view(), 2)],
  ["⤢", "Show the whole map", "Show the whole map (Home)", () => showAll(view())],
];
