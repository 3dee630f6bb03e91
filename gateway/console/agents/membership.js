// Who belongs to the suite: pairing an agent, and cutting one off.

import { post } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { ask, field, reasonField } from "../parts/dialog.js";
import { badge } from "../parts/states.js";
import { say } from "../parts/toasts.js";

const LATE_MILLISECONDS = 4 * 3600 * 1000;

/**
 * Until when its certificate is good, with a warning where it should have been renewed long ago: agents do that when a
 * third of its life is left. How long that is nobody tells; it is not longer than from the enrolment to its end.
 */
export function certificateEnd({ enrolTime, notAfter }) {
  const left = new Date(notAfter) - Date.now();
  const late = Math.min(LATE_MILLISECONDS, (new Date(notAfter) - new Date(enrolTime)) / 6);
  if (left <= 0) return [moment(notAfter), " ", badge("Over", "bad")];
  return left < late ? [moment(notAfter), " ", badge("Ends soon", "warn")] : moment(notAfter);
}

/** The word for how an agent stands, and its colour. */
export function stateOf(agent, identity) {
  if (identity?.revoked) return ["Revoked", "bad"];
  if (agent?.quarantineTime) return ["Quarantined: two programs use its identity", "bad"];
  if (!agent) return ["Never connected", "calm"];
  if (!agent.online) return ["Offline", "warn"];
  return agent.draining ? ["Draining", "warn"] : ["Online", "good"];
}

/** Ask for a name and a group, and show the code; whether one was made. */
export async function pair({ name = "", group = "default" } = {}) {
  let made = null;
  const asked = await ask({
    title: "Pair an agent",
    action: "Make a pairing code",
    content: [
      h("p", {}, "The code is good for one agent, within an hour. An agent that has the name already is replaced when it is used."),
      field("Name", h("input", { name: "name", autocomplete: "off", value: name }), { required: true }),
      field("Group", h("input", { name: "group", autocomplete: "off", value: group }), { hint: "Any available member of a group takes its jobs.", required: true }),
    ],
    act: async (form) => {
      made = await post("/v1/agents:pair", { name: form.get("name"), group: form.get("group") });
    },
  });
  if (!asked) return false;
  const told = h("span", { role: "status" });
  const copy = async () => {
    code.select();
    try {
      await navigator.clipboard.writeText(made.code);
      fill(told, "The code was copied.");
    } catch {
      // Browsers refuse it, and have no clipboard at all where the page came without TLS.
      fill(told, "This browser does not let the page copy it. The code is selected: copy it with the keyboard.");
    }
  };
  const code = h("textarea", { readonly: true, rows: "4", "aria-label": "Pairing code", value: made.code });
  await ask({
    title: "The pairing code",
    wide: true,
    content: [
      h("p", {}, "Shown this once. Whoever has it becomes that agent, until ", moment(made.expireTime), "."),
      code,
      h("p", {}, "On the agent's machine, with the address at which agents enrol:"),
      h("pre", {}, h("code", {}, "sis-agent enrol --hub HOST:PORT --code -")),
      h("div", { class: "row" }, h("button", { type: "button", onclick: copy }, icon("copy"), "Copy the code"), told),
    ],
  });
  code.value = "";
  return true;
}

/** Ask, and revoke; whether it was. */
export async function revoke(name) {
  const done = await ask({
    title: `Revoke ${name}?`,
    content: [
      h("p", {}, "It is cut off at once. What runs at its site goes on there and becomes AWOL; only a new pairing code brings the agent back."),
      reasonField(),
    ],
    action: "Revoke",
    danger: true,
    act: (form) => post(`/v1/agents/${encodeURIComponent(name)}:revoke`, { reason: form.get("reason") }),
  });
  if (done) say(`The agent ${name} was revoked.`);
  return done;
}
