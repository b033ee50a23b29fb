// @ts-check
// A dial of bits over what a model says: the continuation, with what differs from that of 16 bits marked, and KL divergence on a
// logarithmic scale. What it says comes from Python as it is known; a page without a kernel has it all from the start.

const TALL = 190, LEAST = 1e-5;

/** Where two texts part: the length of what both begin with, back to the start of a word. */
function parting(one, other) {
  let i = 0;
  while (i < one.length && one[i] === other[i]) i++;
  if (i === one.length && i === other.length) return i;
  while (i > 0 && /\w/.test(one[i - 1])) i--;
  return i;
}

export default heroOf((hero) => {
  const { bits: all, titles, rows, most } = hero.data;
  const { line, set } = headline();
  const turn = dial("Bits a weight", all.map(String), (i) => hero.change({ bits: all[i] }));
  const field = element("input", { type: "text", class: "wb-hero-prompt", "aria-label": "Prompt", maxlength: String(most), spellcheck: "false" });
  const ask = () => field.value.trim() && field.value !== hero.state.prompt && hero.change({ prompt: field.value });
  field.addEventListener("keydown", (event) => event.key === "Enter" && ask());
  field.addEventListener("change", ask);
  field.hidden = !hero.model.set;
  const said = element("p", { class: "wb-hero-said" }), lines = svg("g"), here = svg("circle", { class: "wb-spot wb-melts", r: 7 });
  const curve = svg("svg", { height: TALL }, lines, here), words = element("div", { class: "wb-hero-words" }, field, said);
  const note = element("p", { class: "wb-hero-note" }, `Measured on ${hero.model.set ? "this machine’s" : "a"} CPU: KL divergence from the 16-bit model on ${rows} held-out rows of the example dataset; symmetric integers in blocks of 64.`);
  hero.body.append(line, element("div", { class: "wb-hero-tools" }, turn.box), element("div", { class: "wb-hero-pair" }, words, curve), note);

  return (wide) => {
    const { bits, prompt } = hero.state, { costs, phase, problem, ...found } = hero.data.found;
    const texts = found.prompt === prompt ? found.texts : {}; // those of the prompt before are not shown under the new one
    const apart = wide > 640, width = wide - 26, second = apart ? width * 0.36 : width;
    words.style.width = `${apart ? width * 0.6 : width}px`;
    curve.style.width = `${second}px`;
    if (document.activeElement !== field) field.value = prompt;
    const text = texts[bits], whole = texts[all[0]], cost = costs[bits];
    const at = text !== undefined && whole !== undefined ? parting(text, whole) : 0;
    said.setAttribute("aria-busy", String(text === undefined));
    if (problem) said.replaceChildren(element("em", {}, problem));
    else if (text === undefined) said.replaceChildren(element("em", {}, phase === "loading" ? "Loading the model …" : "Generating …"));
    else if (whole === undefined) said.replaceChildren(element("b", {}, prompt), text);
    else said.replaceChildren(element("b", {}, prompt), text.slice(0, at), ...(at < text.length ? [element("mark", {}, text.slice(at))] : []));

    const known = all.filter((n) => costs[n] && n !== all[0]);
    const x = (i) => 44 + (i / (all.length - 1)) * (second - 60);
    const y = (kl) => 12 + (Math.log10(1 / Math.max(kl, LEAST)) / 5) * (TALL - 52);
    lines.replaceChildren(
      ...[1, 0.1, 0.01, 0.001, 0.0001].flatMap((kl) => [svg("line", { class: "wb-grid", x1: 40, x2: second, y1: y(kl), y2: y(kl) }),
        svg("text", { x: 36, y: y(kl) + 4, "text-anchor": "end" }, String(kl))]),
      ...all.map((n, i) => svg("text", { x: x(i), y: TALL - 22, "text-anchor": "middle", class: n === bits ? "wb-strong" : "" }, String(n))),
      svg("text", { x: second, y: TALL - 6, "text-anchor": "end" }, "KL divergence, nats a token, against bits"),
      svg("polyline", { class: "wb-line-one", points: known.map((n) => `${x(all.indexOf(n))},${y(costs[n].kl)}`).join(" ") }),
      ...known.map((n) => svg("circle", { class: "wb-dot-one", cx: x(all.indexOf(n)), cy: y(costs[n].kl), r: 3 })),
    );
    here.style.display = cost ? "" : "none";
    if (cost) reshape(here, { cx: x(all.indexOf(bits)), cy: y(cost.kl) });
    turn.set(all.indexOf(bits), `${bits} bits`);
    const first = `${bits} bits`, title = bits === all[0] ? "the model as it was trained"
      : cost ? `KL ${significant(cost.kl, 2)} nats a token · ${asPercent(cost.flips, 1)} of its next tokens change · weights off by ${asPercent(cost.error, 1)} · ${titles[bits]}` : titles[bits];
    set(first, title, bits <= 2 && cost ? "bad" : "");
    Object.assign(hero.body.dataset, { bits: String(bits), known: String(known.length), kl: cost ? significant(cost.kl, 2) : "", text: text ?? "", same: String(Boolean(text !== undefined && text === whole)) });
    hero.say(`${first}: ${title}. ${text === undefined ? "" : `${prompt}${text}`}`);
  };
});
