// @ts-check
// A run as the lanes read it: Python's columns (workbench/training/results/timeline.py) and what follows from them row by row.
// Everything is looked up by seconds on the run's clock. Nothing here draws.

const [H2D, EVICTED, D2H, REQUESTED, MINOR, MAJOR] = [0, 1, 2, 3, 4, 5]; // kinds of the rows of `pages`
const [BEGIN, END] = [0, 1]; // edges of phases; any other ends all that are open
const BELOW = "below",
  PAGED = "optimizer state, paged",
  SPARE = "spare";
const NO_ROWS = new Float32Array(0);

const knownRuns = new WeakMap(); // a drawing's state -> its run

/** What a state's content holds of the run; what was derived from earlier rows is kept. */
function runOf(state) {
  const facts = state.content;
  const { phases: marks, ...columns } = Object.fromEntries(
    Object.entries(facts.tables).map(([name, table]) => [name, columnsOf(table)]),
  );
  let run = knownRuns.get(state);
  if (!run || run.facts.run !== facts.run || columns.samples.t.length < run.above.length) {
    run = {
      spans: [],
      open: [],
      read: 0,
      above: [],
      peaks: [],
      evicted: [],
      skipped: [],
      requested: false,
      moved: false,
      ever: new Set(),
    };
    knownRuns.set(state, run);
  }
  Object.assign(run, columns, { facts, marks });
  readMarks(run);
  readSamples(run);
  readSteps(run);
  readPages(run);
  return run;
}

function columnsOf(table) {
  const columns = Object.fromEntries(Object.entries(table).map(([name, node]) => [name, decodeArray(node)]));
  return { t: NO_ROWS, ...columns };
}

/** The phases as spans of time; one that lies within another has depth 1. */
function readMarks(run) {
  const { t, name, edge } = run.marks;
  for (; run.read < t.length; run.read++) {
    const at = t[run.read],
      called = run.facts.names[name[run.read]];
    if (edge[run.read] === BEGIN) {
      const span = { name: called, begin: at, end: Infinity, depth: Math.min(run.open.length, 1) };
      run.spans.push(span);
      run.open.push(span);
      continue;
    }
    const ending = edge[run.read] === END ? run.open.filter((span) => span.name === called).slice(-1) : run.open;
    for (const span of ending) span.end = at;
    run.open = run.open.filter((span) => !ending.includes(span));
  }
}

/** Of each sample: the bytes of all that lies above libraries, or above the GPU's context, and the most until then. */
function readSamples(run) {
  const { samples, above, peaks, ever } = run,
    layers = run.facts.layers.map(([key]) => key);
  for (let i = above.length; i < samples.t.length; i++) {
    let sum = 0;
    for (const layer of layers) {
      const bytes = samples[layer][i];
      if (bytes > 0) ever.add(layer);
      if (layer !== BELOW) sum += bytes;
    }
    above.push(sum);
    const gpu = samples.gpu[i] === 1; // what came before the GPU was known is another memory's
    peaks.push(Math.max(gpu ? sum + samples[BELOW][i] : sum, gpu === (samples.gpu[i - 1] === 1) ? (peaks[i - 1] ?? 0) : 0));
  }
}

/** Of each step: how many until then were skipped, because their gradients overflowed in float16. */
function readSteps({ steps, skipped }) {
  for (let i = skipped.length; i < steps.t.length; i++) skipped.push((skipped[i - 1] ?? 0) + (steps.skipped[i] === 1 ? 1 : 0));
}

/** Of each row of paging: what was evicted up to it, in bytes. */
function readPages(run) {
  const { pages, evicted } = run;
  for (let i = evicted.length; i < pages.t.length; i++) {
    const kind = pages.kind[i];
    evicted.push((evicted[i - 1] ?? 0) + (kind === EVICTED ? pages.amount[i] : 0));
    if (kind === REQUESTED) run.requested = true;
    if (kind <= D2H) run.moved = true;
  }
}

/** How many of the times, which rise, are at most `at`. */
function countUntil(times, at) {
  let low = 0,
    high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The last moment of which anything is known. */
function endOf(run) {
  return Math.max(0, ...[run.steps, run.evals, run.samples, run.pages, run.marks].map(({ t }) => t[t.length - 1] ?? 0));
}

// ---------------------------------------------------------------- at a moment

/** The step in which a moment lies, or that before it where none follows: its row, or -1. */
function stepAt(run, at, limit) {
  const until = countUntil(run.steps.t, limit);
  return Math.min(countUntil(run.steps.t, at - 1e-6), until - 1);
}

/** When a step began. */
function beginOf({ steps }, row) {
  return Math.max(steps.t[row] - (steps.seconds[row] || 0), row ? steps.t[row - 1] : 0);
}

/** The sample that holds at a moment: its row, or -1. */
function sampleAt(run, at) {
  return countUntil(run.samples.t, at) - 1;
}

/** Whether a GPU's memory is what the samples show. */
function onGpu({ samples }) {
  return samples.t.length > 0 && samples.gpu[samples.t.length - 1] === 1;
}

/** Whether interpreter and libraries are all that is known yet, or what lies below belongs to the picture anyway. */
function showsBelow(run) {
  return onGpu(run) || run.facts.libraries === null;
}

/** Bytes of a sample that the lane shows. */
function heldBy(run, row) {
  return run.above[row] + (showsBelow(run) ? run.samples[BELOW][row] : 0);
}

/** Sums of paging between two moments, by kind. */
function movedBetween({ pages }, from, to) {
  const sums = [0, 0, 0, 0, 0, 0];
  for (let i = countUntil(pages.t, from), end = countUntil(pages.t, to); i < end; i++)
    sums[pages.kind[i]] += pages.amount[i];
  return sums;
}

/** What a simulated step moves, in bytes: to the GPU, to the host. */
function simulatedStep({ facts }) {
  return (facts.simulated?.moves ?? []).reduce(([to, from], move) => [to + move[1], from + move[2]], [0, 0]);
}

/** Whether the loss is scaled, as in float16. */
function isScaled({ steps }) {
  return steps.t.length > 0 && Number.isFinite(steps.scale[steps.t.length - 1]);
}

/** The innermost phase at a moment, if any. */
function phaseAt(run, at) {
  return run.spans.findLast((span) => span.begin <= at && at < span.end);
}

// ---------------------------------------------------------------- in words

const GIB = 2 ** 30,
  MIB = 2 ** 20;

const inWords = (value, digits) =>
  Number.isFinite(value)
    ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })
    : "–";

/** The unit of the memory lane: a GPU's memory is always in GiB, a process's in what reads best. */
const memoryUnit = (run, top) => (onGpu(run) || top >= 2 * GIB ? { name: "GiB", bytes: GIB } : { name: "MiB", bytes: MIB });

function memoryText(run, bytes) {
  const { name, bytes: unit } = memoryUnit(run, bytes);
  return `${inWords(bytes / unit, unit === MIB ? 1 : 2)} ${name}`;
}

/** A scale of the loss, which is a power of two: 2¹⁶. */
function powerText(scale) {
  return `2${[...String(Math.log2(scale))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)] ?? "⁻").join("")}`;
}

/** Seconds as a clock: 0:07, 3:32, 1:02:05. */
function clockText(seconds) {
  const whole = Math.max(Math.round(seconds), 0),
    pad = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** A learning rate: 2.0e-4. */
function rateText(rate) {
  return Number.isFinite(rate) ? (rate === 0 ? "0" : rate.toExponential(1)) : "–";
}
