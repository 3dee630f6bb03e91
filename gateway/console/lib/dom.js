// Elements, made of what they are: no text ever becomes markup, and none deceives about what it says.

import { visible } from "../log/ansi.js";

/**
 * An element. `properties` are attributes; `on…` are listeners, a `class` may be a list with falsy members, true sets an
 * attribute, false and null leave it out, and those in PROPERTIES are set as properties. Children are nodes, texts, or
 * lists of them; null and false are left out.
 */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) set(element, key, value);
  append(element, children);
  return element;
}

const PROPERTIES = new Set(["value", "checked", "indeterminate", "disabled", "hidden", "selected"]);

/** Set what `h` calls a property of an element. */
export function set(element, key, value) {
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.className = [value].flat().filter(Boolean).join(" ");
  else if (PROPERTIES.has(key)) element[key] = value ?? (key === "value" ? "" : false);
  else if (value === false || value === null || value === undefined) element.removeAttribute(key);
  else element.setAttribute(key, value === true ? "" : READ.has(key) ? harmless(value) : value);
}

/** Attributes that people read. */
const READ = new Set(["title", "aria-label", "placeholder", "data-label"]);

/**
 * A text as it is shown: whoever named something may have put characters into it that turn the direction of what stands
 * beside it, or that nobody sees. They are shown as what they are; what an input holds stays as it is.
 */
const harmless = (value) => String(value).replace(/[^\n]+/g, visible);

export function append(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(harmless(child));
  }
}

/** Have an element hold these children and no others. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

/** Have another element take the focus, if this one has it: it is about to be hidden, disabled or removed. */
export function handOn(element, heir) {
  if (element === document.activeElement) heir.focus({ preventScroll: true });
}

/** Set a text only where it differs, so that a selection in it survives. */
export function text(element, value) {
  const shown = harmless(value);
  if (element.textContent !== shown) element.textContent = shown;
}

/**
 * Like `fill`, but what is there already stays, with its focus, its selection and its listeners: these must not depend on
 * what changes. Elements with a `data-key` are found again by it, wherever they stand.
 */
export function update(element, ...children) {
  const wanted = new DocumentFragment();
  append(wanted, children);
  renewChildren(element, [...wanted.childNodes]);
}

function renewChildren(element, wanted) {
  const keys = new Set(wanted.map(keyOf));
  for (const child of [...element.childNodes]) if (keyOf(child) && !keys.has(keyOf(child))) child.remove();
  const keyed = new Map([...element.children].map((child) => [keyOf(child), child]));
  let place = element.firstChild;
  for (const next of wanted) {
    const found = keyOf(next) ? keyed.get(keyOf(next)) : place && !keyOf(place) && place;
    if (!found || found.nodeName !== next.nodeName) {
      element.insertBefore(next, place);
      continue;
    }
    if (found === place) place = place.nextSibling;
    else element.insertBefore(found, place);
    renew(found, next);
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

const keyOf = (node) => node.dataset?.key ?? "";

function renew(node, next) {
  if (node.isEqualNode(next)) return;
  if (node.nodeType === Node.TEXT_NODE) {
    node.data = next.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    // A heading that was given the focus keeps it.
    if (!next.hasAttribute(name) && name !== "tabindex") node.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  renewChildren(node, [...next.childNodes]);
}

let ids = 0;

/** An id that no other element has. */
export function uid(prefix) {
  return `${prefix}-${++ids}`;
}

/** A part of an SVG picture. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const ICONS = {
  refresh: "M20 12a8 8 0 1 1-2.3-5.6M20 3v4.5h-4.5",
  plus: "M12 5v14M5 12h14",
  play: "M8 5.5v13l10-6.5z",
  stop: "M7 7h10v10H7z",
  bolt: "M13 3 5 14h6l-1 7 8-11h-6z",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7M10.5 10.5v6M13.5 10.5v6",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  again: "M4 12a8 8 0 1 0 2.3-5.6M4 3v4.5h4.5",
  down: "M12 4v11m0 0 4.5-4.5M12 15l-4.5-4.5M5 20h14",
  search: "M10.5 4a6.5 6.5 0 1 1 0 13 6.5 6.5 0 0 1 0-13zM15.5 15.5 20 20",
  close: "M6 6l12 12M18 6 6 18",
  clock: "M12 4a8 8 0 1 1 0 16 8 8 0 0 1 0-16zM12 8v4.5l3 1.8",
  pause: "M9 6v12M15 6v12",
  theme: "M20 14.5A8 8 0 1 1 9.5 4a6.5 6.5 0 0 0 10.5 10.5z",
  wrap: "M4 6h16M4 12h13a3 3 0 0 1 0 6h-4m0 0 2.5-2.5M13 18l2.5 2.5M4 18h5",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  out: "M14 4H5v16h9M10 12h10m0 0-3.5-3.5M20 12l-3.5 3.5",
};

/** A picture beside a text. */
export function icon(name) {
  const attributes = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" };
  return svg("svg", attributes, svg("path", { d: ICONS[name] }));
}
