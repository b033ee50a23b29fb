// @ts-check
// The one way in which scripts here make elements; it comes before all others.

/**
 * An element with its attributes and children, of which texts stay texts.
 * @template {keyof HTMLElementTagNameMap} Kind
 * @param {Kind} kind
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 */
function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
