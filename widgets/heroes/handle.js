// @ts-check
// Something in a picture to take hold of: by mouse, by touch, by arrow keys, and named for screen readers.

/**
 * Make an element a slider. `options`:
 * - `label`, and `text()`: its value in words;
 * - `value()`, `low()`, `high()`: numbers as they are now;
 * - `step`: of an arrow key; ten of it with Shift or a page key;
 * - `at(x, y)`: the value at a place of the picture, in pixels from its left upper corner;
 * - `move(value)`: what a new value does.
 * Returns what brings the names for screen readers up to date; call it after drawing.
 */
function handle(node, picture, options) {
  const to = (value) => options.move(clamp(value, options.low(), options.high()));
  const keys = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
  reshape(node, { role: "slider", tabindex: 0, "aria-label": options.label });
  node.classList.add("wb-hero-handle");
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = keys[event.key] * (event.shiftKey ? 10 : 1);
    if (event.key === "Home") to(options.low());
    else if (event.key === "End") to(options.high());
    else if (steps) to(options.value() + steps * options.step);
    else return;
    event.preventDefault();
  });
  let off = null; // from the pointer to the handle's middle, while it is held
  const place = (event) => {
    const box = picture.getBoundingClientRect();
    return options.at(event.clientX - box.x, event.clientY - box.y);
  };
  node.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    off = options.value() - place(event);
    node.setPointerCapture(event.pointerId);
    node.focus({ preventScroll: true });
    event.preventDefault();
  });
  node.addEventListener("pointermove", (event) => off !== null && to(place(event) + off));
  for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (off = null));
  return () => {
    const [value, low, high] = [options.value(), options.low(), options.high()];
    reshape(node, { "aria-valuenow": value, "aria-valuemin": low, "aria-valuemax": high, "aria-valuetext": options.text() });
  };
}
