// One job: what is known of it, live, and its log.

import { delay, follow, get } from "../lib/api.js";
import { fill, h, handOn, icon, set, text, update } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { navigate, query } from "../lib/router.js";
import { VERBS, hasEnded, mayGoOn, statusName, statusTone, statusWord } from "../lib/words.js";
import { LogView } from "../log/view.js";
import { LogWindow } from "../log/window.js";
import { empty, loading, problem } from "../parts/states.js";
import { report, say } from "../parts/toasts.js";
import { facts, outcome } from "./facts.js";
import { DebugLog } from "./debug-log.js";
import { historyTable } from "./history.js";
import { processes } from "./processes.js";
import { act } from "./verbs.js";

const VIEWS = {
  "": "Monitor",
  output: "Console Output",
  debug: "Debug Log",
  processes: "Processes",
  history: "History",
};
const EXPLAIN_MILLISECONDS = 5_000;
const RETRY_MILLISECONDS = 2_000;
// Of what is there, only where it ends is asked for: each view fetches its own part.
const TAIL_BYTES = 1;

export class JobPage extends HTMLElement {
  constructor({ id }) {
    super();
    this._id = id;
    this._job = null;
    this._entries = [];
    // How often it was asked for, and which of these times what is shown is as new as.
    this._asked = 0;
    this._shownAsked = 0;
    this._life = new AbortController();
  }

  connectedCallback() {
    document.title = `Job ${this._id} - SIS`;
    this.className = "page";
    fill(this, loading());
    this._onSight = () => this._job && this._explain();
    document.addEventListener("visibilitychange", this._onSight);
    this._watch();
  }

  disconnectedCallback() {
    this._life.abort();
    clearTimeout(this._asking);
    document.removeEventListener("visibilitychange", this._onSight);
  }

  /** Another view of the same job. */
  addressChanged() {
    if (this._job) this._showView();
  }

  async _watch() {
    try {
      const signal = this._life.signal;
      const onState = (state) => this._mark && this._showState(state);
      const path = `/v1/jobs/${this._id}:monitor`;
      for await (const news of follow(path, { query: { tailBytes: TAIL_BYTES }, signal, onState })) {
        if (news.job) this._heard(news.job);
        else if (news.history) this._addEntry(news.history);
        else if (news.frames) this._view?.live?.(news.frames.frames, news.frames.attempt);
      }
      this._showState("over");
      this._view?.over?.();
      await this._settle(signal);
    } catch (error) {
      if (this._life.signal.aborted) return;
      if (this._job && error.code !== 404) {
        this._halt(error);
        return;
      }
      clearTimeout(this._asking);
      this._job = null;
      this._view?.remove();
      fill(this, error.code === 404 ? gone(this._id, error.message) : problem(error, () => this._again()),
        h("p", { class: "state" }, h("a", { href: "/jobs" }, "To the jobs")));
    }
  }

  /** Show what was settled with the last of it. All the rest is there, and stays, whatever comes of this. */
  async _settle(signal) {
    for (;;) {
      try {
        await this._ask(signal);
        return;
      } catch (error) {
        signal.throwIfAborted();
        if (!error.passing) {
          report(error);
          return;
        }
      }
      await delay(RETRY_MILLISECONDS, signal);
    }
  }

  /** What the monitor says is newer than whatever was asked for before. */
  _heard(job) {
    this._shownAsked = this._asked;
    this._show(job);
  }

  /** Show it as it is now, unless something newer is shown by then. */
  async _ask(signal) {
    const asked = ++this._asked;
    const { job } = await get(`/v1/jobs/${this._id}`, {}, { signal });
    if (!this._job || asked <= this._shownAsked) return;
    this._shownAsked = asked;
    this._show(job);
  }

  /** Nothing comes any more; what is there stays. */
  _halt(error) {
    this._showState("over");
    const again = h("button", { class: "link", type: "button", onclick: () => this._again() }, "Try again");
    fill(this._trouble, `This page may be old: ${error.message} `, again);
    this._trouble.hidden = false;
  }

  _again() {
    clearTimeout(this._asking);
    this._job = null;
    this._mark = null;
    this._entries = [];
    fill(this, loading());
    this._watch();
  }

  _addEntry(entry) {
    if (this._entries.length && Number(entry.sequence) <= Number(this._entries.at(-1).sequence)) return;
    this._entries.push(entry);
    this._view?.entry?.(entry);
    if (this._shown === "history") update(this._place, historyTable(this._entries));
  }

  _build() {
    this._shown = null;
    this._badge = h("span", { class: "badge" });
    this._mark = h("span", { class: "live-mark" });
    this._name = h("h1", { tabindex: "-1" });
    this._meter = h("progress", { max: "100", "aria-label": "Progress" });
    this._said = h("span", { class: "small soft" });
    this._progress = h("div", { class: "job-progress", hidden: true }, this._meter, this._said);
    this._buttons = new Map([
      ...["JOB_VERB_ACTIVATE", "JOB_VERB_RERUN", "JOB_VERB_CANCEL", "JOB_VERB_ABORT", "JOB_VERB_DELETE"].map((verb) => [
        verb,
        h("button", { type: "button", onclick: () => this._act(verb) }, icon(VERBS[verb].icon), VERBS[verb].word),
      ]),
    ]);
    this._outcome = h("p", { class: "outcome" });
    this._trouble = h("div", { class: "notice warn halted", hidden: true, role: "alert" });
    this._why = h("div", { class: "notice warn why", hidden: true, role: "status" });
    this._facts = h("section", { class: "facts-grid", "aria-label": "What is known of the job" });
    this._tabs = new Map(Object.entries(VIEWS).map(([name, word]) => [
      name, h("a", { href: name ? `?view=${name}` : location.pathname }, word),
    ]));
    this._place = h("section", { class: "view" });
    fill(this,
      h("header", {},
        h("p", { class: "small" }, h("a", { href: "/jobs" }, "Jobs"), ` / ${this._id}`),
        h("div", { class: "row spread" },
          h("div", { class: "row" }, this._name, this._badge, this._mark),
          h("div", { class: "row", role: "toolbar", "aria-label": "This job" },
            this._buttons.get("JOB_VERB_ACTIVATE"),
            h("a", { class: "button", href: `/jobs/new?copy=${this._id}` }, icon("copy"), "Copy"),
            [...this._buttons.values()].slice(1))),
        this._outcome, this._progress),
      this._trouble,
      this._why,
      h("div", { class: "job-body" },
        h("div", { class: "job-views" },
          h("nav", { class: "tabs", "aria-label": "Views of the job" }, [...this._tabs.values()]),
          this._place),
        this._facts));
  }

  _showState(state) {
    this._mark.dataset.state = state;
    text(this._mark, { live: "Live", waiting: "Reconnecting …", over: "" }[state]);
    this._mark.hidden = state === "over";
  }

  _show(job) {
    const first = !this._job;
    const moved = this._job?.status !== job.status;
    this._job = job;
    if (first) {
      this._build();
      this._showState(mayGoOn(job) ? "live" : "over");
    }
    document.title = `${statusWord(job.status)}: job ${this._id} - SIS`;
    text(this._name, job.displayName);
    text(this._badge, statusWord(job.status));
    set(this._badge, "class", ["badge", statusTone(job.status)]);
    update(this._outcome, outcome(job));
    const going = !hasEnded(job) && (job.progressPercent > 0 || job.progressText !== "");
    this._progress.hidden = !going;
    this._meter.value = job.progressPercent;
    text(this._said, `${job.progressPercent} % ${job.progressText}`.trim());
    for (const [verb, button] of this._buttons) {
      const forced = verb === "JOB_VERB_ABORT" && job.forcePermitted;
      const disabled = !job.permittedVerbs.includes(verb) && !forced;
      if (disabled) handOn(button, this._name);
      button.disabled = disabled;
    }
    update(this._facts, facts(job));
    if (moved) this._explain();
    if (first) this._showView();
    else if (this._shown === "processes") update(this._place, processes(job));
  }

  /** While it waits, and somebody looks, say for whom. */
  async _explain() {
    clearTimeout(this._asking);
    const waits = ["DEFERRED", "WAITING"].includes(statusName(this._job.status));
    this._why.hidden = !waits;
    if (!waits || document.hidden) return;
    try {
      const found = await get(`/v1/jobs/${this._id}:explain`, {}, { signal: this._life.signal });
      const holders = found.causes.flatMap((cause) => cause.holders);
      // Only what has changed: this is read out.
      update(this._why,
        h("b", {}, "Why it waits: "), found.summary.replace(/^It waits: /, ""),
        holders.length > 0 && h("ul", { class: "holders" }, holders.slice(0, 10).map((holder) => h("li", {},
          `${holder.agent}: `, h("a", { href: `/jobs/${holder.jobId}` }, `job ${holder.jobId}`), ` (${statusWord(holder.status)})`))));
    } catch (error) {
      if (this._life.signal.aborted) return;
      update(this._why, error.message);
    }
    // Another look may have begun meanwhile, or the job may be gone.
    clearTimeout(this._asking);
    if (this._job) this._asking = setTimeout(() => this._explain(), EXPLAIN_MILLISECONDS);
  }

  _showView() {
    const wanted = query().get("view") ?? "";
    const name = wanted in VIEWS ? wanted : "";
    if (this._shown === name) {
      this._view.addressChanged?.();
      return;
    }
    this._shown = name;
    for (const [each, tab] of this._tabs) {
      if (each === name) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    this._view = this._made(name);
    fill(this._place, this._view);
  }

  _made(name) {
    const log = (sources) => new LogWindow(this._id, this._entries, sources);
    const download = `/v1/jobs/${this._id}/output`;
    const live = mayGoOn(this._job);
    switch (name) {
      case "output":
        return new LogView(log(["out", "err"]), { label: "Console output", download, live });
      case "debug":
        return new DebugLog(this._id, log, live);
      case "processes":
        return processes(this._job);
      case "history":
        return historyTable(this._entries);
      default:
        return new LogView(log(["out", "err", "site", "server"]), { label: "Monitor", download, live });
    }
  }

  async _act(verb) {
    const done = await act(this._job, verb);
    if (done && verb === "JOB_VERB_DELETE") {
      say(`Job ${this._id} was deleted.`);
      if (this.isConnected) navigate("/jobs", { replace: true });
      return;
    }
    try {
      await this._ask(this._life.signal);
    } catch (error) {
      if (!this._life.signal.aborted) report(error);
    }
  }
}
customElements.define("sis-job-page", JobPage);

/** Why it is no job any more, in the words of the server, of which those on the command line are left out. */
function gone(id, words) {
  const told = words.replace(/^job_id: /, "").replace(/; `sis jobs list`.*$/s, "");
  if (!told.includes(" was deleted by ")) {
    return empty(`There is no job ${id}`, "It may have been deleted, or its number may be misspelt.");
  }
  const [, before, time, after] = /^(.*? at )([\dT:-]+Z)(.*)$/s.exec(told) ?? [null, told, "", ""];
  return empty(`Job ${id} was deleted`, before[0].toUpperCase(), before.slice(1), time && moment(time), after, ".");
}
