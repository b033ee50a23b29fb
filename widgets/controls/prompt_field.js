// @ts-check
// A prompt: Enter sends it, Shift+Enter begins a line. The field is as high as its lines, up to a bound that the style sets.

export default {
  render({ model, el }) {
    el.classList.add("wb-prompt");
    const box = element("textarea", { rows: "1", spellcheck: "false", class: "widget-input" });
    el.append(box);

    const grow = () => {
      box.style.height = "auto";
      if (box.scrollHeight) box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
    };
    const show = () => {
      box.setAttribute("aria-label", model.get("description"));
      box.placeholder = model.get("placeholder");
      if (box.value !== model.get("value")) box.value = model.get("value");
      grow();
    };
    box.addEventListener("input", () => {
      model.set("value", box.value);
      model.save_changes();
      grow();
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      model.send({ kind: "enter", value: box.value });
    });
    const wide = new ResizeObserver(grow);
    wide.observe(el);
    model.on("change", show);
    show();
    return () => {
      wide.disconnect();
      model.off("change", show);
    };
  },
};
