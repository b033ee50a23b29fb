// @ts-check
// A block map of a matrix, the weights of one block over the sixteen levels, and one weight's arithmetic. The map is drawn by
// drawing/blockmap_canvas.js, whose matrix lies down: its rows go across.

const MAP = 64, TALL = 144, LEFT = 40; // pixels: the map's cells and the weights are so high; what stands left of the weights

export default heroOf((hero) => {
  const { columns, levels, sizes, nested } = hero.data, weights = unpack(hero.data.weights);
  const dynamic = unpack(hero.data.dynamic), codes = codesOfSteps(dynamic), table = Float32Array.from(levels), edges = edgesOf(table);
  const kept = new Map();
  function found(size, double) {
    const key = `${size},${double}`;
    if (!kept.has(key)) {
      const absmax = absmaxOf(weights, size), scales = double ? doubleQuantized(absmax, nested, dynamic, codes) : absmax;
      const result = measure(weights, levels, size, scales), rmse = result.blockSquares.map((sum) => Math.sqrt(sum / size));
      const shape = [columns / size, weights.length / columns], low = Math.min(...rmse), high = Math.max(...rmse);
      const cells = new Uint8Array(rmse.length);
      rmse.forEach((value, b) => (cells[(b % shape[0]) * shape[1] + Math.floor(b / shape[0])] = Math.round(((value - low) / (high - low || 1)) * TOP)));
      const map = { shape, lying: true, name: "RMSE", unit: "", rows: "block", columns: "row of the matrix", low, high, bad: 0 };
      const window = { rows: [0, shape[0]], columns: [0, shape[1]] };
      kept.set(key, { ...result, scales, rmse, map, window, overview: { ...window, tall: 1, wide: 1, cells } });
    }
    return kept.get(key);
  }

  const { line, set } = headline();
  const turn = dial("Weights to one scale", sizes.map(String), (i) => hero.change({ size: sizes[i] }));
  const choice = scaleButtons(hero);
  const blocks = element("canvas", { class: "wb-hero-blocks", role: "slider", tabindex: "0", "aria-label": "Block" });
  const ground = svg("g"), dots = svg("g"), axis = svg("g");
  const grip = svg("g", {}, svg("rect", { class: "wb-hit", x: -14, y: -14, width: 28, height: 28 }), svg("circle", { class: "wb-grip", r: 7 }));
  const picture = svg("svg", { height: TALL + 26 }, ground, dots, axis, grip);
  const sum = element("div", { class: "wb-hero-sum" });
  const note = element("p", { class: "wb-hero-note" }, "Choose a block of the map, then a weight: ○ its share of the block’s absmax, ● its level; shaded is all that goes to that level.");
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, turn.box, choice.group), blocks, picture, sum, note);

  // ---- the map
  const blockNow = () => Math.floor(hero.state.weight / hero.state.size);
  const last = () => weights.length / hero.state.size - 1;
  const toBlock = (block) => hero.change({ weight: clamp(block, 0, last()) * hero.state.size + (hero.state.weight % hero.state.size) });
  let area = { left: 0, top: 0, width: 1, height: 1 };
  const chooseAt = (event) => {
    const box = blocks.getBoundingClientRect(), { map, window } = found(hero.state.size, hero.state.double), to = transform(area, window);
    const [row, column] = [to.row(event.clientY - box.y), to.column(event.clientX - box.x)].map(Math.floor);
    toBlock(blockAt(map, clamp(row, 0, map.shape[0] - 1), clamp(column, 0, map.shape[1] - 1)));
  };
  blocks.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    blocks.setPointerCapture(event.pointerId);
    chooseAt(event);
  });
  blocks.addEventListener("pointermove", (event) => blocks.hasPointerCapture(event.pointerId) && chooseAt(event));
  blocks.addEventListener("keydown", (event) => {
    const down = columns / hero.state.size; // a row of the matrix is a column of the map
    const steps = { ArrowRight: down, ArrowLeft: -down, ArrowDown: 1, ArrowUp: -1, PageUp: 10 * down, PageDown: -10 * down, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    toBlock(blockNow() + steps[event.key]);
    event.preventDefault();
  });
  hero.atEnd(watchTheme(hero.schedule));

  // ---- the block's weights
  let width = 0;
  const x = (i) => LEFT + ((i + 0.5) / hero.state.size) * (width - LEFT - 6), y = (share) => 8 + ((1 - share) / 2) * (TALL - 16);
  const back = (px) => ((px - LEFT) / (width - LEFT - 6)) * hero.state.size - 0.5;
  const toWeight = (i) => hero.change({ weight: blockNow() * hero.state.size + clamp(Math.round(i), 0, hero.state.size - 1) });
  picture.addEventListener("pointerdown", (event) => {
    if (!event.button && !grip.contains(/** @type {Node} */ (event.target))) toWeight(back(event.clientX - picture.getBoundingClientRect().x));
  });
  const refresh = handle(grip, picture, {
    label: "Weight of the block", step: 1, value: () => hero.state.weight % hero.state.size, text: () => sum.textContent ?? "",
    low: () => 0, high: () => hero.state.size - 1, at: back, move: toWeight,
  });
  /** What stands in the sum: a sign before it, its number, and what that is. */
  const term = (sign, number, label, kind = "") => element("span", { class: kind }, element("i", {}, sign), " ", element("b", {}, number), " ", element("small", {}, label), " ");

  return (wide) => {
    width = wide - 26;
    const { size, double, weight } = hero.state, now = found(size, double), block = blockNow(), first = block * size, i = weight - first;
    const look = wide > 560 ? { ...FRAMED, top: 6, bottom: 38 } : BARE, height = MAP + look.top + look.bottom, colours = pageColours(hero.body);
    blocks.style.height = `${height}px`;
    area = plotArea(width, height, look);
    drawMap(sized(blocks, width, height), width, height, { ...now, look, marks: { selected: block, cursor: null, box: null } }, colours);

    const absmax = now.absmax[block], factor = absmax ? Math.fround(1 / absmax) : 0, scale = now.scales[block];
    const share = (at) => Math.fround(weights[first + at] * factor), rank = now.ranks[weight], level = table[rank];
    const ends = [rank ? edges[rank - 1] : -1, rank < edges.length ? edges[rank] : 1];
    ground.replaceChildren(
      svg("rect", { fill: "transparent", x: LEFT, y: 0, width: width - LEFT, height: TALL }),
      svg("rect", { class: "wb-bin", x: LEFT, y: y(ends[1]), width: width - LEFT - 6, height: y(ends[0]) - y(ends[1]) }),
      ...Array.from(table, (each) => svg("line", { class: "wb-level", x1: LEFT, x2: width - 6, y1: y(each), y2: y(each) })),
      svg("line", { class: "wb-chosen", x1: x(i), x2: x(i), y1: 0, y2: TALL + 6 }),
      svg("line", { class: "wb-gap", x1: x(i), x2: x(i), y1: y(share(i)), y2: y(level) }),
    );
    dots.replaceChildren(...Array.from({ length: size }, (_, at) => [
      svg("circle", { class: "wb-ring", cx: x(at), cy: y(share(at)), r: at === i ? 4 : 2.4 }),
      svg("circle", { class: "wb-kept", cx: x(at), cy: y(table[now.ranks[first + at]]), r: at === i ? 4 : 2.4 }),
    ]).flat());
    axis.replaceChildren(...[1, 0.5, 0, -0.5, -1].map((at) => svg("text", { x: LEFT - 8, y: y(at) + 4, "text-anchor": "end" }, String(at).replace("-", "−"))));
    reshape(grip, { transform: `translate(${x(i)} ${TALL + 12})` });

    const value = weights[weight], becomes = now.becomes[weight], lost = Math.fround(value - becomes), stored = double ? "scale, from 8 bits" : "scale: the absmax";
    sum.replaceChildren(
      term("", significant(value, 5), `weight ${i}`), term("÷", significant(absmax, 5), "absmax of the block"),
      term("=", significant(share(i), 5), "share"), term("→", significant(level, 5), `level of code ${rank}`), term("×", significant(scale, 5), stored),
      term("=", significant(becomes, 5), "becomes"), term("", significant(lost, 3), "error", "wb-loss"),
    );
    const [down, across] = placeOfBlock(now.map, block), place = `Row ${across}, block ${down}`, rmse = significant(now.rmse[block]);
    reshape(blocks, { "aria-valuemin": 0, "aria-valuemax": last(), "aria-valuenow": block, "aria-valuetext": `${place}: RMSE ${rmse}` });
    refresh();
    turn.set(sizes.indexOf(size), `${size} weights`);
    choice.press(double);
    const bits = scaleBits(size, nested, double), then = `${place}, RMSE ${rmse} · whole matrix ${asPercent(now.relative)} error at ${fixed(4 + bits, 3)} bits`;
    const title = `${significant(value, 4)} becomes ${significant(becomes, 4)}`;
    set(title, then);
    Object.assign(hero.body.dataset, {
      error: asPercent(now.relative), rmse, weight: String(weight), level: String(rank), becomes: String(becomes), title,
    });
    hero.say(`${title}. ${then}`);
  };
});
