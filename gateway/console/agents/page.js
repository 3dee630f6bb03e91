// One agent: what it says of itself, what it has in hand, and by what it belongs to the suite.

import { all, get } from "../lib/api.js";
import { h, icon } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { Polled } from "../parts/polled.js";
import { badge, empty, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { certificateEnd, pair, revoke, stateOf } from "./membership.js";

export class AgentPage extends Polled {
  constructor({ name }) {
    super();
    this._name = name;
  }

  connectedCallback() {
    document.title = `${this._name} - Agents - SIS`;
    this.className = "page";
    super.connectedCallback();
  }

  async fetch() {
    const [found, identities] = await Promise.all([
      get(`/v1/agents/${encodeURIComponent(this._name)}`).catch(gone),
      all("/v1/agentIdentities", "identities"),
    ]);
    const identity = identities.find((each) => each.name === this._name);
    if (!found && !identity) throw Object.assign(new Error(`There is no agent ${this._name}.`), { code: 404 });
    return { agent: found?.agent, identity };
  }

  missing(error, retry) {
    return [problem(error, retry), h("p", { class: "state" }, h("a", { href: "/agents" }, "To the agents"))];
  }

  content({ agent, identity }) {
    this._group = agent?.group ?? identity?.group;
    return [
      h("header", {},
        h("p", { class: "small" }, h("a", { href: "/agents" }, "Agents"), ` / ${this._name}`),
        h("div", { class: "row spread" },
          h("div", { class: "row" }, h("h1", {}, this._name), badge(...stateOf(agent, identity))),
          h("div", { class: "row" },
            h("button", { type: "button", onclick: () => this._pair(), "data-key": "pair" }, icon("again"), "Pair again"),
            identity && !identity.revoked && h("button", { type: "button", "data-key": "revoke", onclick: () => this._revoke() }, icon("close"), "Revoke")))),
      h("div", { class: "facts-grid" }, this._program(agent), this._identity(identity)),
      h("h2", {}, "Jobs in hand"),
      agent?.attempts.length
        ? table("Jobs in hand", ["Job", "Attempt"], agent.attempts.map((each) => [h("a", { href: `/jobs/${each.jobId}` }, `Job ${each.jobId}`), String(each.number)]), agent.attempts.map((each) => each.jobId))
        : h("div", { class: "sheet", "data-key": "none" }, empty("It has none")),
    ];
  }

  _program(agent) {
    if (!agent) return panel("Program", [["Connected", "never"]]);
    const labels = Object.entries(agent.labels).map(([key, value]) => `${key}=${value}`).join(", ");
    return panel("Program", [
      ["Group", agent.group], ["Host", agent.hostname], ["Platform", agent.platform], ["Version", agent.version],
      ["Slots", `${agent.attempts.length} of ${agent.slots} taken`], ["Hub", agent.hub],
      ["First seen", moment(agent.firstSeenTime)], ["Connected", moment(agent.connectTime)], ["Last seen", agent.online ? "now" : moment(agent.lastSeenTime)],
      labels && ["Labels", labels],
    ]);
  }

  _identity(identity) {
    if (!identity) return panel("Identity", [["Enrolled", "never"]]);
    return panel("Identity", [
      ["Enrolled", moment(identity.enrolTime)], ["Paired by", identity.pairer],
      ["Certificate", h("span", { class: "mono" }, identity.serial)], ["Until", identity.revoked ? moment(identity.notAfter) : certificateEnd(identity)],
      identity.revoked && ["Revoked", [moment(identity.revokeTime), ` by ${identity.revoker}`]],
      identity.revokeReason && ["Because", identity.revokeReason],
    ]);
  }

  async _pair() {
    if (await pair({ name: this._name, group: this._group })) this.look();
  }

  async _revoke() {
    if (await revoke(this._name)) this.look();
  }
}
customElements.define("sis-agent-page", AgentPage);

function panel(title, facts) {
  return h("section", { class: "card" }, h("h2", {}, title),
    h("dl", { class: "facts" }, facts.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value || h("span", { class: "none" }, "n/a"))])));
}

/** An agent that was never connected is none; anything else is an error. */
function gone(error) {
  if (error.code === 404) return null;
  throw error;
}
