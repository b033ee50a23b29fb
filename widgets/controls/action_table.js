// @ts-check
// A table with boxes to tick and buttons at the end of each row. A row that is still there when the table is shown anew keeps its
// box and its buttons, whatever it says now: the focus stays where it is, and a press that has begun still counts.

export default {
  render({ model, el }) {
    const head = element("tr"), body = element("tbody");
    const table = element("table", { class: "wb-table wb-actions", "aria-label": model.get("label") }, element("thead", {}, head), body);
    el.append(element("div", { class: "wb-scroll" }, table));
    /** @returns {Record<string, string>} */
    const numeric = (column) => (model.get("numbers").includes(column) ? { class: "wb-number" } : {});
    const ticks = () => [...body.querySelectorAll("input")];

    const begin = () => {
      const cells = model.get("columns").map((name, i) => element("th", { scope: "col", ...numeric(i) }, name));
      const box = model.get("tick") ? [element("th", { class: "wb-tick" }, element("span", { class: "wb-unseen" }, model.get("tick")))] : [];
      head.replaceChildren(...box, ...cells, element("th", {}, element("span", { class: "wb-unseen" }, "actions")));
    };

    const rowOf = (key) => {
      const row = element("tr", { "data-key": key });
      if (model.get("tick")) {
        const box = element("input", { type: "checkbox", "aria-label": `${model.get("tick")}: ${key}` });
        box.addEventListener("change", () => {
          const others = model.get("ticked").filter((other) => other !== key);
          model.set("ticked", box.checked ? [...others, key] : others);
          model.save_changes();
        });
        row.append(element("td", { class: "wb-tick" }, box));
      }
      const cells = model.get("columns").map((_, i) => element(i ? "td" : "th", i ? numeric(i) : { scope: "row" }));
      const buttons = element("td", { class: "wb-number" });
      row.append(...cells, buttons);
      let offered = "";
      const write = ({ cells: texts, mark, actions }) => {
        texts.forEach((text, i) => {
          const marks = !i && mark ? [element("em", { class: "wb-mark", "data-mark": mark }, mark)] : [];
          cells[i].replaceChildren(element("span", {}, text), ...marks);
        });
        if (offered === actions.join()) return;
        offered = actions.join();
        buttons.replaceChildren(...actions.map((name) => {
          const label = model.get("actions")[name];
          const button = element("button", { type: "button", class: "wb-link", "aria-label": `${label}: ${key}` }, label);
          button.addEventListener("click", () => model.send({ action: name, key }));
          return button;
        }));
      };
      return { row, write };
    };

    const drawn = new Map(); // key -> the row, and what writes a line into it
    const fill = () => {
      const lines = model.get("lines");
      for (const key of [...drawn.keys()]) if (!lines.some((line) => line.key === key)) drawn.delete(key);
      for (const line of lines) {
        if (!drawn.has(line.key)) drawn.set(line.key, rowOf(line.key));
        drawn.get(line.key).write(line);
      }
      fillWith(body, lines.map((line) => drawn.get(line.key).row));
      table.hidden = !lines.length;
      mark();
    };
    const mark = () => {
      const ticked = model.get("ticked");
      for (const box of ticks()) box.checked = ticked.includes(box.closest("tr")?.dataset.key);
    };
    model.on("change:lines", fill);
    model.on("change:ticked", mark);
    begin();
    fill();
    return () => {
      model.off("change:lines", fill);
      model.off("change:ticked", mark);
    };
  },
};
