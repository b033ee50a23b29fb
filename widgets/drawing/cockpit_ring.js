// @ts-check
// The page's title while the reader is elsewhere: that the run on show ended, or takes no step any more, until the reader is back.
// In a frame of its own (Colab's) that is the frame's title alone, which no tab shows.

/** Notices what became of a run since the last look; what was so when it came into view rings nothing. */
function ring(state) {
  const { run, state: name, ended, alert } = state.content;
  const before = state.rung ?? {},
    known = before.run === run;
  const news = ended ? name : alert;
  state.rung = { run, news, live: Boolean(name) && !ended };
  if (!known || before.news === news || !(before.live || state.rung.live)) return;
  state.quiet?.(); // the news of before is over
  if (news && (document.hidden || !document.hasFocus())) state.quiet = entitle(`${signOf(news)} ${wordOf(news)}: ${run.split("/").pop()}`);
}

/** Puts words before the page's title until it is looked at; returns what takes them, and no other cockpit's, away. */
function entitle(words) {
  const mark = `${words.replace(/\s+/g, " ").trim()} – `; // white space as the page itself has it in its title
  const restore = () => {
    document.title = document.title.replace(mark, ""); // the page may have found another one meanwhile
    for (const [target, name] of LOOKED_AT) target.removeEventListener(name, looked);
  };
  const looked = () => {
    if (!document.hidden) restore();
  };
  document.title = mark + document.title;
  for (const [target, name] of LOOKED_AT) target.addEventListener(name, looked);
  return restore;
}

/** @type {[EventTarget, string][]} */
const LOOKED_AT = [
  [window, "focus"],
  [document, "visibilitychange"],
];
