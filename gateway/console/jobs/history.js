// Who did what to a job, when, why, and from where.

import { h } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { sentence, statusTone, statusWord } from "../lib/words.js";
import { badge, empty } from "../parts/states.js";
import { table } from "../parts/table.js";

export function historyTable(entries) {
  if (!entries.length) return empty("The history is on its way");
  return table("History", ["When", "What", "Status", "Who", "From", "Attempt"], entries.map((entry) => [
    moment(entry.time),
    what(entry),
    entry.fromStatus === entry.toStatus
      ? h("span", { class: "soft small" }, "unchanged")
      : badge(statusWord(entry.toStatus), statusTone(entry.toStatus)),
    entry.actor || "the server",
    entry.origin && h("span", { class: "mono soft" }, entry.origin),
    entry.attempt ? String(entry.attempt) : "",
  ]));
}

/** What was done, but by whom: that has a column of its own. */
function what(entry) {
  // It says that itself.
  if (entry.event === "FINISH_STOPPED" && entry.message) return entry.message;
  const said = sentence(entry);
  const by = ` by ${entry.actor || "the server"}`;
  const place = said.search(/[:,]|$/);
  return said.slice(0, place).replace(by, "") + said.slice(place);
}
