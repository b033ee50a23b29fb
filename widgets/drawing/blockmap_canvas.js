// @ts-check
// Puts a block map on a canvas: cells, axes, colour bar, marks. Knows nothing of events and messages (blockmap.js); the geometry is
// counted in CSS pixels, and block i of an axis lies from i to i + 1.

// What stands around the cells: titles of the axes and a colour bar, or, where the drawing around names them, numbers alone.
const FRAMED = { left: 64, right: 96, top: 10, bottom: 46, titles: true };
const BARE = { left: 30, right: 2, top: 3, bottom: 17, titles: false };
const BAR = { gap: 16, width: 14 };
const TOP = 253, NO_BLOCK = 254, NOT_FINITE = 255; // widgets/drawing/blockmap.py

// Viridis (Smith and van der Walt): even steps of it look even, to colour-blind readers and in grey too.
const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];

function viridis(share) {
  const place = share * (VIRIDIS.length - 1), i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const part = (hex, at) => parseInt(hex.slice(at, at + 2), 16);
  return [0, 2, 4].map((at) => Math.round(part(VIRIDIS[i], at) + (place - i) * (part(VIRIDIS[i + 1], at) - part(VIRIDIS[i], at))));
}

const notFinite = (dark) => (dark ? [118, 118, 118] : [176, 176, 176]);

const bitmaps = new WeakMap(); // cells -> their bitmap in light and in dark

function bitmapOf(part, dark) {
  const kept = bitmaps.get(part.cells) ?? {};
  bitmaps.set(part.cells, kept);
  return (kept[dark] ??= paintCells(part, dark));
}

/** Rows and columns of cells in a part of the map. */
function extent({ rows, columns, tall, wide }) {
  return [Math.ceil((rows[1] - rows[0]) / tall), Math.ceil((columns[1] - columns[0]) / wide)];
}

/** What draws on a canvas. A page without canvases has no map anyway. */
function inkOf(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

/** A canvas as large as it is on screen, or `scale` times as fine for a picture, and its context, which counts in CSS pixels. */
function sized(canvas, width, height, scale = devicePixelRatio) {
  const [wide, tall] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall });
  const context = inkOf(canvas);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

function paintCells(part, dark) {
  const [height, width] = extent(part);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = inkOf(canvas), image = context.createImageData(width, height);
  const table = new Uint32Array(256), bytes = new Uint8ClampedArray(table.buffer);
  for (let code = 0; code <= TOP; code++) bytes.set([...viridis(code / TOP), 255], code * 4);
  bytes.set([...notFinite(dark), 255], NOT_FINITE * 4); // NO_BLOCK stays transparent
  const pixels = new Uint32Array(image.data.buffer), cells = part.cells;
  for (let i = 0; i < pixels.length; i++) pixels[i] = table[cells[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Where the cells go on a canvas of this size with that around them. */
function plotArea(width, height, { left, right, top, bottom }) {
  return { left, top, width: Math.max(width - left - right, 20), height: Math.max(height - top - bottom, 20) };
}

/** Row and column of a block on the map, and back: blocks are numbered along the matrix's rows, which a map that lies has upright. */
function placeOfBlock({ lying, shape: [rows, columns] }, block) {
  return lying ? [block % rows, Math.floor(block / rows)] : [Math.floor(block / columns), block % columns];
}

function blockAt({ lying, shape: [rows, columns] }, row, column) {
  return lying ? column * rows + row : row * columns + column;
}

/** The rectangle that marks a block, larger than a block that would not be seen: left, top, width, height. */
function markOf(map, to, block) {
  const [row, column] = placeOfBlock(map, block);
  const width = Math.max(to.across, 9) + 2, height = Math.max(to.down, 9) + 2;
  return [to.x(column + 0.5) - width / 2, to.y(row + 0.5) - height / 2, width, height];
}

/** Blocks to pixels and back, for a window of the map in a plot area. */
function transform(area, { rows, columns }) {
  const across = area.width / (columns[1] - columns[0]), down = area.height / (rows[1] - rows[0]);
  return {
    x: (column) => area.left + (column - columns[0]) * across,
    y: (row) => area.top + (row - rows[0]) * down,
    column: (x) => columns[0] + (x - area.left) / across,
    row: (y) => rows[0] + (y - area.top) / down,
    across, down,
  };
}

/** Round numbers from low to high, about `count` of them, at least `least` apart. */
function ticks(low, high, count, least = 0) {
  const rough = Math.max((high - low) / Math.max(count, 1), least, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(([1, 2, 5].find((m) => m * power >= rough * 0.999) ?? 10) * power, least);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, i) => (first + i) * step);
}

function short(value, digits = 3) {
  const rounded = Number(value.toPrecision(digits)), size = Math.abs(rounded);
  return size === 0 || (size >= 1e-3 && size < 1e5) ? rounded.toString() : rounded.toExponential();
}

/** The whole drawing. `scene`: map, detail, window, look, marks {selected, cursor, box}; `colours` from pageColours. */
function drawMap(context, width, height, scene, colours) {
  const area = plotArea(width, height, scene.look), to = transform(area, scene.window), { map } = scene;
  context.clearRect(0, 0, width, height);
  context.font = `${scene.look.titles ? 12 : 11}px ${colours.font}`;
  context.fillStyle = context.strokeStyle = colours.text;
  context.save();
  context.beginPath();
  context.rect(area.left, area.top, area.width, area.height);
  context.clip();
  context.beginPath(); // the last cells may reach beyond the matrix
  context.rect(to.x(0), to.y(0), map.shape[1] * to.across, map.shape[0] * to.down);
  context.clip();
  context.imageSmoothingEnabled = false;
  for (const part of [scene.overview, scene.detail]) {
    if (!part) continue;
    const [rows, columns] = extent(part);
    const size = [columns * part.wide * to.across, rows * part.tall * to.down];
    context.drawImage(bitmapOf(part, colours.dark), to.x(part.columns[0]), to.y(part.rows[0]), ...size);
  }
  context.restore();
  drawAxes(context, area, to, scene);
  if (scene.look.titles) drawBar(context, area, map, colours);
  context.save();
  context.beginPath();
  context.rect(area.left - 1, area.top - 1, area.width + 2, area.height + 2);
  context.clip();
  drawMarks(context, to, scene);
  context.restore();
}

function drawAxes(context, area, to, { map, window, look }) {
  const right = area.left + area.width, bottom = area.top + area.height;
  context.globalAlpha = 0.4;
  context.strokeRect(area.left - 0.5, area.top - 0.5, area.width + 1, area.height + 1);
  context.globalAlpha = 1;
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const column of ticks(window.columns[0], window.columns[1] - 1, area.width / 80, 1)) {
    const x = to.x(column + 0.5);
    if (x < area.left || x > right) continue;
    context.fillRect(x - 0.5, bottom + 1, 1, 4);
    const text = column.toLocaleString("en"), named = look.titles || column > window.columns[0] ? text : `${map.columns.split(" ")[0]} ${text}`;
    const half = context.measureText(named).width / 2, most = right + look.right - half;
    context.fillText(named, Math.max(Math.min(x, most), half), bottom + (look.titles ? 8 : 5));
  }
  if (look.titles) context.fillText(map.columns, area.left + area.width / 2, bottom + 26);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const row of ticks(window.rows[0], window.rows[1] - 1, Math.max(area.height / (look.titles ? 50 : 40), 2), 1)) {
    const y = to.y(row + 0.5);
    if (y < area.top || y > bottom) continue;
    context.fillRect(area.left - 5, y - 0.5, 4, 1);
    context.fillText(row.toLocaleString("en"), area.left - 8, Math.max(y, 6));
  }
  if (look.titles) upright(context, map.rows, 12, area.top + area.height / 2);
}

function upright(context, text, x, y, turn = -1) {
  context.save();
  context.translate(x, y);
  context.rotate((turn * Math.PI) / 2);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, 0, 0);
  context.restore();
}

function drawBar(context, area, map, colours) {
  const left = area.left + area.width + BAR.gap, bottom = area.top + area.height - (map.bad ? 22 : 0), height = bottom - area.top;
  for (let y = 0; y < height; y++) {
    context.fillStyle = `rgb(${viridis(1 - y / Math.max(height - 1, 1))})`;
    context.fillRect(left, area.top + y, BAR.width, 1);
  }
  context.fillStyle = colours.text;
  context.textAlign = "left";
  context.textBaseline = "middle";
  const span = map.high - map.low;
  for (const value of span > 0 ? ticks(map.low, map.high, Math.max(height / 55, 2)) : [map.low]) {
    const y = bottom - (span > 0 ? (value - map.low) / span : 0.5) * height;
    context.fillRect(left + BAR.width, y - 0.5, 4, 1);
    context.fillText(short(value), left + BAR.width + 7, y);
  }
  upright(context, map.unit ? `${map.name} (${map.unit})` : map.name, left + 72, area.top + height / 2, 1);
  if (!map.bad) return;
  context.fillStyle = `rgb(${notFinite(colours.dark)})`;
  context.fillRect(left, bottom + 8, BAR.width, 14);
  context.fillStyle = colours.text;
  context.fillText("not finite", left + BAR.width + 5, bottom + 15);
}

/** The chosen block, the keyboard's cursor, the box being dragged; each is seen on every colour of the map. */
function drawMarks(context, to, { map, marks }) {
  const outline = (rectangle, colour, dashes = []) => {
    context.setLineDash([]);
    context.lineWidth = 4;
    context.strokeStyle = "#fff";
    context.strokeRect(...rectangle);
    context.setLineDash(dashes);
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.strokeRect(...rectangle);
    context.setLineDash([]);
  };
  if (marks.selected !== null) outline(markOf(map, to, marks.selected), "#d6004c");
  if (marks.cursor !== null) outline(markOf(map, to, marks.cursor), "#000", [3, 3]);
  if (marks.box) outline(marks.box, "#000");
  context.lineWidth = 1;
}
