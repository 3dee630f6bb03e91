// What can be done to jobs, asked for and done.

import { post, remove, stream } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { count, number } from "../lib/format.js";
import { navigate } from "../lib/router.js";
import { VERBS, hasEnded } from "../lib/words.js";
import { ask, field, reasonField } from "../parts/dialog.js";
import { say } from "../parts/toasts.js";

const EFFECTS = {
  JOB_VERB_ACTIVATE: "It is released now, whatever its earliest start.",
  JOB_VERB_CANCEL: "What has started gets TERM, then its grace, then KILL; what has not is canceled at once.",
  JOB_VERB_ABORT: "Its processes are killed at once. Use it where a cancel does not work.",
  JOB_VERB_DELETE: "It is hidden at once and purged with its log. This cannot be undone.",
  JOB_VERB_RERUN: "A new job repeats it, with the same package and parameters.",
};
const DANGEROUS = new Set(["JOB_VERB_CANCEL", "JOB_VERB_ABORT", "JOB_VERB_DELETE"]);
const SHOWN_REFUSALS = 50;

/** Ask for a verb on one job, and do it. The promise is true once it was done. */
export async function act(job, verb) {
  const { word, path } = VERBS[verb];
  const content = [h("p", {}, EFFECTS[verb]), reasonField()];
  if (verb === "JOB_VERB_ABORT" && job.forcePermitted) {
    content.splice(1, 0, field(
      "Its agent is gone",
      h("select", { name: "force" },
        job.permittedVerbs.includes(verb) && h("option", { value: "" }, "Abort: wait for its evidence"),
        h("option", { value: "force" }, "Let go by force: what it holds is freed without evidence")),
      { hint: "By force, leases, slot and log are let go; nobody proves that nothing of it runs." }));
  }
  const requestId = crypto.randomUUID();
  let made = null;
  const done = await ask({
    title: `${word} job ${job.jobId}?`,
    content,
    action: word,
    danger: DANGEROUS.has(verb),
    act: async (form) => {
      const reason = form.get("reason");
      if (verb === "JOB_VERB_DELETE") await remove(`/v1/jobs/${job.jobId}`, { reason });
      else {
        const body = { reason };
        if (verb === "JOB_VERB_RERUN") body.requestId = requestId;
        if (form.get("force")) body.force = true;
        made = (await post(`/v1/jobs/${job.jobId}:${path}`, body)).job;
      }
    },
  });
  if (done && verb === "JOB_VERB_RERUN") {
    say([`Job ${made.jobId} repeats it.`]);
    navigate(`/jobs/${made.jobId}`);
  }
  return done;
}

/**
 * Ask for a verb on many jobs, and do it: those of `jobs`, or all that `filter` selects, `total` of them. The promise is
 * true when something may have been done.
 */
export async function actOnMany(verb, { jobs = [], filter = null, total = jobs.length }) {
  const { word, done, underWay } = VERBS[verb];
  const able = jobs.filter((job) => job.permittedVerbs.includes(verb)).length;
  const meter = h("progress", { max: String(total), value: "0", "aria-label": `Jobs ${done}` });
  const told = h("p", { role: "status" });
  const running = h("div", { hidden: true }, meter, told);
  let outcome = null;
  let touched = false;
  const stopping = new AbortController();
  const asked = await ask({
    title: filter ? `${word} all ${count(total, "job")} that match?` : `${word} ${count(total, "job")}?`,
    content: [
      h("p", {}, EFFECTS[verb].replace(/^It is/, "Each is").replace(/^A new job/, "For each a new job")),
      !filter && able < total && h("p", {}, `${number(able)} of the ${number(total)} can be ${done} as they are now.`),
      filter && h("p", {}, "Jobs that have other statuses than it takes are left as they are."),
      reasonField(),
      running,
    ],
    action: word,
    danger: DANGEROUS.has(verb),
    stop: stopping,
    act: async (form) => {
      outcome = { finished: 0, underWay: 0, refused: [] };
      running.hidden = false;
      const body = { verb, reason: form.get("reason"), requestId: verb === "JOB_VERB_RERUN" ? crypto.randomUUID() : "" };
      if (filter) Object.assign(body, { filter, expectedCount: String(total) });
      else body.jobIds = jobs.map((job) => job.jobId);
      for await (const item of stream("POST", "/v1/jobs:apply", { body, signal: stopping.signal })) {
        if (!item.result) continue;
        if (item.result.error) outcome.refused.push(item.result);
        else if (underWay && item.result.job && !hasEnded(item.result.job)) outcome.underWay += 1;
        else outcome.finished += 1;
        const { finished, underWay: going, refused } = outcome;
        touched ||= finished + going > 0;
        meter.value = finished + going + refused.length;
        fill(told, [`${number(finished)} ${done}`, going > 0 && `${number(going)} ${underWay}`,
          `${number(refused.length)} refused`].filter(Boolean).join(", "));
      }
    },
  });
  // Closed before it was asked for, there is nothing to tell.
  if (outcome) tell(VERBS[verb], outcome, asked ? null : total);
  return asked || touched;
}

/** What became of them; of those that were chosen, where somebody stopped it before all had their turn. */
function tell({ done, underWay }, { finished, underWay: going, refused }, chosen) {
  const accepted = [(finished || !going) && `${count(finished, "job")} ${done}`, going > 0 && `${count(going, "job")} ${underWay}`]
    .filter(Boolean).join(", ");
  const reached = finished + going + refused.length;
  const what = chosen === null ? accepted : `Stopped after ${number(reached)} of ${count(chosen, "job")}: ${accepted}`;
  if (!refused.length) {
    say(what);
    return;
  }
  const rows = refused.slice(0, SHOWN_REFUSALS).map(({ jobId, error }) =>
    h("li", {}, h("a", { href: `/jobs/${jobId}` }, `Job ${jobId}`), ": ", error.message));
  ask({
    title: `${what}, ${count(refused.length, "was", "were")} refused`,
    wide: true,
    content: [
      h("ul", { class: "refusals" }, rows),
      refused.length > SHOWN_REFUSALS && h("p", { class: "soft" }, `… and ${number(refused.length - SHOWN_REFUSALS)} more`),
    ],
  });
}
