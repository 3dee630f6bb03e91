// The processes of a job, and the evidence of their end.

import { h } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { ROLES, STOPS, endWord } from "../lib/words.js";
import { badge, empty } from "../parts/states.js";
import { table } from "../parts/table.js";

const METHODS = {
  cgroup: "by the control group of the job",
  subreaper: "by the supervisor, to whom all its orphans come",
  guardian: "by the guardian above the lost supervisor",
  reboot: "the machine has restarted since",
  environment: "by the marks that processes bear, which proves nothing where none are found",
};

/** Those that the evidence names, or that are known so far. */
export function processes(job) {
  const evidence = job.stopEvidence;
  const found = evidence?.processes?.length ? evidence.processes : job.processes;
  if (!found.length) return empty("No process is known", job.attempt ? "Nothing of this job was started yet." : "No agent has claimed it.");
  const alive = new Set((evidence?.survivors ?? []).map((each) => each.pid));
  return h("div", {},
    evidence && proof(job, evidence),
    table("Processes", ["PID", "Parent", "Name", "Runs as", "Role", "Started", "Signals", "End"], found.map((each) => [
      h("span", { class: "mono" }, each.pid),
      each.parentPid !== "0" && h("span", { class: "mono soft" }, each.parentPid),
      h("span", { class: "mono" }, each.name),
      each.identity,
      ROLES[each.role],
      moment(each.startTime, { short: true }),
      each.signals.length > 0 && h("span", { class: "mono" }, each.signals.join(", ")),
      alive.has(each.pid) ? badge("still there", "bad") : endWord(each),
    ])));
}

function proof(job, evidence) {
  const [word, tone] = STOPS[job.stopState] ?? ["", ""];
  const how = METHODS[evidence.method];
  return h("div", { class: ["notice", tone === "bad" && "bad"] },
    badge(word, tone), " ",
    evidence.treeEmpty ? "The tree of its processes was seen empty" : "The tree of its processes was not seen empty",
    how && `, ${how}`,
    evidence.verifyTime && [" at ", moment(evidence.verifyTime)], ".");
}
