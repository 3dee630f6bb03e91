// Tables of facts. On a phone each row is a small card, whose lines have the words of the head.

import { h } from "../lib/dom.js";

/**
 * `heads` are words, or {word, class}; of a row, each cell is what `h` takes as children. The first names the row. By
 * `keys`, one of each row, `update` finds the rows again.
 */
export function table(caption, heads, rows, keys = []) {
  const columns = heads.map((head) => (typeof head === "string" ? { word: head } : head));
  return h("div", { class: "sheet" }, h("table", { class: "cards" },
    h("caption", { class: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, columns.map(({ word, class: name }) => (word ? h("th", { scope: "col", class: name }, word) : h("td", {}))))),
    h("tbody", {}, rows.map((cells, row) => h("tr", { "data-key": keys[row] }, cells.map((cell, n) => {
      const { word, class: name } = columns[n];
      const nothing = [cell].flat(Infinity).every((part) => part === "" || part === null || part === undefined || part === false);
      return h("td", { class: [name, n === 0 && "name", nothing && "nothing"], "data-label": word || null }, h("div", {}, cell));
    }))))));
}
