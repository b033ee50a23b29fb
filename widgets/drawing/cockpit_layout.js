// @ts-check
// Where the lanes stand and what their axes say: heights, the window of time, round numbers. Nothing here draws.

const MARGIN_LEFT = 56,
  MARGIN_RIGHT = 6; // of the canvas, for the axes' numbers
const NARROW = 640; // up to this width the readout stands above the lanes
const READOUT = { width: 188, gap: 12, above: 176 };
const HEIGHTS = {
  full: { steps: 24, loss: 96, memory: 140, paging: 102, phases: 18, time: 17, gap: 6 },
  low: { steps: 18, loss: 54, memory: 70, paging: 54, phases: 13, time: 15, gap: 4 }, // of a run that has ended: 236 in all
};
const TITLE = 13; // pixels of a lane's title line, within the lane
const STRIP = 13; // pixels of the strip under the loss that shows its scale in float16
const LANES = ["loss", "memory", "paging", "phases"];

/** Lanes by name, `{top, height}` each, and the plot's `left` and `right` on a canvas of this width. */
function layoutOf(width, low) {
  const heights = low ? HEIGHTS.low : HEIGHTS.full;
  const lanes = {};
  let top = heights.steps;
  lanes.steps = { top: 0, height: heights.steps };
  for (const name of LANES) {
    lanes[name] = { top, height: heights[name] };
    top += heights[name] + (name === "phases" ? 0 : heights.gap);
  }
  lanes.time = { top, height: heights.time };
  return { lanes, height: top + heights.time, width, left: MARGIN_LEFT, right: width - MARGIN_RIGHT, low };
}

/** From seconds to pixels and back. */
function scaleOf(layout, [from, to]) {
  const across = (layout.right - layout.left) / (to - from);
  return { x: (at) => layout.left + (at - from) * across, at: (x) => from + (x - layout.left) / across, across };
}

// ---------------------------------------------------------------- round numbers

const ROUND_SECONDS = [10, 20, 30, 60, 90, 120, 180, 300, 420, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200, 10800];

function roundUp(seconds) {
  return ROUND_SECONDS.find((round) => round >= seconds) ?? Math.ceil(seconds / 7200) * 7200;
}

/** Round numbers between two, at most `count` of them. */
function marksBetween(low, high, count, least = 0) {
  if (!(high > low)) return [];
  const rough = Math.max((high - low) / Math.max(count, 1), least),
    power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(([1, 2, 5].find((m) => m * power >= rough * 0.999) ?? 10) * power, least);
  const first = Math.ceil(low / step - 1e-9),
    last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** A mark as its axis writes it: as many decimals as its neighbours need. */
function markText(value, marks) {
  const step = marks.length > 1 ? marks[1] - marks[0] : Math.abs(value) || 1;
  return inWords(value, Math.min(Math.max(-Math.floor(Math.log10(step) + 1e-9), 0), 4));
}

const BAR_SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];
const LEAST_BAR = 3.5; // pixels

/** Seconds that a bar of paging stands for. */
function barSeconds(across) {
  return BAR_SECONDS.find((seconds) => seconds * across >= LEAST_BAR) ?? BAR_SECONDS[BAR_SECONDS.length - 1];
}

// ---------------------------------------------------------------- the window of time

/** Seconds of the tail that is followed: some dozen steps. */
function tailOf({ steps }) {
  const last = steps.t.length - 1,
    first = Math.max(last - 20, 0);
  return last > first
    ? roundUp(Math.min(Math.max((12 * (steps.t[last] - steps.t[first])) / (last - first), 30), 3600))
    : 30;
}

/** From when to when the lanes reach; the axis of a whole run stands still until the run outlasts what was expected. */
function windowOf(view, run, limit) {
  const { facts } = run,
    end = endOf(run);
  if (view.zoom) return view.zoom;
  if (view.follows) return [Math.max(limit - tailOf(run), 0), Math.max(limit, tailOf(run)) + tailOf(run) * 0.03];
  if (facts.ended || view.replay) return [0, Math.max(end, 1)];
  const expected = facts.left === null ? end * 1.3 : end + facts.left;
  if (!(view.reach >= Math.max(end * 1.02, expected * 0.97) && view.reach < expected * 1.6))
    view.reach = roundUp(Math.max(expected, 30));
  return [0, view.reach];
}
