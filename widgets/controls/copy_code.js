// "Copy as code": puts the code on the clipboard, and shows it selected where the page may not write there.

export default {
  render({ model, el }) {
    el.classList.add("wb-copy");
    const copy = document.createElement("button");
    copy.type = "button";
    copy.className = "jupyter-button";
    copy.textContent = "Copy as code";
    copy.title = "Copy the lines of Python that give the numbers shown here";
    const show = document.createElement("button");
    show.type = "button";
    show.className = "jupyter-button";
    const status = document.createElement("span");
    status.className = "wb-note";
    status.setAttribute("role", "status");
    const box = document.createElement("textarea");
    box.readOnly = true;
    box.spellcheck = false;
    box.className = "wb-code";
    box.setAttribute("aria-label", "Code that gives the numbers shown here");
    const row = document.createElement("div");
    row.className = "wb-copy-row";
    row.append(copy, show, status);
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
