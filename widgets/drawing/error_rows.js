// @ts-check
// The error in linked rows: model, blocks of a tensor, weights of a block, one weight; each shows what is chosen in the one before.
// blockmap.js, whose map is the second row, and error_rows_canvas.js come before it.

const WHY = "Every row opens out of the choice before it. Model: each tensor that is quantized, under the leading format; of several in " +
  "one cell the worst. Blocks: the weights that share a scale; a cell of several shows the worst of them, the curves over the colours how " +
  "all are spread, a line a format. Block: each weight, the level that it becomes, and the error between. Weight: the arithmetic.";
const KEYS = "Arrow keys move, Enter chooses, P inserts a picture.";
const LISTED = 256; // weights in the table of numbers
const PAUSE = 40; // ms between two weights that are asked for while a key repeats

/** @param {any} [value] */
function choose(view, what, value = null) {
  view.model.send({ type: "choose", what, value });
}

/** Set text and attributes where they differ, so that nothing is laid out in vain. */
function put(node, text, attributes = {}) {
  if (node.textContent !== text) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Make children anew only where what they show has changed. */
function rebuild(node, key, make) {
  if (node.dataset.of === key) return false;
  node.dataset.of = key;
  node.replaceChildren(...make());
  return true;
}

function colourOf(view) {
  const style = getComputedStyle(view.rows);
  return {
    ...pageColours(view.rows), page: style.getPropertyValue("--wb-page").trim() || pageColours(view.rows).page, text: style.color,
    mono: style.getPropertyValue("--wb-mono").trim() || "monospace",
  };
}

// ---------------------------------------------------------------- drawing

function drawRows(view) {
  const { state, rows, body } = view, { map, model, block, weight, error, summary } = state.content;
  complain(view, error);
  rows.style.visibility = map ? "" : "hidden";
  put(view.text.numbers, map ? `All numbers of block ${block.index.toLocaleString("en")}` : "");
  rows.setAttribute("aria-label", summary);
  if (!map || !rows.clientWidth) return;
  const colours = colourOf(view);
  rows.classList.toggle("wb-dark", colours.dark);
  captions(view, state.content);
  if (view.wished !== null && (view.wished.block !== block.index || view.wished.weight === weight.index)) view.wished = null;
  drawBlocks(view);
  body.setAttribute("aria-label", summary);
  for (const part of ["cells", "weights", "level", "ramp"]) paint(view, part, colours);
  for (const [node, name] of [
    [view.cells, `Model map: ${cellText(model, view.cell ?? model.selected ?? [0, 0])}. ${KEYS}`],
    [view.canvas, `Block map: ${map.name} by block. ${HELP}`], [view.weights, `${block.title}: ${block.aside}. ${KEYS}`],
    [view.text.line, `Weight ${weight.index}: ${weight.said}`],
  ]) node.setAttribute("aria-label", name);
  view.text.line.dataset.revision = state.revision;
  funnel(view);
  if (view.text.details.open) numbers(view, state.content);
  announce(view, state.content);
}

/**
 * Paint one canvas, on itself or, for a picture, `onto` the context of another.
 * @param {CanvasRenderingContext2D} [onto]
 */
function paint(view, part, colours, onto) {
  const { model, block, weight, colours: [lead] } = view.state.content, canvas = view[part];
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  const context = onto ?? sized(canvas, width, height);
  if (part === "cells") {
    const cursor = !onto && document.activeElement === canvas ? (view.cell ?? model.selected ?? [0, 0]) : null;
    if (!onto) canvas.dataset.known = String(decodeArray(model.values).filter(Number.isFinite).length);
    drawModel(context, width, height, model, String(cursor) === String(model.selected) ? null : cursor, colours);
  } else if (part === "weights") {
    view.column = drawWeights(context, width, height, block, view.wished?.weight ?? weight.index, colours, lead);
  } else if (part === "level") {
    if (weight.line) drawLevels(context, width, height, weight.line, colours, lead);
    else context.clearRect(0, 0, width, height);
  } else drawRamp(context, width, height, view.state.content);
}

/** The map's colours, and over them how many blocks of each format have that value. */
function drawRamp(context, width, height, { spread, colours }) {
  context.clearRect(0, 0, width, height);
  for (let x = 0; x < width; x++) {
    context.fillStyle = `rgb(${viridis(x / Math.max(width - 1, 1))})`;
    context.fillRect(x, height - 5, 1, 5);
  }
  spread.curves.forEach((node, i) => {
    const values = decodeArray(node);
    context.beginPath();
    values.forEach((share, k) => context.lineTo(((k + 0.5) * width) / values.length, height - 6 - share * (height - 8)));
    Object.assign(context, { strokeStyle: colours[i], lineWidth: 1.4 });
    context.stroke();
  });
}

function captions(view, { tensor, field, fields, model, map, spread, worst, block, weight, after, colours: [lead] }) {
  const { text } = view, { offer } = model;
  put(text.tensor, tensor.kind, { title: tensor.name });
  rebuild(text.field, JSON.stringify(fields), () => fields.map(([name, title]) => element("option", { value: name }, title)));
  text.field.value = field;
  put(text.low, brief(map.low, 3));
  put(text.high, brief(map.high, 3));
  view.ramp.setAttribute("aria-label", spread.said);
  text.offer.hidden = !offer;
  if (offer) {
    put(text.measured, offer.text);
    put(text.measure, offer.button, { title: offer.title });
  }
  put(text.of, worst.of);
  rebuild(text.list, JSON.stringify(worst.lines), () => worst.lines.map(([at, place, value]) => {
    const button = element("button", { type: "button", "data-block": at }, element("span", {}, place), element("span", {}, value));
    button.addEventListener("click", () => choose(view, "block", Number(at)));
    return element("li", {}, button);
  }));
  for (const button of text.list.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.block) === block.index));
  }
  put(text.block, block.title);
  put(text.blockAside, block.aside, { title: block.aside });
  rebuild(text.after, after, () => [["wb-dot", "weight", ""], ["wb-tick", `after ${after}`, `background:${lead}`], ["wb-gap", "error", ""]].map(
    ([kind, name, style]) => element("span", {}, element("i", { class: kind, style }), name),
  ).concat(element("span", {}, "hex: code")));
  put(text.weight, `Weight ${weight.index}`);
  put(text.weightAside, weight.aside, { title: weight.how });
  rebuild(text.sum, JSON.stringify(weight.terms), () => weight.terms.flatMap(([sign, number, label], i) => {
    const lost = i === weight.terms.length - 1 && i > 0 ? "wb-lost" : "";
    const term = element("span", { class: lost }, element("b", {}, number), element("small", {}, label));
    return sign ? [element("i", {}, sign), term] : [term];
  }));
}

/** Shades from what is chosen in one row to the whole of the next. */
function funnel(view) {
  const { rows, state } = view, { model, map } = state.content, origin = rows.getBoundingClientRect();
  const placed = (canvas) => {
    const box = canvas.getBoundingClientRect();
    return { x: box.x - origin.x, y: box.y - origin.y };
  };
  const [cells, blocks, weights, level] = [view.cells, view.canvas, view.weights, view.level].map(placed);
  const shapes = [], area = areaOf(view);
  const [left, top] = [blocks.x + area.left, blocks.y + area.top], bottom = top + area.height;
  if (model.selected && Math.abs(cells.y - blocks.y) < 40) {
    const [x, y, wide, tall] = cellOf(model, view.cells.clientWidth, view.cells.clientHeight, model.selected);
    const edge = cells.x + x + wide + 2;
    shapes.push([edge, cells.y + y, left - 1, top, left - 1, bottom, edge, cells.y + y + tall]);
  }
  const { chosen, left: first, right: last, top: above, bottom: below } = view.column;
  const [x, , wide] = markOf(map, transform(area, view.window), map.selected), within = (at) => Math.min(Math.max(at, area.left), area.left + area.width);
  const sides = [blocks.x + within(x), blocks.x + within(x + wide)];
  shapes.push([sides[0], bottom + 1, sides[1], bottom + 1, weights.x + last, weights.y + above, weights.x + first, weights.y + above]);
  shapes.push([
    weights.x + chosen[0], weights.y + below, weights.x + chosen[1], weights.y + below,
    level.x + last, level.y + 8, level.x + first, level.y + 8,
  ]);
  view.funnels = shapes;
  rebuild(view.shade, JSON.stringify(shapes), () => shapes.map((points) => {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    shape.setAttribute("points", points.map((at) => at.toFixed(1)).join(" "));
    return shape;
  }));
}

/** Say what is chosen once it is another: the reader may be anywhere in the rows. */
function announce(view, { tensor, block, weight }) {
  const now = [tensor.name, block.title, weight.index], before = view.said ?? now;
  view.said = now;
  if (now[0] !== before[0]) say(view, `${tensor.name}. ${block.title}: ${block.aside}`);
  else if (now[1] !== before[1]) say(view, `${block.title}: ${block.aside}`);
  else if (now[2] !== before[2]) say(view, `Weight ${weight.index}: ${weight.said}`);
}

/** The steps of the sum and a line for each weight. */
function numbers(view, { block, weight }) {
  const { weights, restored, codes } = block, level = decodeArray(block.level_of_code), [x, becomes, code] = [weights, restored, codes].map(decodeArray);
  rebuild(view.text.steps, JSON.stringify([weight.index, weight.steps]), () => {
    const title = `Weight ${weight.index}, step by step`;
    view.text.steps.setAttribute("aria-label", title);
    return [element("h4", {}, title), element("ol", {}, ...weight.steps.map((step) => element("li", {}, step)))];
  });
  const shown = Math.min(x.length, LISTED), name = `Weights, codes and errors of block ${block.index}${shown < x.length ? `, the first ${shown}` : ""}`;
  rebuild(view.text.table, `${view.state.revision}`, () => {
    const head = ["weight", "value", `value / ${block.divided}`, "code", "level", "becomes", "error"];
    const lines = Array.from({ length: shown }, (_, i) => {
      const quotient = Math.fround(Math.fround(x[i] / (block.divisor ?? Infinity)) + block.zero), lost = Math.fround(x[i] - becomes[i]);
      return [i, brief(x[i], 6), brief(quotient), code[i].toString(16), brief(level[code[i]]), brief(becomes[i], 6), minus(lost.toExponential(3))];
    });
    const row = (cells, kind) => element("tr", {}, ...cells.map((cell) => element(kind, { class: "wb-number" }, String(cell))));
    const table = element("table", { class: "wb-table", "aria-label": name }, element("thead", {}, row(head, "th")));
    table.append(element("tbody", {}, ...lines.map((cells) => row(cells, "td"))));
    return [table];
  });
}

// ---------------------------------------------------------------- the picture

function rowsPicture(state) {
  const view = shownView(state);
  if (!state.content.map || !view?.rows.clientWidth) throw new Error("It is not on screen.");
  const { rows } = view, origin = rows.getBoundingClientRect(), end = view.text.line.getBoundingClientRect().bottom - origin.y + 4;
  const canvas = document.createElement("canvas"), context = sized(canvas, origin.width, end, PICTURE.scale), colours = colourOf(view);
  const at = (node, draw) => {
    const box = node.getBoundingClientRect();
    context.save();
    context.translate(box.x - origin.x, box.y - origin.y);
    draw(node.clientWidth, node.clientHeight);
    context.restore();
  };
  for (const part of ["cells", "weights", "level", "ramp"]) if (view[part].clientWidth) at(view[part], () => paint(view, part, colours, context));
  const scene = sceneOf(view, state.content.map);
  at(view.canvas, (width, height) => drawMap(context, width, height, { ...scene, marks: { ...scene.marks, cursor: null } }, colours));
  write(view, context, origin);
  context.globalCompositeOperation = "destination-over";
  context.globalAlpha = 0.12;
  context.fillStyle = "#1976d2";
  for (const points of view.funnels) {
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.fill();
  }
  context.globalAlpha = 1;
  return asPicture(canvas, colours);
}

/** The texts of the page, where they stand there. */
function write(view, context, origin) {
  const within = (box, list) => box.top >= list.top - 1 && box.bottom <= list.bottom + 1;
  const text = (words, node, box) => {
    const style = getComputedStyle(node);
    Object.assign(context, { fillStyle: style.color, textAlign: "left", textBaseline: "middle" });
    context.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    context.fillText(words, box.x - origin.x, box.y - origin.y + box.height / 2);
  };
  const texts = document.createTreeWalker(view.rows, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const parent = /** @type {Element} */ (node.parentElement), range = document.createRange();
    range.selectNode(node);
    const [box] = range.getClientRects(), list = parent.closest(".wb-error-list");
    if (!box || !node.textContent?.trim() || !parent.checkVisibility() || parent.closest(".wb-error-numbers, .wb-why, .wb-explanation, option, button:not([data-block])")) continue;
    if (!list || within(box, list.getBoundingClientRect())) text(node.textContent, parent, box);
  }
  const { field } = view.text, box = field.getBoundingClientRect();
  text(field.selectedOptions[0]?.textContent ?? "", field, new DOMRect(box.x + 4, box.y, box.width, box.height));
}
