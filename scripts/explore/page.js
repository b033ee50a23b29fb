// @ts-check
// Shows the widgets' pictures on a page without Jupyter: each on a model that only answers what it is asked for.

const contents = JSON.parse(document.getElementById("contents")?.textContent ?? "{}");

for (const place of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-figure]"))) {
  const { script, data, state } = contents.figures[place.dataset.figure ?? ""];
  const opened = Object.fromEntries(Object.entries(data).map(([name, part]) => [name, part === "matrix" ? contents.matrix : part]));
  const traits = { data: opened, state };
  import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })))
    .then(({ default: picture }) => picture.render({ model: { get: (name) => traits[name] }, el: place }));
}
