// Make elements, and change those on the page into new ones. Text is only ever set as text: the
// page's policy (require-trusted-types-for) forbids everything that would parse it.

const SVG = "http://www.w3.org/2000/svg";

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Return an HTML element. Attributes named on... are handlers. */
export function h(tag, attributes, ...children) {
  return make(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function s(tag, attributes, ...children) {
  return make(document.createElementNS(SVG, tag), attributes, children);
}

const HANDLERS = ["onclick", "onpointerenter", "onpointerleave"];

/** Change `old` into `next`, keeping elements, and with them focus and selection, where they fit.

    Children with data-key fit each other by it, others by their place. */
function change(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of HANDLERS) if (old[name] !== next[name]) old[name] = next[name];
  become(old, [...next.childNodes]);
}

const keyOf = (node) => node.dataset?.key;
const fits = (old, next) => old.nodeName === next.nodeName && keyOf(old) === keyOf(next);

/** Give `parent` these children. */
export function become(parent, children) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child) !== undefined) keyed.set(keyOf(child), child);
  let at = parent.firstChild;
  for (const next of children) {
    const key = keyOf(next);
    const known = key === undefined ? undefined : keyed.get(key);
    if (known !== undefined && fits(known, next)) {
      if (known === at) at = at.nextSibling;
      else parent.insertBefore(known, at);
      keyed.delete(key);
      change(known, next);
    } else if (key === undefined && at !== null && fits(at, next)) {
      change(at, next);
      at = at.nextSibling;
    } else {
      parent.insertBefore(next, at);
    }
  }
  while (at !== null) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}
