// Short words on what was done, or went wrong, at the edge of the page.

import { h, icon } from "../lib/dom.js";

const SECONDS = 6;
// Who listens to the page hears what comes into a region that was there before, and nothing while a dialog is open.
const region = document.body.appendChild(h("div", { class: "toasts", role: "status", "aria-live": "polite" }));

/** Say it for some seconds; what went wrong stays until somebody closes it. */
export function say(words, { bad = false } = {}) {
  const toast = h("div", { class: ["toast", bad && "bad"] }, h("span", {}, words));
  const close = () => toast.remove();
  toast.append(h("button", { class: "quiet", type: "button", "aria-label": "Close", onclick: close }, icon("close")));
  region.append(toast);
  while (region.childElementCount > 4) region.firstElementChild.remove();
  if (!bad) setTimeout(close, SECONDS * 1000);
}

export const report = (error) => say(error.message, { bad: true });
