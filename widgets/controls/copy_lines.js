// @ts-check
// How lines of text get to the reader's clipboard.

/**
 * Copies lines; where the page may not write to the clipboard they are selected in their box. The status says which.
 * @param {string} lines
 * @param {HTMLTextAreaElement} box
 * @param {HTMLElement} status
 * @param {() => void} show brings the box on screen
 */
async function copyLines(lines, box, status, show) {
  try {
    await navigator.clipboard.writeText(lines);
    status.textContent = "Copied.";
  } catch {
    show();
    box.focus();
    box.select();
    status.textContent = "Press Ctrl+C (⌘C): the clipboard is closed to this page.";
  }
}

/** A box that shows lines of code and takes no typing. */
function codeBox() {
  const label = "Code that gives the numbers shown here";
  return element("textarea", { readonly: "", spellcheck: "false", class: "wb-code", "aria-label": label });
}
