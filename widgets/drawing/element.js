// @ts-check
// How every script here makes elements; this file comes before all others.

/**
 * An element with its attributes and children; texts stay text, never HTML.
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

/** Puts the children in; where they are there already in this order, touches nothing, so that a press that has begun counts. */
function fillWith(parent, children) {
  const same = children.length === parent.children.length && children.every((child, i) => child === parent.children[i]);
  if (!same) parent.replaceChildren(...children);
}
