// @ts-check
// Replay: a run's rows again, in its own time or eight times as fast. The page has them all, so the kernel is not asked.

const REPLAY_EVERY = 100; // milliseconds

/** What the bar's buttons do. */
function actsOf(view) {
  const change = (values) => {
    if (view.replay) Object.assign(view.replay, values);
    view.redraw();
  };
  return {
    send: (name) => view.model.send({ type: name }),
    replay() {
      Object.assign(view, {
        zoom: null,
        follows: false,
        cursor: null,
        replay: { at: 0, speed: 8, playing: true, seen: performance.now() },
      });
      view.redraw();
      tick(view);
    },
    play() {
      const { replay, run } = view;
      if (!replay) return;
      change({ playing: !replay.playing, seen: performance.now(), ...(replay.at >= endOf(run) ? { at: 0 } : {}) });
      tick(view);
    },
    seek: (at) => change({ at, seen: performance.now() }),
    speed: (speed) => change({ speed }),
    close() {
      Object.assign(view, { replay: null, zoom: null, follows: false });
      view.redraw();
    },
  };
}

/** Let the clock of a replay go on. */
function tick(view) {
  clearTimeout(view.ticking);
  const { replay } = view;
  if (view.gone || !replay?.playing) return;
  const now = performance.now(),
    end = endOf(view.run);
  replay.at = Math.min(replay.at + ((now - replay.seen) / 1000) * replay.speed, end);
  replay.seen = now;
  if (replay.at >= end) replay.playing = false;
  if (view.body.checkVisibility()) view.redraw();
  view.ticking = setTimeout(tick, REPLAY_EVERY, view);
}
