// What went wrong: standard error, warnings and failures of all attempts, with what comes while somebody looks.

import { stream } from "../lib/api.js";
import { fill, h, handOn, text } from "../lib/dom.js";
import { clock, count, utc } from "../lib/format.js";
import { statusName } from "../lib/words.js";
import { show } from "../log/ansi.js";
import { LineMaker } from "../log/lines.js";
import { empty, loading, problem } from "../parts/states.js";

/** So many lines are shown at a time; the rest waits at the server. And so many of what comes meanwhile are kept. */
const LINES = 1_000;
// As the server chooses them for this part.
const STATUSES = new Set(["FAILED", "AWOL", "TIMED_OUT", "EXPIRED", "ABORTED"]);
const SEVERITIES = new Set(["SEVERITY_WARNING", "SEVERITY_ERROR"]);

export class ProblemLog extends HTMLElement {
  constructor(jobId, label) {
    super();
    this._path = `/v1/jobs/${jobId}/debugLog`;
    this._label = label;
  }

  connectedCallback() {
    this._begin();
  }

  disconnectedCallback() {
    this._life.abort();
  }

  live(frames, attempt) {
    const found = frames.filter(({ chunk, notice }) => chunk?.channel === "CHANNEL_STDERR" || SEVERITIES.has(notice?.severity));
    this._come(found.map((frame) => ({ frame, attempt })));
  }

  entry(entry) {
    if (STATUSES.has(statusName(entry.toStatus))) this._come([{ entry }]);
  }

  _begin() {
    this._life?.abort();
    this._life = new AbortController();
    this._maker = new LineMaker();
    this._shown = 0;
    this._room = LINES;
    this._lastEntry = 0;
    this._lastFrame = [0, 0];
    this._lines = h("div", { class: "log wrap times", role: "log", tabindex: "0", "aria-label": this._label, "aria-live": "off" });
    this._told = h("p", { class: "hint" });
    this._more = h("button", { type: "button" }, "More");
    fill(this, loading());
    this._read(this._life.signal);
  }

  /** Show what the server has beyond what is shown. */
  async _read(signal) {
    this._came = [];
    try {
      const query = { view: "DEBUG_LOG_VIEW_PROBLEM" };
      for await (const item of stream("GET", this._path, { query, signal })) {
        const found = item.history
          ? [{ entry: item.history }]
          : (item.frames?.frames ?? []).map((frame) => ({ frame, attempt: item.frames.attempt }));
        for (const each of found) {
          if (this._shown >= this._room) await this._asked(signal);
          if (!signal.aborted) this._add(each);
        }
      }
      const came = this._came;
      this._came = null;
      if (!this._shown) fill(this, empty("Nothing went wrong", "There is nothing on standard error, and no warning."));
      this._come(came);
      this._tell();
    } catch (error) {
      if (signal.aborted) return;
      // Whoever reads slowly is cut off in the end.
      if (this._shown && error.passing) this._goOn(signal, error);
      else fill(this, problem(error, () => this._begin()));
    }
  }

  /** What was just written. What the page has no room for is read from the server again, when somebody wants it. */
  _come(items) {
    if (this._came) {
      this._came.push(...items.slice(0, LINES + 1 - this._came.length));
      return;
    }
    const atEnd = this._lines.scrollHeight - this._lines.scrollTop - this._lines.clientHeight < 40;
    for (const [n, item] of items.entries()) {
      if (this._shown >= this._room || n >= LINES) {
        this._goOn(this._life.signal);
        return;
      }
      this._add(item);
    }
    if (atEnd) this._lines.scrollTop = this._lines.scrollHeight;
    this._tell();
  }

  async _goOn(signal, error = null) {
    this._came = [];
    await this._asked(signal, error);
    if (!signal.aborted) await this._read(signal);
  }

  /** Wait until somebody wants more. */
  async _asked(signal, error = null) {
    this._tell(error);
    this.append(this._more);
    await new Promise((resolve) => {
      this._more.addEventListener("click", resolve, { once: true, signal });
      signal.addEventListener("abort", resolve, { once: true });
    });
    handOn(this._more, this._lines);
    this._more.remove();
    this._room += LINES;
  }

  _add({ entry, frame, attempt }) {
    if (!this._follows(entry, frame, Number(attempt))) return;
    const made = entry ? this._maker.entry(entry) : this._maker.frame(frame);
    for (const line of this._maker.grown) show(line.element, line.text, line.style);
    this._maker.grown.clear();
    for (const line of made) this._lines.append((line.element = this._line(line)));
    this._shown += made.length;
    if (made.length && !this._lines.isConnected) fill(this, this._lines, this._told);
  }

  /** Whether it comes after all that is shown: what is read and what was just written may be the same. */
  _follows(entry, frame, attempt) {
    if (entry) {
      if (Number(entry.sequence) <= this._lastEntry) return false;
      this._lastEntry = Number(entry.sequence);
      return true;
    }
    const [lastAttempt, lastSequence] = this._lastFrame;
    const sequence = Number(frame.sequence);
    if (attempt < lastAttempt || (attempt === lastAttempt && sequence <= lastSequence)) return false;
    this._lastFrame = [attempt, sequence];
    return true;
  }

  _tell(error = null) {
    text(this._told, `${count(this._shown, "line")}${error ? `. What follows was not read: ${error.message}` : ""}`);
  }

  _line(line) {
    const element = h("div", {
      class: ["line", line.source, line.tone], title: utc(line.time), "data-time": clock(line.time),
    });
    show(element, line.text, line.style);
    return element;
  }
}
customElements.define("sis-problem-log", ProblemLog);
