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

/** All that are known, with what the evidence says of them. */
export function processes(job) {
  const evidence = job.stopEvidence;
  const found = known(job, evidence);
  if (!found.length) return empty("No process is known", job.attempt ? "Nothing of this job was started yet." : "No agent has claimed it.");
  const alive = new Set((evidence?.survivors ?? []).map(key));
  return h("div", {},
    evidence && proof(job, evidence),
    table("Processes", ["Name", "Role", "PID", "Parent", "Runs as", "Started", "Signals", "End"], found.map((each) => [
      h("span", { class: "mono" }, each.name),
      ROLES[each.role],
      h("span", { class: "mono pid" }, each.pid),
      each.parentPid !== "0" && h("span", { class: "mono soft" }, each.parentPid),
      each.identity,
      moment(each.startTime, { short: true }),
      each.signals.length ? h("span", { class: "mono" }, signals(each)) : h("span", { class: "none" }, "none"),
      alive.has(key(each)) ? badge("still there", "bad") : end(each),
    ])));
}

/** A process id is given again; with the time of its start it names one process. */
const key = (process) => `${process.pid} ${process.startTime}`;

/**
 * The evidence is about the tree of the payload: the package executor above it is told by the log alone. And of those
 * that survive, the evidence names also what was too much to be recorded.
 */
function known(job, evidence) {
  const found = new Map(job.processes.map((each) => [key(each), each]));
  for (const each of evidence?.processes ?? []) found.set(key(each), each);
  for (const each of evidence?.survivors ?? []) if (!found.has(key(each))) found.set(key(each), each);
  return [...found.values()];
}

/** Each signal with the time at which it was sent, where that is known. */
function signals(process) {
  return process.signals.flatMap((name, place) => {
    const time = process.signalTimes?.[place];
    return [place > 0 && ", ", name, time && [" ", moment(time, { short: true })]];
  });
}

function end(process) {
  const ended = process.ended && !process.endSignal && process.exitCode === undefined;
  return ended ? ["ended", h("span", { class: "soft" }, ", code unseen")] : endWord(process);
}

function proof(job, evidence) {
  const [word, tone] = STOPS[job.stopState] ?? ["", ""];
  const how = METHODS[evidence.method];
  return h("div", { class: ["notice", ["good", "bad"].includes(tone) && tone] },
    badge(word, tone), " ",
    evidence.treeEmpty ? "The tree of its processes was seen empty" : "The tree of its processes was not seen empty",
    how && `, ${how}`,
    evidence.verifyTime && [" at ", moment(evidence.verifyTime)], ".");
}
