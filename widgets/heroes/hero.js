// @ts-check
// What all heroes share: the frame, the state that a drag changes, SVG, colours by CSS, and numbers as Python prints them.

const SVG = "http://www.w3.org/2000/svg";
const RESTED = 500; // ms that a handle rests before a screen reader says what came of it

/**
 * An SVG element with its attributes and children.
 * @param {string} kind
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string)} children
 */
function svg(kind, attributes = {}, ...children) {
  const made = /** @type {SVGElement} */ (document.createElementNS(SVG, kind));
  return reshape(made, attributes, ...children);
}

/** Give an element other attributes, and other children where there are any. */
function reshape(node, attributes, ...children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (children.length) node.replaceChildren(...children);
  return node;
}

/**
 * A hero as anywidget takes it. `build(hero)` makes what stays and returns the function that draws: it is called with the
 * frame's width in pixels after every change. A page without Jupyter gives a model of which only `get` need be there.
 */
function heroOf(build) {
  return { render: ({ model, el }) => show(model, el, build) };
}

function show(model, el, build) {
  const body = element("div", { class: "wb-hero-body" });
  const live = element("div", { class: "wb-hero-live", role: "status", "aria-live": "polite" });
  const frame = element("div", { class: "wb-hero workbench-drawing", role: "figure" }, body, live);
  let request = 0, resting = 0, gone = false, shown = "";
  const endings = [];
  const schedule = () => {
    if (!request && !gone) request = requestAnimationFrame(() => {
      request = 0;
      if (!frame.clientWidth) return; // hidden: the size observer draws it when it appears
      draw(frame.clientWidth);
      setTimeout(() => frame.classList.add("wb-hero-moves"), RESTED); // what is drawn first is there at once
      frame.dataset.drawn = String(Number(frame.dataset.drawn ?? 0) + 1);
    });
  };
  const hero = {
    data: model.get("data"), state: { ...model.get("state") }, body, model, schedule,
    /** Move something: draws, and sends it to Python. */
    change(part) {
      hero.state = { ...hero.state, ...part };
      model.set?.("state", hero.state);
      model.save_changes?.();
      schedule();
    },
    /** Call this when the picture is gone. */
    atEnd: (act) => endings.push(act),
    /** What the picture shows now, in a sentence: its name for screen readers, said once the handle rests. */
    say(text) {
      if (text === shown) return;
      frame.setAttribute("aria-label", text);
      clearTimeout(resting);
      if (shown) resting = setTimeout(() => (live.textContent = text), RESTED);
      shown = text;
    },
  };
  const draw = build(hero);
  const followed = () => {
    hero.state = { ...model.get("state") };
    hero.data = model.get("data"); // a live hero's grows
    schedule();
  };
  model.on?.("change", followed);
  const observer = new ResizeObserver(schedule);
  observer.observe(frame);
  // Keys pressed here are not the notebook's shortcuts; Escape still leaves to the notebook.
  frame.addEventListener("keydown", (event) => event.key !== "Escape" && event.stopPropagation());
  el.style.minWidth = "0";
  el.append(frame);
  return () => {
    gone = true;
    clearTimeout(resting);
    observer.disconnect();
    model.off?.("change", followed);
    for (const act of endings) act();
  };
}

// ---------------------------------------------------------------- parts

/** The line over a picture: one large number or verdict, and what it means in quieter words. */
function headline() {
  const large = element("b"), rest = element("span");
  const line = element("div", { class: "wb-hero-line" }, large, rest);
  return { line, set: (first, then, mood = "") => {
    large.textContent = first;
    rest.textContent = then;
    line.dataset.mood = mood;
  } };
}

/** Buttons of which one may be pressed: `options` are [key, text]. */
function buttons(name, options, act) {
  const made = options.map(([key, text]) => {
    const button = element("button", { type: "button", "data-key": String(key) }, text);
    button.addEventListener("click", () => act(key));
    return button;
  });
  const group = element("div", { class: "wb-hero-buttons", role: "group", "aria-label": name }, ...made);
  return { group, press: (key) => made.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.key === String(key)))) };
}

/** A slider over a few places, each with its label: `texts[i]` stands under it and is what a screen reader says of it. */
function dial(name, texts, moved) {
  const id = `wb-hero-dial-${Math.random().toString(36).slice(2)}`; // each hero is a module of its own, and shares the page
  const input = element("input", { type: "range", id, min: "0", max: String(texts.length - 1), step: "1" });
  const marks = element("div", { class: "wb-hero-marks", "aria-hidden": "true" }, ...texts.map((text) => element("span", {}, text)));
  const label = element("label", { for: id }, name);
  const box = element("div", { class: "wb-hero-dial" }, label, element("div", {}, input, marks));
  input.addEventListener("input", () => moved(Number(input.value)));
  return { box, input, set: (place, text = texts[place]) => {
    input.value = String(place);
    input.setAttribute("aria-valuetext", text);
    [...marks.children].forEach((mark, i) => mark.classList.toggle("wb-hero-here", i === place));
  } };
}

// ---------------------------------------------------------------- numbers

/** As Python's "{:.2f}": what lies exactly in the middle goes to the even digit, where toFixed takes the larger. */
function fixed(value, digits) {
  const scaled = value * 10 ** digits;
  const exact = Number.isInteger(value * 2 ** (digits + 1)) && Math.abs(scaled % 1) === 0.5;
  return (exact ? (2 * Math.round(scaled / 2)) / 10 ** digits : value).toFixed(digits);
}

/** A share as Python's "{:.2%}" prints it. */
const asPercent = (share, digits = 2) => `${fixed(100 * share, digits)} %`;

/** As Python's "{:,}". */
const count = (whole) => Math.round(whole).toLocaleString("en-US");

/** Significant digits as Python's "{:.4g}" rounds them, without an exponent. */
function significant(value, digits = 4) {
  const decimals = value ? digits - 1 - Math.floor(Math.log10(Math.abs(value))) : 0;
  const rounded = decimals >= 0 && decimals <= 22 ? fixed(value, decimals) : value.toPrecision(digits);
  return Number(rounded).toString().replace("-", "−");
}

/** Bytes in powers of ten: 302 MB, 3.02 GB. */
function decimalBytes(bytes) {
  const [unit, name] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : bytes >= 1e3 ? [1e3, "kB"] : [1, "bytes"];
  const value = bytes / unit;
  return `${value >= 100 || unit === 1 ? Math.round(value).toLocaleString("en-US") : value.toPrecision(3)} ${name}`;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
