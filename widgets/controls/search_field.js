// @ts-check
// A text field with a list of suggestions below it: the combobox pattern of WAI-ARIA. Text becomes text, never HTML.

/** @typedef {{ value: string, note: string, group: string, final: boolean }} Suggested */

let fields = 0;

/**
 * @param {string} name
 * @param {string} placeholder
 * @param {(text: string) => void} typed called letter by letter
 * @param {(text: string) => void} settled called with what Enter or a final suggestion chose
 */
function searchField(name, placeholder, typed, settled) {
  const id = `wb-search-${(fields += 1)}`;
  const input = element("input", {
    type: "text", autocomplete: "off", spellcheck: "false", role: "combobox", placeholder, "aria-label": name,
    "aria-autocomplete": "list", "aria-controls": id, "aria-expanded": "true",
  });
  const list = element("div", { id, class: "wb-suggestions", role: "listbox", "aria-label": "Suggestions" });
  const status = element("div", { class: "wb-suggestions-status", role: "status" });
  /** @type {Suggested[]} */
  let options = [];
  /** @type {HTMLElement[]} */
  let lines = [];
  let active = -1;

  const activate = (index) => {
    lines[active]?.setAttribute("aria-selected", "false");
    active = index;
    lines[active]?.setAttribute("aria-selected", "true");
    lines[active]?.scrollIntoView({ block: "nearest" });
    if (lines[active]) input.setAttribute("aria-activedescendant", lines[active].id);
    else input.removeAttribute("aria-activedescendant");
  };
  const choose = (option) => {
    if (option) input.value = option.value;
    if (!option || option.final) return void settled(input.value);
    activate(-1); // a folder: on to what is in it
    typed(input.value);
  };
  input.addEventListener("input", () => typed(input.value));
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && lines.length) {
      activate(active < 0 && step < 0 ? lines.length - 1 : (active + step + lines.length) % lines.length);
    } else if (event.key === "Enter") choose(options[active]);
    else return;
    event.preventDefault();
  });
  return {
    parts: [input, list, status],
    input,
    /** @param {{ options: Suggested[], status: string }} offered */
    offer(offered) {
      const before = options[active]?.value;
      let group = list;
      let named = null;
      options = offered.options;
      lines = [];
      list.replaceChildren();
      for (const [i, option] of options.entries()) {
        if (named !== option.group) {
          named = option.group;
          const heading = element("div", { id: `${id}-group-${i}`, class: "wb-suggestions-group" }, named);
          group = element("div", { role: "group", "aria-labelledby": heading.id }, heading);
          list.append(group);
        }
        const line = element(
          "div",
          { id: `${id}-${i}`, role: "option", "aria-selected": "false" },
          element("span", {}, option.value),
          element("small", {}, option.note),
        );
        line.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
        line.addEventListener("click", () => choose(option));
        group.append(line);
        lines.push(line);
      }
      active = -1;
      activate(before === undefined ? -1 : options.findIndex((option) => option.value === before));
      status.textContent = offered.status;
    },
  };
}
