// @ts-check
// The bar above the lanes: what the run is doing, how far it is, and the buttons that fit. In a replay it is the player's.

const STATES = {
  starting: "Starting",
  fetching: "Fetching the model",
  running: "Running",
  stopping: "Stopping",
  stopped: "Stopped",
  paused: "Paused",
  finished: "Finished",
  failed: "Failed",
  killed: "Killed",
  gone: "Folder gone",
  stalled: "No step for long", // an alert, while the run goes on
};
const SIGNS = { finished: "✓", failed: "✕", killed: "✕", gone: "✕", stalled: "!", paused: "❚❚", stopped: "■" };
const signOf = (name) => SIGNS[name] ?? "●";
const wordOf = (name) => STATES[name] ?? name;
const BUTTONS = {
  // name of the message -> sign, words, what it does
  pause: ["❚❚", "Pause", "Write a checkpoint after this step and end; Resume continues"],
  stop: ["■", "Stop", "End after this step and save what is trained"],
  resume: ["▶", "Resume", "Continue from the last checkpoint"],
  new: ["", "New run", "Set up another run"],
};
const SPEEDS = [1, 8];

/** The bar's parts; `put` in drawBar writes what changed. */
function buildBar(acts) {
  const part = (kind) => element("span", { class: `wbc-${kind}` });
  const button = (kind, sign, text, title, act) => {
    const face = sign ? [element("i", { "aria-hidden": "true" }, sign), text] : [text];
    const made = element("button", { type: "button", class: `wbc-button wbc-${kind}`, title }, ...face);
    made.addEventListener("click", act);
    return made;
  };
  const steer = Object.fromEntries(
    Object.entries(BUTTONS).map(([name, [sign, text, title]]) => [
      name,
      button(name, sign, text, title, () => acts.send(name)),
    ]),
  );
  const edit = element(
    "button",
    { type: "button", class: "wbc-link", title: "Change the settings, for another run" },
    "edit",
  );
  edit.addEventListener("click", () => acts.send("edit"));
  const replay = button("replay", "↻", "Replay", "Play the run again, as it was recorded", acts.replay);
  const play = button("play", "▶", "", "Play or hold", acts.play),
    close = button("close", "", "Close", "End the replay", acts.close);
  const slider = element("input", { type: "range", min: "0", step: "0.1", "aria-label": "Moment of the run, in seconds" });
  slider.addEventListener("input", () => acts.seek(Number(slider.value)));
  const speeds = SPEEDS.map((speed) => {
    const made = element("button", { type: "button" }, `${speed}×`);
    made.addEventListener("click", () => acts.speed(speed));
    return made;
  });
  const parts = {
    state: part("state"),
    settings: part("settings"),
    steps: part("steps"),
    left: part("left"),
    label: part("label"),
    progress: element("progress", { "aria-label": "Steps done" }),
    steer,
    edit,
    replay,
    play,
    slider,
    close,
    speeds,
    what: element("span", { class: "wbc-what" }),
    speed: element("span", { class: "wbc-segments", role: "group", "aria-label": "Speed" }, ...speeds),
  };
  parts.what.append(parts.settings, edit);
  const bar = element(
    "div",
    { class: "wbc-bar", role: "group", "aria-label": "Run" },
    parts.state,
    play,
    slider,
    parts.steps,
    parts.progress,
    parts.left,
    parts.label,
    parts.what,
    parts.speed,
    steer.pause,
    steer.stop,
    steer.resume,
    replay,
    close,
    steer.new,
  );
  return { bar, parts };
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function drawBar({ parts, replay }, run, limit) {
  const { facts, steps } = run,
    row = countUntil(steps.t, limit) - 1,
    done = row < 0 ? 0 : steps.n[row];
  const idle = !facts.state,
    ended = facts.ended,
    fetch = replay ? null : facts.fetch; // bytes of the model, while it is on its way
  parts.state.dataset.state = replay ? "replay" : facts.state || "none";
  parts.state.dataset.alert = replay ? "" : facts.alert;
  put(
    parts.state,
    replay ? "Replay" : idle ? "No run yet" : `${signOf(facts.alert || facts.state)} ${wordOf(facts.alert || facts.state)}`,
  );
  put(parts.settings, facts.settings);
  parts.settings.title = facts.settings;
  put(parts.label, facts.label);
  const of = facts.total ? ` of ${facts.total.toLocaleString("en")}` : "";
  put(
    parts.steps,
    fetch
      ? fetch.text
      : ended && !replay
        ? `${done.toLocaleString("en")} steps in ${clockText(endOf(run))}`
        : `step ${done.toLocaleString("en")}${of}`,
  );
  const { total, value, what } = fetch
    ? { total: fetch.total, value: fetch.done, what: "Bytes of the model fetched" }
    : { total: facts.total, value: done, what: "Steps done" };
  parts.progress.hidden = ended || !total;
  Object.assign(parts.progress, { max: total || 1, value, ariaLabel: what });
  const left = fetch ? fetch.left : facts.left;
  put(
    parts.left,
    replay
      ? `${clockText(replay.at)} of ${clockText(endOf(run))}`
      : facts.doing || (left === null || ended ? "" : `${clockText(left)} left`),
  );
  const shown = new Set(replay ? [] : facts.actions);
  for (const [name, button] of Object.entries(parts.steer)) button.hidden = !shown.has(name);
  parts.edit.hidden = !shown.has("edit");
  parts.steps.hidden = idle;
  parts.replay.hidden = Boolean(replay) || !ended || !endOf(run);
  for (const part of [parts.play, parts.slider, parts.close, parts.speed]) part.hidden = !replay;
  if (!replay) return;
  put(parts.play.firstChild, replay.playing ? "❚❚" : "▶");
  parts.play.setAttribute("aria-label", replay.playing ? "Hold" : "Play");
  Object.assign(parts.slider, { max: endOf(run), value: replay.at });
  parts.slider.setAttribute("aria-valuetext", `${clockText(replay.at)} of ${clockText(endOf(run))}`);
  parts.speeds.forEach((button, i) => button.setAttribute("aria-pressed", String(replay.speed === SPEEDS[i])));
}
