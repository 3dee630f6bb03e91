// A log on the page: a window of its lines, which goes along with who scrolls, or with what is written.

import { fill, h, icon, text } from "../lib/dom.js";
import { clock, count, fromLocal, utc } from "../lib/format.js";
import { report, say } from "../parts/toasts.js";
import { show } from "./ansi.js";
import { LineMaker } from "./lines.js";
import { LogSearch } from "./search.js";
import { compareTimes } from "./window.js";

/** So many lines are on the page, and those of one frame more, as frames come and go whole. */
const MOST_LINES = 2_000;
/** And so many while the view goes along with what is written: nobody sees more of them. */
const FOLLOWED_LINES = 300;
/** So near to an edge, what is beyond is fetched; and so far from what is in sight, it is let go. */
const EDGE_PIXELS = 600;
const FAR_PIXELS = 3_000;
const PAINT_MILLISECONDS = 80;

export class LogView extends HTMLElement {
  /** `log` is a LogWindow. `sources` are those whose lines are shown; while it is `live`, more of them may come. */
  constructor(log, { sources, label, download = "", live = true }) {
    super();
    this._log = log;
    this._sources = new Set(sources);
    this._label = label;
    this._download = download;
    this._live = live;
    this._life = new AbortController();
    this._blocks = [];
    this._lines = 0;
    this._following = true;
    this._pending = [];
    this._held = [];
    this._maker = new LineMaker();
    this._moving = 0;
    this._moves = Promise.resolve();
    this._found = 0;
    this._since = "";
  }

  connectedCallback() {
    this.className = "log-view";
    this._build();
    this._toEnd(true);
  }

  disconnectedCallback() {
    this._life.abort();
  }

  // What others tell it

  /** Frames that were just committed. */
  live(frames) {
    if (this._moving) {
      this._held.push(...frames);
      return;
    }
    this._pending.push(...this._log.live(frames).map((frame) => ({ frame })));
    if (this._following && !this._log.atEnd) this._toEnd();
    else this._plan();
  }

  /** A new entry of the history, which the window has already. */
  entry(entry) {
    if (this._moving || !this._log.atEnd) return;
    this._pending.push({ entry });
    this._plan();
  }

  /** There will be no more. */
  over() {
    this._live = false;
    this._showFollowing();
    this._showPlace();
  }

  // What is on the page

  _build() {
    this._scroller = h("div", {
      class: "log", role: "log", tabindex: "0", "aria-label": this._label, "aria-live": "off",
      onscroll: () => this._scrolled(),
      onpointerover: ({ target }) => {
        const line = target.closest(".line");
        if (line?.time && !line.title) line.title = utc(line.time);
      },
    });
    this._follow = h("button", { type: "button", class: "quiet", onclick: () => this._toggleFollowing() });
    this._wrap = this._toggle("wrap", "Wrap lines", "wrap", true);
    this._times = this._toggle("clock", "Times", "times", this._sources.has("site"));
    this._place = h("input", {
      type: "range", min: "1", class: "place", "aria-label": "Place in the log",
      hidden: true,
      oninput: () => {
        clearTimeout(this._sliding);
        this._sliding = setTimeout(() => this._jump({ firstSequence: Number(this._place.value) }), 150);
      },
    });
    this._where = h("span", { class: "small soft where", hidden: true });
    this._time = h("input", {
      type: "datetime-local", step: "1",
      onchange: () => this._time.value && this._jump({ time: fromLocal(this._time.value) }),
    });
    this._nothing = h("p", { class: "log-nothing", hidden: true });
    this._downloading = this._download && h("a", { class: "button quiet", href: this._download, download: "" }, icon("down"), "Download");
    this._latest = h("button", { type: "button", class: "latest", hidden: true, onclick: () => this._toEnd() },
      icon("down"), "To the latest line");
    this._search = new LogSearch(this._log, (match) => this._showMatch(match), () => {
      this._seek("");
      this._mark();
    });
    this._tools = h("div", { class: "log-tools row" }, this._follow, this._wrap, this._times,
      h("button", { type: "button", class: "quiet", onclick: () => this._copy() }, icon("copy"), "Copy"),
      this._downloading, h("span", { class: "grow" }), this._search.form);
    this._foot = h("div", { class: "log-place row" }, this._where, this._place, h("span", { class: "grow" }),
      h("label", { class: "row" }, h("span", { class: "small" }, "Go to a time"), this._time));
    fill(this, this._tools, this._search.results,
      h("div", { class: "log-frame" }, this._scroller, this._nothing, this._latest), this._foot);
    this._showFollowing();
  }

  _toggle(picture, word, name, on) {
    const button = h("button", { type: "button", class: "quiet", "aria-pressed": String(on) }, icon(picture), word);
    const apply = (value) => {
      button.setAttribute("aria-pressed", String(value));
      this._scroller.classList.toggle(name, value);
    };
    button.addEventListener("click", () => {
      apply(button.getAttribute("aria-pressed") !== "true");
      if (this._following) this._toBottom();
    });
    queueMicrotask(() => apply(on));
    return button;
  }

  // From frames to lines on the page: a block is what one frame or entry has begun

  _block(item) {
    const lines = item.frame ? this._maker.frame(item.frame) : this._maker.entry(item.entry);
    const shown = lines.filter((line) => this._sources.has(line.source));
    const sequence = item.frame ? Number(item.frame.sequence) : 0;
    return { sequence, key: item.frame ? sequence : `entry ${item.entry.sequence}`, lines: shown };
  }

  _element(line) {
    const element = document.createElement("div");
    element.className = `line ${line.source}${line.tone ? ` ${line.tone}` : ""}`;
    if (line.time) element.dataset.time = this._clock(line.time);
    element.time = line.time;
    show(element, line.text, line.style);
    return element;
  }

  /** The time of day; many lines have the same. */
  _clock(time) {
    if (this._second !== time.slice(0, 19)) {
      this._second = time.slice(0, 19);
      this._told = clock(time);
    }
    return this._told;
  }

  /** Everything anew, by the window as it is. */
  _rebuild() {
    this._maker = new LineMaker();
    this._pending = [];
    this._blocks = [];
    this._lines = 0;
    const page = document.createDocumentFragment();
    for (const item of this._log.items()) this._put(this._block(item), page);
    this._showGrown();
    this._scroller.replaceChildren(page);
    this._mark();
    this._showPlace();
  }

  _put(block, page) {
    this._blocks.push(block);
    this._lines += block.lines.length;
    for (const line of block.lines) page.append((line.element = this._element(line)));
  }

  /** Show what was added to lines that have an element already. */
  _showGrown() {
    for (const line of this._maker.grown) if (line.element) show(line.element, line.text, line.style);
    this._maker.grown.clear();
  }

  _plan() {
    this._painting ??= setTimeout(() => requestAnimationFrame(() => {
      this._painting = undefined;
      this._paint();
    }), PAINT_MILLISECONDS);
  }

  _paint() {
    if (!this.isConnected) return;
    const page = document.createDocumentFragment();
    const blocks = this._pending.splice(0).map((item) => this._block(item));
    if (this._following) this._skip(blocks);
    for (const block of blocks) this._put(block, page);
    this._showGrown();
    this._scroller.append(page);
    if (this._following) {
      this._trimTop();
      this._toBottom();
    } else this._trimAround(this._anchor());
    this._showPlace();
  }

  /** Leave out of new blocks what would have to go again at once: more came than a page holds. */
  _skip(blocks) {
    let lines = blocks.reduce((sum, block) => sum + block.lines.length, 0);
    if (lines < 2 * FOLLOWED_LINES) return;
    this._log.dropFirst(this._blocks.filter((block) => block.sequence).length);
    this._blocks = [];
    this._lines = 0;
    this._scroller.replaceChildren();
    while (lines - blocks[0].lines.length >= FOLLOWED_LINES) {
      const block = blocks.shift();
      lines -= block.lines.length;
      if (block.sequence) this._log.dropFirst(1);
    }
  }

  /** Let go of what is above, as far as a followed log needs no more of it. */
  _trimTop() {
    while (this._blocks.length && this._lines - this._blocks[0].lines.length >= FOLLOWED_LINES) this._dropFirst();
  }

  /** Let go of what is far from a line in sight, which stays where it stands. */
  _trimAround(held) {
    const line = this._lineOf(held)?.element;
    if (!line) return;
    // Measured anew each time: what is dropped above moves all the rest.
    const away = (block) => (block?.lines.length ? block.lines[0].element.offsetTop - line.offsetTop : 0);
    const empty = (block) => block && !block.lines.length;
    const far = FAR_PIXELS + this._scroller.clientHeight;
    while (this._lines > MOST_LINES && (empty(this._blocks[0]) || away(this._blocks[1]) < -far)) this._dropFirst();
    while (this._lines > MOST_LINES && (empty(this._blocks.at(-1)) || away(this._blocks.at(-1)) > far)) this._dropLast();
    this._restore(held);
  }

  _dropFirst() {
    const block = this._blocks.shift();
    if (block.sequence) this._log.dropFirst(1);
    this._remove(block);
  }

  _dropLast() {
    const block = this._blocks.pop();
    if (block.sequence) this._log.dropLast(1);
    this._remove(block);
  }

  _remove(block) {
    for (const line of block.lines) line.element.remove();
    this._lines -= block.lines.length;
  }

  // Moving

  _scrolled() {
    if (this._moving) return;
    const { scrollTop, scrollHeight, clientHeight } = this._scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    if (this._following && below > 40) this._setFollowing(false);
    else if (!this._following && below < 2 && this._log.atEnd) this._setFollowing(true);
    if (scrollTop < EDGE_PIXELS && !this._log.atStart) this._extend("before");
    else if (below < EDGE_PIXELS && !this._log.atEnd && !this._following) this._extend("after");
    this._showPlace();
  }

  async _extend(side) {
    await this._move(async (signal) => {
      if (!(await this._log[side](signal))) return;
      const held = this._anchor();
      this._rebuild();
      this._restore(held);
      this._trimAround(held);
    });
  }

  /** The first line in sight: of which block, the how manieth of it, and how far from the top. */
  _anchor() {
    const top = this._scroller.scrollTop;
    for (const block of this._blocks) {
      for (const [n, { element }] of block.lines.entries()) {
        if (element.offsetTop + element.offsetHeight > top) return { key: block.key, n, gap: element.offsetTop - top };
      }
    }
    return null;
  }

  /** Have that line stand where it stood. */
  _restore(held) {
    const line = this._lineOf(held);
    if (line) this._scroller.scrollTop = line.element.offsetTop - held.gap;
  }

  _lineOf(held) {
    const lines = held && this._blocks.find((block) => block.key === held.key)?.lines;
    return lines?.[Math.min(held.n, lines.length - 1)];
  }

  async _jump(place) {
    this._setFollowing(false);
    this._seek(place.time ?? "", this._found);
    await this._move(async (signal) => {
      await this._log.jump(place, signal);
      this._rebuild();
      this._scroller.scrollTop = 0;
    });
    // What stands before it is wanted too, even where nothing has to scroll.
    this._scrolled();
  }

  async _toEnd(anew = false) {
    if (anew || !this._log.atEnd) {
      await this._move(async (signal) => {
        await this._log.toEnd(signal);
        this._rebuild();
      });
    }
    this._setFollowing(true);
    this._trimTop();
    this._toBottom();
  }

  /** Do something that changes the window; one after the other, and what is live waits. */
  _move(act) {
    this._moving += 1;
    this._moves = this._moves.then(() => this._moved(act));
    return this._moves;
  }

  async _moved(act) {
    try {
      if (!this._life.signal.aborted) await act(this._life.signal);
    } catch (error) {
      if (!this._life.signal.aborted) report(error);
    } finally {
      this._moving -= 1;
      const held = this._moving ? [] : this._held.splice(0);
      if (held.length && this.isConnected) this.live(held);
      this._showPlace();
    }
  }

  _toBottom() {
    this._scroller.scrollTop = this._scroller.scrollHeight;
  }

  _toggleFollowing() {
    if (this._following) this._setFollowing(false);
    else this._toEnd();
  }

  _setFollowing(following) {
    this._following = following;
    this._showFollowing();
  }

  _showFollowing() {
    this._follow.hidden = !this._live;
    fill(this._follow, icon(this._following ? "pause" : "play"), this._following ? "Pause" : "Follow");
    this._latest.hidden = this._following || !this._log.total;
  }

  _showPlace() {
    if (!this._place) return;
    const { total, first, last, atStart, atEnd } = this._log;
    const whole = atStart && atEnd;
    const nothing = whole && !this._lines && !this._moving;
    text(this._nothing, this._live ? "Nothing was written yet." : "Nothing was written.");
    this._nothing.hidden = !nothing;
    this._tools.hidden = this._foot.hidden = nothing;
    if (this._downloading) this._downloading.hidden = !total;
    this._place.hidden = this._where.hidden = whole;
    this._place.max = String(Math.max(1, total));
    if (document.activeElement !== this._place) this._place.value = String(this._following ? total : first);
    text(this._where, `Parts ${first} to ${last} of ${count(total, "part")}`);
    this._latest.hidden = this._following || !total;
  }

  // Finding, and taking along

  async _showMatch(match) {
    const sequence = Number(match.sequence);
    this._seek("", sequence);
    if (!this._blocks.some((block) => block.sequence === sequence)) {
      await this._jump({ firstSequence: Math.max(1, sequence - 2) });
    }
    // Meanwhile the search may have been closed, or another match chosen.
    if (this._found !== sequence) return;
    this._setFollowing(false);
    this._mark()?.element.scrollIntoView({ block: "center" });
  }

  /** Have one line stand out from now on: the first one since a time, or what the search has found in a frame; or none. */
  _seek(since, found = 0) {
    this._since = since;
    this._found = found;
  }

  /** Mark that line, and what is searched for: what was found is in the last line with it up to its frame. */
  _mark() {
    const lines = (blocks) => blocks.flatMap((block) => block.lines);
    const line = this._since
      ? lines(this._blocks).find((each) => compareTimes(each.time, this._since) >= 0)
      : lines(this._blocks.filter((block) => block.sequence && block.sequence <= this._found))
        .findLast((each) => this._search.matches(each.element.textContent));
    this._search.highlight(this._scroller, line?.element);
    return line;
  }

  async _copy() {
    const chosen = String(getSelection());
    const lines = this._blocks.flatMap((block) => block.lines.map((line) => line.element.textContent));
    try {
      await navigator.clipboard.writeText(chosen || lines.join("\n"));
      say(chosen ? "The selection was copied." : `Copied: ${count(lines.length, "line")}.`);
    } catch {
      say("The browser does not permit copying here.", { bad: true });
    }
  }
}
customElements.define("sis-log", LogView);
