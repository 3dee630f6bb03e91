// A part of a log, as much as a page can hold: frames of it, and where it stands in the whole.

import { get } from "../lib/api.js";
import { sourceOf } from "./lines.js";

const PIECE_BYTES = 128 * 1024;

/**
 * It reaches from the frame `first` to the frame `last`. `frames` are those between that are of its `sources`, in order:
 * what nobody is shown is not kept, however much of it there is. `total` is how many frames the log has so far. What lies
 * beyond is had by `before` and `after`; live frames come by `live`. The entries of the job's history belong to it by
 * their time.
 */
export class LogWindow {
  constructor(jobId, entries, sources) {
    this._path = `/v1/jobs/${jobId}/log`;
    this.frames = [];
    this.entries = entries;
    this.sources = new Set(sources);
    this.first = 1;
    this.last = 0;
    this.total = 0;
  }

  get atStart() {
    return this.first <= 1;
  }

  get atEnd() {
    return this.last >= this.total;
  }

  /** Take frames that were just committed. Those of its sources that go on where the window ends are returned. */
  live(frames) {
    const fresh = frames.filter((frame) => Number(frame.sequence) > this.last);
    const goesOn = this.atEnd && fresh.length > 0 && Number(fresh[0].sequence) === this.last + 1;
    this.total = Math.max(this.total, Number(frames.at(-1)?.sequence ?? 0));
    if (!goesOn) return [];
    this.last = Number(fresh.at(-1).sequence);
    const kept = this._kept(fresh);
    this.frames.push(...kept);
    return kept;
  }

  /** The lines in which a text occurs, from a frame on, in a part of the log. */
  search(wanted, first, signal) {
    return get(`${this._path}:search`, { text: wanted, firstSequence: first }, { signal });
  }

  /** The entries that belong between its frames. */
  eligible() {
    if (!this.frames.length) return this.entries;
    const from = this.atStart ? "" : this.frames[0].time;
    const to = this.atEnd ? "9999" : this.frames.at(-1).time;
    return this.entries.filter((entry) => compareTimes(entry.time, from) >= 0 && compareTimes(entry.time, to) <= 0);
  }

  /** Its frames and their entries by time: {frame} or {entry}. Each of the two keeps its own order. */
  items() {
    const entries = this.eligible();
    const found = [];
    let n = 0;
    for (const frame of this.frames) {
      while (n < entries.length && compareTimes(entries[n].time, frame.time) <= 0) found.push({ entry: entries[n++] });
      found.push({ frame });
    }
    while (n < entries.length) found.push({ entry: entries[n++] });
    return found;
  }

  /** Have it begin earlier; by how many frames. */
  async before(signal) {
    if (this.atStart) return 0;
    const found = await this._read({ beforeSequence: this.first }, signal);
    if (!found.length) return 0;
    this.first = Number(found[0].sequence);
    this.frames.unshift(...this._kept(found));
    return found.length;
  }

  /** Have it end later; by how many frames. */
  async after(signal) {
    if (this.atEnd) return 0;
    const found = (await this._read({ firstSequence: this.last + 1 }, signal)).filter(
      (frame) => Number(frame.sequence) > this.last);
    if (!found.length) return 0;
    this.last = Number(found.at(-1).sequence);
    this.frames.push(...this._kept(found));
    return found.length;
  }

  /** Stand elsewhere: `place` is {firstSequence}, {time} or {beforeSequence}. */
  async jump(place, signal) {
    let found = await this._read(place, signal);
    if (!found.length && this.total) found = await this._read({ beforeSequence: this.total + 1 }, signal);
    this.first = Number(found[0]?.sequence ?? 1);
    this.last = Number(found.at(-1)?.sequence ?? 0);
    this.frames = this._kept(found);
  }

  /** Stand at the end. */
  toEnd(signal) {
    return this.jump({ beforeSequence: Number.MAX_SAFE_INTEGER }, signal);
  }

  dropFirst(count) {
    this.frames.splice(0, count);
    if (count) this.first = Number(this.frames[0]?.sequence ?? this.last + 1);
  }

  dropLast(count) {
    this.frames.splice(this.frames.length - count, count);
    if (count) this.last = Number(this.frames.at(-1)?.sequence ?? this.first - 1);
  }

  _kept(frames) {
    return frames.filter((frame) => this.sources.has(sourceOf(frame)));
  }

  async _read(place, signal) {
    const page = await get(this._path, { ...place, maxBytes: PIECE_BYTES }, { signal });
    this.total = Math.max(this.total, Number(page.totalFrames));
    return page.frames?.frames ?? [];
  }
}

/** Times of the API have as many digits of a second as they need. */
export function compareTimes(a, b) {
  const [left, right] = [a, b].map((time) => time.replace("Z", "").padEnd(19, "0"));
  const pad = (time) => (time.includes(".") ? time : `${time}.`).padEnd(29, "0");
  return pad(left) < pad(right) ? -1 : pad(left) > pad(right) ? 1 : 0;
}
