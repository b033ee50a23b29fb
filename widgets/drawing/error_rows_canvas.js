// @ts-check
// Paints what stands around a block map in the error's rows: the model's tensors, one block's weights, one weight among the levels.
// Knows nothing of events and messages (error_rows.js); counted in CSS pixels. drawing.js and blockmap_canvas.js come before it.

const MODEL = { left: 26, right: 2, top: 2, bottom: 16 };
const WEIGHTS = { left: 46, right: 6, top: 5, bottom: 17 };
const LEVELS = { left: 46, right: 6, top: 0, bottom: 0 };
const NARROWEST = 3; // pixels of a weight's column: where there are more weights, several share one
const MANY = 32; // levels that can be distinguished; of more only the chosen one is named

const errorInk = (dark) => (dark ? "#ff9ec0" : "#ad1457");
const minus = (text) => text.replaceAll("-", "−");
const brief = (value, digits = 4) => (Number.isFinite(value) ? minus(Number(value.toPrecision(digits)).toString()) : String(value));
const percent = (value) => `${(100 * value).toFixed(2)} %`;

/** Light or dark text, whichever is easier to read on a colour. */
function inkOn(colour) {
  const [r, g, b] = colour.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179 ? "#fff" : "#000";
}

function begin(context, width, height, { font, text }) {
  context.clearRect(0, 0, width, height);
  Object.assign(context, { fillStyle: text, strokeStyle: text, lineWidth: 1, font: `11px ${font}`, globalAlpha: 1 });
}

function outlined(context, rectangle, dashes = []) {
  for (const [colour, width, pattern] of [["#000", 4, []], ["#fff", 2, dashes]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width });
    context.setLineDash(pattern);
    context.strokeRect(...rectangle);
  }
  context.setLineDash([]);
}

// ---------------------------------------------------------------- the model

/** The rectangle of a cell: left, top, width, height. */
function cellOf(model, width, height, [row, column]) {
  const area = plotArea(width, height, MODEL), wide = area.width / model.kinds.length, tall = area.height / model.layers.length;
  return [area.left + column * wide, area.top + row * tall, wide, tall];
}

/** What is known of a cell, in words. */
function cellText(model, cell) {
  const [row, column] = cell;
  const at = row * model.kinds.length + column, value = decodeArray(model.values)[at], what = decodeArray(model.there)[at];
  const known = !what ? "no such tensor" : what === 2 ? "could not be measured" : Number.isNaN(value) ? "not measured yet" : percent(value);
  return `${/\d/.test(model.layers[row]) ? "layer " : ""}${model.layers[row]}, ${model.kinds[column]}: ${known}`;
}

function drawModel(context, width, height, model, cursor, colours) {
  begin(context, width, height, colours);
  const values = decodeArray(model.values), there = decodeArray(model.there), known = values.filter(Number.isFinite);
  const low = Math.min(...known), high = Math.max(...known), span = high - low, digits = span < 2e-3 || high < 2e-2 ? 2 : 1;
  const { kinds, layers, selected } = model, [left, top, wide, tall] = cellOf(model, width, height, [0, 0]);
  const gap = tall > 4 ? 1 : 0, numbers = wide >= 22 + 6 * digits && tall >= 12;
  context.textBaseline = "middle";
  layers.forEach((_, row) => kinds.forEach((_, column) => {
    const at = row * kinds.length + column, value = values[at];
    if (!there[at]) return;
    const [x, y] = [left + column * wide, top + row * tall], measured = Number.isFinite(value);
    const colour = measured ? viridis(span ? (value - low) / span : 0.5) : notFinite(colours.dark);
    context.globalAlpha = measured ? 1 : 0.35;
    context.fillStyle = `rgb(${colour})`;
    context.fillRect(x, y, wide - gap, tall - gap);
    context.globalAlpha = 1;
    if (!numbers || (!measured && there[at] !== 2)) return;
    context.fillStyle = measured ? inkOn(colour) : colours.text;
    context.textAlign = "center";
    context.fillText(measured ? (100 * value).toFixed(digits) : "×", x + wide / 2, y + tall / 2 + 0.5);
  }));
  context.fillStyle = colours.text;
  context.textAlign = "right";
  const every = Math.ceil(13 / tall);
  layers.forEach((layer, row) => row % every === 0 && context.fillText(layer, left - 6, top + (row + 0.5) * tall));
  context.textAlign = "center";
  kinds.forEach((kind, column) => {
    const chosen = selected?.[1] === column;
    context.font = `${chosen ? 600 : 400} 11px ${colours.font}`;
    const [x, half] = [left + (column + 0.5) * wide, context.measureText(kind).width / 2];
    if (2 * half <= wide + 4) context.fillText(kind, Math.min(x, width - half), height - 7);
    else if (chosen) context.fillText(kind, Math.max(Math.min(x, width - half), half), height - 7);
  });
  if (selected) outlined(context, cellOf(model, width, height, selected));
  if (cursor) outlined(context, cellOf(model, width, height, cursor), [3, 3]);
}

// ---------------------------------------------------------------- one block

/** Where the weights of a block go: `columns` side by side, each `wide` pixels and of `per` weights. */
function columnsOf(count, width, height) {
  const area = plotArea(width, height, WEIGHTS), per = Math.max(1, Math.ceil((count * NARROWEST) / area.width));
  const columns = Math.ceil(count / per), wide = area.width / columns;
  return { area, per, columns, wide, x: (column) => area.left + (column + 0.5) * wide };
}

const errorAt = (weights, restored, i) => Math.abs(weights[i] - restored[i]) || 0;

/** The weight that a column shows: of several the one with the largest error. */
function weightOf(block, { per }, column) {
  const weights = decodeArray(block.weights), restored = decodeArray(block.restored);
  let found = column * per;
  for (let i = found + 1; i < Math.min((column + 1) * per, weights.length); i++)
    if (errorAt(weights, restored, i) > errorAt(weights, restored, found)) found = i;
  return found;
}

function drawWeights(context, width, height, block, chosen, colours, lead) {
  begin(context, width, height, colours);
  const weights = decodeArray(block.weights), restored = decodeArray(block.restored), codes = decodeArray(block.codes);
  const levels = decodeArray(block.levels).filter(Number.isFinite);
  const { area, per, columns, wide, x } = columnsOf(weights.length, width, height), { left, top } = area;
  const right = left + area.width, bottom = top + area.height;
  let most = Number.MIN_VALUE;
  for (const values of [weights, restored]) for (const value of values) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  const y = (value) => top + ((1.06 * most - value) / (2.12 * most)) * area.height;
  context.globalAlpha = 0.22;
  if (levels.length <= MANY)
    for (const level of levels) if (Math.abs(level) <= 1.06 * most) context.fillRect(left, Math.round(y(level)), area.width, 1);
  context.globalAlpha = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of [most, 0, -most]) context.fillText(brief(value, 2), left - 6, y(value));
  const at = Math.floor(chosen / per);
  context.fillStyle = lead;
  context.globalAlpha = 0.2;
  context.fillRect(x(at) - Math.max(wide, 5) / 2, top - 2, Math.max(wide, 5), height - top);
  context.globalAlpha = 1;
  const half = Math.min(5, wide * 0.45), radius = Math.min(2.6, wide * 0.45), written = wide >= (block.digits > 1 ? 15 : 8.5) && per === 1 && block.finite;
  context.textAlign = "center";
  for (let column = 0; column < columns; column++) {
    const i = column === at ? chosen : weightOf(block, { per }, column), finite = Number.isFinite(weights[i]);
    if (per > 1) { // what the others of the column are
      const own = weights.subarray(column * per, (column + 1) * per).filter(Number.isFinite);
      context.globalAlpha = 0.3;
      context.fillStyle = colours.text;
      const [above, below] = [y(Math.max(...own)), y(Math.min(...own))];
      if (own.length) context.fillRect(x(column) - wide / 2, above, wide, Math.max(below - above, 1));
      context.globalAlpha = 1;
    }
    if (finite && Number.isFinite(restored[i])) {
      context.fillStyle = errorInk(colours.dark);
      context.fillRect(x(column) - 0.8, Math.min(y(weights[i]), y(restored[i])), 1.6, Math.abs(y(weights[i]) - y(restored[i])));
      context.fillStyle = lead;
      context.fillRect(x(column) - half, y(restored[i]) - 1.2, 2 * half, 2.4);
    }
    context.fillStyle = finite ? colours.text : errorInk(colours.dark);
    if (finite) {
      context.beginPath();
      context.arc(x(column), y(weights[i]), radius, 0, 2 * Math.PI);
      context.fill();
    } else context.fillText("×", x(column), y(0));
    if (!written) continue;
    context.fillStyle = colours.text;
    context.font = `${column === at ? 700 : 400} 10px ${colours.mono}`;
    context.fillText(codes[i].toString(16), x(column), bottom + 9);
  }
  if (!written && per > 1) {
    context.font = `11px ${colours.font}`;
    context.textAlign = "left";
    context.fillText(`${per} weights a column: the one that errs most, over the range of all`, left, bottom + 9);
  }
  return { chosen: [x(at) - Math.max(wide, 5) / 2, x(at) + Math.max(wide, 5) / 2], left, right, top: top - 2, bottom: height };
}

// ---------------------------------------------------------------- one weight

function drawLevels(context, width, height, line, colours, lead) {
  begin(context, width, height, colours);
  const levels = decodeArray(line.levels), edges = decodeArray(line.edges), area = plotArea(width, height, LEVELS), middle = 20;
  const low = Math.min(levels[0], line.at), high = Math.max(levels[levels.length - 1], line.at), span = high - low || 1;
  const x = (value) => area.left + 8 + ((value - low) / span) * (area.width - 16);
  const ends = [x(low) - 8, x(high) + 8], few = levels.length <= MANY;
  const [from, to] = [line.bin[0], line.bin[1]].map((edge, i) => (edge === null ? ends[i] : x(edge)));
  context.fillStyle = lead;
  context.globalAlpha = 0.2;
  context.fillRect(from, middle - 10, Math.max(to - from, 2), 20);
  context.fillStyle = colours.text;
  context.globalAlpha = 0.45;
  context.fillRect(ends[0], middle - 0.5, ends[1] - ends[0], 1);
  if (few) for (const edge of edges) if (Number.isFinite(edge)) context.fillRect(x(edge) - 0.5, middle - 5, 1, 10);
  context.globalAlpha = 1;
  context.textAlign = "center";
  context.textBaseline = "middle";
  let free = -Infinity;
  levels.forEach((level, i) => {
    const chosen = i === line.rank, thick = chosen ? 3 : few ? 1.5 : 0.6;
    context.fillStyle = lead;
    context.fillRect(x(level) - thick / 2, middle - 9, thick, 18);
    if (!chosen && (!few || x(level) < free || Math.abs(x(level) - x(line.level)) < 12)) return;
    context.fillStyle = colours.text;
    context.font = `${chosen ? 700 : 400} 10px ${colours.mono}`;
    context.fillText(line.names[i], x(level), height - 7);
    if (!chosen) free = x(level) + 11;
  });
  const start = x(line.at), end = x(line.level), way = Math.sign(end - start) * 5;
  context.fillStyle = errorInk(colours.dark);
  context.fillRect(Math.min(start, end), middle - 15, Math.abs(end - start), 2);
  if (Math.abs(end - start) > 5) {
    context.beginPath();
    context.moveTo(end, middle - 14);
    context.lineTo(end - way, middle - 17.5);
    context.lineTo(end - way, middle - 10.5);
    context.fill();
  }
  Object.assign(context, { fillStyle: colours.text, strokeStyle: colours.page, lineWidth: 1.5 });
  context.beginPath();
  context.arc(start, middle, 4.5, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
}
