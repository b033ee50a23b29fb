// @ts-check
// The bits of a weight as areas: four of code, and what its share of a scale takes. Beside it the error against bits, with the
// scales in 32 bits and quantized again.

const TALL = 216, GAP = 5;

export default heroOf((hero) => {
  const { levels, sizes, nested, model, plain, double: twice } = hero.data;
  const weights = unpack(hero.data.weights), dynamic = unpack(hero.data.dynamic), codes = codesOfSteps(dynamic);
  const bitsOf = (size, double) => scaleBits(size, nested, double);
  const kept = new Map();
  function errorOf(size, double) {
    const key = `${size},${double}`;
    if (!kept.has(key)) {
      const absmax = absmaxOf(weights, size);
      kept.set(key, measure(weights, levels, size, double ? doubleQuantized(absmax, nested, dynamic, codes) : absmax).relative);
    }
    return kept.get(key);
  }
  const all = sizes.flatMap((size) => [false, true].map((double) => errorOf(size, double)));

  const { line, set } = headline();
  const block = dial("Weights to one scale", sizes.map(String), (i) => hero.change({ size: sizes[i] }));
  const choice = scaleButtons(hero);
  const code = svg("g"), scale = svg("rect", { class: "wb-scale wb-melts", y: 24, height: TALL - 48 }), words = svg("g"), ghost = svg("rect", { class: "wb-ghost", y: 24, height: TALL - 48 });
  const areas = svg("svg", { height: TALL }, ghost, code, scale, words);
  const lines = svg("g"), here = svg("circle", { class: "wb-spot wb-melts", r: 6 }), curve = svg("svg", { height: TALL }, lines, here);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, block.box, choice.group), element("div", { class: "wb-hero-pair" }, areas, curve));

  return (wide) => {
    const { size, double } = hero.state, i = sizes.indexOf(size), bits = bitsOf(size, double), before = bitsOf(size, false);
    const apart = wide > 640, width = wide - 26, first = apart ? width * 0.58 : width, second = apart ? width * 0.38 : width;
    areas.style.width = `${first}px`;
    curve.style.width = `${second}px`;
    const unit = (first - GAP - 4) / 5;
    code.replaceChildren(
      svg("rect", { class: "wb-code", x: 0, y: 24, width: 4 * unit, height: TALL - 48 }),
      ...[1, 2, 3].map((at) => svg("line", { class: "wb-grid", x1: at * unit, x2: at * unit, y1: 24, y2: TALL - 24 })),
    );
    reshape(scale, { x: 4 * unit + GAP, width: Math.max(bits * unit, 1) });
    reshape(ghost, { x: 4 * unit + GAP, width: before * unit });
    words.replaceChildren(
      svg("text", { class: "wb-strong", x: 0, y: 16 }, "code: 4 bits"),
      svg("text", { class: "wb-strong", x: first, y: 16, "text-anchor": "end" }, `scale: ${fixed(bits, 3)} bits`),
      svg("text", { x: 0, y: TALL - 6 }, `${model}, scales of its 4-bit weights: ${decimalBytes(plain[i])}${double ? ` → ${decimalBytes(twice[i])}` : ""}`),
    );

    const low = 4, high = 5.05, bottom = Math.min(...all) * 0.97, top = Math.max(...all) * 1.02;
    const x = (value) => 38 + ((value - low) / (high - low)) * (second - 48), y = (error) => TALL - 34 - ((error - bottom) / (top - bottom)) * (TALL - 52);
    const point = (n, twofold) => [x(4 + bitsOf(n, twofold)), y(errorOf(n, twofold))];
    lines.replaceChildren(
      svg("line", { class: "wb-axis", x1: 38, x2: second, y1: TALL - 34, y2: TALL - 34 }),
      svg("text", { x: 0, y: 12 }, "error"),
      ...[4, 4.5, 5].map((b) => svg("text", { x: x(b), y: TALL - 19, "text-anchor": "middle" }, String(b))),
      svg("text", { x: x(4.5), y: TALL - 6, "text-anchor": "middle" }, "bits a weight, scales included"),
      ...[0.09, 0.1, 0.11, 0.12].filter((e) => e > bottom && e < top).map((e) => svg("text", { x: 32, y: y(e) + 4, "text-anchor": "end" }, asPercent(e, 0))),
      ...[false, true].flatMap((twofold) => [
        svg("polyline", { class: twofold ? "wb-line-two" : "wb-line-one", points: sizes.map((n) => point(n, twofold).join()).join(" ") }),
        ...sizes.map((n) => svg("circle", { class: twofold ? "wb-dot-two" : "wb-dot-one", cx: point(n, twofold)[0], cy: point(n, twofold)[1], r: 3 })),
      ]),
      svg("text", { class: "wb-strong", x: point(sizes[1], false)[0] + 8, y: point(sizes[1], false)[1] - 8 }, "32-bit scales"),
      svg("text", { class: "wb-strong", x: point(sizes[0], true)[0] + 8, y: point(sizes[0], true)[1] + 4 }, "quantized too"),
    );
    const [cx, cy] = point(size, double);
    reshape(here, { cx, cy });
    block.set(i, `${count(size)} weights`);
    choice.press(double);
    const title = `${fixed(bits, 3)} bits a weight for scales`;
    const error = `error ${asPercent(errorOf(size, double))}`;
    const gained = double ? `${fixed(before - bits, 3)} bits saved: ${decimalBytes(plain[i] - twice[i])} on ${model} · ${error}, was ${asPercent(errorOf(size, false))}`
      : `${asPercent(bits / (4 + bits), 1)} of all bytes · ${error}`;
    set(title, gained, double ? "good" : bits > 0.9 ? "bad" : "");
    Object.assign(hero.body.dataset, { bits: fixed(bits, 3), error: asPercent(errorOf(size, double)), saved: double ? decimalBytes(plain[i] - twice[i]) : "" });
    hero.say(`Blocks of ${count(size)}, scales ${double ? "quantized too" : "in 32 bits"}: ${title}; ${gained}`);
  };
});
