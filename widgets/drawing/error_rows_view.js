// @ts-check
// The elements of the error's rows and what the reader does on them; error_rows.js comes before it.

/** A canvas that takes the focus, in a box with a tip. */
function canvasBox() {
  const canvas = element("canvas", { tabindex: "0", role: "application" }), tip = element("div", { style: TIP, hidden: "" });
  return { canvas, tip, box: element("div", { class: "wb-box" }, canvas, tip) };
}

function captionOf(title, ...rest) {
  return element("div", { class: "wb-caption" }, title, ...rest);
}

function rowsElements() {
  const [cells, weights, level] = [canvasBox(), canvasBox(), element("canvas", { "aria-hidden": "true" })];
  const { canvas, tip, body } = mapElements();
  const ramp = element("canvas", { role: "img" });
  const quiet = () => element("small"), head = (text = "") => element("h3", { class: "wb-heading" }, text);
  const shade = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  shade.setAttribute("aria-hidden", "true");
  const text = {
    tensor: head(), field: element("select", { "aria-label": "Shown for each block" }), low: element("span"), high: element("span"),
    measured: element("span"), measure: element("button", { type: "button" }), offer: element("div", { class: "wb-error-offer", hidden: "" }),
    of: quiet(), list: element("ul", { class: "wb-error-list", "aria-label": "Worst blocks" }), block: head(), blockAside: quiet(), after: element("span", { class: "wb-error-key" }),
    weight: head(), weightAside: quiet(), sum: element("div", { class: "wb-error-sum" }),
    line: element("section", { class: "wb-error-weight", role: "figure" }), numbers: element("summary"),
    steps: element("section", { class: "wb-steps" }), table: element("div", { class: "wb-scroll" }),
    details: element("details", { class: "wb-error-numbers" }),
  };
  const why = element("button", { type: "button", class: "wb-why", "aria-expanded": "false", "aria-label": "What this shows" }, "?");
  const explanation = element("div", { class: "wb-explanation", role: "note", hidden: "" }, WHY);
  text.offer.append(text.measured, text.measure);
  text.line.append(captionOf(text.weight, text.weightAside), element("div", { class: "wb-box" }, level), text.sum);
  text.details.append(text.numbers, text.steps, text.table);
  const fill = () => element("span", { class: "wb-fill" }), bar = element("div", { class: "wb-error-ramp" }, text.low, ramp, text.high);
  const rows = element("div", { class: "wb-error-rows", role: "group" },
    element("section", { class: "wb-error-model" }, captionOf(head("Model"), why, element("small", {}, "relative RMSE, %"), explanation), cells.box, text.offer),
    element("section", { class: "wb-error-map" }, captionOf(text.tensor, text.field, fill(), bar), element("div", { class: "wb-box" }, body)),
    element("section", { class: "wb-error-worst" }, captionOf(head("Worst blocks"), text.of), text.list),
    element("section", { class: "wb-error-block" }, captionOf(text.block, text.blockAside, fill(), text.after), weights.box),
    text.line, text.details);
  rows.prepend(shade);
  return {
    rows, shade, text, canvas, tip, body, ramp, level, cells: cells.canvas, weights: weights.canvas,
    cellTip: { tip: cells.tip, body: cells.box }, weightTip: { tip: weights.tip, body: weights.box },
  };
}

// ---------------------------------------------------------------- what the reader does

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const between = (value, low, high) => Math.min(Math.max(value, low), high);

function placeIn(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.x, y: event.clientY - box.y };
}

function followModel(view) {
  const { cells } = view, there = (model, cell) => decodeArray(model.there)[cell[0] * model.kinds.length + cell[1]];
  const under = (event) => {
    const { model } = view.state.content, { x, y } = placeIn(cells, event);
    const [left, top, wide, tall] = cellOf(model, cells.clientWidth, cells.clientHeight, [0, 0]);
    const cell = [Math.floor((y - top) / tall), Math.floor((x - left) / wide)];
    const inside = cell[0] >= 0 && cell[1] >= 0 && cell[0] < model.layers.length && cell[1] < model.kinds.length;
    return inside && there(model, cell) ? cell : null;
  };
  cells.addEventListener("click", (event) => {
    const cell = under(event);
    if (cell) choose(view, "cell", (view.cell = cell));
  });
  cells.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (cell) showTip({ ...view.cellTip, hovering: placeIn(cells, event) }, cellText(view.state.content.model, cell));
    else view.cellTip.tip.hidden = true;
  });
  cells.addEventListener("pointerleave", () => (view.cellTip.tip.hidden = true));
  cells.addEventListener("keydown", (event) => {
    const { model } = view.state.content, step = ARROWS[event.key], now = view.cell ?? model.selected ?? [0, 0];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step) {
      view.cell = [between(now[0] + step[0], 0, model.layers.length - 1), between(now[1] + step[1], 0, model.kinds.length - 1)];
      say(view, cellText(model, view.cell));
      schedule(view);
    } else if (event.key === "Enter" || event.key === " ") {
      if (there(model, now)) choose(view, "cell", now);
    } else if (event.key === "p") view.state.insert();
    else return;
    event.preventDefault();
  });
  cells.addEventListener("blur", () => (view.cell = null)); // the next one who comes begins at what is chosen
  for (const event of ["focus", "blur"]) cells.addEventListener(event, () => schedule(view));
}

function weightText({ weights, restored, codes }, i) {
  const [x, becomes, code] = [weights, restored, codes].map((node) => decodeArray(node)[i]);
  return `weight ${i}: ${brief(x)} becomes ${brief(becomes)}, code ${code.toString(16)}, error ${brief(Math.fround(x - becomes), 3)}`;
}

function followWeights(view) {
  const { weights } = view;
  const under = (event) => {
    const { block } = view.state.content, shape = columnsOf(block.weights.shape[0], weights.clientWidth, weights.clientHeight);
    const column = Math.floor((placeIn(weights, event).x - shape.area.left) / shape.wide);
    return column >= 0 && column < shape.columns ? weightOf(block, shape, column) : null;
  };
  /** Mark a weight at once, and ask for its sum when the keys rest. */
  const wish = (weight) => {
    view.wished = { block: view.state.content.block.index, weight };
    clearTimeout(view.wishing);
    view.wishing = setTimeout(() => view.wished && choose(view, "weight", view.wished.weight), PAUSE);
    schedule(view);
  };
  weights.addEventListener("click", (event) => {
    const found = under(event);
    if (found !== null) wish(found);
  });
  weights.addEventListener("pointermove", (event) => {
    const found = under(event);
    if (found === null) view.weightTip.tip.hidden = true;
    else showTip({ ...view.weightTip, hovering: placeIn(weights, event) }, weightText(view.state.content.block, found));
  });
  weights.addEventListener("pointerleave", () => (view.weightTip.tip.hidden = true));
  weights.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { block, weight } = view.state.content, last = block.weights.shape[0] - 1, now = view.wished?.weight ?? weight.index;
    const by = event.shiftKey ? 10 : 1;
    const places = { ArrowLeft: now - by, ArrowDown: now - by, ArrowRight: now + by, ArrowUp: now + by, Home: 0, End: last, Enter: now, " ": now };
    if (event.key in places) wish(between(places[event.key], 0, last));
    else if (event.key === "p") view.state.insert();
    else return;
    event.preventDefault();
  });
  weights.addEventListener("focus", () => schedule(view));
}

export default {
  initialize: ({ model }) => keepState(model, { redraw: schedule, picture: rowsPicture, received }),

  render({ model, el }) {
    const parts = rowsElements(), frame = buildFrame(model, el, "workbench-error", parts.rows, zoomTools(() => view));
    const view = { name: `${shared.page}-${++views}`, look: BARE, draw: drawRows, wished: null, wishing: 0, ...parts, ...frame };
    followModel(view);
    followWeights(view);
    view.text.field.addEventListener("change", () => choose(view, "field", view.text.field.value));
    view.text.measure.addEventListener("click", () => choose(view, "measure"));
    view.text.details.addEventListener("toggle", () => schedule(view));
    const unfollow = followMap(view);
    return () => {
      clearTimeout(view.wishing);
      unfollow();
    };
  },
};
