// @ts-check
// "Copy as code" with a row of its own: copies the code, shows and hides it.

export default {
  render({ model, el }) {
    el.classList.add("wb-copy");
    const title = "Copy the lines of Python that give the numbers shown here";
    const copy = element("button", { type: "button", class: "jupyter-button", title }, "Copy as code");
    const show = element("button", { type: "button", class: "jupyter-button" });
    const status = element("span", { class: "wb-note", role: "status" });
    const box = codeBox();
    const row = element("div", { class: "wb-copy-row" }, copy, show, status);
    el.append(row, box);

    const open = (shown) => {
      box.hidden = !shown;
      show.textContent = shown ? "Hide the code" : "Show the code";
      show.setAttribute("aria-expanded", String(shown));
    };
    const fill = () => {
      const code = model.get("code");
      el.hidden = !code;
      if (box.value !== code) status.textContent = "";
      box.value = code;
      box.rows = Math.min(24, code.split("\n").length);
    };
    copy.addEventListener("click", () => copyLines(model.get("code"), box, status, () => open(true)));
    show.addEventListener("click", () => open(box.hidden));
    model.on("change:code", fill);
    open(false);
    fill();
    return () => model.off("change:code", fill);
  },
};
