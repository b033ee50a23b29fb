// @ts-check
// Boxes whose areas are bytes, and a GPU's memory as a frame of the same scale around or inside them.

const TALL = 216;

/** Cut a rectangle among shares: halves of about equal sums, across its longer side, until each share has its box. */
function boxed(shares, left, top, width, height) {
  if (shares.length === 1) return [{ ...shares[0], left, top, width, height }];
  const total = shares.reduce((sum, { bytes }) => sum + bytes, 0);
  let cut = 1, first = shares[0].bytes;
  while (cut < shares.length - 1 && first + shares[cut].bytes / 2 < total / 2) first += shares[cut++].bytes;
  const [one, two] = [shares.slice(0, cut), shares.slice(cut)], part = first / total;
  return width > height
    ? [...boxed(one, left, top, width * part, height), ...boxed(two, left + width * part, top, width * (1 - part), height)]
    : [...boxed(one, left, top, width, height * part), ...boxed(two, left, top + height * part, width, height * (1 - part))];
}

export default heroOf((hero) => {
  const { models, ranks, gpus, parts, methods } = hero.data;
  const { line, set } = headline();
  const choose = (name, key, options) => {
    const select = element("select", { "aria-label": name }, ...options.map((text) => element("option", { value: text }, text)));
    select.addEventListener("change", () => hero.change({ [key]: select.value }));
    return select;
  };
  const model = choose("Model", "model", models.map(({ name }) => name)), gpu = choose("GPU", "gpu", gpus.map(({ name }) => name));
  const method = buttons("Method", methods.map((name) => [name, name === "full" ? "Full fine-tuning" : name]), (key) => hero.change({ method: key }));
  const rank = dial("Rank", ranks.map(String), (i) => hero.change({ rank: ranks[i] }));
  const boxes = svg("g"), frame = svg("rect", { class: "wb-frame" }), words = svg("g"), picture = svg("svg", { height: TALL + 4 }, boxes, frame, words);
  const legend = element("div", { class: "wb-hero-legend" });
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, model, gpu, method.group, rank.box), picture, legend);

  return (wide) => {
    const { state } = hero, width = wide - 26, at = gpus.findIndex(({ name }) => name === state.gpu), room = gpus[at].usable;
    const known = models.find(({ name }) => name === state.model).found;
    const { parts: bytes, total, verdicts } = known[`${state.method} ${state.method === "full" ? ranks[0] : state.rank}`];
    const scale = 1 / Math.max(total, room), side = (size) => Math.sqrt(size * scale);
    const [across, up] = [width * side(total), TALL * side(total)];
    const shares = parts.map((name, i) => ({ name, bytes: bytes[i], class: `wb-part-${i}` })).filter((part) => part.bytes);
    const laid = boxed(shares, 0, TALL - up, across, up);
    boxes.replaceChildren(...laid.map((box) => svg("rect", {
      class: `wb-box-part ${box.class}`, x: box.left, y: box.top, width: Math.max(box.width - 1.5, 0.5), height: Math.max(box.height - 1.5, 0.5),
    }, svg("title", {}, `${box.name}: ${decimalBytes(box.bytes)}`))));
    const fits = (text, box, size = 6.2) => text.length * size < box.width - 8;
    words.replaceChildren(...laid.flatMap((box) => {
      const size = decimalBytes(box.bytes), one = `${box.name} ${size}`;
      if (box.height < 16) return [];
      if (box.height >= 30 && fits(box.name, box) && fits(size, box)) return [
        svg("text", { class: "wb-on", x: box.left + 5, y: box.top + 15 }, box.name), svg("text", { class: "wb-on", x: box.left + 5, y: box.top + 28 }, size)];
      return fits(one, box) ? [svg("text", { class: "wb-on", x: box.left + 5, y: box.top + 13 }, one)] : [];
    }), svg("text", { class: "wb-strong", x: width * side(room) - 6, y: TALL - TALL * side(room) + 14, "text-anchor": "end" }, room < total ? "" : `${state.gpu}: ${decimalBytes(room)} usable`));
    reshape(frame, { x: 1, y: TALL - TALL * side(room) + 1, width: width * side(room) - 2, height: TALL * side(room) - 2, "data-verdict": verdicts[at] });

    legend.replaceChildren(...shares.map((part) => element("span", {}, element("i", { class: part.class }), `${part.name} ${decimalBytes(part.bytes)}`)));
    model.value = state.model;
    gpu.value = state.gpu;
    method.press(state.method);
    rank.set(ranks.indexOf(state.rank), `rank ${state.rank}`);
    rank.input.disabled = state.method === "full";
    const verdict = verdicts[at] === "does not fit" ? `does not fit a ${state.gpu}` : `${verdicts[at]} on a ${state.gpu}`;
    const adapters = bytes[parts.indexOf("adapters")], trained = adapters ? ` · ${count(adapters / 4)} trained weights` : "";
    set(decimalBytes(total), `${verdict}, ${decimalBytes(room)} usable${trained} · forecast`, verdicts[at] === "does not fit" ? "bad" : verdicts[at] === "fits" ? "good" : "");
    Object.assign(hero.body.dataset, { total: String(total), verdict: verdicts[at], boxes: String(laid.length), adapters: decimalBytes(adapters) });
    hero.say(`${state.model}, ${state.method}${state.method === "full" ? "" : `, rank ${state.rank}`}: ${decimalBytes(total)}, ${verdict}. ${shares.map((part) => `${part.name} ${decimalBytes(part.bytes)}`).join(", ")}`);
  };
});
