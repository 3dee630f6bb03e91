// What is known of a job, but its log and history.

import { h } from "../lib/dom.js";
import { NOT_APPLICABLE, bytes, duration, moment, number, seconds } from "../lib/format.js";
import { PRIORITIES, STOPS, VERDICTS, hasEnded, packageWord, siteWord, typeWord } from "../lib/words.js";
import { badge } from "../parts/states.js";

const HIDDEN_VALUE = "••••••";

/** What the job itself says of how it goes, or has ended. */
export function outcome(job) {
  const { failureReason: reason, statusMessage: words } = job;
  return [words || reason, reason && words && h("span", { class: "soft small mono" }, ` ${reason}`)];
}

/** The panels. */
export function facts(job) {
  return [summary(job), execution(job), packageDetails(job), job.outputs.length > 0 && outputs(job)];
}

function panel(title, rows) {
  return h("section", { class: "card" }, h("h2", {}, title),
    h("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => [
      h("dt", {}, name),
      h("dd", { class: value?.classList?.contains("long") && "wide" }, value || h("span", { class: "none" }, NOT_APPLICABLE))])));
}

function summary(job) {
  return panel("Summary", [
    ["Type", typeWord(job.type)],
    ["Created by", job.creator],
    ["Created On", moment(job.createTime)],
    ["Started On", moment(job.startTime)],
    ["Completed On", moment(job.completeTime)],
    job.startTime && job.completeTime && ["Took", duration((new Date(job.completeTime) - new Date(job.startTime)) / 1000)],
    job.rerunOfJobId !== "0" && ["Repeats", h("a", { href: `/jobs/${job.rerunOfJobId}` }, `Job ${job.rerunOfJobId}`)],
    job.notBefore && ["Not before", moment(job.notBefore)],
    job.latestStart && ["Latest start", moment(job.latestStart)],
    job.deferralExpireTime && ["Held until", moment(job.deferralExpireTime)],
    Object.keys(job.labels).length > 0 && ["Labels", Object.entries(job.labels).map(([key, value]) => `${key}=${value}`).join(", ")],
  ]);
}

function execution(job) {
  const [stop, stopTone, stopped] = STOPS[job.stopState] ?? ["", "", ""];
  const [verdict, verdictTone, logged] = VERDICTS[job.log?.verdict] ?? ["", "", ""];
  return panel("Target and execution", [
    ["Target", job.target],
    ["Site target", siteWord(job.siteTarget)],
    ["Agent", job.agent && h("a", { href: `/agents/${encodeURIComponent(job.agent)}` }, job.agent)],
    ["Priority", PRIORITIES[job.priority] ?? ""],
    ["Attempt", job.attempt ? number(job.attempt) : ""],
    ["Result code", job.resultCode !== undefined ? h("span", { class: "mono" }, String(job.resultCode)) : ""],
    ["Runs as", job.runAs || job.admin || "the agent's own account"],
    job.admin && ["Admin", credential(job.admin)],
    job.runAs && ["Run As", credential(job.runAs)],
    ["Run timeout", job.runTimeout ? duration(seconds(job.runTimeout)) : "none"],
    ["Cancel grace", duration(seconds(job.cancelGrace ?? "0s"))],
    ["Stop", hasEnded(job) || job.stopState !== "STOP_STATE_NONE" ? [badge(stop, stopTone), note(stopped)] : ""],
    job.attempt > 0 && ["Log", [badge(verdict, verdictTone), note(logged)]],
    job.attempt > 0 && ["Output", bytes(job.log.outputBytes)],
  ]);
}

function packageDetails(job) {
  return panel("Package details", [
    ["Package", h("a", { href: `/packages/${encodeURIComponent(job.package.name)}?version=${encodeURIComponent(job.package.version)}` }, packageWord(job.package))],
    ["Operation", job.operation],
    ["Digest", h("span", { class: "mono", title: job.package.digest }, job.package.digest.slice(0, 16))],
    ...Object.entries(job.credentials).map(([ref, name]) => [`Credential ${ref}`, credential(name)]),
    ...Object.entries(job.parameters).sort().map(([name, value]) => [name, parameter(value)]),
  ]);
}

const note = (words) => h("span", { class: "soft small" }, ` ${words}`);
const credential = (name) => h("a", { href: `/credentials/${encodeURIComponent(name)}` }, name);

function parameter(value) {
  if (value.credentialRef !== undefined) {
    return [h("span", { "aria-label": "hidden" }, HIDDEN_VALUE), h("span", { class: "soft small" }, " from "), credential(value.credentialRef)];
  }
  if (value.file) return `${value.file.name} (${bytes(value.file.sizeBytes)})`;
  if (value.list) return h("span", { class: "mono" }, value.list.items.join(", "));
  return long(value.plain);
}

/** A text of any length, of which some lines are shown at once. Empty lines around it are left out. */
function long(text) {
  const shown = text.replace(/^\s*\n|\s+$/g, "");
  if (!shown.includes("\n") && shown.length < 80) return h("span", { class: "mono" }, shown);
  return h("div", { class: "mono long", tabindex: "0", role: "group", "aria-label": "Value" }, shown);
}

function outputs(job) {
  return panel("Outputs", job.outputs.map(({ name, value }) => [name, long(value)]));
}
