// @ts-check
// A forecast of memory as a stacked bar against what a GPU has. What it says is made in Python; here it is only laid out.

const TINY = 0.12, ROOM = 1.25, BEYOND = 1.5, TICKS = 8;

/** Where the axis ends: behind the GPU's memory, or, where the forecast is a small part of that, behind the forecast. */
function endOf({ total, capacity }) {
  return total < TINY * capacity ? total * ROOM : Math.max(capacity * 1.12, Math.min(total, capacity * BEYOND) * 1.04);
}

/** Round steps of 1, 2 or 5. */
function stepFor(top) {
  const rough = top / TICKS, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((step) => step >= rough) ?? rough;
}

/** The parts side by side, each as wide as its bytes. */
function stack(parts, end) {
  const bar = element("div", { class: "wb-stack" });
  let at = 0;
  for (const { group, title, bytes } of parts) {
    const width = Math.max(0, Math.min(bytes, end - at)) / end;
    const part = element("i", { "data-group": group, title });
    part.style.left = `${(100 * at) / end}%`;
    part.style.width = `${100 * width}%`;
    at += bytes;
    bar.append(part);
  }
  return bar;
}

function verdict(kind, word) {
  return element("span", { class: "wb-verdict", "data-verdict": kind }, word);
}

/** The headline: one number, what there is of it, and whether that is enough. */
function headline(shown) {
  return [
    element("b", { class: "wb-big" }, shown.said), element("span", {}, shown.of), verdict(shown.verdict, shown.word),
    element("span", { class: "wb-quiet" }, shown.more),
  ];
}

function axis(shown, end, names) {
  const bar = stack(shown.parts, end);
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `Forecast: ${shown.said} ${shown.unit} ${shown.of.replace(shown.unit, "").trim()}, ${shown.word}. ${names}`);
  const box = element("div", { class: "wb-axis" }, bar);
  if (shown.capacity <= end) {
    const mark = element("div", { class: "wb-capacity" }, element("span", {}, "usable"));
    mark.style.left = `${(100 * shown.capacity) / end}%`;
    box.append(mark);
  } else {
    const times = Math.round(shown.capacity / shown.total).toLocaleString("en");
    box.append(element("div", { class: "wb-beyond" }, `the GPU has ${times} times as much →`));
  }
  const step = stepFor(end / shown.size);
  for (let value = 0; value * shown.size < 0.97 * end; value += step) {
    const text = Number(value.toPrecision(6)).toLocaleString("en");
    const tick = element("span", { class: "wb-tick" }, value ? text : `0 ${shown.unit}`);
    tick.style.left = `${(100 * value * shown.size) / end}%`;
    box.append(tick);
  }
  return box;
}

function legend(shown) {
  const lines = [...shown.parts].reverse().map(({ group, title, text }) =>
    element("div", {}, element("i", { "data-group": group }), element("span", {}, title), element("b", {}, text)));
  return element("div", { class: "wb-legend" }, ...lines, element("div", {}, element("span", { class: "wb-quiet" }, `${shown.unit}, forecast`)));
}

function rows(shown) {
  const most = Math.max(...shown.rows.map((row) => row.total));
  const end = 1.02 * (most < TINY * shown.capacity ? most : Math.max(shown.capacity, most));
  const lines = shown.rows.map((row) => {
    const bar = stack(row.parts, end);
    if (shown.capacity <= end) {
      const mark = element("u", { title: "what the GPU has" });
      mark.style.left = `${(100 * shown.capacity) / end}%`;
      bar.append(mark);
    }
    return element("tr", {},
      element("th", { scope: "row" }, row.title), element("td", { class: "wb-wide" }, bar),
      element("td", { class: "wb-number" }, row.text), element("td", {}, verdict(row.verdict, row.word)));
  });
  return element("table", { class: "wb-rows-of-bars", "aria-label": "Forecast by method" }, element("tbody", {}, ...lines));
}

export default {
  render({ model, el }) {
    el.classList.add("wb-forecast");
    const choose = element("select", { "aria-label": "GPU" });
    const head = element("div", { class: "wb-forecast-head", role: "status" });
    const above = element("div"), heading = element("h3", { class: "wb-heading" }, "What would change it");
    const ways = element("div", { class: "wb-ways" }), below = element("div");
    el.append(element("div", { class: "wb-forecast-top" }, head, choose), above, heading, ways, below);
    choose.addEventListener("change", () => {
      model.set("gpu", choose.value);
      model.save_changes();
    });

    const wayOf = (label) => {
      const button = element("button", { type: "button", class: "wb-way" });
      button.append(element("span", {}, label), element("b"), verdict("", ""));
      button.addEventListener("click", () => model.send({ type: "apply", label }));
      return button;
    };
    /** @type {Map<string, HTMLElement>} */
    let buttons = new Map();
    /** What would change it: a button that is offered again stays, and with it a press that has begun. */
    const offer = (offered) => {
      buttons = new Map(offered.map(({ label }) => [label, buttons.get(label) ?? wayOf(label)]));
      for (const { label, text, verdict: kind, word, more } of offered) {
        const button = /** @type {HTMLElement} */ (buttons.get(label));
        const [, amount, fits] = /** @type {HTMLElement[]} */ ([...button.children]);
        button.title = more;
        amount.textContent = text;
        fits.textContent = word;
        fits.dataset.verdict = kind;
      }
      fillWith(ways, [...buttons.values()]);
      heading.hidden = !offered.length;
    };
    const draw = () => {
      const shown = model.get("content"), problem = model.get("problem");
      if (choose.length !== model.get("gpus").length) {
        choose.replaceChildren(...model.get("gpus").map((name) => element("option", { value: name }, name)));
      }
      choose.value = model.get("gpu");
      if (!("total" in shown)) {
        head.replaceChildren(element("span", { class: "wb-quiet" }, problem || "Forecasting …"));
        for (const part of [above, below]) part.replaceChildren();
        offer([]);
        return;
      }
      const names = shown.parts.map(({ title, text }) => `${title} ${text}`).join(", ");
      head.replaceChildren(...headline(shown));
      above.replaceChildren(axis(shown, endOf(shown), names), ...(model.get("legend") ? [legend(shown)] : []));
      offer(shown.ways);
      below.replaceChildren(...(shown.rows.length ? [rows(shown)] : []));
    };
    const names = ["content", "problem", "gpu", "gpus"];
    for (const name of names) model.on(`change:${name}`, draw);
    draw();
    return () => names.forEach((name) => model.off(`change:${name}`, draw));
  },
};
