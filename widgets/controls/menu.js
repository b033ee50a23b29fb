// @ts-check
// A choice that reads as text and opens a list: WAI-ARIA's select-only combobox. The focus stays on the button; typing narrows the
// list, arrows and Enter choose, and on the closed button the left and right arrows, Home and End take the neighbours.

/**
 * Those with a ``fold`` stand behind a line that says it, until that line is chosen or the reader types.
 * @typedef {{ value: string, label: string, title?: string, note?: string, fold?: string }} Choice
 */

const LONGEST = 200;
const UNFOLD = "\u2026";
let menus = 0;

/**
 * @param {ReturnType<typeof popupsIn>} popups
 * @param {string} name what a screen reader calls it
 * @param {(value: string) => void} chosen
 */
function menu(popups, name, chosen) {
  const id = `wb-menu-${(menus += 1)}`;
  const button = element("button", {
    type: "button", class: "wb-pick", role: "combobox", "aria-label": name, "aria-haspopup": "listbox", "aria-expanded": "false",
    "aria-controls": id,
  });
  const narrowed = element("div", { class: "wb-narrowed", role: "status" });
  const list = element("div", { id, role: "listbox", "aria-label": name });
  const popup = element("div", { class: "wb-popup wb-menu", hidden: "" }, narrowed, list);
  /** @type {Choice[]} */
  let options = [];
  /** @type {Choice[]} */
  let shown = [];
  /** @type {Map<string, HTMLElement>} what is listed by its value: a line that stays keeps a press that has begun */
  let lines = new Map();
  let value = "";
  let filter = "";
  let unfolded = false;
  let active = -1;

  const activate = (index) => {
    list.children[active]?.classList.remove("wb-active");
    active = index;
    const line = list.children[active];
    line?.classList.add("wb-active");
    line?.scrollIntoView({ block: "nearest" });
    if (line) button.setAttribute("aria-activedescendant", line.id);
    else button.removeAttribute("aria-activedescendant");
  };
  /** The choices as they are listed: in place of the folded ones stands a line that unfolds them. */
  const listed = () => {
    const first = options.find(({ fold }) => fold);
    if (!first || unfolded || filter) return options;
    const line = { value: UNFOLD, label: `${first.fold}${UNFOLD}` };
    return options.filter((option) => !option.fold || option === first || option.value === value)
      .flatMap((option) => (option !== first ? [option] : option.value === value ? [option, line] : [line]));
  };
  const lineOf = (chosen) => {
    const line = element("div", { role: "option" }, element("span"), element("small"));
    line.addEventListener("click", () => take(shown.find((option) => option.value === chosen)));
    return line;
  };
  const draw = () => {
    const wanted = filter.toLowerCase();
    const found = listed().filter(({ label, title }) => `${label} ${title ?? ""}`.toLowerCase().includes(wanted));
    shown = found.slice(0, LONGEST);
    lines = new Map(shown.map((option) => [option.value, lines.get(option.value) ?? lineOf(option.value)]));
    shown.forEach((option, i) => {
      const line = /** @type {HTMLElement} */ (lines.get(option.value));
      Object.assign(line, { id: `${id}-${i}`, title: option.title ?? "" });
      line.setAttribute("aria-selected", String(option.value === value));
      line.classList.remove("wb-active");
      [option.label, option.note ?? ""].forEach((text, part) => (line.children[part].textContent = text));
    });
    fillWith(list, [...lines.values()]);
    const more = found.length - shown.length;
    narrowed.textContent = [
      filter ? `“${filter}”: ${found.length.toLocaleString("en")} of ${options.length.toLocaleString("en")}` : "",
      more ? `${more.toLocaleString("en")} more: type to narrow` : "",
    ].filter(Boolean).join(", ");
    active = -1;
    const at = shown.findIndex((option) => option.value === value);
    activate(at >= 0 ? at : filter && shown.length ? 0 : -1);
    popups.place();
  };
  const narrow = (text) => {
    filter = text;
    draw();
  };
  const open = () => {
    filter = "";
    unfolded = false;
    popups.show(popup, button);
    draw();
  };
  const take = (option) => {
    if (option?.value === UNFOLD) {
      const at = shown.indexOf(option);
      unfolded = true;
      draw();
      return void activate(at);
    }
    popups.hide();
    button.focus();
    if (option && option.value !== value) chosen(option.value);
  };
  /** Without opening: the neighbour, or the first or last of all. */
  const step = (key) => {
    const near = options.filter((option) => !option.fold || option.value === value);
    const at = near.findIndex((option) => option.value === value), last = near.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[key] ?? at;
    const option = near[Math.max(0, Math.min(last, to))];
    if (option && option.value !== value) chosen(option.value);
  };
  const move = (key) => {
    if (!shown.length) return;
    const last = shown.length - 1;
    const to = { ArrowDown: active < last ? active + 1 : 0, ArrowUp: active > 0 ? active - 1 : last, Home: 0, End: last }[key];
    activate(to ?? active);
  };

  popup.addEventListener("mousedown", (event) => event.preventDefault()); // the button keeps the focus
  button.addEventListener("click", () => {
    button.focus();
    if (popups.shows(popup)) popups.hide();
    else open();
  });
  button.addEventListener("keydown", (event) => {
    const { key } = event, isOpen = popups.shows(popup);
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (!plain || key === "Tab" || key === "Escape") return;
    if (isOpen && ["ArrowDown", "ArrowUp", "Home", "End"].includes(key)) move(key);
    else if (isOpen && key === "Enter") take(shown[active]);
    else if (isOpen && key === "Backspace") narrow(filter.slice(0, -1));
    else if (isOpen && key.length === 1 && (key !== " " || filter)) narrow(filter + key);
    else if (isOpen && key === " ") take(shown[active]);
    else if (["ArrowDown", "ArrowUp", "Enter", " "].includes(key)) open();
    else if (["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) step(key);
    else if (key.length === 1) {
      open();
      narrow(key);
    } else return;
    event.preventDefault();
  });
  return {
    button,
    popup,
    /**
     * Shows what may be chosen and what is; in the open list the line stays active to which the reader has moved.
     * @param {Choice[]} all
     * @param {string} present
     */
    show(all, present) {
      if (present === value && JSON.stringify(all) === JSON.stringify(options)) return;
      const reached = shown[active]?.value, moved = reached !== value;
      options = all;
      value = present;
      if (!popups.shows(popup)) return;
      draw();
      const at = moved ? shown.findIndex((option) => option.value === reached) : -1;
      if (at >= 0) activate(at);
    },
  };
}
