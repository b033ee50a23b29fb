// @ts-check
// Draws a run's lanes: steps, loss, memory. A scene says what: `run`, `layout`, `window`, `limit` (what is later is not drawn:
// replay), `live`, `inks`. Where nothing is known yet a lane says what it waits for, without an axis.

function drawLanes(context, scene) {
  scene.scale = scaleOf(scene.layout, scene.window);
  scene.spans = scene.run.spans.filter((span) => span.begin <= scene.limit);
  drawBeside(context, scene);
  drawSteps(context, scene);
  drawLoss(context, scene);
  drawMemory(context, scene);
  drawPaging(context, scene);
  drawPhases(context, scene);
  drawClock(context, scene);
  if (scene.live) {
    const x = scene.scale.x(scene.limit),
      { lanes, right, left } = scene.layout;
    if (x >= left && x <= right)
      line(context, scene.inks.now, [
        [x, lanes.loss.top],
        [x, lanes.time.top],
      ]);
  }
}

/** Rows of a table within the window, with one more on either side, none later than the limit: [first, end). */
function rowsIn(times, { window, limit }) {
  const known = countUntil(times, limit);
  return [Math.max(countUntil(times, window[0]) - 1, 0), Math.min(countUntil(times, window[1]) + 1, known)];
}

/** The lane's name and what it shows, on its first line. */
function title(context, { layout, inks }, lane, name, said, room = layout.right - layout.left) {
  const y = layout.lanes[lane].top + TITLE / 2 - 1;
  const look = { font: inks.font, ink: inks.text };
  const end = write(context, name, layout.left, y, { ...look, bold: true });
  write(context, said, end + 6, y, { ...look, ink: inks.quiet, room: layout.left + room - end - 10 });
}

/** Where a lane's data goes, below its title. */
function bodyOf({ layout }, lane) {
  const { top, height } = layout.lanes[lane];
  return { top: top + TITLE, bottom: top + height, height: height - TITLE };
}

function waiting(context, scene, lane, text) {
  const { layout, inks } = scene,
    { top, height } = bodyOf(scene, lane);
  const look = { font: inks.font, ink: inks.quiet, room: layout.right - layout.left - 16 };
  context.fillStyle = inks.beside;
  context.fillRect(layout.left, top, layout.right - layout.left, height);
  write(context, text, layout.left + 8, top + height / 2, look);
}

/** The lane's values up its side, with a quiet line across for each. */
function axis(context, { layout, inks }, marks, y, text = (mark) => markText(mark, marks)) {
  for (const mark of marks) {
    const at = Math.round(y(mark)) + 0.5;
    line(context, inks.grid, [
      [layout.left, at],
      [layout.right, at],
    ]);
    write(context, text(mark), layout.left - 6, at, { font: inks.font, ink: inks.quiet, align: "right" });
  }
}

/** What the run does beside training stands behind all lanes. */
function drawBeside(context, { spans, scale, layout, limit, inks }) {
  const { top } = layout.lanes.loss,
    bottom = layout.lanes.phases.top;
  context.fillStyle = inks.beside;
  for (const span of spans) {
    if (span.name === "train" || span.name === "first_forward") continue;
    const from = Math.max(scale.x(span.begin), layout.left),
      to = Math.min(scale.x(Math.min(span.end, limit)), layout.right);
    if (to > from && !(span.depth === 0 && span.name === "import" && to - from < 0.5))
      context.fillRect(from, top, to - from, bottom - top);
  }
}

function drawSteps(context, { run, layout, scale, window, limit, inks, live }) {
  const { steps } = run,
    [first, end] = rowsIn(steps.t, { window, limit }),
    { height } = layout.lanes.steps;
  const look = { font: inks.font, ink: inks.quiet, align: "center" };
  write(context, "step", layout.left - 6, height - 11, { ...look, align: "right" });
  context.fillStyle = inks.quiet;
  let drawn = -Infinity,
    written = -Infinity;
  const apart =
    end - first > 1 ? ((end - first) * 30) / Math.max(scale.x(steps.t[end - 1]) - scale.x(steps.t[first]), 1) : 1;
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((count) => count >= apart) ?? 10000;
  for (let i = first; i < end; i++) {
    const x = scale.x(steps.t[i]);
    if (x < layout.left || x > layout.right) continue;
    const named = steps.n[i] % every === 0 && x - written > 24;
    if (x - drawn >= 2.5 || named) {
      context.fillStyle = inks.quiet;
      context.fillRect(Math.round(x), height - (named ? 6 : 4), 1, named ? 5 : 3);
      drawn = x;
    }
    if (named) {
      write(context, steps.n[i].toLocaleString("en"), x, height - 12, look);
      written = x;
    }
  }
  if (live && end > 0 && run.facts.left > 0 && run.facts.total > steps.n[end - 1])
    expectedSteps(context, { run, layout, scale, limit, inks }, every, written);
}

/** Where later steps will end at the present pace, quieter. */
function expectedSteps(context, { run, layout, scale, limit, inks }, every, written) {
  const { facts, steps } = run,
    done = steps.n[steps.t.length - 1],
    pace = facts.left / (facts.total - done);
  const { height } = layout.lanes.steps,
    look = { font: inks.font, ink: inks.faint, align: "center" };
  for (let n = Math.ceil((done + 1) / every) * every; n <= facts.total; n += every) {
    const x = scale.x(limit + (n - done) * pace);
    if (x > layout.right) return;
    if (x - written < 24) continue;
    context.fillStyle = inks.faint;
    context.fillRect(Math.round(x), height - 4, 1, 3);
    write(context, n.toLocaleString("en"), x, height - 12, look);
    written = x;
  }
}

// ---------------------------------------------------------------- loss

function drawLoss(context, scene) {
  const { run, layout, scale, inks } = scene,
    { steps, evals } = run,
    strip = isScaled(run) ? STRIP : 0,
    lane = bodyOf(scene, "loss"),
    body = { ...lane, bottom: lane.bottom - strip, height: lane.height - strip };
  const [first, end] = rowsIn(steps.t, scene),
    [firstEval, endEval] = rowsIn(evals.t, scene);
  const range = [Infinity, -Infinity];
  const widen = (value) => {
    if (value === value) Object.assign(range, [Math.min(range[0], value), Math.max(range[1], value)]);
  };
  for (let i = first; i < end; i++) widen(steps.loss[i]);
  for (let i = firstEval; i < endEval; i++) widen(evals.loss[i]);
  scene.lossY = undefined;
  if (range[0] > range[1]) {
    title(context, scene, "loss", "Loss", "nats a token");
    return waiting(
      context,
      scene,
      "loss",
      `Waits for the first ${run.spans.some(({ name }) => name === "evaluate") ? "held-out loss" : "step"}.`,
    );
  }
  title(
    context,
    scene,
    "loss",
    "Loss",
    `nats a token · line: each training step${endEval > firstEval ? " · diamonds: held out" : ""}`,
  );
  const pad = Math.max((range[1] - range[0]) * 0.08, Math.abs(range[1]) * 0.004, 1e-6),
    [low, high] = [range[0] - pad, range[1] + pad];
  const y = (scene.lossY = (loss) => body.bottom - ((loss - low) / (high - low)) * body.height);
  axis(context, scene, marksBetween(low, high, 3), y);
  if (strip) drawScale(context, scene, first, end, body.bottom + 3);
  within(context, layout.left, body.top - 4, layout.right - layout.left, body.height + 8, () => {
    const held = Array.from({ length: Math.max(endEval - firstEval, 0) }, (_, i) => [
      scale.x(evals.t[firstEval + i]),
      y(evals.loss[firstEval + i]),
    ]);
    line(context, inks.heldOut, held, { width: 1.5, dash: [2, 3] });
    context.beginPath();
    curve(context, steps, first, end, scale, y);
    context.strokeStyle = inks.text;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    for (const [x, at] of held) diamond(context, x, at, 5, inks.heldOut);
    if (end - first === 1) context.fillRect(scale.x(steps.t[first]) - 1.5, y(steps.loss[first]) - 1.5, 3, 3);
  });
}

/** float16's health under the loss: the scale of each step on a logarithmic stair, and a mark where a step was skipped. */
function drawScale(context, scene, first, end, top) {
  const { run, layout, scale, inks, limit } = scene,
    { steps, skipped } = run,
    height = STRIP - 4;
  const look = { font: inks.font, ink: inks.quiet, align: "right" };
  write(context, "scale", layout.left - 6, top + height / 2, look);
  const powers = Array.from({ length: end - first }, (_, i) => Math.log2(steps.scale[first + i]));
  const least = Math.min(...powers) - 1,
    most = Math.max(...powers);
  const y = (power) => top + height - ((power - least) / (most - least)) * (height - 1);
  within(context, layout.left, top - 1, layout.right - layout.left, height + 2, () => {
    context.beginPath();
    const xs = powers.map((_, i) => scale.x(beginOf(run, first + i)));
    stairs(context, xs, powers.map(y), Math.min(scale.x(limit), layout.right));
    context.strokeStyle = inks.quiet;
    context.stroke();
    for (let i = first; i < end; i++) {
      if (steps.skipped[i] !== 1) continue;
      const x = scale.x(steps.t[i]);
      line(context, inks.evicted, [[x - 3, top], [x + 3, top + height]], { width: 1.5 });
      line(context, inks.evicted, [[x - 3, top + height], [x + 3, top]], { width: 1.5 });
    }
  });
  if (end < 1) return;
  const count = skipped[end - 1],
    said = `scale of the loss ${powerText(steps.scale[end - 1])} · ${count} ${count === 1 ? "step" : "steps"} skipped`;
  writeOver(context, said, layout.right - 4, top + height / 2, look, inks.page);
}

/** A line through the steps' losses; where a pixel holds several, down to the lowest and up to the highest of them. */
function curve(context, { t, loss }, first, end, scale, y) {
  let pen = false,
    column = NaN,
    low = 0,
    high = 0,
    last = 0;
  const finish = () => {
    if (low !== high) context.lineTo(column, y(low)), context.lineTo(column, y(high)), context.lineTo(column, y(last));
  };
  const fine = (end - first) * 1.5 < scale.x(t[end - 1]) - scale.x(t[first]);
  for (let i = first; i < end; i++) {
    const value = loss[i],
      x = fine ? scale.x(t[i]) : Math.round(scale.x(t[i]));
    if (value !== value) {
      finish();
      [pen, low, high, column] = [false, 0, 0, NaN]; // a loss that is no number is a gap
    } else if (x === column) {
      [low, high, last] = [Math.min(low, value), Math.max(high, value), value];
    } else {
      finish();
      if (pen) context.lineTo(x, y(value));
      else context.moveTo(x, y(value));
      [pen, column, low, high, last] = [true, x, value, value, value];
    }
  }
  finish();
}

// ---------------------------------------------------------------- memory

/** Of each pixel's samples the row of the highest, from left to right; each holds until the next. */
function highestRows(run, { window, limit }, scale) {
  const { above } = run,
    { t, gpu: where, below } = run.samples,
    gpu = onGpu(run) ? 1 : 0,
    share = showsBelow(run) ? 1 : 0,
    rows = [];
  const [first, end] = rowsIn(t, { window, limit }),
    { across } = scale,
    begin = scale.x(0);
  let column = NaN,
    best = -1,
    most = 0;
  for (let i = first; i < end; i++) {
    // a hundred thousand times: nothing here is looked up or made
    if (where[i] !== gpu) continue;
    const x = Math.floor(begin + t[i] * across),
      held = above[i] + share * below[i];
    if (x !== column) {
      if (best >= 0) rows.push(best);
      column = x;
      best = i;
      most = held;
    } else if (held > most) {
      best = i;
      most = held;
    }
  }
  if (best >= 0) rows.push(best);
  return rows;
}

function drawMemory(context, scene) {
  const { run, layout, scale, inks } = scene,
    { facts } = run,
    body = bodyOf(scene, "memory");
  const gpu = onGpu(run),
    rows = highestRows(run, scene, scale),
    name = gpu ? "Memory of the GPU" : "Memory of the process";
  scene.memoryY = undefined;
  if (!rows.length) {
    title(context, scene, "memory", "Memory", "");
    return waiting(context, scene, "memory", "Waits for the first sample.");
  }
  const highest = rows.reduce((most, row) => Math.max(most, heldBy(run, row)), 1),
    unit = memoryUnit(run, highest);
  const limits = [
    ["forecast", showsForecast(run) ? facts.forecast : null, [6, 4]],
    [gpu ? facts.device : "this machine", facts.capacity, []],
  ];
  const near = limits.filter(([, bytes]) => bytes && bytes <= 2 * highest).sort((a, b) => b[1] - a[1]);
  const far = limits.filter(([, bytes]) => bytes && bytes > 2 * highest); // a line that far up would flatten the rest
  const top = 1.08 * Math.max(highest, ...near.map(([, bytes]) => bytes));
  const said = [
    `${unit.name}${!gpu && !showsBelow(run) ? ", above its libraries" : ""}, by what holds it`,
    `peak ${inWords(highest / unit.bytes, unit.bytes === MIB ? 0 : 2)}`,
    ...far.map(([called, bytes]) => `${called} ${memoryText(run, bytes)}, above`),
  ];
  const y = (scene.memoryY = (bytes) => body.bottom - (bytes / top) * body.height);
  const beside = near.length > 0 && y(near[0][1]) < body.top + 14 ? 140 : 0; // the highest line's text stands there
  title(context, scene, "memory", name, said.join(" · "), layout.right - layout.left - beside);
  const marks = marksBetween(0, top / unit.bytes, layout.low ? 2 : 4);
  axis(context, scene, marks, (mark) => y(mark * unit.bytes));
  within(context, layout.left, body.top, layout.right - layout.left, body.height, () => drawStack(context, scene, rows, y));
  near.forEach(([called, bytes, dash], i) => {
    // the higher one's text stands above its line, that of the lower one below it
    const at = Math.round(y(bytes)) + 0.5,
      look = { font: inks.font, ink: inks.text, align: "right" };
    line(
      context,
      inks.text,
      [
        [layout.left, at],
        [layout.right, at],
      ],
      { width: 1.5, dash },
    );
    writeOver(context, `${called}: ${memoryText(run, bytes)}`, layout.right - 4, at + (i ? 9 : -8), look, inks.page);
  });
}

/** What each layer holds, one on the other, for these samples. */
function drawStack(context, { run, scale, layout, limit, inks }, rows, y) {
  const xs = rows.map((row) => scale.x(run.samples.t[row])),
    end = Math.min(scale.x(limit), layout.right);
  const sums = new Float64Array(rows.length);
  let floor = Float64Array.from(sums, y);
  for (const [layer] of run.facts.layers) {
    if (!run.ever.has(layer) || (layer === BELOW && !showsBelow(run))) continue;
    const column = run.samples[layer],
      ceiling = floor.map((_, i) => y((sums[i] += column[rows[i]])));
    context.beginPath();
    stairs(context, xs, ceiling, end);
    stairsBack(context, xs, floor, end);
    context.fillStyle = layer === SPARE ? hatchOf(context, inks.spare) : inks[layer];
    context.fill();
    floor = ceiling;
  }
  context.beginPath();
  stairs(context, xs, floor, end);
  context.strokeStyle = inks.quiet;
  context.lineWidth = 1;
  context.stroke();
}

/** A forecast counts from where the libraries are loaded. */
function showsForecast(run) {
  return onGpu(run) || run.facts.libraries !== null;
}

/** A staircase: each height holds until the next one, the last until the end. */
function stairs(context, xs, ys, end) {
  for (let i = 0; i < xs.length; i++) {
    context.lineTo(xs[i], ys[i]);
    context.lineTo(i + 1 < xs.length ? xs[i + 1] : Math.max(end, xs[i]), ys[i]);
  }
}

/** The same from its end to its beginning. */
function stairsBack(context, xs, ys, end) {
  for (let i = xs.length - 1; i >= 0; i--) {
    context.lineTo(i + 1 < xs.length ? xs[i + 1] : Math.max(end, xs[i]), ys[i]);
    context.lineTo(xs[i], ys[i]);
  }
}
