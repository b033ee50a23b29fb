// @ts-check
// Draws what pages and when: paging by its source's name, measured or simulated; and the phases and the clock below it.

/** What the lane is called and says of itself, and what it waits for, null where there is something to draw. */
function pagingTitle(run, span) {
  const { facts } = run,
    asked = run.requested ? " · ticks: requested by bitsandbytes" : "";
  if (run.moved || run.requested || facts.measures) {
    return facts.measures
      ? ["Paging", `MiB in ${span} · bars: measured by CUPTI${asked}`, run.moved || run.requested ? null : facts.why]
      : ["Paging", `moves cannot be seen here${asked}`, null];
  }
  const name = facts.device === "cpu" && facts.why ? "Paging: no GPU" : "Paging";
  if (facts.simulated)
    return [
      name,
      `dashed: simulated ${facts.simulated.on} · MiB in ${span}`,
      run.steps.t.length ? null : "Waits for the first step.",
    ];
  return [
    name,
    "",
    facts.why || (facts.state ? "Waits for the model: what of its state can page is known then." : "Waits for a run."),
  ];
}

/** Bars of what moved or, simulated, would have: `{from, to, sums}` by kind; simulated, a step has one, where it is wide enough. */
function pagingBars(scene, seconds) {
  const { run, window, limit, scale } = scene,
    slots = new Map();
  const add = (at, kind, bytes) => {
    const slot = Math.floor(at / seconds),
      known = slots.get(slot);
    if (known) known[kind] += bytes;
    else
      slots.set(
        slot,
        [0, 0, 0].map((none, i) => (i === kind ? bytes : none)),
      );
  };
  if (run.moved) {
    const { pages } = run,
      [first, end] = rowsIn(pages.t, { window: [window[0] - seconds, window[1] + seconds], limit });
    for (let i = first; i < end; i++) if (pages.kind[i] <= D2H) add(pages.t[i], pages.kind[i], pages.amount[i]);
  } else if (simulates(run)) {
    const [first, end] = rowsIn(run.steps.t, scene),
      [h2d, evicted] = simulatedStep(run),
      { moves } = run.facts.simulated;
    if (wideSteps(run, scale, first, end)) {
      const share = moves[0][0] - 0.02;
      return Array.from({ length: Math.max(end - first, 0) }, (_, i) => {
        const begin = beginOf(run, first + i),
          to = run.steps.t[first + i];
        return { from: begin + share * (to - begin), to, sums: [h2d, evicted, 0] };
      });
    }
    for (let i = first; i < end; i++) {
      add(run.steps.t[i], H2D, h2d);
      add(run.steps.t[i], EVICTED, evicted);
    }
  }
  return [...slots].map(([slot, sums]) => ({ from: slot * seconds, to: (slot + 1) * seconds, sums }));
}

/** Whether nothing was measured and a simulation stands in. */
function simulates(run) {
  return Boolean(run.facts.simulated?.moves.length) && !run.moved && !run.requested && !run.facts.measures;
}

function wideSteps({ steps }, scale, first, end) {
  return (
    end > first && ((steps.t[end - 1] - steps.t[first]) * scale.across) / Math.max(end - first - 1, 1) >= 2 * LEAST_BAR
  );
}

function drawPaging(context, scene) {
  const { run, layout, scale, inks } = scene,
    body = bodyOf(scene, "paging"),
    seconds = barSeconds(scale.across);
  const simulated = simulates(run),
    perStep = simulated && wideSteps(run, scale, ...rowsIn(run.steps.t, scene));
  const [name, said, waits] = pagingTitle(run, perStep ? "a step" : `${seconds} s`);
  title(context, scene, "paging", name, said);
  if (waits !== null) return waiting(context, scene, "paging", waits);
  const rug = run.requested ? 12 : 2,
    middle = (body.top + rug + body.bottom) / 2,
    half = (body.bottom - body.top - rug) / 2 - 1;
  if (run.requested) requests(context, scene, body.top + 1);
  if (!run.facts.measures && !simulated) return;
  const bars = pagingBars(scene, seconds);
  let most = run.facts.managed;
  for (const {
    sums: [h2d, evicted, d2h],
  } of bars)
    most = Math.max(most, h2d, evicted + d2h);
  most *= 1.1;
  const marks = marksBetween(0, most / MIB, 2)
    .filter((mark) => mark > 0)
    .slice(-1);
  const y = (bytes) => middle - (bytes / Math.max(most, 1)) * half;
  axis(context, scene, [0], y, () => (layout.low && marks.length ? "" : "0"));
  for (const mark of marks) {
    axis(context, scene, [mark * MIB], y, () => `▲ ${markText(mark, marks)}`);
    axis(context, scene, [-mark * MIB], y, () => `▼ ${markText(mark, marks)}`);
  }
  within(context, layout.left, body.top, layout.right - layout.left, body.height, () => {
    for (const {
      from,
      to,
      sums: [h2d, evicted, d2h],
    } of bars) {
      const x = scale.x(from),
        width = Math.max(scale.x(to) - x - 1, 2.5);
      bar(context, x, width, middle, y(h2d), inks.h2d, simulated);
      bar(context, x, width, middle, y(-evicted), inks.evicted, simulated);
      bar(context, x, width, y(-evicted), y(-evicted - d2h), inks.d2h, simulated);
    }
  });
}

function bar(context, x, width, from, to, ink, simulated) {
  if (Math.abs(to - from) < 0.01) return;
  context.fillStyle = context.strokeStyle = ink;
  if (!simulated) return void context.fillRect(x, Math.min(from, to), width, Math.max(Math.abs(to - from), 1));
  context.setLineDash([2, 2]);
  context.lineWidth = 1.2;
  context.strokeRect(x + 0.5, Math.min(from, to), width, Math.abs(to - from));
  context.setLineDash([]);
}

/** A tick where bitsandbytes asked for state: a request is no move. */
function requests(context, scene, top) {
  const { run, scale, layout, inks } = scene,
    [first, end] = rowsIn(run.pages.t, scene);
  write(context, "prefetch", layout.left - 6, top + 5, { font: inks.font, ink: inks.quiet, align: "right" });
  context.fillStyle = inks.text;
  let drawn = -Infinity;
  for (let i = first; i < end; i++) {
    const x = scale.x(run.pages.t[i]);
    if (run.pages.kind[i] !== REQUESTED || x < layout.left || x > layout.right || x - drawn < 2.5) continue;
    context.fillRect(Math.round(x), top, 1.5, 9);
    drawn = x;
  }
}

// ---------------------------------------------------------------- phases and clock

const phaseText = (name) => name.replaceAll("_", " ");

function drawPhases(context, { run, spans, layout, scale, limit, inks }) {
  const { top, height } = layout.lanes.phases,
    look = { font: inks.font, ink: inks.text };
  write(context, "phase", layout.left - 6, top + height / 2, { ...look, ink: inks.quiet, align: "right" });
  if (!spans.length) {
    context.fillStyle = inks.beside;
    context.fillRect(layout.left, top, layout.right - layout.left, height);
    return void write(context, run.facts.state ? "starting" : "no run", layout.left + 8, top + height / 2, {
      ...look,
      ink: inks.quiet,
    });
  }
  const names = [];
  for (const span of spans) {
    const from = Math.max(scale.x(span.begin), layout.left),
      to = Math.min(scale.x(Math.min(span.end, limit)), layout.right);
    if (to <= from) continue;
    const ink = PHASE_INKS[span.name] ?? OTHER_PHASE;
    context.fillStyle = inks.page;
    if (span.depth) context.fillRect(from, top, to - from, height);
    context.fillStyle = mixed(ink, inks.page, inks.dark ? 0.42 : 0.3);
    context.fillRect(from, top, Math.max(to - from - 0.5, 0.7), height);
    context.fillStyle = ink;
    context.fillRect(from, top + height - 2, Math.max(to - from - 0.5, 0.7), 2);
    if (span.depth) names.filter((other) => other.to > from).forEach((other) => (other.to = Math.min(other.to, from)));
    names.push({ text: phaseText(span.name), from, to });
  }
  for (const { text, from, to } of names)
    if (to - from > 22) write(context, text, from + 4, top + height / 2 - 0.5, { ...look, room: to - from - 6 });
}

function drawClock(context, { layout, scale, window, inks }) {
  const { top, height } = layout.lanes.time,
    look = { font: inks.font, ink: inks.quiet };
  write(context, "seconds", layout.left - 6, top + height / 2 + 1, { ...look, align: "right" });
  const marks = marksBetween(window[0], window[1], (layout.right - layout.left) / 110);
  for (const mark of marks) {
    const x = scale.x(mark);
    context.fillStyle = inks.quiet;
    context.fillRect(Math.round(x), top, 1, 3);
    const align = x < layout.left + 14 ? "left" : x > layout.right - 14 ? "right" : "center";
    write(context, markText(mark, marks), x, top + height / 2 + 2, { ...look, align });
  }
}

// ---------------------------------------------------------------- the crosshair

/** A line through all lanes at a moment, the step in which it lies, and the points that the readout shows. */
function drawCross(context, scene, at) {
  const { run, layout, inks, limit } = scene,
    scale = scaleOf(layout, scene.window),
    { lanes } = layout;
  const x = scale.x(at),
    top = lanes.loss.top,
    bottom = lanes.time.top;
  if (x < layout.left - 0.5 || x > layout.right + 0.5) return;
  const row = stepAt(run, at, limit);
  if (row >= 0 && at <= run.steps.t[row]) {
    const from = Math.max(scale.x(beginOf(run, row)), layout.left),
      to = Math.min(scale.x(run.steps.t[row]), layout.right);
    context.fillStyle = inks.step;
    context.fillRect(from, top, Math.max(to - from, 1), bottom - top);
  }
  line(context, inks.text, [
    [x, top - 6],
    [x, bottom],
  ]);
  const sample = sampleAt(run, Math.min(at, limit));
  if (scene.memoryY && sample >= 0) dot(context, x, scene.memoryY(heldBy(run, sample)), inks);
  if (scene.lossY && row >= 0 && at <= run.steps.t[row] && run.steps.t[row] <= scene.window[1]) {
    dot(context, scale.x(run.steps.t[row]), scene.lossY(run.steps.loss[row]), inks);
  }
  const text = `${inWords(at, 1)} s`,
    height = lanes.time.height;
  context.font = `600 11px ${inks.font}`;
  const width = context.measureText(text).width + 10,
    left = Math.min(Math.max(x - width / 2, layout.left), layout.right - width);
  context.fillStyle = inks.text;
  context.fillRect(left, bottom + 1, width, height - 2);
  write(context, text, left + width / 2, bottom + height / 2 + 0.5, {
    font: inks.font,
    ink: inks.page,
    bold: true,
    align: "center",
  });
}

function dot(context, x, y, inks) {
  context.beginPath();
  context.arc(x, y, 3.2, 0, 2 * Math.PI);
  context.fillStyle = inks.text;
  context.fill();
  context.strokeStyle = inks.page;
  context.lineWidth = 1.2;
  context.stroke();
}
