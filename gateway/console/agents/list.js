// The agents: who is online, what they have in hand, who may belong to the suite.

import { all } from "../lib/api.js";
import { h, icon } from "../lib/dom.js";
import { ago } from "../lib/format.js";
import { Polled } from "../parts/polled.js";
import { badge, empty } from "../parts/states.js";
import { table } from "../parts/table.js";
import { certificateEnd, pair, stateOf } from "./membership.js";

const HEADS = ["Name", "Group", "State", "Slots", "Jobs in hand", "Host", "Platform", "Version", "Last seen", "Certificate until"];

export class AgentList extends Polled {
  connectedCallback() {
    document.title = "Agents - SIS";
    this.className = "page";
    super.connectedCallback();
  }

  fetch() {
    return Promise.all([all("/v1/agents", "agents"), all("/v1/agentIdentities", "identities")]);
  }

  content([agents, identities]) {
    const known = new Map(agents.map((each) => [each.name, each]));
    const names = [...new Set([...known.keys(), ...identities.map((each) => each.name)])].sort();
    const identity = new Map(identities.map((each) => [each.name, each]));
    const online = agents.filter((each) => each.online).length;
    return [
      h("header", { class: "row spread" },
        h("div", { class: "row" }, h("h1", {}, "Agents"), h("span", { class: "soft", role: "status" }, `${online} of ${names.length} online`)),
        h("button", { class: "primary", type: "button", onclick: () => this._pair() }, icon("plus"), "Pair an agent")),
      names.length
        ? table("Agents", HEADS, names.map((name) => this._row(name, known.get(name), identity.get(name))), names)
        : empty("There are no agents yet", "Pair one: it runs the jobs of its site."),
    ];
  }

  _row(name, agent, identity) {
    const jobs = agent?.attempts ?? [];
    return [
      h("a", { href: `/agents/${encodeURIComponent(name)}` }, name),
      agent?.group ?? identity.group,
      badge(...stateOf(agent, identity)),
      agent ? `${jobs.length} of ${agent.slots}` : "",
      jobs.length > 0 && [
        jobs.slice(0, 12).map((each, n) => [n > 0 && ", ", h("a", { href: `/jobs/${each.jobId}` }, each.jobId)]),
        jobs.length > 12 && " …",
      ],
      agent?.hostname, agent?.platform, agent?.version,
      agent ? h("span", { title: agent.lastSeenTime }, agent.online ? "now" : ago(agent.lastSeenTime)) : "never",
      identity && !identity.revoked && certificateEnd(identity),
    ];
  }

  async _pair() {
    if (await pair()) this.look();
  }
}
customElements.define("sis-agent-list", AgentList);
