// @ts-check
// A matrix as a map of its blocks' error, a bar of error beside each row, and the rows that share a block with the large one.

const TALL = 256, BARS = 0.24; // the map's height in pixels; the share of the width for the rows' bars
const WORST = 0.6; // the error at which a block is as dark as can be, in units of the matrix's own size; that of a row's full bar

export default heroOf((hero) => {
  const { columns, row, sizes, times, larger, levels } = hero.data, base = unpack(hero.data.weights);
  const rows = base.length / columns, most = sizes[sizes.length - 1] / columns, first = Math.floor(row / most) * most;
  const { line, set } = headline();
  const block = dial("Weights to one scale", sizes.map(String), (i) => hero.change({ size: sizes[i] }));
  const factor = dial(`Row ${row}`, times.map((n) => (n === 1 ? "as it is" : `× ${n}`)), (i) => hero.change({ times: times[i] }));
  const canvas = element("canvas", { "aria-hidden": "true" }), bars = svg("g"), marks = svg("g");
  const picture = svg("svg", { height: TALL + 18 }, bars, marks);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, block.box, factor.box), element("div", { class: "wb-hero-map" }, canvas, picture));

  return (wide) => {
    const { size, times: by } = hero.state, width = wide - 26, across = Math.floor(width * (1 - BARS)) - 34, tall = TALL / rows;
    const weights = base.slice();
    for (let i = row * columns; i < (row + 1) * columns; i++) weights[i] = Math.fround(weights[i] * by);
    const found = measure(weights, levels, size), usual = measure(base, levels, 64).rms;

    Object.assign(canvas, { width: columns, height: rows });
    Object.assign(canvas.style, { left: "34px", width: `${across}px`, height: `${TALL}px` });
    const ink = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")), image = ink.createImageData(columns, rows);
    for (let i = 0; i < weights.length; i++) {
      const b = (i / size) | 0, error = Math.sqrt(found.blockSquares[b] / size) / usual;
      image.data.set([213, 94, 0, Math.round(255 * Math.min(error / WORST, 1) ** 0.8)], 4 * i); // on the page's own ground
    }
    ink.putImageData(image, 0, 0);

    const errors = new Float64Array(rows), own = new Float64Array(rows);
    weights.forEach((x, i) => {
      const r = (i / columns) | 0;
      errors[r] += (x - found.becomes[i]) ** 2;
      own[r] += x * x;
    });
    const beside = [...errors.keys()].filter((r) => r >= first && r < first + most && r !== row);
    const sum = (of) => beside.reduce((total, r) => total + of[r], 0);
    const hurt = Math.sqrt(sum(errors) / sum(own)), reach = Math.max(size / columns, 1), from = Math.floor(row / reach) * reach;
    const left = across + 46, room = width - left - 4;
    bars.replaceChildren(...Array.from(errors, (e, r) => svg("rect", {
      class: r === row ? "wb-row-large" : r >= from && r < from + reach ? "wb-row-hurt" : "wb-row", x: left, y: r * tall,
      width: Math.max(Math.min(Math.sqrt(e / own[r]) / WORST, 1) * room, 0.5), height: Math.max(tall - 0.4, 0.6),
    })));
    marks.replaceChildren(
      svg("rect", { class: "wb-mark", x: 33, y: from * tall - 1.5, width: across + 2, height: reach * tall + 3 }),
      svg("text", { x: 28, y: clamp(row * tall + 4, 10, TALL), "text-anchor": "end" }, `${row} ▸`),
      svg("text", { x: 34, y: TALL + 14 }, `error of each block, ${rows} rows`),
      svg("text", { x: width, y: TALL + 14, "text-anchor": "end" }, "of each row"),
    );
    block.set(sizes.indexOf(size), `${count(size)} weights`);
    factor.set(times.indexOf(by), by === 1 ? "as it is" : `${by} times as large`);
    const shared = reach > 1 ? `one scale spans ${reach} rows` : "no block reaches beyond its row";
    const title = `The ${beside.length} rows beside it: ${asPercent(hurt)} error`;
    const then = `row ${row} is ${significant(larger * by, 3)} times as large as most · ${shared} · whole matrix ${asPercent(found.relative)}`;
    set(title, then, hurt > 0.15 ? "bad" : "");
    Object.assign(hero.body.dataset, { hurt: asPercent(hurt), error: asPercent(found.relative), rmse: significant(found.rmse) });
    hero.say(`Blocks of ${count(size)}: ${title}; ${then}`);
  };
});
