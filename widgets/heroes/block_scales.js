// @ts-check
// A row of weights as rings, and as dots what they become. From zero to 4 standard deviations the height is linear; below,
// where the outlier goes, it is logarithmic, and shaded.

const TALL = 270, LINEAR = 4, SHARE = 0.74; // of the height for what is linear
const TOP_AT = 3.6;

export default heroOf((hero) => {
  const { levels, sizes, place, sigma, farthest, title } = hero.data, base = unpack(hero.data.weights);
  const { line, set } = headline();
  const blocks = dial("Weights to one scale", sizes.map((n) => (n === base.length ? `all ${n}` : `${n}`)), (i) => hero.change({ size: sizes[i] }));
  const ground = svg("g"), rings = svg("g"), dots = svg("g"), axis = svg("g");
  const grip = svg("g", {}, svg("circle", { class: "wb-hit", r: 16 }), svg("circle", { class: "wb-grip", r: 7 }));
  const hint = svg("text", { class: "wb-strong", x: 14, y: 4 }, "drag this down");
  grip.append(hint);
  const picture = svg("svg", { height: TALL + 8 }, ground, rings, dots, axis, grip);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, blocks.box), picture, element("p", { class: "wb-hero-note" }, `○ what a weight was, ● what it becomes; lines are the ${levels.length} levels of each block`));
  const ringOf = Array.from(base, () => svg("circle", { class: "wb-ring", r: 2.2 }));
  const dotOf = Array.from(base, () => svg("circle", { r: 2.2 }));
  rings.append(...ringOf);
  dots.append(...dotOf);

  let width = 0;
  const x = (i) => 40 + ((i + 0.5) / base.length) * (width - 46);
  const cut = TALL * SHARE;
  /** From standard deviations to pixels, and back. */
  const y = (s) => s >= -LINEAR ? ((TOP_AT - s) / (TOP_AT + LINEAR)) * cut : cut + (Math.log(-s / LINEAR) / Math.log(farthest / LINEAR)) * (TALL - cut);
  const back = (py) => py <= cut ? TOP_AT - (py / cut) * (TOP_AT + LINEAR) : -LINEAR * (farthest / LINEAR) ** ((py - cut) / (TALL - cut));
  // The handle's value is its way down in hundredths of the height, so that an arrow key is as far everywhere.
  const down = () => y(-hero.state.outlier) / TALL;
  const refresh = handle(grip, picture, {
    label: "Outlier", step: -0.02, value: down, text: () => `${fixed(hero.state.outlier, 1)} standard deviations below zero`,
    low: () => y(0) / TALL, high: () => 1, at: (_, py) => py / TALL,
    move: (value) => hero.change({ outlier: Math.max(Number((-back(value * TALL)).toPrecision(3)), 0) }),
  });

  return (wide) => {
    width = wide - 26;
    const { outlier, size } = hero.state, weights = base.slice();
    weights[place] = Math.fround(-outlier * sigma);
    const found = measure(weights, levels, size);
    const inSigmas = (value) => value / sigma;
    let zeros = 0, squares = 0, own = 0;
    weights.forEach((weight, i) => {
      const lost = found.becomes[i] === 0 && weight !== 0;
      zeros += Number(lost);
      if (i !== place) [squares, own] = [squares + (weight - found.becomes[i]) ** 2, own + weight * weight];
      reshape(ringOf[i], { cx: x(i), cy: y(inSigmas(weight)) });
      reshape(dotOf[i], { cx: x(i), cy: y(clamp(inSigmas(found.becomes[i]), -farthest, TOP_AT)), class: lost ? "wb-lost" : "wb-kept" });
    });
    const ends = Array.from({ length: base.length / size }, (_, b) => [x(b * size - 0.5), x((b + 1) * size - 0.5)]);
    ground.replaceChildren(
      svg("rect", { class: "wb-far", x: x(-0.5), y: cut, width: x(base.length - 0.5) - x(-0.5), height: TALL - cut }),
      ...ends.flatMap(([left, right], b) => [
        ...Array.from(levels, (level) => inSigmas(level * found.absmax[b])).filter((s) => s <= TOP_AT && s >= -farthest).map((s) =>
          svg("line", { class: "wb-level", x1: left, x2: right, y1: y(s), y2: y(s) })),
        ...(b ? [svg("line", { class: "wb-wall", x1: left, x2: left, y1: 0, y2: TALL })] : []),
      ]),
    );
    axis.replaceChildren(
      svg("text", { x: 0, y: 10 }, "weight"),
      ...[2, 0, -2, -LINEAR, -10, -30, -farthest].map((s) => svg("text", { x: 34, y: y(s) + 4, "text-anchor": "end" }, `${s}σ`.replace("-", "−"))),
    );
    hint.style.display = outlier > LINEAR * 1.2 ? "none" : "";
    reshape(grip, { transform: `translate(${x(place)} ${y(-outlier)})` });
    refresh();
    blocks.set(sizes.indexOf(size), `${size} weights`);
    const others = Math.sqrt(squares / own), bad = zeros / base.length;
    const first = `${zeros} of ${base.length} weights become 0`;
    const then = `the others’ error is ${asPercent(others)} of their size · RMSE ${significant(found.rmse)} · ${title}`;
    set(first, then, bad > 0.4 ? "bad" : "");
    Object.assign(hero.body.dataset, { zeros: String(zeros), rmse: significant(found.rmse), others: asPercent(others), outlier: String(outlier) });
    hero.say(`An outlier of ${fixed(outlier, 1)} σ, one scale for ${size} weights: ${first}, ${then}`);
  };
});
