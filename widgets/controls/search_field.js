// @ts-check
// A text field with a list of suggestions below it: the combobox pattern of WAI-ARIA. The list stands in the flow of the page, not
// above it, because outputs are clipped (JupyterLab) or frames of their own (Colab). Text becomes text, never HTML.

let fields = 0;

export default {
  render({ model, el }) {
    const id = `wb-search-${(fields += 1)}`;
    const input = element("input", {
      id, type: "text", autocomplete: "off", spellcheck: "false", class: "widget-input", role: "combobox",
      "aria-autocomplete": "list", "aria-controls": `${id}-list`,
    });
    const label = element("label", { for: id, class: "widget-label" });
    const list = element("div", { id: `${id}-list`, class: "wb-suggestions", role: "listbox", hidden: "" });
    const status = element("div", { class: "wb-suggestions-status", role: "status" });
    const popup = element("div", { class: "wb-suggestions-popup", hidden: "" }, list, status);
    el.classList.add("wb-search");
    el.append(label, input, popup);

    let lines = []; // the elements of the options, in order
    let active = -1;
    let dismissed = true;

    const open = () => !popup.hidden;
    const refresh = () => {
      const shown = !dismissed && (lines.length > 0 || status.textContent !== "");
      popup.hidden = !shown;
      list.hidden = !lines.length;
      input.setAttribute("aria-expanded", String(shown));
    };
    const activate = (index) => {
      lines[active]?.setAttribute("aria-selected", "false");
      active = index;
      lines[active]?.setAttribute("aria-selected", "true");
      lines[active]?.scrollIntoView({ block: "nearest" });
      if (lines[active]) input.setAttribute("aria-activedescendant", lines[active].id);
      else input.removeAttribute("aria-activedescendant");
    };
    const dismiss = () => {
      dismissed = true;
      activate(-1);
      refresh();
    };
    const say = (value) => {
      input.value = value;
      model.set("value", value);
      model.save_changes();
    };
    const choose = (option) => {
      if (option) say(option.value);
      if (option && !option.final) return void activate(-1); // a folder: on to what is in it
      dismiss();
      model.send({ kind: "chosen", value: input.value });
    };

    const draw = () => {
      let group = list;
      let named = null;
      const before = lines[active]?.firstChild.textContent;
      lines = [];
      list.replaceChildren();
      for (const [i, option] of model.get("options").entries()) {
        if (named !== option.group) {
          named = option.group;
          const heading = element("div", { id: `${list.id}-group-${i}`, class: "wb-suggestions-group" }, named);
          group = element("div", { role: "group", "aria-labelledby": heading.id }, heading);
          list.append(group);
        }
        const line = element(
          "div",
          { id: `${list.id}-${i}`, class: "wb-suggestion", role: "option", "aria-selected": "false" },
          element("span", {}, option.value),
          element("span", { class: "wb-suggestion-note" }, option.note),
        );
        line.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
        line.addEventListener("click", () => choose(option));
        group.append(line);
        lines.push(line);
      }
      active = -1;
      activate(before === undefined ? -1 : lines.findIndex((line) => line.firstChild?.textContent === before));
      refresh();
    };
    const changes = {
      options: draw,
      status: () => {
        status.textContent = model.get("status");
        refresh();
      },
      value: () => {
        if (input.value !== model.get("value")) input.value = model.get("value");
      },
      disabled: () => void (input.disabled = model.get("disabled")),
      placeholder: () => void (input.placeholder = model.get("placeholder")),
      description: () => void (label.textContent = model.get("description")),
    };
    for (const [name, change] of Object.entries(changes)) {
      model.on(`change:${name}`, change);
      change();
    }

    input.addEventListener("input", () => {
      dismissed = false;
      say(input.value);
      refresh();
    });
    input.addEventListener("click", () => {
      dismissed = false;
      refresh();
    });
    input.addEventListener("blur", dismiss);
    input.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        if (!open()) {
          dismissed = false;
          refresh();
        }
        if (lines.length) activate(active < 0 && step < 0 ? lines.length - 1 : (active + step + lines.length) % lines.length);
      } else if (event.key === "Enter") {
        event.preventDefault();
        choose(model.get("options")[active]);
      } else if (event.key === "Escape" && open()) {
        event.stopPropagation(); // the first Escape closes the list, the next leaves to the notebook
        event.preventDefault();
        dismiss();
      }
    });
    return () => {
      for (const [name, change] of Object.entries(changes)) model.off(`change:${name}`, change);
    };
  },
};
