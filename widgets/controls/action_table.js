// @ts-check
// A table with boxes to tick and buttons at the end of each row. A row that is still there when the table is shown anew keeps its
// elements, so that the focus stays where it is.

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

    const rowOf = (line) => {
      const row = element("tr", { "data-key": line.key });
      if (model.get("tick")) {
        const box = element("input", { type: "checkbox", "aria-label": `${model.get("tick")}: ${line.key}` });
        box.addEventListener("change", () => {
          const others = model.get("ticked").filter((key) => key !== line.key);
          model.set("ticked", box.checked ? [...others, line.key] : others);
          model.save_changes();
        });
        row.append(element("td", { class: "wb-tick" }, box));
      }
      line.cells.forEach((text, i) => {
        const mark = !i && line.mark ? [element("em", { class: "wb-mark", "data-mark": line.mark }, line.mark)] : [];
        row.append(element(i ? "td" : "th", i ? numeric(i) : { scope: "row" }, element("span", {}, text), ...mark));
      });
      const actions = line.actions.map((name) => {
        const label = model.get("actions")[name];
        const button = element("button", { type: "button", class: "wb-link", "aria-label": `${label}: ${line.key}` }, label);
        button.addEventListener("click", () => model.send({ action: name, key: line.key }));
        return button;
      });
      row.append(element("td", { class: "wb-number" }, ...actions));
      return row;
    };

    const drawn = new Map(); // key -> what the row says, and the row
    const fill = () => {
      const lines = model.get("lines");
      for (const key of [...drawn.keys()]) if (!lines.some((line) => line.key === key)) drawn.delete(key);
      for (const line of lines) {
        const text = JSON.stringify(line);
        if (drawn.get(line.key)?.text !== text) drawn.set(line.key, { text, row: rowOf(line) });
      }
      const rows = lines.map((line) => drawn.get(line.key).row);
      if (rows.length !== body.children.length || rows.some((row, i) => row !== body.children[i])) body.replaceChildren(...rows);
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
