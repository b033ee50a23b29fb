// @ts-check
// A block map that is a drawing of its own; blockmap.js comes before it.

function drawAlone(view) {
  const { map, summary, error } = view.state.content;
  view.body.setAttribute("aria-label", summary || "Block map");
  view.canvas.setAttribute("aria-label", `${map ? map.name : "Values"} by block. ${HELP}`);
  complain(view, error);
  drawBlocks(view);
}

function pictureOf(state, model) {
  const { map } = state.content;
  if (!map) throw new Error("There is no map yet.");
  const view = shownView(state), shown = view?.window && view.body.clientWidth ? view : null;
  const width = shown?.body.clientWidth ?? PICTURE.width, height = model.get("height");
  const marks = { selected: map.selected, cursor: null, box: null };
  const whole = { map, overview: overviewOf(map), window: wholeOf(map), look: FRAMED, marks };
  const canvas = document.createElement("canvas"), context = sized(canvas, width, height, PICTURE.scale);
  const colours = pageColours(view?.frame ?? document.body);
  drawMap(context, width, height, shown ? { ...sceneOf(shown, map), marks } : whole, colours);
  return asPicture(canvas, colours);
}

export default {
  initialize: ({ model }) => keepState(model, { redraw: schedule, picture: pictureOf, received }),

  render({ model, el }) {
    const parts = mapElements();
    const tools = zoomTools(() => view);
    const frame = buildFrame(model, el, "workbench-map", parts.body, tools);
    const view = { name: `${shared.page}-${++views}`, look: FRAMED, draw: drawAlone, ...parts, ...frame };
    return followMap(view);
  },
};
