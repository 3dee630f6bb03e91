// The agents: who is online, what they have in hand, who may belong to the suite.

import { all } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { ago, count, moment } from "../lib/format.js";
import { badge, empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { pair, stateOf } from "./membership.js";

const LOOK_MILLISECONDS = 5_000;
const HEADS = ["Name", "Group", "State", "Slots", "Jobs in hand", "Host", "Platform", "Version", "Last seen", "Certificate until"];

export class AgentList extends HTMLElement {
  connectedCallback() {
    document.title = "Agents - SIS";
    this.className = "page";
    this._told = h("span", { class: "soft", role: "status" });
    this._place = h("div", {}, loading());
    fill(this,
      h("header", { class: "row spread" },
        h("div", { class: "row" }, h("h1", {}, "Agents"), this._told),
        h("button", { class: "primary", type: "button", onclick: () => this._pair() }, icon("plus"), "Pair an agent")),
      this._place);
    this._load();
  }

  disconnectedCallback() {
    clearTimeout(this._timer);
  }

  async _load() {
    clearTimeout(this._timer);
    try {
      const [agents, identities] = await Promise.all([all("/v1/agents", "agents"), all("/v1/agentIdentities", "identities")]);
      this._show(agents, identities);
    } catch (error) {
      fill(this._place, problem(error, () => this._load()));
    }
    if (this.isConnected) this._timer = setTimeout(() => (document.hidden ? this._later() : this._load()), LOOK_MILLISECONDS);
  }

  _later() {
    document.addEventListener("visibilitychange", () => this.isConnected && this._load(), { once: true });
  }

  _show(agents, identities) {
    const known = new Map(agents.map((each) => [each.name, each]));
    const names = [...new Set([...known.keys(), ...identities.map((each) => each.name)])].sort();
    const identity = new Map(identities.map((each) => [each.name, each]));
    const online = agents.filter((each) => each.online).length;
    fill(this._told, `${online} of ${count(names.length, "agent")} online`);
    if (!names.length) {
      fill(this._place, empty("There are no agents yet", "Pair one: it runs the jobs of its site."));
      return;
    }
    // Whoever has the focus in a row keeps it.
    const focused = this.contains(document.activeElement) ? document.activeElement.dataset.agent : null;
    fill(this._place, table("Agents", HEADS, names.map((name) => this._row(name, known.get(name), identity.get(name)))));
    if (focused) this.querySelector(`[data-agent="${CSS.escape(focused)}"]`)?.focus();
  }

  _row(name, agent, identity) {
    const jobs = agent?.attempts ?? [];
    return [
      h("a", { href: `/agents/${encodeURIComponent(name)}`, "data-agent": name }, name),
      agent?.group ?? identity.group,
      badge(...stateOf(agent, identity)),
      agent ? `${jobs.length} of ${agent.slots}` : "",
      jobs.length > 0 && [
        jobs.slice(0, 12).map((each, n) => [n > 0 && ", ", h("a", { href: `/jobs/${each.jobId}` }, each.jobId)]),
        jobs.length > 12 && " …",
      ],
      agent?.hostname, agent?.platform, agent?.version,
      agent ? h("span", { title: agent.lastSeenTime }, agent.online ? "now" : ago(agent.lastSeenTime)) : "never",
      identity && !identity.revoked && moment(identity.notAfter),
    ];
  }

  async _pair() {
    if (await pair()) this._load();
  }
}
customElements.define("sis-agent-list", AgentList);
