// @ts-check
// "Copy as code": puts the code on the clipboard, and shows it selected where the page may not write there.

export default {
  render({ model, el }) {
    el.classList.add("wb-copy");
    const title = "Copy the lines of Python that give the numbers shown here";
    const copy = element("button", { type: "button", class: "jupyter-button", title }, "Copy as code");
    const show = element("button", { type: "button", class: "jupyter-button" });
    const status = element("span", { class: "wb-note", role: "status" });
    const label = "Code that gives the numbers shown here";
    const box = element("textarea", { readonly: "", spellcheck: "false", class: "wb-code", "aria-label": label });
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
    const select = () => {
      open(true);
      box.focus();
      box.select();
      status.textContent = "The clipboard is closed to this page: press Ctrl+C (⌘C) to copy the selected lines.";
    };
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(model.get("code"));
        status.textContent = "Copied.";
      } catch {
        select();
      }
    });
    show.addEventListener("click", () => open(box.hidden));
    model.on("change:code", fill);
    open(false);
    fill();
    return () => model.off("change:code", fill);
  },
};
