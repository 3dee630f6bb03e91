// The debug log in its three parts: full, standard, problem.

import { stream } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { count, utc } from "../lib/format.js";
import { LineMaker } from "../log/lines.js";
import { show } from "../log/ansi.js";
import { LogView } from "../log/view.js";
import { empty, loading, problem } from "../parts/states.js";

const PARTS = { full: "Full", standard: "Standard", problem: "Problem" };
const SOURCES = {
  full: ["out", "err", "site", "server", "debug"],
  standard: ["out", "err", "site", "server"],
};
/** So many lines of the problem log are fetched at a time; the rest waits at the server. */
const LINES = 1_000;

export class DebugLog extends HTMLElement {
  constructor(jobId, log, part, choose) {
    super();
    this._id = jobId;
    this._log = log;
    this._part = part in PARTS ? part : "standard";
    this._choose = choose;
    this._life = new AbortController();
  }

  connectedCallback() {
    this._place = h("div", {});
    const choices = Object.entries(PARTS).map(([part, word]) => h("label", { class: "choice" },
      h("input", { type: "radio", name: "part", value: part, checked: part === this._part, onchange: () => this._show(part) }), word));
    fill(this, h("fieldset", { class: "row parts" }, h("legend", { class: "visually-hidden" }, "Part of the debug log"), choices), this._place);
    this._show(this._part, true);
  }

  disconnectedCallback() {
    this._life.abort();
  }

  live(frames) {
    this._view?.live(frames);
  }

  entry(entry) {
    this._view?.entry(entry);
  }

  _show(part, first = false) {
    this._part = part;
    if (!first) this._choose(part);
    this._view = part === "problem" ? null : new LogView(this._log(), { sources: SOURCES[part], label: `Debug log, ${PARTS[part]}` });
    if (this._view) fill(this._place, this._view);
    else this._problems();
  }

  async _problems() {
    this._life.abort();
    this._life = new AbortController();
    const lines = h("div", { class: "log wrap times", role: "log", tabindex: "0", "aria-label": "Debug log, Problem" });
    const more = h("button", { type: "button", hidden: true }, "More");
    fill(this._place, loading());
    const maker = new LineMaker();
    let shown = 0;
    let page = LINES;
    try {
      const path = `/v1/jobs/${this._id}/debugLog`;
      for await (const item of stream("GET", path, { query: { view: "DEBUG_LOG_VIEW_PROBLEM" }, signal: this._life.signal })) {
        const found = item.history ? maker.entry(item.history) : (item.frames?.frames ?? []).flatMap((frame) => maker.frame(frame));
        for (const line of found) lines.append(this._line(line));
        if (!shown && found.length) fill(this._place, lines, more);
        shown += found.length;
        if (shown >= page) {
          page += LINES;
          more.hidden = false;
          await new Promise((resolve) => more.addEventListener("click", resolve, { once: true }));
          more.hidden = true;
        }
      }
      if (!shown) fill(this._place, empty("Nothing went wrong", "There is nothing on standard error, and no warning."));
      else more.replaceWith(h("p", { class: "hint" }, `${count(shown, "line")}, all there are so far.`));
    } catch (error) {
      if (!this._life.signal.aborted) fill(this._place, problem(error, () => this._problems()));
    }
  }

  _line(line) {
    const element = h("div", { class: ["line", line.source, line.tone], title: utc(line.time), "data-time": utc(line.time).slice(11, 19) });
    show(element, line.text, line.style);
    return element;
  }
}
customElements.define("sis-debug-log", DebugLog);
