// What stands where something is not there: not yet, not any more, or because of an error.

import { h } from "../lib/dom.js";
import { clock } from "../lib/format.js";

/** Nothing is there. */
export function empty(title, ...words) {
  return h("div", { class: "state" }, h("p", { class: "lead" }, title), h("p", {}, words));
}

/** It could not be had; `retry` tries again. */
export function problem(error, retry) {
  return h("div", { class: "state bad", role: "alert" },
    h("p", { class: "lead" }, error.code === 0 ? "The server cannot be reached" : "This could not be loaded"),
    h("p", {}, error.message),
    retry && h("button", { type: "button", onclick: retry }, "Try again"));
}

/** What is shown is of a time before it could no longer be had. */
export function stale(error, time) {
  return h("p", { class: "notice warn", role: "status" }, error.message, ` This is how it was at ${clock(time)}. It is tried again all the time.`);
}

/** It comes. Shown only after a moment, so that nothing flickers. */
export function loading(words = "Loading …") {
  return h("p", { class: "loading", role: "status" }, words);
}

export function badge(word, tone) {
  return h("span", { class: ["badge", tone] }, word);
}
