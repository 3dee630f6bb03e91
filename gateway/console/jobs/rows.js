// The rows of the list. A row that is there is changed where it stands.

import { h, set, text } from "../lib/dom.js";
import { NOT_APPLICABLE, moment } from "../lib/format.js";
import { hasEnded, siteWord, statusTone, statusWord, typeWord } from "../lib/words.js";

/** The columns: field to sort by, word, and class. */
export const COLUMNS = [
  ["job_id", "Job Id", "id"],
  ["display_name", "Name", "name"],
  ["type", "Type", "type"],
  ["status", "Status", "status"],
  ["target", "Target", "target"],
  ["", "Child Jobs", "children"],
  ["create_time", "Created On", "created"],
  ["start_time", "Started On", "started"],
  ["complete_time", "Completed On", "completed"],
];

/** Have an element hold these children in this order; those that stay and are not overtaken are not touched. */
export function place(parent, elements) {
  const staying = new Set(elements);
  for (const child of [...parent.children]) if (!staying.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const element of elements) {
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
  }
}

export class JobRow {
  constructor(job, onPick) {
    this.job = job;
    this.box = h("input", {
      type: "checkbox",
      "aria-label": `Select job ${job.jobId}`,
      onchange: () => onPick(this, this.box.checked),
    });
    const address = `/jobs/${job.jobId}`;
    this._name = h("a", { href: address });
    this._badge = h("span", { class: "badge" });
    this._progress = h("span", { class: "soft small" });
    this._target = h("td", { class: "target" });
    this._times = ["Created", "Started", "Completed"].map((word) =>
      h("td", { class: word.toLowerCase(), "data-label": word }));
    this.element = h("tr", {},
      h("td", { class: "pick" }, this.box),
      h("td", { class: "id" }, h("a", { href: address, tabindex: "-1" }, job.jobId)),
      h("td", { class: "name" }, this._name),
      h("td", { class: "type" }, typeWord(job.type)),
      h("td", { class: "status" }, this._badge, " ", this._progress),
      this._target,
      h("td", { class: "children none", "data-label": "Child Jobs" }, NOT_APPLICABLE),
      this._times);
    this._show();
  }

  /** Show the job as it is now. */
  update(job) {
    const moved = job.status !== this.job.status;
    this.job = job;
    this._show();
    this.element.classList.remove("gone");
    if (moved) this.element.animate?.([{ background: "var(--picked)" }, {}], { duration: 1500 });
  }

  /** It does not belong to the list any more, and is left where it stands for the moment. */
  gone() {
    this.element.classList.add("gone");
  }

  pick(picked) {
    this.box.checked = picked;
    this.element.classList.toggle("picked", picked);
  }

  _show() {
    const job = this.job;
    text(this._name, job.displayName);
    text(this._badge, statusWord(job.status));
    set(this._badge, "class", ["badge", statusTone(job.status)]);
    set(this._badge, "title", job.statusMessage || job.wait?.message || null);
    const running = !hasEnded(job) && job.progressPercent;
    text(this._progress, running ? `${job.progressPercent} %` : "");
    text(this._target, job.target || siteWord(job.siteTarget));
    this._target.classList.toggle("soft", !job.target);
    [job.createTime, job.startTime, job.completeTime].forEach((time, n) => {
      if (this._times[n].dataset.time === (time ?? "none")) return;
      this._times[n].dataset.time = time ?? "none";
      this._times[n].replaceChildren(moment(time, { brief: true }));
    });
  }
}
