// @ts-check
// A button that copies a text, which is shown, and selected, where it is asked for or where the clipboard is closed to the page.

export default {
  render({ model, el }) {
    el.classList.add("wb-copy-text");
    const box = element("textarea", { readonly: "", spellcheck: "false", rows: "1", "aria-label": model.get("what") });
    const button = element("button", { type: "button", class: "jupyter-button" }, model.get("label"));
    const status = element("span", { class: "wb-note", role: "status" });
    el.append(box, button, status);
    const fill = () => {
      const text = model.get("text");
      if (box.value !== text) status.textContent = "";
      box.value = text;
      box.rows = text.split("\n").length;
      box.hidden = !model.get("shown");
      el.hidden = !text;
    };
    button.addEventListener("click", () => copyLines(model.get("text"), box, status, () => void (box.hidden = false)));
    model.on("change:text", fill);
    fill();
    return () => model.off("change:text", fill);
  },
};
