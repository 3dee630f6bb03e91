// Searching a whole log at the server, and showing what was found.

import { fill, h, handOn, icon, text } from "../lib/dom.js";
import { clock, count } from "../lib/format.js";
import { plain } from "./ansi.js";
import { sourceOfChannel } from "./lines.js";

const MOST_MATCHES = 500;

export class LogSearch {
  /** `log` is a LogWindow; `open` is called with the match that somebody wants to see, `end` when it is over. */
  constructor(log, open, end) {
    this._log = log;
    this._open = open;
    this._end = end;
    this._text = "";
    this._pattern = null;
    this._input = h("input", { type: "search", placeholder: "Search the log", "aria-label": "Search the log", maxlength: "200" });
    this.form = h("form", { class: "row log-search", role: "search", onsubmit: (event) => this._submit(event) },
      this._input, h("button", { type: "submit", class: "quiet", "aria-label": "Search" }, icon("search")));
    this._told = h("span", { role: "status" });
    this._list = h("ol", { class: "matches" });
    this._more = h("button", { type: "button", class: "link", hidden: true, onclick: () => this._go() }, "Search on");
    this.results = h("div", { class: "search-results", hidden: true },
      h("div", { class: "row spread" }, h("span", {}, this._told, " ", this._more),
        h("button", { type: "button", class: "quiet", "aria-label": "Close the search", onclick: () => this._close() }, icon("close"))),
      this._list);
  }

  /** Whether a line has the text. */
  matches(line) {
    return this._pattern !== null && line.search(this._pattern) >= 0;
  }

  async _submit(event) {
    event.preventDefault();
    this._searching?.abort();
    this._text = this._input.value;
    if (!this._text.trim()) {
      this._close();
      return;
    }
    // By the rules of one character for another: in lower case, some are two.
    this._pattern = new RegExp(this._text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
    this._found = 0;
    this._next = 1;
    fill(this._list);
    this._more.hidden = true;
    this.results.hidden = false;
    await this._go();
  }

  async _go() {
    this._searching?.abort();
    const searching = (this._searching = new AbortController());
    const limit = this._found + MOST_MATCHES;
    try {
      while (this._next && this._found < limit) {
        const page = await this._log.search(this._text, this._next, searching.signal);
        this._next = Number(page.nextSequence);
        // The log has more than this view of it.
        const shown = page.matches.filter((match) => this._log.sources.has(sourceOfChannel(match.channel)));
        this._found += shown.length;
        this._list.append(...shown.map((match) => this._item(match)));
        const share = this._next ? `, ${Math.floor((100 * this._next) / Number(page.totalFrames))} % searched` : "";
        text(this._told, `${count(this._found, "matching line")}${share}`);
      }
      if (!this._next) handOn(this._more, this._input);
      this._more.hidden = !this._next;
    } catch (error) {
      if (!searching.signal.aborted) text(this._told, error.message);
    }
  }

  _item(match) {
    return h("li", {}, h("button", { type: "button", class: "link", onclick: () => this._open(match) },
      h("span", { class: "soft" }, clock(match.time), " "), plain(match.line)));
  }

  /** Search no further. */
  stop() {
    this._searching?.abort();
  }

  _close() {
    this.stop();
    this._text = "";
    this._pattern = null;
    this._input.value = "";
    this._input.focus();
    this.results.hidden = true;
    this._end();
    CSS.highlights?.delete("found");
  }

  /** Mark the text where it stands in the lines that are there, and one line as the present one. */
  highlight(scroller, current) {
    for (const line of scroller.querySelectorAll(".line.current")) line.classList.remove("current");
    current?.classList.add("current");
    if (!CSS.highlights) return;
    const ranges = [];
    const walker = document.createTreeWalker(scroller, NodeFilter.SHOW_TEXT);
    for (let node = this._pattern && walker.nextNode(); node && ranges.length < 2_000; node = walker.nextNode()) {
      for (const match of node.data.matchAll(this._pattern)) {
        const range = new Range();
        range.setStart(node, match.index);
        range.setEnd(node, match.index + match[0].length);
        ranges.push(range);
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }
}
