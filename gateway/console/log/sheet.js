// The lines of a log that are on the page, in blocks: a block is what one frame or one entry of the history has begun.

import { clock } from "../lib/format.js";
import { show } from "./ansi.js";
import { LineMaker } from "./lines.js";
import { compareTimes } from "./window.js";

/** So many lines are on the page, and those of one frame more, as frames come and go whole. */
const MOST_LINES = 2_000;
/** And so many while the view goes along with what is written: nobody sees more of them. */
const FOLLOWED_LINES = 300;
/** So far from what is in sight, blocks are let go. */
const FAR_PIXELS = 3_000;

export class LogSheet {
  /** `scroller` holds the lines; `log` is the LogWindow whose frames they are. */
  constructor(scroller, log) {
    this._scroller = scroller;
    this._log = log;
    this._maker = new LineMaker();
    this._blocks = [];
    this._lines = 0;
  }

  get empty() {
    return this._lines === 0;
  }

  /** Everything anew, by the window as it is. */
  rebuild() {
    this._maker = new LineMaker();
    this._clear();
    this._put(this._log.items().map((item) => this._block(item)));
  }

  /** What was just written, {frame} or {entry}; all of it, or as much as who follows the log needs of it. */
  append(items, followed) {
    const blocks = items.map((item) => this._block(item));
    if (followed) this._skip(blocks);
    this._put(blocks);
    if (followed) this.trimAbove();
    else this.trimAround(this.anchor());
  }

  /** Let go of what is above, as far as a followed log needs no more of it. */
  trimAbove() {
    while (this._blocks.length && this._lines - this._blocks[0].lines.length >= FOLLOWED_LINES) this._dropFirst();
  }

  /** Let go of what is far from a line in sight, which stays where it stands. */
  trimAround(held) {
    const line = this._lineOf(held)?.element;
    if (!line || this._lines <= MOST_LINES) return;
    // Measured before anything goes: that moves all of them alike.
    const places = new Map(this._blocks.map((block) => [block, block.lines[0]?.element.offsetTop]));
    const middle = line.offsetTop;
    const away = (block) => (places.get(block) ?? middle) - middle;
    const empty = (block) => block && !block.lines.length;
    const far = FAR_PIXELS + this._scroller.clientHeight;
    while (this._lines > MOST_LINES && (empty(this._blocks[0]) || away(this._blocks[1]) < -far)) this._dropFirst();
    while (this._lines > MOST_LINES && (empty(this._blocks.at(-1)) || away(this._blocks.at(-1)) > far)) this._dropLast();
    this._scroller.scrollTop = line.offsetTop - held.gap;
  }

  /** The first line in sight: of which block, the how manieth of it, and how far from the top. */
  anchor() {
    const top = this._scroller.scrollTop;
    for (const block of this._blocks) {
      for (const [n, { element }] of block.lines.entries()) {
        if (element.offsetTop + element.offsetHeight > top) return { key: block.key, n, gap: element.offsetTop - top };
      }
    }
    return null;
  }

  /** Have that line stand where it stood. */
  restore(held) {
    const line = this._lineOf(held);
    if (line) this._scroller.scrollTop = line.element.offsetTop - held.gap;
  }

  hasFrame(sequence) {
    return this._blocks.some((block) => block.sequence === sequence);
  }

  /** The element of the first line since a time; undefined where there is none. */
  lineSince(time) {
    return linesOf(this._blocks).find((each) => compareTimes(each.time, time) >= 0)?.element;
  }

  /** That of the last line up to a frame whose text is as wanted; undefined where there is none. */
  lineUpTo(sequence, wanted) {
    const blocks = this._blocks.filter((block) => block.sequence && block.sequence <= sequence);
    return linesOf(blocks).findLast((each) => wanted(each.element.textContent))?.element;
  }

  /** What the lines say. */
  texts() {
    return linesOf(this._blocks).map((line) => line.element.textContent);
  }

  _block(item) {
    const lines = item.frame ? this._maker.frame(item.frame) : this._maker.entry(item.entry);
    const shown = lines.filter((line) => this._log.sources.has(line.source));
    const sequence = item.frame ? Number(item.frame.sequence) : 0;
    return { sequence, key: item.frame ? sequence : `entry ${item.entry.sequence}`, lines: shown };
  }

  _put(blocks) {
    const page = document.createDocumentFragment();
    for (const block of blocks) {
      this._blocks.push(block);
      this._lines += block.lines.length;
      for (const line of block.lines) page.append((line.element = this._element(line)));
    }
    // What was added to lines that have an element already.
    for (const line of this._maker.grown) if (line.element) show(line.element, line.text, line.style);
    this._maker.grown.clear();
    this._scroller.append(page);
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

  /** Leave out of new blocks what would have to go again at once: more came than a followed log shows. */
  _skip(blocks) {
    if (linesOf(blocks).length < FOLLOWED_LINES) return;
    this._log.dropFirst(this._blocks.filter((block) => block.sequence).length);
    for (const [n, block] of this._blocks.entries()) this._release(block, this._blocks[n + 1] ?? blocks[0]);
    this._clear();
    let lines = linesOf(blocks).length;
    while (lines - blocks[0].lines.length >= FOLLOWED_LINES) {
      const block = blocks.shift();
      lines -= this._release(block, blocks[0]).length;
      if (block.sequence) this._log.dropFirst(1);
    }
  }

  _clear() {
    this._blocks = [];
    this._lines = 0;
    this._scroller.replaceChildren();
  }

  _lineOf(held) {
    const lines = held && this._blocks.find((block) => block.key === held.key)?.lines;
    return lines?.[Math.min(held.n, lines.length - 1)];
  }

  _dropFirst() {
    const block = this._blocks.shift();
    if (block.sequence) this._log.dropFirst(1);
    this._remove(this._release(block, this._blocks[0]));
  }

  _dropLast() {
    const block = this._blocks.pop();
    if (block.sequence) this._log.dropLast(1);
    this._remove(block.lines);
  }

  /** The lines that go with a block. One that a later frame has added to stays, with the next block; one that is open ends. */
  _release(block, next) {
    const stays = next ? block.lines.filter((line) => line.last > block.sequence) : [];
    next?.lines.unshift(...stays);
    const goes = block.lines.filter((line) => !stays.includes(line));
    for (const line of goes) this._maker.end(line);
    return goes;
  }

  _remove(lines) {
    for (const line of lines) line.element.remove();
    this._lines -= lines.length;
  }
}

const linesOf = (blocks) => blocks.flatMap((block) => block.lines);
