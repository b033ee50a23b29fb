// @ts-check
// What the lanes are drawn with: colours for light and dark, canvases as fine as the screen, text that never sticks out.

const INKS = {
  light: {
    below: "#949494",
    "base model": "#53657d",
    "scales of the 4-bit weights": "#91a5bb",
    adapters: "#0f8f6b",
    gradients: "#b07d00",
    "optimizer state": "#8d6238",
    "optimizer state, paged": "#c2185b",
    "activations and logits": "#9d92d2",
    spare: "#8a8a8a",
    heldOut: "#b07d00",
    h2d: "#0072b2",
    evicted: "#c2185b",
    d2h: "#74869c",
    now: "#1976d2",
    step: "rgba(25,118,210,.12)",
    beside: "rgba(0,0,0,.055)",
    grid: "rgba(0,0,0,.13)",
  },
  dark: {
    below: "#8a8a8a",
    "base model": "#70869f",
    "scales of the 4-bit weights": "#b3c3d4",
    adapters: "#2fc79a",
    gradients: "#d9a521",
    "optimizer state": "#c49a6c",
    "optimizer state, paged": "#f0508c",
    "activations and logits": "#8c80cb",
    spare: "#a3a3a3",
    heldOut: "#d9a521",
    h2d: "#56b4e9",
    evicted: "#f0508c",
    d2h: "#a9b8c9",
    now: "#5aa9f5",
    step: "rgba(90,169,245,.2)",
    beside: "rgba(255,255,255,.07)",
    grid: "rgba(255,255,255,.17)",
  },
};

const PHASE_INKS = {
  import: "#8c8c8c",
  load: "#5c6f88",
  quantize: "#3a9bd1",
  attach: "#7f74c4",
  dataset: "#b07d00",
  first_forward: "#c98a3c",
  train: "#159a6f",
  evaluate: "#d9772b",
  save: "#b0486f",
  sample: "#8b7bd0",
  check: "#8c8c8c",
};
const OTHER_PHASE = "#8c8c8c";

/** The page's colours and the lanes' own, as they are where an element stands. */
function inksOf(element) {
  const page = pageColours(element);
  return {
    ...page,
    ...INKS[page.dark ? "dark" : "light"],
    quiet: mixed(page.text, page.page, 0.72),
    faint: mixed(page.text, page.page, 0.45),
  };
}

/** `share` of one colour over another, as a canvas takes it. */
function mixed(over, under, share) {
  return `color-mix(in srgb, ${over} ${Math.round(share * 100)}%, ${under})`;
}

/** A canvas's context, cleared, with the canvas as fine as `ratio` asks for. */
function freshInk(canvas, width, height, ratio) {
  const [wide, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A line of text with its baseline in the middle; what has no room ends in an ellipsis. Returns where it ends. */
function write(context, text, x, y, { ink, align = "left", bold = false, room = Infinity, font }) {
  context.font = `${bold ? "600 " : ""}11px ${font}`;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.fillStyle = ink;
  let shown = text;
  if (context.measureText(text).width > room) {
    let length = 0;
    for (let half = 1 << Math.floor(Math.log2(text.length || 1)); half >= 1; half >>= 1) {
      if (length + half < text.length && context.measureText(`${text.slice(0, length + half)}…`).width <= room)
        length += half;
    }
    shown = length ? `${text.slice(0, length).trimEnd()}…` : "";
  }
  context.fillText(shown, x, y);
  return x + (align === "left" ? context.measureText(shown).width : 0);
}

/** A text on the page's own ground, readable over what is drawn there. */
function writeOver(context, text, x, y, look, ground) {
  context.font = `11px ${look.font}`;
  const width = context.measureText(text).width,
    left = look.align === "right" ? x - width : x;
  context.globalAlpha = 0.8;
  context.fillStyle = ground;
  context.fillRect(left - 3, y - 7, width + 6, 13);
  context.globalAlpha = 1;
  write(context, text, x, y, look);
}

function line(context, ink, points, { width = 1, dash = /** @type {number[]} */ ([]) } = {}) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.strokeStyle = ink;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}

/** Draw inside a rectangle only. */
function within(context, left, top, width, height, draw) {
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  draw();
  context.restore();
}

function diamond(context, x, y, size, ink) {
  context.beginPath();
  [
    [0, -size],
    [size, 0],
    [0, size],
    [-size, 0],
  ].forEach(([dx, dy], i) => (i ? context.lineTo(x + dx, y + dy) : context.moveTo(x + dx, y + dy)));
  context.closePath();
  context.fillStyle = ink;
  context.fill();
}

const hatches = new Map();

/** Slanted lines: memory that is kept and holds nothing. */
function hatchOf(context, ink) {
  if (!hatches.has(ink)) {
    const tile = Object.assign(document.createElement("canvas"), { width: 6, height: 6 });
    const own = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
    own.strokeStyle = ink;
    own.lineWidth = 1.2;
    own.beginPath();
    for (const shift of [-6, 0, 6]) own.moveTo(shift, 6), own.lineTo(shift + 6, 0);
    own.stroke();
    hatches.set(ink, tile);
  }
  return /** @type {CanvasPattern} */ (context.createPattern(hatches.get(ink), "repeat"));
}
