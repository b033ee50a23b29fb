// @ts-check
// The row at an app's top. What the reader chooses shows at once; what Python says holds as soon as it knows of that choice.

export default {
  render({ model, el }) {
    el.classList.add("wb-header");
    const page = Math.random().toString(36).slice(2);
    const popups = popupsIn(el);
    let number = 0;
    let state = model.get("state");
    const ask = (kind, value) => model.send({ kind, value });
    const choose = (changes) => {
      state = { ...state, ...changes };
      number += 1;
      model.send({ kind: "choose", value: changes, page, number });
      draw();
    };

    // model › layer › tensor
    const name = element("button", {
      type: "button", class: "wb-pick", "aria-label": "Model", "aria-haspopup": "dialog", "aria-expanded": "false",
    });
    const settle = (text) => {
      popups.hide();
      name.focus();
      ask("open", text);
    };
    const search = searchField("Model", "builtin, a folder, or owner/name on the Hub", (text) => ask("typed", text), settle);
    const finder = element("div", { class: "wb-popup wb-search", role: "dialog", "aria-label": "Open a model", hidden: "" });
    finder.append(...search.parts);
    name.addEventListener("click", () => {
      if (popups.shows(finder)) return void popups.hide();
      search.input.value = state.model ?? "";
      popups.show(finder, name);
      search.input.focus();
      search.input.select();
      ask("typed", search.input.value);
    });
    const layer = menu(popups, "Layer", (value) => choose({ layer: value === "" ? null : Number(value) }));
    const tensor = menu(popups, "Tensor", (value) => choose({ tensor: value }));
    const path = element("nav", { class: "wb-path", "aria-label": "Model, layer, tensor" }, name);
    const within = [layer, tensor].map(({ button }) => element("span", {}, element("i", { "aria-hidden": "true" }, "›"), button));
    path.append(...within);

    // formats, block size, double quantization
    const taken = (i, value) => {
      const formats = [...state.formats], before = formats.indexOf(value);
      if (value === "") formats.splice(i, 1);
      else {
        if (before >= 0) formats[before] = formats[i]; // the two change places
        formats[i] = value;
      }
      choose({ formats });
    };
    const chips = ["Format", "Compare with", "Also compare with"].map((label, i) => menu(popups, label, (value) => taken(i, value)));
    chips.forEach(({ button }, i) => {
      button.classList.add("wb-chip");
      button.addEventListener("keydown", (event) => {
        if (event.key === "Delete" && i < state.formats.length && state.formats.length > 1) taken(i, "");
      });
    });
    const add = menu(popups, "Add a format", (value) => choose({ formats: [...state.formats, value] }));
    add.button.title = "Compare with another format";
    const against = element("span", { class: "wb-against" }, "vs");
    const formats = element("div", { class: "wb-formats", role: "group", "aria-label": "Formats" });
    formats.append(chips[0].button, against, chips[1].button, chips[2].button, add.button);
    const blockSize = menu(popups, "Block size", (value) => choose({ block_size: Number(value) }));
    blockSize.button.title = "Weights that share a scale";
    const double = element("input", { type: "checkbox", "aria-label": "Double quantization" });
    double.addEventListener("change", () => choose({ double_quant: double.checked }));
    const doubled = element("label", { class: "wb-check", title: "Quantize the scales as well" }, double, "double quant");

    // what is measured or under way, and the code behind it
    const said = element("span", { class: "wb-said", role: "status" });
    const why = element("button", { type: "button", class: "wb-why", "aria-expanded": "false", "aria-label": "More about this tensor" });
    why.append("?");
    const explanation = element("div", { class: "wb-explanation", role: "note", hidden: "" });
    const cancel = element("button", { type: "button", class: "wb-pick wb-cancel", title: "Stop waiting for this" }, "Cancel");
    cancel.addEventListener("click", () => ask("cancel"));
    const status = element("div", { class: "wb-status" }, said, why, cancel, explanation);
    const code = element("button", {
      type: "button", class: "wb-pick wb-code-sign", "aria-label": "Copy as code", "aria-haspopup": "dialog", "aria-expanded": "false",
      title: "Copy the lines of Python that give the numbers shown here",
    });
    code.append("<\u2009>");
    const box = codeBox();
    const copied = element("div", { class: "wb-note", role: "status" });
    const lines = element("div", { class: "wb-popup wb-lines", role: "dialog", "aria-label": "The code", hidden: "" }, copied, box);
    code.addEventListener("click", () => {
      if (popups.shows(lines)) return void popups.hide();
      copied.textContent = "";
      popups.show(lines, code);
      copyLines(model.get("code"), box, copied, () => {}).then(popups.place);
    });
    const bar = element("progress", {});

    const menus = [layer, tensor, ...chips, add, blockSize];
    el.append(path, formats, blockSize.button, doubled, status, code, bar);
    el.append(finder, lines, ...menus.map(({ popup }) => popup));

    const label = (button, text, title, aside = "") => {
      if (!button.children.length) button.append(element("span"), element("small")); // they stay: a press may have begun on one
      [text, aside].forEach((words, part) => (button.children[part].textContent = words));
      button.title = title;
    };
    const draw = () => {
      const choices = model.get("choices"), whole = model.get("whole");
      const find = (kind, value) => choices[kind]?.find((option) => option.value === value);
      label(name, state.model || "…", `Model: ${state.model}. Open another`);
      name.setAttribute("aria-description", state.model);
      path.classList.toggle("wb-aside", !model.get("of_one_tensor"));
      for (const part of [...within, formats, blockSize.button, doubled]) part.hidden = !whole;
      const at = state.layer === null ? "" : String(state.layer);
      layer.show(choices.layer ?? [], at);
      label(layer.button, find("layer", at)?.label ?? "…", "Layer: choose another");
      tensor.show(choices.tensor ?? [], state.tensor);
      const short = (find("tensor", state.tensor)?.label ?? state.tensor) || "…";
      label(tensor.button, short.split(".").at(-1), `Tensor: ${state.tensor}${state.shape && `, ${state.shape}`}. Choose another`, state.shape);
      const others = (choices.format ?? []).filter(({ value }) => !state.formats.includes(value));
      chips.forEach((chip, i) => {
        const present = state.formats[i] ?? "";
        const remove = state.formats.length > 1 ? [{ value: "", label: "remove", note: "Delete" }] : [];
        chip.show([...(choices.format ?? []), ...remove], present);
        chip.button.hidden = !present;
        label(chip.button, find("format", present)?.label ?? present, i ? "Format to compare with" : "Format in the lead");
        chip.button.style.setProperty("--wb-hue", model.get("colours")[i]);
      });
      against.hidden = state.formats.length < 2;
      add.show(others, "");
      label(add.button, "+", "Compare with another format");
      add.button.hidden = state.formats.length > 2;
      const size = String(state.block_size);
      blockSize.show(choices.block_size ?? [], size);
      label(blockSize.button, size, "Weights that share a scale");
      double.checked = state.double_quant;
    };
    const tell = () => {
      const { text, more } = model.get("status"), progress = model.get("progress"), busy = Boolean(progress.what);
      const shown = model.get("of_one_tensor") && model.get("whole");
      said.textContent = busy ? `${progress.what}${progress.text}` : shown ? text : "";
      said.title = busy || !shown ? said.textContent : [text, more].filter(Boolean).join(". ");
      explanation.textContent = more;
      why.hidden = busy || !shown || !more;
      if (why.hidden) explanation.hidden = true;
      cancel.hidden = bar.hidden = !busy;
      bar.setAttribute("aria-label", progress.what ?? "");
      bar.max = progress.total || 1;
      if (progress.total) bar.value = progress.done;
      else bar.removeAttribute("value");
    };
    const changes = {
      state: () => {
        const [from, answered] = model.get("state").answered ?? [];
        if (from === page && answered < number) return; // it is from before the last choice made here
        state = model.get("state");
        draw();
      },
      choices: draw,
      of_one_tensor: () => (draw(), tell()),
      status: tell, progress: tell,
      suggestions: () => {
        search.offer(model.get("suggestions"));
        popups.place();
      },
      code: () => {
        code.disabled = !model.get("code");
        box.value = model.get("code");
        box.rows = Math.min(14, box.value.split("\n").length);
      },
    };
    for (const [trait, change] of Object.entries(changes)) {
      model.on(`change:${trait}`, change);
      change();
    }
    return () => {
      for (const [trait, change] of Object.entries(changes)) model.off(`change:${trait}`, change);
      popups.end();
    };
  },
};
