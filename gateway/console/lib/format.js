// Times, durations, sizes and numbers for people.

import { h } from "./dom.js";

const dayAndTime = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23",
});
const dayOfYear = new Intl.DateTimeFormat(undefined, {
  month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const timeOfDay = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const named = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" });
const digits = new Intl.NumberFormat();

export const NOT_APPLICABLE = "n/a";

/**
 * A moment in the reader's zone, with UTC for whoever looks closer; n/a where there is none. `short` is the time of day
 * alone, `brief` leaves out the year where it is this one.
 */
export function moment(time, { empty = NOT_APPLICABLE, short = false, brief = false } = {}) {
  if (!time) return h("span", { class: "none" }, empty);
  const thisYear = new Date(time).getFullYear() === new Date().getFullYear();
  const shown = short ? clock(time) : brief && thisYear ? withoutYear(time) : local(time);
  return h("time", { datetime: time, title: `${utc(time)} (shown in ${zone(time)})` }, shown);
}

/** What the reader's zone is called at a moment: in summer it has another name. */
const zone = (time) =>
  named.formatToParts(new Date(time)).find((part) => part.type === "timeZoneName")?.value ?? "local time";

export const local = (time) => dayAndTime.format(new Date(time)).replace(",", "");
const withoutYear = (time) => dayOfYear.format(new Date(time)).replace(",", "");
export const clock = (time) => timeOfDay.format(new Date(time));

/** In UTC, to the second. */
export const utc = (time) => `${new Date(time).toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** How long ago, in a few words. */
export function ago(time) {
  const seconds = Math.max(0, (Date.now() - new Date(time)) / 1000);
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

/** The seconds of a duration of the API: "1.5s". */
export const seconds = (text) => Number.parseFloat(text);

/** A number of seconds in words: "350 ms", "4.2 s", "3 min 20 s", "2 h 5 min". */
export function duration(value) {
  if (value > 0 && value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${(Math.round(value * 10) / 10).toString()} s`;
  let left = Math.round(value);
  const parts = [];
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) parts.push(`${count} ${name}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function bytes(count) {
  let value = Number(count);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024 || unit === "GiB") return unit === "B" ? `${value} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return "";
}

export const number = (value) => digits.format(Number(value));

/** "1 job", "1,234 jobs". */
export const count = (value, one, many = `${one}s`) => `${number(value)} ${Number(value) === 1 ? one : many}`;

/** What an input for a local time holds, as the API has it; "" for nothing. */
export const fromLocal = (value) => (value ? new Date(value).toISOString() : "");

/** The other way. */
export function toLocal(time) {
  if (!time) return "";
  const date = new Date(time);
  return new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
