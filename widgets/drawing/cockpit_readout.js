// @ts-check
// What the lanes hold at one moment, as text: a block of fixed height beside each lane, and a sentence for a screen reader.

const SAID_EVERY = 2000; // milliseconds between sentences at least

function buildReadout() {
  const blocks = Object.fromEntries(LANES.map((lane) => [lane, element("div", { class: `wbc-block wbc-${lane}` })]));
  const figures = Object.fromEntries(
    LANES.map((lane) => [
      lane,
      element("div", {
        role: "img",
        class: "wbc-lane",
        "aria-label": `${lane[0].toUpperCase()}${lane.slice(1)}: nothing yet.`,
      }),
    ]),
  );
  return { blocks, figures };
}

/** Rows of [mark, text, figure, title]: a mark is a colour, or the name of a shape in cockpit.css. */
function fill(block, rows) {
  while (block.children.length > rows.length) block.lastChild.remove();
  rows.forEach(([mark, text, figure, title], i) => {
    const made = block.children[i] ?? block.appendChild(element("div", {}, element("i"), element("span"), element("b")));
    const [swatch, name, value] = made.children;
    const shape = mark && !mark.startsWith("#") ? mark : "";
    if (swatch.className !== shape) swatch.className = shape;
    const ground = mark && !shape ? mark : "";
    if (swatch.dataset.ground !== ground) swatch.style.background = swatch.dataset.ground = ground;
    put(name, text);
    put(value, figure);
    if (made.title !== (title ?? "")) made.title = title ?? "";
  });
}

/** Write every block for a moment; null is the latest one. */
function drawReadout(view, run, limit, cursor) {
  const at = Math.min(cursor ?? limit, limit),
    { low } = view.layout,
    { blocks } = view,
    { inks } = view.scene;
  const row = stepAt(run, at, limit);
  fill(
    blocks.loss,
    lossRows(run, at, row, cursor !== null ? "at" : run.facts.ended && !view.replay ? "at the end" : "now", low),
  );
  fill(blocks.memory, memoryRows(run, at, inks, low));
  fill(blocks.paging, pagingRows(run, at, row, inks, low));
  const phase = phaseAt(run, at);
  fill(blocks.phases, [
    ["", phase ? `${phaseText(phase.name)}, for` : "", phase ? `${inWords(at - phase.begin, 1)} s` : ""],
  ]);
}

function lossRows(run, at, row, moment, low) {
  const { steps, evals, facts } = run,
    held = countUntil(evals.t, at) - 1,
    known = row >= 0;
  const rows = [
    ["", facts.state ? `${moment} ${inWords(at, 1)} s` : "", known ? `step ${steps.n[row].toLocaleString("en")}` : ""],
    ["wbc-line", "training", known ? inWords(steps.loss[row], 3) : "–"],
    [
      "wbc-diamond",
      held < 0 ? "held out" : `held out, step ${evals.n[held].toLocaleString("en")}`,
      held < 0 ? "–" : inWords(evals.loss[held], 3),
    ],
  ];
  const speed = known ? steps.tokens[row] / steps.seconds[row] : NaN;
  rows.push(["", "tokens a second", inWords(speed, 0), "padding left out"]);
  if (low) return rows.slice(0, 4);
  const share = known ? steps.padded[row] / (steps.padded[row] + steps.tokens[row]) : NaN;
  const padding = Number.isFinite(share) ? ` · ${inWords(100 * share, 0)} %` : "";
  rows.push([
    "",
    "longest · padding",
    known ? `${inWords(steps.longest[row], 0)}${padding}` : "–",
    "tokens of the step's longest row, to which the others are padded; how much of the batch is padding",
  ]);
  const norm = known && (steps.skipped[row] === 1 ? "skipped" : inWords(steps.grad_norm[row], 2));
  rows.push([
    "",
    "rate · norm",
    known ? `${rateText(steps.lr[row])} · ${norm}` : "–",
    "learning rate; the gradients' norm before they are clipped",
  ]);
  if (isScaled(run))
    rows.push(["", "scale of the loss", known ? powerText(steps.scale[row]) : "–", "what it is multiplied by in float16"]);
  return rows;
}

function memoryRows(run, at, inks, low) {
  const row = sampleAt(run, at),
    { facts, samples } = run,
    gpu = onGpu(run);
  if (row < 0 || (gpu && samples.gpu[row] !== 1)) return [["", "memory", "–"]];
  const unit = memoryUnit(run, heldBy(run, row)),
    digits = unit.bytes === MIB ? 1 : 2;
  const text = (bytes) => inWords(bytes / unit.bytes, digits);
  const rows = [["", "memory", memoryText(run, heldBy(run, row))]];
  const layers = facts.layers.filter(([layer]) => run.ever.has(layer) && (layer !== BELOW || showsBelow(run))).reverse();
  for (const [layer, name, said] of layers)
    rows.push([layer === SPARE ? "wbc-hatched" : inks[layer], name, text(samples[layer][row]), said]);
  if (gpu && facts.capacity && layers.length < 9)
    rows.push(["", "still free", text(facts.capacity - heldBy(run, row)), "of the GPU's memory, as NVML reports it"]);
  if (!low) return rows.slice(0, 10);
  const first = rows.filter(([, name]) => /paged|activations|base/.test(name));
  return [rows[0], ["", "peak", text(run.peaks[row])], ...first].slice(0, 5);
}

function pagingRows(run, at, row, inks, low) {
  const { facts, steps } = run,
    known = row >= 0,
    n = known ? ` in step ${steps.n[row].toLocaleString("en")}` : "";
  const sums = known ? movedBetween(run, beginOf(run, row), steps.t[row]) : [0, 0, 0, 0, 0, 0];
  const mib = (bytes) => (known ? inWords(bytes / MIB, bytes && bytes < 100 * MIB ? 1 : 0) : "–");
  if (run.moved || run.requested || facts.measures) {
    const seen = (bytes) => (facts.measures ? mib(bytes) : "not seen");
    const rows = [
      ["", `paging${n}`, "MiB"],
      [inks.h2d, "▲ host → GPU", seen(sums[H2D]), "measured by CUPTI"],
      [inks.evicted, "▼ evicted to host", seen(sums[EVICTED]), "measured by CUPTI, for the cause eviction"],
      [
        inks.d2h,
        "▼ GPU → host, other",
        seen(sums[D2H]),
        "measured by CUPTI, for other causes: a checkpoint reads the state",
      ],
      ["wbc-tick", "prefetch requested", mib(sums[REQUESTED]), "requested by bitsandbytes: no migration yet"],
      ["", "evicted so far, GiB", inWords((run.evicted[countUntil(run.pages.t, at) - 1] ?? 0) / GIB, 2)],
    ];
    return low ? [rows[0], rows[1], rows[2], rows[5]] : rows;
  }
  const faults = [
    "",
    "host page faults (OS)",
    known ? inWords(sums[MINOR] + sums[MAJOR], 0) : "–",
    "the operating system's, on the process's own memory: no GPU paging",
  ];
  if (!facts.simulated) return facts.state && known ? [["", `paging${n}`, ""], faults] : [["", "paging", "–"]];
  const [h2d, evicted] = simulatedStep(run);
  return [
    ["", `simulated${n}`, "MiB"],
    ["wbc-dashed-h2d", "▲ host → GPU", mib(h2d), facts.simulated.said],
    ["wbc-dashed-evicted", "▼ evicted to host", mib(evicted), facts.simulated.said],
    faults,
  ];
}

// ---------------------------------------------------------------- for screen readers

/** Keep each lane's sentence up to date, no more often than it can be heard: for what comes too soon `again` is called later. */
function describeLanes(view, run, limit, cursor, again) {
  const now = performance.now(),
    rest = SAID_EVERY - (now - (view.said ?? -Infinity));
  const of = `${run.facts.run} ${run.facts.state}`;
  if (rest > 0 && view.saidOf === of) {
    view.saying ||= setTimeout(() => {
      view.saying = 0;
      if (!view.gone) again(view);
    }, rest);
    return;
  }
  Object.assign(view, { said: now, saidOf: of });
  const at = Math.min(cursor ?? limit, limit),
    row = stepAt(run, at, limit),
    { steps, evals } = run,
    held = countUntil(evals.t, at) - 1,
    scaled = row >= 0 && isScaled(run);
  const parts = (rows) =>
    rows
      .filter(([, name, figure]) => name && figure && figure !== "–")
      .map(([, name, figure]) => `${name} ${figure}`)
      .join(", ");
  const summaries = {
    loss:
      row < 0 && held < 0
        ? "waits for the first step"
        : parts([
            ["", row < 0 ? "" : `at step ${steps.n[row]}, training`, row < 0 ? "" : inWords(steps.loss[row], 3)],
            ["", scaled ? "scale of the loss" : "", scaled ? inWords(steps.scale[row], 0) : ""],
            ["", scaled ? "steps skipped" : "", scaled ? `${run.skipped[row]}` : ""],
            ["", held < 0 ? "" : `held out after step ${evals.n[held]}`, held < 0 ? "" : inWords(evals.loss[held], 3)],
          ]),
    memory:
      sampleAt(run, at) < 0
        ? "waits for the first sample"
        : `${onGpu(run) ? "of the GPU" : "of the process"}, ${parts(memoryRows(run, at, view.scene.inks, false)).replace("memory ", "")}`,
    paging:
      run.moved || run.requested || run.facts.simulated
        ? parts(pagingRows(run, at, row, view.scene.inks, false)) || "waits for the first step"
        : (pagingTitle(run, 1)[2] ?? ""),
    phases:
      run.spans
        .filter((span) => span.begin <= at)
        .slice(-6)
        .map((span) => `${phaseText(span.name)} ${inWords(Math.min(span.end, at) - span.begin, 1)} s`)
        .join(", ") || "starting",
  };
  for (const lane of LANES) {
    const text = `${lane[0].toUpperCase()}${lane.slice(1)}: ${summaries[lane]}.`;
    if (view.figures[lane].getAttribute("aria-label") !== text) view.figures[lane].setAttribute("aria-label", text);
  }
}
