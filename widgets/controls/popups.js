// @ts-check
// What opens over an app: one popup at a time, below what was pressed, and inside the panel's own box, because outputs are clipped
// (JupyterLab) or frames of their own (Colab). A panel that is too low for a popup is made higher while it is open.

const POPUP_HEIGHT = 320;

/**
 * Popups that stand in ``el``, which is positioned.
 * @param {HTMLElement} el
 */
function popupsIn(el) {
  /** @type {{ popup: HTMLElement, anchor: HTMLElement } | null} */
  let open = null;
  const panel = () => /** @type {HTMLElement | null} */ (el.closest(".wb-panel"));
  const place = () => {
    if (!open) return;
    const { popup, anchor } = open, frame = el.getBoundingClientRect(), at = anchor.getBoundingClientRect();
    popup.style.top = `${at.bottom - frame.top + 3}px`;
    popup.style.maxHeight = `${POPUP_HEIGHT}px`;
    popup.style.maxWidth = `${frame.width}px`;
    popup.style.left = `${Math.max(0, Math.min(at.left - frame.left, frame.width - popup.offsetWidth))}px`;
    const box = panel();
    if (box) box.style.minHeight = `${Math.ceil(popup.getBoundingClientRect().bottom - box.getBoundingClientRect().top) + 10}px`;
  };
  const hide = () => {
    if (!open) return;
    const { popup, anchor } = open, box = panel();
    open = null;
    popup.hidden = true;
    anchor.setAttribute("aria-expanded", "false");
    if (box) box.style.minHeight = "";
  };
  const show = (popup, anchor) => {
    if (open?.popup !== popup) hide();
    open = { popup, anchor };
    popup.hidden = false;
    anchor.setAttribute("aria-expanded", "true");
    place();
  };
  const elsewhere = (event) => {
    const path = event.composedPath();
    if (open && !path.includes(open.popup) && !path.includes(open.anchor)) hide();
  };
  const escape = (event) => {
    if (event.key !== "Escape" || !open) return; // a second Escape leaves to the notebook
    event.stopPropagation();
    event.preventDefault();
    const { anchor } = open;
    hide();
    anchor.focus();
  };
  const left = (event) => {
    if (open && event.relatedTarget instanceof Node && !el.contains(event.relatedTarget)) hide();
  };
  document.addEventListener("pointerdown", elsewhere, true);
  el.addEventListener("keydown", escape);
  el.addEventListener("focusout", left);
  const observer = new ResizeObserver(place);
  observer.observe(el);
  return {
    show,
    hide,
    place,
    /** Whether this popup is open. */
    shows: (popup) => open?.popup === popup,
    end() {
      hide();
      observer.disconnect();
      document.removeEventListener("pointerdown", elsewhere, true);
    },
  };
}
