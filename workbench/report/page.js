// @ts-check
// Draws the report's figures in the colours of the reader's setting, and anew when that changes or the page is printed.
"use strict";

const root = document.documentElement;
/** @param {string} id */
const textOf = (id) => document.getElementById(id)?.textContent ?? "";
const figures = JSON.parse(textOf("figures"));
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// A figure with the page's colours in place of their names.
function painted(value) {
  if (Array.isArray(value)) return value.map(painted);
  if (value === null || typeof value !== "object") return value;
  if (value.$css) return css(value.$css);
  if (value.$scale) return Array.from({ length: value.$scale }, (_, i) => [i / (value.$scale - 1), css(`--heat-${i}`)]);
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
}

function layout(own) {
  const merged = {
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--sans"), size: 13, color: css("--ink") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } },
    ...own,
    margin: { l: 64, r: 24, t: 40, b: 52, ...own.margin },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", ...own.legend },
  };
  for (const axis of Object.keys(merged).filter((key) => /^[xy]axis\d*$/.test(key))) {
    const { title } = merged[axis];
    if (title) merged[axis].title = { font: { size: 13 }, standoff: 10, ...title };
    const lines = { gridcolor: css("--grid"), zerolinecolor: css("--grid"), linecolor: css("--line"), automargin: true };
    merged[axis] = { ...lines, ...merged[axis] };
  }
  return merged;
}

const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

function draw() {
  for (const [name, figure] of Object.entries(figures)) {
    const { data, layout: own } = painted(figure);
    globalThis.Plotly.react(name, data, layout(own), config);
  }
}

async function load() {
  const packed = Uint8Array.from(atob(textOf("plotly")), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

function onPaper(yes) {
  root.classList.toggle("paper", yes);
  draw();
}

load().then(() => {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
}).catch((error) => {
  for (const plot of document.querySelectorAll(/** @type {"div"} */ (".plot"))) {
    plot.style.height = "auto";
    plot.textContent = `This plot cannot be drawn here (${error.message}). The tables hold the same numbers.`;
  }
});
