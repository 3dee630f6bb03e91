// The debug log in its three parts: full, standard, problem. Which one is in the address.

import { fill, h } from "../lib/dom.js";
import { query, setQuery } from "../lib/router.js";
import { LogView } from "../log/view.js";
import { ProblemLog } from "./problem-log.js";

const PARTS = { full: "Full", standard: "Standard", problem: "Problem" };
const SOURCES = {
  full: ["out", "err", "site", "server", "debug"],
  standard: ["out", "err", "site", "server"],
};

export class DebugLog extends HTMLElement {
  constructor(jobId, log, live) {
    super();
    this._id = jobId;
    this._log = log;
    this._live = live;
  }

  connectedCallback() {
    this._place = h("div", {});
    this._choices = Object.entries(PARTS).map(([part, word]) => [
      part, h("input", { type: "radio", name: "part", value: part, onchange: () => setQuery({ part }) }), word,
    ]);
    fill(this,
      h("fieldset", { class: "row parts" }, h("legend", { class: "visually-hidden" }, "Part of the debug log"),
        this._choices.map(([, input, word]) => h("label", { class: "choice" }, input, word))),
      this._place);
    this.addressChanged();
  }

  addressChanged() {
    const wanted = query().get("part");
    const part = wanted in PARTS ? wanted : "standard";
    if (part === this._part) return;
    this._part = part;
    for (const [name, input] of this._choices) input.checked = name === part;
    const label = `Debug log, ${PARTS[part]}`;
    this._view = part === "problem"
      ? new ProblemLog(this._id, label)
      : new LogView(this._log(SOURCES[part]), { label, live: this._live });
    fill(this._place, this._view);
  }

  live(frames, attempt) {
    this._view.live(frames, attempt);
  }

  entry(entry) {
    this._view.entry(entry);
  }

  over() {
    this._live = false;
    this._view.over?.();
  }
}
customElements.define("sis-debug-log", DebugLog);
