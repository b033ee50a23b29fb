// @ts-check
// Claims as cards: a guess on a slider or by a button, the card turns, and the score counts. What is true comes from Python.

const PLACES = 200;

export default heroOf((hero) => {
  const { line, set } = headline();
  const claim = element("p", { class: "wb-claim" }), asked = element("p", { class: "wb-asked" });
  const input = element("input", { type: "range", min: "0", max: String(PLACES), step: "1" });
  const output = element("output"), reveal = element("button", { type: "button" }, "Reveal");
  const slide = element("div", { class: "wb-guess" }, input, output, element("div", { class: "wb-hero-buttons" }, reveal));
  const choice = buttons("Your verdict", hero.data.verdicts.map((name) => [name, name]), (key) => guess(key));
  const picture = svg("svg", { class: "wb-truth", "aria-hidden": "true" });
  const verdict = element("b"), computed = element("span"), turned = element("p", { class: "wb-turned" }, verdict, computed);
  const why = element("p");
  const card = element("div", { class: "wb-card" }, claim, asked, slide, choice.group, picture, turned, why);
  const back = element("button", { type: "button" }, "‹ Previous"), next = element("button", { type: "button" }, "Next ›");
  const dots = hero.data.cards.map((_, i) => {
    const dot = element("button", { type: "button" }, String(i + 1));
    dot.addEventListener("click", () => go(i));
    return dot;
  });
  const tools = element("div", { class: "wb-hero-tools" }, element("div", { class: "wb-hero-buttons" }, back, next));
  hero.body.append(line, card, element("div", { class: "wb-dots", role: "group", "aria-label": "Cards" }, ...dots), tools);

  let at = PLACES / 2, seen = -1; // the slider's place, and the card that it belongs to
  const here = () => hero.data.cards[clamp(hero.state.card, 0, hero.data.cards.length - 1)];
  const go = (i) => hero.change({ card: clamp(i, 0, hero.data.cards.length - 1) });
  const guess = (value) => {
    const { claim: name } = here();
    if (hero.state.guesses[name] === undefined) hero.change({ guesses: { ...hero.state.guesses, [name]: value } });
  };
  // Where the range spans more than a factor of twenty the slider is logarithmic.
  const bent = ({ low, high }) => low > 0 && high / low > 20;
  const value = (of, place) => Number((bent(of) ? of.low * (of.high / of.low) ** (place / PLACES) : of.low + ((of.high - of.low) * place) / PLACES).toPrecision(3));
  const share = (of, x) => clamp(bent(of) ? Math.log(x / of.low) / Math.log(of.high / of.low) : (x - of.low) / (of.high - of.low), 0, 1);
  const words = (of, x) => `${significant(x, 3)} ${of.unit}`.trim();
  const right = (of) => {
    const mine = hero.state.guesses[of.claim];
    if (mine === undefined || !of.found) return "";
    const good = of.question === null ? mine === of.found.verdict : Math.abs(mine - of.found.value) <= hero.data.within * Math.abs(of.found.value);
    return good ? "right" : "wrong";
  };
  input.addEventListener("input", () => { at = Number(input.value); hero.schedule(); });
  reveal.addEventListener("click", () => guess(value(here(), at)));
  back.addEventListener("click", () => go(hero.state.card - 1));
  next.addEventListener("click", () => go(hero.state.card + 1));

  return (wide) => {
    const { cards } = hero.data, i = cards.indexOf(here()), of = cards[i], mine = hero.state.guesses[of.claim];
    const came = cards.map(right), hits = came.filter((one) => one === "right").length, done = came.filter(Boolean).length;
    if (seen !== i) [seen, at] = [i, PLACES / 2];
    const number = of.question !== null, guessed = mine !== undefined, open = guessed && of.found;
    claim.textContent = `“${of.claim}”`;
    asked.textContent = number ? of.question : "Does it hold?";
    slide.hidden = !number || guessed;
    choice.group.hidden = number;
    choice.press(mine ?? "");
    for (const one of choice.group.children) /** @type {HTMLButtonElement} */ (one).disabled = guessed;
    if (number) {
      input.value = String(at);
      input.setAttribute("aria-label", of.question);
      input.setAttribute("aria-valuetext", words(of, value(of, at)));
      output.textContent = words(of, value(of, at));
    }
    picture.style.display = open && number ? "" : "none";
    if (open && number) {
      const length = Math.min(wide - 70, 560) - 16, x = (n) => 8 + share(of, n) * length, { value: truth } = of.found;
      const low = truth * (1 - hero.data.within), high = truth * (1 + hero.data.within);
      const end = (n) => ({ y: 12, "text-anchor": x(n) < 100 ? "start" : x(n) > length - 100 ? "end" : "middle", x: x(n) });
      picture.replaceChildren(
        svg("line", { class: "wb-axis", x1: 8, x2: 8 + length, y1: 26, y2: 26 }),
        svg("line", { class: "wb-near", x1: x(Math.min(low, high)), x2: x(Math.max(low, high)), y1: 26, y2: 26 }),
        svg("circle", { class: "wb-found", cx: x(truth), cy: 26, r: 6 }), svg("circle", { class: "wb-yours", cx: x(mine), cy: 26, r: 6 }),
        svg("text", { ...end(truth), class: "wb-strong" }, `computed ${words(of, truth)}`),
        svg("text", { ...end(mine), y: 43 }, `your guess ${words(of, mine)}`),
      );
    }
    turned.hidden = !guessed;
    why.hidden = !open;
    turned.dataset.verdict = open ? of.found.verdict : "";
    const only = open && of.found.verdict === "holds only if";
    verdict.textContent = open ? (only ? "Holds only if …" : of.found.verdict.replace(/^./, (first) => first.toUpperCase())) : "Not computed yet";
    computed.textContent = open ? (of.found.computed ? ` · ${of.found.computed}` : "") : " · run the cells below";
    why.textContent = open ? (only ? `… ${of.found.why}` : of.found.why.replace(/^./, (first) => first.toUpperCase())) : "";
    dots.forEach((dot, n) => {
      dot.dataset.came = came[n];
      dot.setAttribute("aria-current", String(n === i));
      dot.setAttribute("aria-label", `Claim ${n + 1}${came[n] && `, ${came[n]}`}: ${cards[n].claim}`);
    });
    back.disabled = i === 0;
    next.disabled = i === cards.length - 1;
    const rule = number ? "A guess within a fifth of the computed number counts." : "Choose a verdict, and the card turns.";
    set(done ? `${hits} of ${done} right` : `${cards.length} claims`, `claim ${i + 1} of ${cards.length} · ${guessed ? { right: "right", wrong: "not this time" }[came[i]] ?? "" : rule}`, came[i] === "right" ? "good" : came[i] ? "bad" : "");
    Object.assign(hero.body.dataset, { right: String(hits), done: String(done), verdict: open ? of.found.verdict : "", card: String(i) });
    hero.say(`Claim ${i + 1} of ${cards.length}: ${of.claim}. ${open ? `${verdict.textContent}${computed.textContent}. ${why.textContent}` : asked.textContent}`);
  };
});
