// @ts-check
// Says so where the kernel has not heard what was pressed: Colab's, and ipykernel before 7, hear nothing while a cell runs.

const HEARD_WITHIN = 1500; // milliseconds: longer than any answer takes that is not held up by a cell
const PRESSED = "button, select, input, textarea, canvas, [role=tab], [role=slider], [role=button], [role=option]";
const BUSY = "The kernel is busy with a cell: this is done as soon as the cell ends, or is interrupted.";

/** Ask the kernel, whenever something in `panel` is used, whether it hears; until it does, say below the control that it waits. */
function tellBusy(model, panel) {
  if (!model.get("hears_between_cells")) return () => {};
  const note = document.createElement("div");
  note.className = "wb-busy";
  note.setAttribute("role", "status");
  panel.append(note);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const ask = (event) => {
    const control = event.target.closest(PRESSED);
    if (!control || control.closest(".wb-panel") !== panel || timer !== undefined) return;
    timer = setTimeout(() => {
      const at = control.getBoundingClientRect(), within = panel.getBoundingClientRect();
      const left = Math.min(Math.max(at.left - within.left, 0), Math.max(within.width - 320, 0));
      Object.assign(note.style, { left: `${left}px`, top: `${at.bottom - within.top + 4}px` });
      note.textContent = BUSY;
    }, HEARD_WITHIN);
    model.send({ type: "heard?" });
  };
  const heard = () => {
    clearTimeout(timer);
    timer = undefined;
    note.textContent = "";
  };
  for (const kind of ["click", "change", "keydown"]) panel.addEventListener(kind, ask, true);
  model.on("msg:custom", heard);
  return () => {
    clearTimeout(timer);
    for (const kind of ["click", "change", "keydown"]) panel.removeEventListener(kind, ask, true);
    model.off("msg:custom", heard);
    note.remove();
  };
}
