// A log on the page: a window of its lines, which goes along with who scrolls, or with what is written.

import { fill, h, handOn, icon, text } from "../lib/dom.js";
import { count, fromLocal, utc } from "../lib/format.js";
import { problem } from "../parts/states.js";
import { report, say } from "../parts/toasts.js";
import { LogSearch } from "./search.js";
import { LogSheet } from "./sheet.js";

/** So near to an edge, what is beyond is fetched. */
const EDGE_PIXELS = 600;
/** So many pieces at once, where what is fetched has no lines that are shown. */
const MOST_PIECES = 200;
const PAINT_MILLISECONDS = 80;

export class LogView extends HTMLElement {
  /** `log` is a LogWindow; while it is `live`, more lines may come. */
  constructor(log, { label, download = "", live = true }) {
    super();
    this._log = log;
    this._label = label;
    this._download = download;
    this._live = live;
    this._life = new AbortController();
    this._following = true;
    this._known = false;
    this._filling = false;
    this._pending = [];
    this._held = [];
    this._heldEntries = [];
    /** Where the view stood when it was last at the end. */
    this._bottom = 0;
    this._moving = 0;
    this._moves = Promise.resolve();
    this._found = 0;
    this._since = "";
  }

  connectedCallback() {
    this.className = "log-view";
    this._build();
    // Where lines wrap anew, the end is elsewhere.
    this._sizes = new ResizeObserver(() => this._following && this._toBottom());
    this._sizes.observe(this._scroller);
    this._toEnd(true);
  }

  disconnectedCallback() {
    this._life.abort();
    this._sizes.disconnect();
    this._search.stop();
  }

  // What others tell it

  /** Frames that were just committed. */
  live(frames) {
    if (this._moving) {
      this._held.push(...frames);
      return;
    }
    this._pending.push(...this._log.live(frames).map((frame) => ({ frame })));
    if (!this._known) this._toEnd(true);
    else if (this._following && !this._log.atEnd) this._toEnd();
    else this._plan();
  }

  /** A new entry of the history, which the window has already. */
  entry(entry) {
    if (this._moving) {
      this._heldEntries.push(entry);
      return;
    }
    if (!this._known || !this._log.atEnd) return;
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
    this._sheet = new LogSheet(this._scroller, this._log);
    this._follow = h("button", { type: "button", class: "quiet", onclick: () => this._toggleFollowing() });
    this._wrap = this._toggle("wrap", "Wrap lines", "wrap", true);
    this._times = this._toggle("clock", "Times", "times", this._log.sources.has("site"));
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
    this._unread = h("div", {});
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
    fill(this, this._unread, this._tools, this._search.results,
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

  // From frames to lines on the page

  /** Everything anew, by the window as it is. */
  _rebuild() {
    this._known = true;
    fill(this._unread);
    this._pending = [];
    this._heldEntries = [];
    this._sheet.rebuild();
    this._mark();
    this._showPlace();
  }

  _plan() {
    this._painting ??= setTimeout(() => requestAnimationFrame(() => {
      this._painting = undefined;
      this._paint();
    }), PAINT_MILLISECONDS);
  }

  _paint() {
    if (!this.isConnected) return;
    this._sheet.append(this._pending.splice(0), this._following);
    if (this._following) this._toBottom();
    this._showPlace();
  }

  // Moving

  _scrolled() {
    if (this._moving) return;
    const { scrollTop, scrollHeight, clientHeight } = this._scroller;
    const below = scrollHeight - scrollTop - clientHeight;
    // Where lines wrap anew the end moves away by itself; a person moves away from it.
    if (this._following && below > 40 && scrollTop < this._bottom) this._setFollowing(false);
    else if (!this._following && below < 2 && this._log.atEnd) this._setFollowing(true);
    this._fill();
    this._showPlace();
  }

  /** Where more is wanted, because what is in sight is near the edge of what is there: "before", "after", or "". */
  _wanting() {
    const { scrollTop, scrollHeight, clientHeight } = this._scroller;
    if (scrollTop < EDGE_PIXELS && !this._log.atStart) return "before";
    const below = scrollHeight - scrollTop - clientHeight;
    return below < EDGE_PIXELS && !this._log.atEnd && !this._following ? "after" : "";
  }

  /** Fetch what is wanted, piece by piece: nobody can scroll for the next one where a piece has no lines to show. */
  async _fill() {
    if (this._filling) return;
    this._filling = true;
    for (let n = 0; n < MOST_PIECES && this.isConnected; n++) {
      const side = this._known && this._wanting();
      if (!side || !(await this._extend(side))) break;
    }
    this._filling = false;
  }

  /** Have more on one side; whether any came. */
  async _extend(side) {
    let came = 0;
    await this._move(async (signal) => {
      came = await this._log[side](signal);
      if (!came) return;
      const held = this._sheet.anchor();
      this._rebuild();
      this._sheet.restore(held);
      this._sheet.trimAround(held);
      if (this._following) this._toBottom();
    });
    return came > 0;
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
    this._sheet.trimAbove();
    this._toBottom();
    this._fill();
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
      if (this._life.signal.aborted) return;
      if (this._known) report(error);
      else fill(this._unread, problem(error, () => this._toEnd(true)));
    } finally {
      this._moving -= 1;
      if (!this._moving && this.isConnected) this._release();
      this._showPlace();
    }
  }

  /** Take what came meanwhile. */
  _release() {
    const [frames, entries] = [this._held.splice(0), this._heldEntries.splice(0)];
    if (frames.length) this.live(frames);
    for (const entry of entries) this.entry(entry);
  }

  _toBottom() {
    this._scroller.scrollTop = this._scroller.scrollHeight;
    this._bottom = this._scroller.scrollTop;
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
    if (!this._live) handOn(this._follow, this._scroller);
    this._follow.hidden = !this._live;
    fill(this._follow, icon(this._following ? "pause" : "play"), this._following ? "Pause" : "Follow");
    this._showLatest();
  }

  _showLatest() {
    const hidden = this._following || !this._log.total;
    if (hidden) handOn(this._latest, this._scroller);
    this._latest.hidden = hidden;
  }

  _showPlace() {
    if (!this._place) return;
    const { total, first, last, atStart, atEnd } = this._log;
    const whole = atStart && atEnd;
    const nothing = this._known && whole && this._sheet.empty && !this._moving;
    const unread = this._unread.hasChildNodes();
    text(this._nothing, this._live ? "Nothing was written yet." : "Nothing was written.");
    this._nothing.hidden = !nothing;
    this._scroller.parentElement.hidden = unread;
    this._tools.hidden = this._foot.hidden = nothing || unread;
    if (this._downloading) this._downloading.hidden = !total;
    this._place.hidden = this._where.hidden = whole;
    this._place.max = String(Math.max(1, total));
    if (document.activeElement !== this._place) this._place.value = String(this._following ? total : first);
    text(this._where, `Parts ${first} to ${last} of ${count(total, "part")}`);
    this._showLatest();
  }

  // Finding, and taking along

  async _showMatch(match) {
    const sequence = Number(match.sequence);
    this._seek("", sequence);
    if (!this._sheet.hasFrame(sequence)) {
      await this._jump({ firstSequence: Math.max(1, sequence - 2) });
    }
    // Meanwhile the search may have been closed, or another match chosen.
    if (this._found !== sequence) return;
    this._setFollowing(false);
    this._mark()?.scrollIntoView({ block: "center" });
  }

  /** Have one line stand out from now on: the first one since a time, or what the search has found in a frame; or none. */
  _seek(since, found = 0) {
    this._since = since;
    this._found = found;
  }

  /** Mark that line, and what is searched for: what was found is in the last line with it up to its frame. */
  _mark() {
    const line = this._since
      ? this._sheet.lineSince(this._since)
      : this._sheet.lineUpTo(this._found, (shown) => this._search.matches(shown));
    this._search.highlight(this._scroller, line);
    return line;
  }

  async _copy() {
    const chosen = String(getSelection());
    const lines = this._sheet.texts();
    try {
      await navigator.clipboard.writeText(chosen || lines.join("\n"));
      say(chosen ? "The selection was copied." : `Copied: ${count(lines.length, "line")}.`);
    } catch {
      say("The browser does not permit copying here.", { bad: true });
    }
  }
}
customElements.define("sis-log", LogView);
