// A page of the list that stays as the server has it: fetched, followed, and fetched anew when what changed cannot simply
// be put in its place. It knows nothing of how it is shown.

import { ApiError, follow, get } from "../lib/api.js";

export const PAGE_SIZE = 50;
// From a change until the page is fetched for it: what follows closely comes with it.
const GATHER_MILLISECONDS = 250;
// Between two such fetches: at least so long, and so many times what the last one took. A list that costs the server a
// second is fetched every twenty.
const REST_MILLISECONDS = 1_000;
const REST_SHARE = 20;
const RETRY_MILLISECONDS = 5_000;
const LOST_PLACE = new Set(["RESUME_EXPIRED", "INVALID_TOKEN"]);

/**
 * `onPage` is given each page that was fetched, and whether somebody asked for it; `onChange` what the watch says, and
 * `onState` how that stands ("live", "waiting", "stopped"); `onTrouble` the error after which nothing comes until `load`
 * is called again.
 */
export class LivePage {
  constructor({ onPage, onChange, onState, onTrouble }) {
    this._onPage = onPage;
    this._onChange = onChange;
    this._onState = onState;
    this._onTrouble = onTrouble;
    this._address = null;
    this._query = {};
    this._fetching = null;
    this._watching = new AbortController();
    this._lost = false;
    this._closed = false;
    this._timer = 0;
    this._ended = -Infinity;
    this._took = 0;
    this._again = false;
    this._heard = new Map();
  }

  /** Nothing comes any more, whoever asks. */
  close() {
    this._closed = true;
    clearTimeout(this._timer);
    this._fetching?.abort();
    this._watching.abort();
    this._timer = 0;
  }

  /**
   * Fetch a page because somebody wants it. The watch of the same list goes on until the new page is there, so that rows
   * that stay because it cannot be fetched go on changing.
   */
  async load(query) {
    if (this._closed) return;
    const address = JSON.stringify(query);
    if (address !== this._address) this._watching.abort();
    this._address = address;
    this._query = query;
    const page = await this._fetch();
    if (page) await this._begin(page, true);
  }

  /** Show a page, and watch it from now on. */
  async _begin(page, asked) {
    this._watching.abort();
    this._watching = new AbortController();
    this._lost = false;
    this._onPage(page, asked);
    await this._follow(page.watchToken, this._watching.signal);
  }

  /** The page may be another by now: it is fetched anew, not too often. */
  stale() {
    if (this._timer) return;
    if (this._fetching) {
      this._again = true;
      return;
    }
    const rest = this._ended + Math.max(REST_MILLISECONDS, REST_SHARE * this._took) - performance.now();
    this._later(Math.max(GATHER_MILLISECONDS, rest));
  }

  _later(milliseconds) {
    clearTimeout(this._timer);
    this._timer = setTimeout(async () => {
      this._timer = 0;
      const page = await this._fetch({ asked: false });
      if (page && this._lost) await this._begin(page, false);
      else if (page) this._onPage(page, false);
    }, milliseconds);
  }

  /** The page; null where somebody wanted another meanwhile, or it cannot be had. */
  async _fetch({ asked = true } = {}) {
    clearTimeout(this._timer);
    this._timer = 0;
    this._again = false;
    this._fetching?.abort();
    const fetching = (this._fetching = new AbortController());
    // What the watch says meanwhile may be newer than what is fetched. One that begins with the page says all since then.
    this._heard = new Map();
    const began = performance.now();
    try {
      const { filter, ...rest } = this._query;
      const page = await get("/v1/jobs", { ...parameters(filter), ...rest, pageSize: PAGE_SIZE }, { signal: fetching.signal });
      if (!asked) page.jobs = page.jobs.map((job) => this._heard.get(job.jobId) ?? job);
      return page;
    } catch (error) {
      if (fetching.signal.aborted) return null;
      if (!(error instanceof ApiError)) throw error;
      if (asked || !error.passing) this._onTrouble(error);
      else this._later(RETRY_MILLISECONDS);
      return null;
    } finally {
      if (this._fetching === fetching) {
        this._fetching = null;
        this._ended = performance.now();
        this._took = this._ended - began;
        if (this._again) this.stale();
      }
    }
  }

  async _follow(token, signal) {
    const options = { query: parameters(this._query.filter), token, signal, onState: this._onState };
    try {
      for await (const change of follow("/v1/jobs:watch", options)) {
        if (this._fetching) for (const job of change.jobs) this._heard.set(job.jobId, job);
        this._onChange(change);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      if (LOST_PLACE.has(error.reason)) this._loadAgain();
      else {
        this._onState("stopped");
        this._onTrouble(error);
      }
    }
  }

  /**
   * After a watch that cannot go on where it was: at once where the page is not fresh, else a while after it came. A
   * fetch that fails for now is tried again, as any that nobody asked for.
   */
  _loadAgain() {
    this._lost = true;
    this._onState("waiting");
    this._later(Math.max(0, this._ended + RETRY_MILLISECONDS - performance.now()));
  }
}

function parameters(filter) {
  return Object.fromEntries(Object.entries(filter).map(([name, value]) => [`filter.${name}`, value]));
}
