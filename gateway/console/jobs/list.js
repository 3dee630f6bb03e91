// The Job Queue: a page of jobs, live, with the toolbar of the user guide.

import { fill, h, handOn, icon, text } from "../lib/dom.js";
import { count, number } from "../lib/format.js";
import { query, setQuery } from "../lib/router.js";
import { RUN_STATES, TYPE_FILTERS, VERBS } from "../lib/words.js";
import { empty, loading, problem } from "../parts/states.js";
import { LivePage } from "./live.js";
import { COLUMNS, JobRow, place } from "./rows.js";
import { actOnMany } from "./verbs.js";

const TYPING_MILLISECONDS = 300;
const VERBS_HERE = ["JOB_VERB_ACTIVATE", "JOB_VERB_CANCEL", "JOB_VERB_DELETE"];
const LATEST_FIRST = new Set(["job_id", "create_time", "start_time", "complete_time"]);
/** What a list is sorted by that changes while a job stands in it, as it is called in a job. */
const KEYS_THAT_CHANGE = { status: "status", start_time: "startTime", complete_time: "completeTime" };

const sorting = (field, descending) => (descending ? `${field} desc` : field);

export class JobList extends HTMLElement {
  constructor() {
    super();
    this._rows = new Map();
    this._picked = new Set();
    this._allMatching = false;
    this._total = 0;
    this._newest = 0n;
    this._pending = null;
    this._typing = 0;
    this._live = new LivePage({
      onPage: (page, asked) => this._fetched(page, asked),
      onChange: (change) => this._changed(change),
      onState: (state) => this._tellState(state),
      onTrouble: (error) => this._failed(error),
    });
  }

  connectedCallback() {
    document.title = "Jobs - SIS";
    this.className = "page";
    this._build();
    this.addressChanged();
  }

  disconnectedCallback() {
    this._live.close();
    clearTimeout(this._typing);
  }

  /** Show what the address says. */
  addressChanged() {
    const wanted = query();
    this._type.value = wanted.get("type") ?? "";
    this._state.value = wanted.get("state") ?? "";
    const filter = wanted.get("text") ?? "";
    // What is being typed stays: it is in the address soon, or it is there, without the blanks around it.
    if (!this._typing && this._text.value.trim() !== filter) this._text.value = filter;
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
        this._typing = setTimeout(() => {
          this._typing = 0;
          this._narrow({ text: this._text.value.trim() }, true);
        }, TYPING_MILLISECONDS);
      },
    });
    this._verbs = new Map(VERBS_HERE.map((verb) => [verb, h("button", {
      type: "button", disabled: true, onclick: () => this._act(verb),
    }, icon(VERBS[verb].icon), VERBS[verb].word)]));
    this._heading = h("span", { class: "soft", role: "status" });
    this._mark = h("span", { class: "live-mark" });
    this._box = h("input", {
      type: "checkbox", "aria-label": "Select all jobs on this page", onchange: () => this._pickPage(this._box.checked),
    });
    this._sorting = h("select", {
      class: "sorting", "aria-label": "Sort by", onchange: () => this._narrow({ order: this._sorting.value }),
    }, COLUMNS.filter(([field]) => field).map(([field, word]) => [true, false].map((descending) =>
      h("option", { value: sorting(field, descending) }, `${word}, ${descending ? "descending" : "ascending"}`))));
    this._heads = COLUMNS.map(([field, word, name]) => this._head(field, word, name));
    this._body = h("tbody", {});
    this._table = h("table", { class: "jobs", hidden: true },
      h("caption", { class: "visually-hidden" }, "Jobs"),
      h("thead", {}, h("tr", {}, h("th", { class: "pick", scope: "col" },
        h("label", {}, this._box, h("span", {}, "All jobs on this page"))), this._heads)),
      this._body);
    this._note = h("div", {});
    this._trouble = h("div", { class: "banner warn", hidden: true, role: "alert" });
    this._chosenWord = h("span", {});
    this._more = h("button", { class: "link", type: "button", onclick: () => this._pickAll() });
    this._hint = h("span", { class: "soft" }, "Filter the list to select more than a page.");
    this._clear = h("button", { class: "link", type: "button", onclick: () => this._pickPage(false) }, "Clear");
    // Made once: jobs change at any time, and somebody may be at its buttons.
    this._banner = h("div", { class: "banner", hidden: true, role: "status" },
      this._chosenWord, this._more, this._hint, this._clear);
    this._news = h("button", { class: "news", type: "button", hidden: true, onclick: () => this._showNews() });
    this._beforeWord = h("span", {}, "Newer");
    this._before = h("button", { type: "button", onclick: () => this._back() }, icon("left"), this._beforeWord);
    this._after = h("button", { type: "button", onclick: () => this._next() }, "Older", icon("right"));
    this._pages = h("nav", { class: "row pages", "aria-label": "Pages" }, this._before, this._after);
    // What is new is announced over the list, not above it: nothing moves for it.
    this._sheet = h("div", {
      class: "list-place", tabindex: "-1", onpointerleave: () => this._settle(), onfocusout: () => setTimeout(() => this._settle()),
    }, this._news, h("div", { class: "sheet" }, this._table, this._note));
    this.replaceChildren(
      h("header", { class: "row spread" },
        h("div", { class: "row" }, h("h1", {}, "Jobs"), this._heading, this._mark),
        h("a", { class: "button primary", href: "/jobs/new" }, icon("plus"), "Create New")),
      h("div", { class: "row toolbar", role: "toolbar", "aria-label": "Jobs" },
        h("button", { type: "button", onclick: () => this._load() }, icon("refresh"), h("span", {}, "Refresh")),
        this._type, this._state, this._sorting, this._text,
        h("span", { class: "row verbs" }, [...this._verbs.values()])),
      // At the foot of the screen, so that a choice moves no row.
      h("div", { class: "dock" }, this._trouble, this._banner),
      this._sheet, this._pages);
  }

  _tellState(state) {
    this._mark.dataset.state = state;
    text(this._mark, { live: "Live", waiting: "Reconnecting …", stopped: "Not live" }[state] ?? "");
    // Rows that stayed because the server was away are fetched once it is there again.
    if (state === "live" && !this._trouble.hidden) this._live.stale();
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

  _narrow(changes, replace = false) {
    setQuery({ ...changes, page: "" }, { replace });
  }

  _sort(field) {
    const [order, descending] = this._order();
    const next = order === field ? !descending : LATEST_FIRST.has(field);
    this._narrow({ order: sorting(field, next) });
  }

  // The entry of the history has the tokens of the pages before: they are right after Back and after a reload. Whoever
  // comes by a copied address has none, and can go to the first page.

  _trail() {
    return history.state?.trail ?? [];
  }

  _next() {
    const page = this._nextToken;
    // Which page follows that one, nobody knows before it is there: a second click at once goes nowhere.
    if (!page) return;
    this._nextToken = "";
    const trail = [...this._trail(), query().get("page") ?? ""];
    setQuery({ page }, { state: { trail } });
    scrollTo(0, 0);
  }

  _back() {
    const trail = this._trail();
    const page = trail.at(-1) ?? "";
    setQuery({ page }, { state: { trail: trail.slice(0, -1) } });
    scrollTo(0, 0);
  }

  _tellPages() {
    const first = !query().get("page");
    text(this._beforeWord, first || this._trail().length ? "Newer" : "First Page");
    // A button that has the focus hands it on before it is disabled, which would lose it.
    const focused = document.activeElement;
    this._before.disabled = this._after.disabled = false;
    if (focused === this._before && first) this._after.focus();
    if (focused === this._after && !this._nextToken) this._before.focus();
    this._before.disabled = first;
    this._after.disabled = !this._nextToken;
    this._pages.hidden = first && !this._nextToken;
  }

  // The page that is shown

  _load() {
    const [order, descending] = this._order();
    for (const head of this._heads) head.tell?.(order, descending);
    this._sorting.value = sorting(order, descending);
    if (!this._rows.size) fill(this._note, loading());
    const wanted = query();
    const asked = { filter: this._filter(), pageToken: wanted.get("page") ?? "", orderBy: wanted.get("order") ?? "" };
    this._wanted = JSON.stringify(asked);
    this._live.load(asked);
  }

  _fetched(page, asked) {
    this._trouble.hidden = true;
    this._shown = this._wanted;
    this._total = Number(page.totalSize);
    this._whole = page.jobs.length === this._total;
    this._pending = page;
    this._settle(asked);
    this._tellTotal();
  }

  /** Rows of this list stay while it cannot be had; those of another go. */
  _failed(error) {
    if (error.reason === "INVALID_TOKEN" && query().get("page")) {
      setQuery({ page: "" }, { replace: true });
      return;
    }
    if (this._rows.size && this._shown === this._wanted) {
      const again = h("button", { class: "link", type: "button", onclick: () => this._load() }, "Try again");
      fill(this._trouble, h("span", {}, `These rows may be old: ${error.message}`), again);
      this._trouble.hidden = false;
      return;
    }
    this._rows.clear();
    this._body.replaceChildren();
    this._picked.clear();
    this._allMatching = false;
    this._pending = null;
    this._table.hidden = this._pages.hidden = this._news.hidden = this._trouble.hidden = true;
    text(this._heading, "");
    this._tellState("");
    fill(this._note, problem(error, () => this._load()));
    this._sync();
  }

  /** What the watch says: rows change where they stand; for all else the page is fetched anew. */
  _changed({ jobs, goneJobIds }) {
    let stale = false;
    const key = KEYS_THAT_CHANGE[this._order()[0]];
    for (const job of jobs) {
      const row = this._rows.get(job.jobId);
      stale ||= !row || (key && row.job[key] !== job[key]);
      row?.update(job);
      const n = this._pending?.jobs.findIndex((each) => each.jobId === job.jobId) ?? -1;
      if (n >= 0) this._pending.jobs[n] = job;
    }
    for (const id of goneJobIds) {
      const row = this._rows.get(id);
      row?.gone();
      // One that is not shown may have been counted, unless all that match are shown.
      stale ||= row || !this._whole || this._pending;
    }
    if (stale) this._live.stale();
    if (jobs.length) this._sync();
  }

  /** Let the list be as it should, unless somebody is busy in it: then what is new waits behind a button. */
  _settle(now = false) {
    const page = this._pending;
    if (!page) return;
    const ids = [...this._rows.keys()];
    const same = page.jobs.length === ids.length && page.jobs.every((job, n) => job.jobId === ids[n]);
    if (!same && !now && this._busy()) {
      const fresh = page.jobs.filter((job) => !this._rows.has(job.jobId));
      const allNew = fresh.length && fresh.every((job) => BigInt(job.jobId) > this._newest);
      text(this._news, allNew ? `Show ${count(fresh.length, "new job")}` : "Show what changed");
      this._news.hidden = false;
      return;
    }
    this._pending = null;
    this._show(page, same);
  }

  _showNews() {
    this._settle(true);
    // The button that had the focus is gone.
    this._sheet.focus({ preventScroll: true });
  }

  _busy() {
    const focused = document.activeElement;
    const selection = getSelection();
    return this._picked.size > 0 || this._sheet.matches(":hover")
      || (focused !== this._sheet && this._sheet.contains(focused))
      || (!selection.isCollapsed && this._sheet.contains(selection.anchorNode));
  }

  _show(page, same) {
    const former = this._rows;
    this._rows = new Map();
    for (const job of page.jobs) {
      const row = former.get(job.jobId) ?? new JobRow(job, (each, picked) => this._pick(each, picked));
      if (former.has(job.jobId)) row.update(job);
      this._rows.set(job.jobId, row);
      if (BigInt(job.jobId) > this._newest) this._newest = BigInt(job.jobId);
    }
    place(this._body, [...this._rows.values()].map((row) => row.element));
    this._picked = new Set([...this._picked].filter((id) => this._rows.has(id)));
    if (!same) this._allMatching = false;
    this._news.hidden = true;
    this._table.hidden = !this._rows.size;
    this._nextToken = page.nextPageToken;
    this._tellPages();
    this._tellTotal();
    this._sync();
  }

  _tellTotal() {
    text(this._heading, `Total Matching Jobs ${number(this._total)}`);
    if (this._rows.size) fill(this._note);
    else if (query().get("page")) fill(this._note, empty("No job is left on this page", "Those before it may have others."));
    else if (Object.keys(this._filter()).length) fill(this._note, empty("No job matches", "Change or clear the filter."));
    else fill(this._note, empty("There are no jobs yet", h("a", { href: "/jobs/new" }, "Create the first one"), "."));
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
    this._settle();
  }

  _pickAll() {
    this._allMatching = true;
    // The button goes, and hands on the focus.
    if (document.activeElement === this._more) this._clear.focus();
    this._sync();
  }

  _sync() {
    const size = this._picked.size;
    for (const [id, row] of this._rows) row.pick(this._picked.has(id));
    this._box.checked = size > 0 && size === this._rows.size;
    this._box.indeterminate = size > 0 && size < this._rows.size;
    const jobs = this._chosen();
    for (const [verb, button] of this._verbs) {
      const disabled = !this._allMatching && !jobs.some((job) => job.permittedVerbs.includes(verb));
      if (disabled) handOn(button, this._sheet);
      button.disabled = disabled;
    }
    this._showBanner(size);
  }

  _chosen() {
    return [...this._picked].map((id) => this._rows.get(id).job);
  }

  _showBanner(size) {
    if (!size) handOn(this._clear, this._sheet);
    this._banner.hidden = !size;
    if (!size) return;
    const whole = size === this._rows.size && this._total > size;
    const filtered = Object.keys(this._filter()).length > 0;
    text(this._chosenWord, this._allMatching ? `All ${count(this._total, "job")} that match are selected.` : `${count(size, "job")} selected.`);
    text(this._more, `Select all ${number(this._total)} that match`);
    this._more.hidden = !whole || this._allMatching || !filtered;
    this._hint.hidden = !whole || this._allMatching || filtered;
  }

  async _act(verb) {
    const what = this._allMatching ? { filter: this._filter(), total: this._total } : { jobs: this._chosen() };
    const touched = await actOnMany(verb, what);
    // Somebody may have gone on meanwhile.
    if (!touched || !this.isConnected) return;
    this._pickPage(false);
    this._load();
  }
}
