// @ts-check
// Fifty batches as bars of memory against a GPU's. One bar has a handle. Without paging the run ends where a bar is too high;
// with it the optimizer's state leaves for the host, and below stands what that takes on the bus.

const TALL = 196, BUS = 44, LEFT = 50;

export default heroOf((hero) => {
  const { lengths, found, batches, spike, budget, model, rank, bus } = hero.data, GIB = 2 ** 30;
  const { line, set } = headline();
  const choice = buttons("Optimizer", [["plain", "AdamW"], ["paged", "Paged AdamW"]], (key) => hero.change({ paged: key === "paged" }));
  const bars = svg("g"), axis = svg("g"), grip = svg("g", {}, svg("rect", { class: "wb-hit", x: -14, y: -14, width: 28, height: 28 }), svg("circle", { class: "wb-grip", r: 7 }));
  const picture = svg("svg", { height: TALL + BUS + 34 }, bars, axis, grip);
  const note = element("p", { class: "wb-hero-note" }, `Simulated: ${model}, rank ${rank}, one row a batch, ${budget / GIB} GiB of GPU memory. Drag the long batch up or down.`);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, choice.group), picture, note);

  const top = Math.max(...found.map(({ needs, paged_needs: paged }) => Math.max(needs, paged))) * 1.03, bottom = 0;
  const y = (bytes) => TALL - ((bytes - bottom) / (top - bottom)) * (TALL - 14);
  const place = () => lengths.indexOf(hero.state.tokens);
  const needsOf = (i) => (hero.state.paged ? found[i].paged_needs : found[i].needs);
  const refresh = handle(grip, picture, {
    label: `Batch ${spike}, its length`, step: 1, value: place, text: () => `${count(hero.state.tokens)} tokens`,
    low: () => 0, high: () => lengths.length - 1,
    at: (_, py) => lengths.map((__, i) => Math.abs(y(needsOf(i)) - py)).reduce((best, off, i, all) => (off < all[best] ? i : best), 0),
    move: (value) => hero.change({ tokens: lengths[Math.round(value)] }),
  });

  return (wide) => {
    const { tokens, paged } = hero.state, width = wide - 26, step = (width - LEFT) / batches.length;
    const at = batches.map((n, i) => lengths.indexOf(i + 1 === spike ? tokens : n));
    const least = (i) => (paged ? found[i].paged_least : found[i].least);
    const dead = at.findIndex((i) => least(i) > budget), ends = dead < 0 ? batches.length : dead;
    const most = Math.max(0.2, ...found.map(({ seconds }) => seconds)) * 1.15, floor = TALL + BUS + 16;
    bars.replaceChildren(...at.flatMap((i, n) => {
      const x = LEFT + n * step + 1, high = needsOf(i), wideBar = Math.max(step - 2, 1);
      if (n > ends) return [svg("rect", { class: "wb-never", x, y: y(high), width: wideBar, height: TALL - y(high) })];
      const over = high > budget, on = Math.min(high, budget);
      const made = [svg("rect", { class: n === dead ? "wb-broke" : n + 1 === spike ? "wb-long" : "wb-batch", x, y: y(n === dead ? high : on), width: wideBar, height: TALL - y(n === dead ? high : on) })];
      if (over && n !== dead) made.push(
        svg("rect", { class: "wb-host", x, y: y(high), width: wideBar, height: y(budget) - y(high) }),
        svg("rect", { class: "wb-bus", x, y: floor - (found[i].seconds / most) * BUS, width: wideBar, height: (found[i].seconds / most) * BUS }));
      return made;
    }));
    const spikeX = LEFT + (spike - 0.5) * step, [off, anchor] = spike > batches.length / 2 ? [-14, "end"] : [14, "start"];
    axis.replaceChildren(
      ...[0, 2, 4, 6, 8, 10, 12].filter((g) => g * GIB < top).map((g) => svg("text", { x: LEFT - 6, y: y(g * GIB) + 4, "text-anchor": "end" }, g ? String(g) : "0 GiB")),
      svg("line", { class: "wb-budget", x1: LEFT, x2: width, y1: y(budget), y2: y(budget) }),
      svg("text", { class: "wb-strong", x: LEFT + 4, y: y(budget) - 5 }, `GPU: ${budget / GIB} GiB`),
      svg("line", { class: "wb-axis", x1: LEFT, x2: width, y1: floor, y2: floor }),
      svg("text", { x: LEFT - 6, y: floor, "text-anchor": "end" }, "s on bus"),
      svg("text", { x: width, y: floor + 13, "text-anchor": "end" }, "50 batches"),
      svg("text", { class: dead < 0 ? "wb-strong" : "wb-wrong", x: spikeX + Number(off), y: y(needsOf(at[spike - 1])) - 6, "text-anchor": anchor },
        dead < 0 ? `${count(tokens)} tokens` : `${count(tokens)} tokens: out of memory`),
    );
    reshape(grip, { transform: `translate(${spikeX} ${y(needsOf(at[spike - 1])) - 10})` });
    refresh();
    choice.press(paged ? "paged" : "plain");
    const now = found[at[spike - 1]], gib = (bytes) => `${fixed(bytes / GIB, 2)} GiB`;
    const survived = dead < 0, moved = survived && paged && now.seconds;
    const first = !survived ? `Out of memory at batch ${dead + 1}` : moved ? `All 50 batches, one ${fixed(now.seconds, 2)} s slower` : "All 50 batches";
    const then = !survived ? `it needs ${gib(paged ? now.paged_least : now.least)}${paged ? " even with its optimizer state on the host" : "; nothing may leave"}`
      : moved ? `${gib(now.evicted)} of optimizer state leave and come back, at ${bus}’s nominal rate` : `the longest needs ${gib(Math.max(...at.map(needsOf)))}: nothing has to leave`;
    set(first, then, survived ? (moved ? "good" : "") : "bad");
    Object.assign(hero.body.dataset, { dead: String(dead + 1), seconds: fixed(now.seconds, 2), evicted: gib(now.evicted), tokens: String(tokens) });
    hero.say(`${paged ? "Paged AdamW" : "AdamW"}, a batch of ${count(tokens)} tokens. ${first}: ${then}`);
  };
});
