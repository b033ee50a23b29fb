// @ts-check
// plotly.js from the library model of widgets/drawing/plot.py: asked for, inflated and evaluated once a document, without leaving a
// global behind.
// Nothing here reaches for the network.

const libraries = (globalThis[Symbol.for("qlora-workbench.plotly")] ??= new Map()); // version -> plotly, or the promise of it

function loadPlotly(library) {
  const version = library.get("version");
  if (!libraries.has(version)) {
    const loading = gzippedFrom(library).then(evaluate);
    loading.catch(() => libraries.delete(version));
    libraries.set(version, loading);
  }
  return libraries.get(version);
}

/** What the kernel answers, which may come after the cell that it is busy with; asked for once, when the kernel hears us. */
function gzippedFrom(library) {
  return new Promise((resolve) => {
    const { greet, heard } = greeter(library, () => ({}));
    let asked = false;
    const take = (content, buffers) => {
      if (content.type === "here" && !asked) {
        asked = true;
        heard();
        library.send({ type: "plotly" });
      } else if (content.type === "plotly") {
        heard();
        library.off("msg:custom", take);
        resolve(buffers[0]);
      }
    };
    library.on("msg:custom", take);
    greet();
  });
}

async function evaluate(gzipped) {
  const inflated = new Blob([gzipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(inflated).text();
  // A second in which the page does nothing else, and anywidget gives up a model that is not ready two seconds after its arrival.
  await new Promise((resolve) => (globalThis.requestIdleCallback ?? setTimeout)(resolve, { timeout: 1000 }));
  const present = Object.getOwnPropertyDescriptor(globalThis, "Plotly");
  const module = { exports: {} };
  // define and require are hidden: under JupyterLab's or Colab's AMD loader plotly.js would register itself there instead.
  new Function("module", "exports", "define", "require", source)(module, module.exports, undefined, undefined);
  if (present) Object.defineProperty(globalThis, "Plotly", present);
  else delete globalThis.Plotly;
  return module.exports;
}
