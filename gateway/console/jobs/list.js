// The Job Queue: a page of jobs, live, with the toolbar of the user guide.

import { ApiError, follow, get } from "../lib/api.js";
import { fill, h, icon, text } from "../lib/dom.js";
import { count, number } from "../lib/format.js";
import { query, setQuery } from "../lib/router.js";
import { RUN_STATES, TYPE_FILTERS, VERBS } from "../lib/words.js";
import { empty, loading, problem } from "../parts/states.js";
import { COLUMNS, JobRow } from "./rows.js";
import { actOnMany } from "./verbs.js";

const PAGE_SIZE = 50;
const TYPING_MILLISECONDS = 300;
const COUNT_MILLISECONDS = 3_000;
const VERBS_HERE = ["JOB_VERB_ACTIVATE", "JOB_VERB_CANCEL", "JOB_VERB_DELETE"];

export class JobList extends HTMLElement {
  constructor() {
    super();
    this._rows = new Map();
    this._picked = new Set();
    this._allMatching = false;
    this._total = 0;
    this._waiting = new Map();
    this._tokens = [];
    this._life = new AbortController();
    this._loaded = new AbortController();
  }

  connectedCallback() {
    document.title = "Jobs - SIS";
    this.className = "page";
    this._build();
    this.addressChanged();
  }

  disconnectedCallback() {
    this._life.abort();
    this._loaded.abort();
    clearTimeout(this._counting);
  }

  /** Show what the address says. */
  addressChanged() {
    const wanted = query();
    this._type.value = wanted.get("type") ?? "";
    this._state.value = wanted.get("state") ?? "";
    if (document.activeElement !== this._text) this._text.value = wanted.get("text") ?? "";
    this._load();
  }

  // What is on the page

  _build() {
    const choose = (name, word, choices) =>
      h("select", { "aria-label": word, onchange: (event) => this._narrow({ [name]: event.target.value }) },
        h("option", { value: "" }, `${word}: all`),
        Object.entries(choices).map(([value, label]) => h("option", { value }, label)));
    this._type = choose("type", "Type", TYPE_FILTERS);
    this._state = choose("state", "Run State", RUN_STATES);
    this._text = h("input", {
      type: "search",
      placeholder: "Filter by name, operation, target",
      "aria-label": "Filter by name, operation, target",
      maxlength: "200",
      oninput: () => {
        clearTimeout(this._typing);
        this._typing = setTimeout(() => this._narrow({ text: this._text.value.trim() }, true), TYPING_MILLISECONDS);
      },
    });
    this._verbs = new Map(VERBS_HERE.map((verb) => [verb, h("button", {
      type: "button", disabled: true, onclick: () => this._act(verb),
    }, icon(VERBS[verb].icon), VERBS[verb].word)]));
    this._heading = h("span", { class: "soft", role: "status" });
    this._live = h("span", { class: "live-mark" });
    this._box = h("input", {
      type: "checkbox", "aria-label": "Select all jobs on this page", onchange: () => this._pickPage(this._box.checked),
    });
    this._heads = COLUMNS.map(([field, word, name]) => this._head(field, word, name));
    this._body = h("tbody", {});
    this._table = h("table", { class: "jobs" },
      h("caption", { class: "visually-hidden" }, "Jobs"),
      h("thead", {}, h("tr", {}, h("th", { class: "pick", scope: "col" }, this._box), this._heads)),
      this._body);
    this._note = h("div", {});
    this._banner = h("div", { class: "banner", hidden: true, role: "status" });
    this._news = h("button", { class: "news", type: "button", hidden: true, onclick: () => this._settle(true) });
    this._before = h("button", { type: "button", onclick: () => this._back() }, icon("left"), "Newer");
    this._after = h("button", { type: "button", onclick: () => this._next() }, "Older", icon("right"));
    this._pages = h("nav", { class: "row pages", "aria-label": "Pages" }, this._before, this._after);
    // What is new is announced over the list, not above it: nothing moves for it.
    this._sheet = h("div", { class: "list-place", onpointerleave: () => this._settle() },
      this._news, h("div", { class: "sheet" }, this._table, this._note));
    this.replaceChildren(
      h("header", { class: "row spread" },
        h("div", { class: "row" }, h("h1", {}, "Jobs"), this._heading, this._live),
        h("a", { class: "button primary", href: "/jobs/new" }, icon("plus"), "Create New")),
      h("div", { class: "row toolbar", role: "toolbar", "aria-label": "Jobs" },
        h("button", { type: "button", onclick: () => this._load() }, icon("refresh"), "Refresh"),
        this._type, this._state, this._text,
        h("span", { class: "row" }, [...this._verbs.values()])),
      this._banner, this._sheet,
      this._pages);
  }

  _head(field, word, name) {
    if (!field) return h("th", { scope: "col", class: name }, word);
    const arrow = h("span", { class: "arrow", "aria-hidden": "true" });
    const button = h("button", { type: "button", class: "sort", onclick: () => this._sort(field) }, word, arrow);
    const head = h("th", { scope: "col", class: name }, button);
    head.tell = (order, descending) => {
      if (order === field) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      text(arrow, order === field ? (descending ? "▼" : "▲") : "");
    };
    return head;
  }

  // Which jobs

  _order() {
    const [field, direction] = (query().get("order") ?? "job_id desc").split(" ");
    return [field, direction === "desc"];
  }

  _filter() {
    const wanted = query();
    const filter = {};
    if (wanted.get("type")) filter.types = [wanted.get("type")];
    if (wanted.get("state")) filter.runStates = [wanted.get("state")];
    if (wanted.get("status")) filter.statuses = wanted.getAll("status");
    if (wanted.get("text")) filter.text = wanted.get("text");
    return filter;
  }

  _parameters() {
    return Object.fromEntries(Object.entries(this._filter()).map(([name, value]) => [`filter.${name}`, value]));
  }

  _narrow(changes, replace = false) {
    this._tokens = [];
    setQuery({ ...changes, page: "" }, { replace });
  }

  _sort(field) {
    const [order, descending] = this._order();
    const next = order === field ? !descending : ["job_id", "create_time", "start_time", "complete_time"].includes(field);
    this._narrow({ order: next ? `${field} desc` : field });
  }

  _next() {
    this._tokens.push(query().get("page") ?? "");
    setQuery({ page: this._nextToken });
  }

  _back() {
    setQuery({ page: this._tokens.pop() ?? "" });
  }

  // Loading, and following

  async _load() {
    this._loaded.abort();
    const loaded = (this._loaded = new AbortController());
    const [order, descending] = this._order();
    for (const head of this._heads) head.tell?.(order, descending);
    if (!this._rows.size) fill(this._note, loading());
    try {
      const page = await get("/v1/jobs", {
        ...this._parameters(),
        pageSize: PAGE_SIZE,
        pageToken: query().get("page") ?? "",
        orderBy: query().get("order") ?? "",
      }, { signal: loaded.signal });
      this._show(page);
      await this._follow(page.watchToken, loaded.signal);
    } catch (error) {
      if (loaded.signal.aborted) return;
      if (error instanceof ApiError && ["RESUME_EXPIRED", "INVALID_TOKEN"].includes(error.reason)) {
        if (error.reason === "INVALID_TOKEN" && query().get("page")) setQuery({ page: "" }, { replace: true });
        else this._load();
        return;
      }
      this._rows.clear();
      fill(this._body);
      fill(this._note, problem(error, () => this._load()));
    }
  }

  _show(page) {
    const former = this._rows;
    this._rows = new Map();
    for (const job of page.jobs) {
      const row = former.get(job.jobId) ?? new JobRow(job, (each, picked) => this._pick(each, picked));
      if (former.has(job.jobId)) row.update(job);
      this._rows.set(job.jobId, row);
    }
    this._body.replaceChildren(...[...this._rows.values()].map((row) => row.element));
    this._picked = new Set([...this._picked].filter((id) => this._rows.has(id)));
    this._allMatching = false;
    this._waiting.clear();
    this._nextToken = page.nextPageToken;
    const first = !query().get("page");
    this._before.disabled = first;
    this._after.disabled = !page.nextPageToken;
    this._pages.hidden = first && !page.nextPageToken;
    this._setTotal(Number(page.totalSize));
    this._news.hidden = true;
    this._sync();
  }

  _setTotal(total) {
    this._total = total;
    text(this._heading, `Total Matching Jobs ${number(total)}`);
    if (this._rows.size) fill(this._note);
    else if (Object.keys(this._filter()).length) fill(this._note, empty("No job matches", "Change or clear the filter."));
    else fill(this._note, empty("There are no jobs yet", h("a", { href: "/jobs/new" }, "Create the first one"), "."));
    this._table.hidden = !this._rows.size;
  }

  async _follow(token, signal) {
    const onState = (state) => {
      this._live.dataset.state = state;
      text(this._live, state === "live" ? "Live" : "Reconnecting …");
    };
    for await (const change of follow("/v1/jobs:watch", { query: this._parameters(), token, signal, onState })) {
      for (const job of change.jobs) this._changed(job);
      for (const id of change.goneJobIds) this._gone(id);
      if (change.jobs.length || change.goneJobIds.length) this._settle();
    }
  }

  _changed(job) {
    const row = this._rows.get(job.jobId);
    if (row) {
      row.update(job);
      this._sync();
      return;
    }
    this._recount();
    const [order, descending] = this._order();
    const newest = [...this._rows.keys()].every((id) => BigInt(id) < BigInt(job.jobId));
    if (order === "job_id" && descending && !query().get("page") && newest) this._waiting.set(job.jobId, job);
    else if (this._waiting.has(job.jobId)) this._waiting.set(job.jobId, job);
  }

  _gone(id) {
    this._waiting.delete(id);
    this._rows.get(id)?.gone();
    if (this._rows.has(id)) this._recount();
  }

  /** Let the list be as it should, unless somebody is busy in it: then what is new waits. */
  _settle(now = false) {
    const busy = this._sheet.matches(":hover") || this._sheet.contains(document.activeElement) || this._picked.size;
    if (busy && !now) {
      this._news.hidden = !this._waiting.size;
      text(this._news, `Show ${count(this._waiting.size, "new job")}`);
      return;
    }
    this._news.hidden = true;
    for (const [id, row] of this._rows) {
      if (!row.element.classList.contains("gone")) continue;
      row.element.remove();
      this._rows.delete(id);
      this._picked.delete(id);
    }
    if (this._waiting.size) {
      const fresh = [...this._waiting.values()].sort((a, b) => (BigInt(a.jobId) < BigInt(b.jobId) ? 1 : -1));
      this._waiting.clear();
      const rows = fresh.slice(0, PAGE_SIZE).map((job) => new JobRow(job, (each, picked) => this._pick(each, picked)));
      this._body.prepend(...rows.map((row) => row.element));
      this._rows = new Map([...rows.map((row) => [row.job.jobId, row]), ...this._rows]);
      for (const [id, row] of [...this._rows].slice(PAGE_SIZE)) {
        row.element.remove();
        this._rows.delete(id);
        this._picked.delete(id);
      }
    }
    this._setTotal(this._total);
    this._sync();
  }

  /** How many match is asked anew, not too often. */
  _recount() {
    this._counting ??= setTimeout(async () => {
      this._counting = undefined;
      try {
        const page = await get("/v1/jobs", { ...this._parameters(), pageSize: 1 }, { signal: this._loaded.signal });
        this._setTotal(Number(page.totalSize));
      } catch {
        // The watch tells when the server is away.
      }
    }, COUNT_MILLISECONDS);
  }

  // Selecting, and acting

  _pick(row, picked) {
    if (picked) this._picked.add(row.job.jobId);
    else this._picked.delete(row.job.jobId);
    this._allMatching = false;
    this._sync();
  }

  _pickPage(picked) {
    this._picked = new Set(picked ? this._rows.keys() : []);
    this._allMatching = false;
    this._sync();
  }

  _sync() {
    const size = this._picked.size;
    for (const [id, row] of this._rows) row.pick(this._picked.has(id));
    this._box.checked = size > 0 && size === this._rows.size;
    this._box.indeterminate = size > 0 && size < this._rows.size;
    const jobs = this._chosen();
    for (const [verb, button] of this._verbs) {
      button.disabled = !this._allMatching && !jobs.some((job) => job.permittedVerbs.includes(verb));
    }
    this._showBanner(size);
  }

  _chosen() {
    return [...this._picked].map((id) => this._rows.get(id).job);
  }

  _showBanner(size) {
    this._banner.hidden = !size;
    if (!size) return;
    const whole = size === this._rows.size && this._total > size;
    const filtered = Object.keys(this._filter()).length > 0;
    const clear = h("button", { class: "link", type: "button", onclick: () => this._pickPage(false) }, "Clear");
    const more = h("button", {
      class: "link", type: "button", onclick: () => ((this._allMatching = true), this._sync()),
    }, `Select all ${number(this._total)} that match`);
    fill(this._banner,
      h("span", {}, this._allMatching ? `All ${count(this._total, "job")} that match are selected.` : `${count(size, "job")} selected.`),
      whole && !this._allMatching && (filtered ? more : h("span", { class: "soft" }, "Filter the list to select more than a page.")),
      clear);
  }

  async _act(verb) {
    const what = this._allMatching ? { filter: this._filter(), total: this._total } : { jobs: this._chosen() };
    if (await actOnMany(verb, what)) {
      this._picked.clear();
      this._load();
    }
  }
}
