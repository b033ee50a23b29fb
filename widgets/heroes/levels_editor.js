// @ts-check
// Sixteen levels over the histogram of real weights. Above the axis: how many weights lie where, tinted by the level they go
// to. Below it hangs the squared error that arises there, on one scale for all levels.

const BINS = 160, HIGH = 170, LOW = 66, PIN = 26; // pixels: of the histogram, of the error, of the handles between them
const ROOM = 1 / 1024; // levels keep at least this distance
const AXIS = HIGH + PIN;

export default heroOf((hero) => {
  const { weights: raw, size, presets } = hero.data, weights = unpack(raw);
  const absmax = absmaxOf(weights, size);
  const shares = weights.map((x, i) => x * Math.fround(1 / (absmax[(i / size) | 0] || 1)));
  const histogram = binned(shares, () => 1), most = Math.max(...histogram.slice(1, -1)); // the ends hold each block's absmax
  const errorOf = (levels) => measure(weights, levels, size);
  const known = new Map(presets.map(({ key, levels }) => [key, errorOf(levels)]));
  const reference = Math.max(...errorsAt(known.get("nf4"))) * 2.2; // the full depth below the axis
  let lloyd = 0; // the request for the next frame of Lloyd's algorithm

  /** Sums over equal parts of [−1, 1]. */
  function binned(values, of) {
    const sums = new Float64Array(BINS);
    for (let i = 0; i < values.length; i++) sums[clamp(Math.floor(((values[i] + 1) / 2) * BINS), 0, BINS - 1)] += of(i);
    return sums;
  }
  function errorsAt(found) {
    return binned(shares, (i) => (weights[i] - found.becomes[i]) ** 2);
  }

  const { line, set } = headline();
  const titles = presets.map(({ key, title }) => [key, `${title}: ${asPercent(known.get(key).relative)}`]);
  const choice = buttons("Start from", [...titles, ["lloyd", "Run Lloyd’s"]], (key) => {
    stop();
    if (key === "lloyd") improve();
    else hero.change({ levels: presets.find((p) => p.key === key).levels });
  });
  const bars = svg("g"), depths = svg("g"), axis = svg("g"), pins = svg("g");
  const picture = svg("svg", { height: HIGH + PIN + LOW + 18 }, bars, depths, axis, pins);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, choice.group), picture);

  let width = 0;
  const x = (value) => ((value + 1) / 2) * (width - 20) + 10;
  const levelsNow = () => hero.state.levels;
  const handles = levelsNow().map((_, k) => {
    const pin = svg("g", {}, svg("line", { y1: -PIN - HIGH, y2: 0 }), svg("rect", { class: "wb-hit", x: -12, y: -PIN - 6, width: 24, height: PIN + 12 }),
      svg("path", { class: "wb-grip", d: `M0 ${-PIN + 2}l6 8v12h-12v-12z` }));
    const refresh = handle(pin, picture, {
      label: `Level ${k + 1} of 16`, step: 0.005,
      value: () => levelsNow()[k], text: () => `${significant(levelsNow()[k], 3)} of absmax`,
      low: () => (k ? levelsNow()[k - 1] + ROOM : -1), high: () => (k < 15 ? levelsNow()[k + 1] - ROOM : 1),
      at: (px) => ((px - 10) / (width - 20)) * 2 - 1,
      move: (value) => {
        stop();
        hero.change({ levels: levelsNow().map((level, i) => (i === k ? Math.fround(value) : level)) });
      },
    });
    pins.append(pin);
    return { pin, refresh };
  });

  function stop() {
    cancelAnimationFrame(lloyd);
    lloyd = 0;
  }
  hero.atEnd(stop);
  /** One round of Lloyd's algorithm a frame: each level goes to the mean of its weights, weighted by absmax². */
  function improve() {
    const found = errorOf(levelsNow()), sums = new Float64Array(16), parts = new Float64Array(16);
    for (let i = 0; i < weights.length; i++) {
      const scale = absmax[(i / size) | 0];
      sums[found.ranks[i]] += scale * weights[i]; // absmax² · (x / absmax)
      parts[found.ranks[i]] += scale * scale;
    }
    const levels = levelsNow().map((level, k) => (parts[k] ? Math.fround(clamp(sums[k] / parts[k], -1, 1)) : level));
    const moved = Math.max(...levels.map((level, k) => Math.abs(level - levelsNow()[k])));
    hero.change({ levels });
    if (moved > 2e-5) lloyd = requestAnimationFrame(improve);
    else stop();
  }

  return (wide) => {
    width = wide - 26;
    const levels = levelsNow(), found = errorOf(levels), errors = errorsAt(found), edges = edgesOf(Float32Array.from(levels));
    const step = x(1 / BINS) - x(-1 / BINS);
    const middle = (i) => ((i + 0.5) / BINS) * 2 - 1;
    bars.replaceChildren(...Array.from(histogram, (n, i) => {
      const tall = Math.min(n / most, 1) * (HIGH - 8), rank = rankOf(edges, middle(i));
      return svg("rect", { x: x(middle(i)) - step / 2, y: HIGH - tall, width: Math.max(step - 0.6, 0.6), height: tall, class: rank % 2 ? "wb-odd" : "wb-even" });
    }));
    depths.replaceChildren(...Array.from(errors, (e, i) => {
      const deep = Math.min(e / reference, 1) * LOW;
      return svg("rect", { x: x(middle(i)) - step / 2, y: AXIS, width: Math.max(step - 0.6, 0.6), height: deep, class: e > reference ? "wb-over" : "wb-error" });
    }));
    axis.replaceChildren(
      svg("line", { class: "wb-axis", x1: x(-1), x2: x(1), y1: AXIS, y2: AXIS }),
      svg("text", { x: x(-1) + 5, y: 12 }, "weights"), svg("text", { x: x(-1) + 5, y: AXIS + LOW - 2 }, "squared error"),
      svg("text", { x: x(1) - 5, y: AXIS + LOW - 2, "text-anchor": "end" }, "weight / absmax"),
      ...[-1, -0.5, 0, 0.5, 1].map((at) => svg("text", {
        x: x(at), y: AXIS + LOW + 14, "text-anchor": at === -1 ? "start" : at === 1 ? "end" : "middle",
      }, String(at).replace("-", "−"))),
    );
    handles.forEach(({ pin, refresh }, k) => {
      reshape(pin, { transform: `translate(${x(levels[k])} ${AXIS})` });
      refresh();
    });
    const nf4 = known.get("nf4").relative, apart = 100 * (found.relative - nf4);
    const preset = presets.find((p) => p.levels.every((level, k) => level === levels[k]));
    const versus = preset?.key === "nf4" ? "NF4 as it is. Drag a level, or press a button."
      : apart < -0.005 ? `${fixed(-apart, 2)} points better than NF4 on these weights`
      : `${fixed(Math.abs(apart), 2)} points ${apart < 0.005 ? "from" : "worse than"} NF4`;
    const mood = apart < -0.005 ? "good" : apart > 1 ? "bad" : "";
    set(`Error ${asPercent(found.relative)}`, versus, mood);
    choice.press(lloyd ? "lloyd" : preset?.key ?? "");
    Object.assign(hero.body.dataset, { error: asPercent(found.relative), rmse: String(found.rmse), running: String(Boolean(lloyd)) });
    hero.say(`Sixteen levels over ${count(weights.length)} weights: error ${asPercent(found.relative)} of the weights’ size, ${versus}`);
  };
});
