// What every panel does the same way: plain keys stay in the panel, and slider handles get the name that ipywidgets leaves out.

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

export default {
  render({ el }) {
    el.classList.add("wb-manners");
    let frame, panel;
    const observer = new MutationObserver(() => nameHandles(panel));
    const settle = () => {
      panel = el.closest(".wb-panel");
      if (!panel) return void (frame = requestAnimationFrame(settle)); // the view is not in its panel yet
      panel.addEventListener("keydown", keepKeys);
      panel.setAttribute("role", "region");
      panel.setAttribute("aria-label", panel.querySelector(".wb-title")?.textContent ?? "Panel");
      observer.observe(panel, { childList: true, subtree: true });
      nameHandles(panel);
    };
    settle();
    return () => {
      cancelAnimationFrame(frame);
      observer.disconnect();
      panel?.removeEventListener("keydown", keepKeys);
    };
  },
};
