// A page of what changes by itself and has no stream: looked at again every few seconds, while somebody sees it.

import { fill, h, update } from "../lib/dom.js";
import { loading, problem, stale } from "./states.js";

const LOOK_MILLISECONDS = 5_000;

/** Subclasses have `fetch`, which promises what there is, and `content`, which makes nodes of it. */
export class Polled extends HTMLElement {
  connectedCallback() {
    this._shown = h("div", { class: "shown" }, loading());
    this._old = h("div", {});
    this._time = null;
    this._looks = 0;
    fill(this, this._old, this._shown);
    this._onSight = () => document.hidden || this.look();
    document.addEventListener("visibilitychange", this._onSight);
    this.look();
  }

  disconnectedCallback() {
    clearTimeout(this._timer);
    document.removeEventListener("visibilitychange", this._onSight);
  }

  /** Look now, and again from time to time. What cannot be had is said beside what was there before. */
  async look() {
    clearTimeout(this._timer);
    const look = ++this._looks;
    let found = null;
    let error = null;
    try {
      found = await this.fetch();
    } catch (caught) {
      error = caught;
    }
    // A later one knows better.
    if (!this.isConnected || look !== this._looks) return;
    if (!error) {
      this._time = new Date();
      update(this._shown, this.content(found));
      fill(this._old);
    } else if (this._time && error.code !== 404) {
      update(this._old, stale(error, this._time));
    } else {
      this._time = null;
      fill(this._old);
      update(this._shown, this.missing(error, error.code === 404 ? null : () => this.look()));
    }
    this._timer = setTimeout(() => document.hidden || this.look(), LOOK_MILLISECONDS);
  }

  /** What stands where nothing could be had. */
  missing(error, retry) {
    return problem(error, retry);
  }
}
