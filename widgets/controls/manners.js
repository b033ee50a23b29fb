// @ts-check
// What every panel does alike: plain keys stay in the panel, folds and explanations open and close, and accessible names that
// ipywidgets leaves out are added: slider handles, wrong fields.

/** Keys pressed in a panel are not the notebook's shortcuts; Escape still leaves to the notebook, and Tab keeps its default. */
function keepKeys(event) {
  if (event.key !== "Escape") event.stopPropagation();
}

function nameHandles(panel) {
  for (const slider of panel.querySelectorAll(".noUi-target")) {
    const name = slider.closest(".widget-inline-hbox")?.querySelector(".widget-label")?.textContent;
    const handles = slider.querySelectorAll(".noUi-handle");
    handles.forEach((handle, i) => {
      const label = handles.length > 1 ? `${name}, ${i ? "to" : "from"}` : name;
      if (name && handle.getAttribute("aria-label") !== label) handle.setAttribute("aria-label", label);
    });
  }
}

/** What a "?" explains lies over what is below it, until it is pressed again or something else is. */
function explain(event) {
  const pressed = event.target.closest(".wb-why");
  for (const why of event.currentTarget.querySelectorAll(".wb-why")) {
    const open = why === pressed && why.getAttribute("aria-expanded") === "false";
    why.setAttribute("aria-expanded", String(open));
    const explanation = why.parentElement.querySelector(".wb-explanation");
    if (explanation) explanation.hidden = !open;
  }
}

/** A fold is a box whose first child holds a button; the rest is hidden until the box has the class wb-open. */
function toggle(event) {
  const title = event.target.closest(".wb-fold-title");
  const fold = title?.closest(".wb-fold");
  if (!fold || event.defaultPrevented) return; // a panel inside this one has handled it
  event.preventDefault();
  fold.classList.toggle("wb-open");
  markFolds(fold.parentElement);
}

function markFolds(within) {
  for (const title of within.querySelectorAll(".wb-fold-title")) {
    const open = String(title.closest(".wb-fold")?.matches(".wb-open, .wb-faulty") ?? false);
    if (title.getAttribute("aria-expanded") !== open) title.setAttribute("aria-expanded", open);
  }
  for (const cell of within.querySelectorAll(".wb-cell")) {
    const wrong = cell.classList.contains("wb-wrong");
    const control = cell.querySelector("input, select");
    if (control && control.ariaInvalid !== String(wrong)) control.ariaInvalid = String(wrong);
  }
}

const HEIGHT = 5000; // pixels that Colab may give a cell's outputs; without being asked it gives 1,000, and they scroll there

export default {
  render({ model, el }) {
    el.classList.add("wb-manners");
    globalThis.google?.colab?.output?.setIframeHeight?.(0, true, { maxHeight: HEIGHT });
    let frame, panel, quiet;
    const observer = new MutationObserver(() => (nameHandles(panel), markFolds(panel)));
    const settle = () => {
      panel = el.closest(".wb-panel");
      if (!panel) return void (frame = requestAnimationFrame(settle)); // the view is not in its panel yet
      panel.addEventListener("click", toggle);
      if (!panel.parentElement?.closest(".wb-panel")) panel.addEventListener("click", explain);
      panel.addEventListener("keydown", keepKeys);
      panel.setAttribute("role", "region");
      panel.setAttribute("aria-label", model.get("title"));
      observer.observe(panel, { childList: true, subtree: true });
      nameHandles(panel);
      quiet = tellBusy(model, panel);
    };
    settle();
    return () => {
      cancelAnimationFrame(frame);
      observer.disconnect();
      quiet?.();
      panel?.removeEventListener("click", toggle);
      panel?.removeEventListener("click", explain);
      panel?.removeEventListener("keydown", keepKeys);
    };
  },
};
