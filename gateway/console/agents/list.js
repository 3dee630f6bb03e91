// The agents: who is online, what they have in hand, who may belong to the suite.

import { all, post } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { ago, count, moment } from "../lib/format.js";
import { ask, field, reasonField } from "../parts/dialog.js";
import { badge, empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { say } from "../parts/toasts.js";

const LOOK_MILLISECONDS = 5_000;
const HEADS = ["Name", "Group", "State", "Slots", "Jobs in hand", "Host", "Platform", "Version", "Last seen", "Certificate until", ""];

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
      h("b", {}, name),
      agent?.group ?? identity.group,
      this._state(agent, identity),
      agent ? `${jobs.length} of ${agent.slots}` : "",
      jobs.length > 0 && [
        jobs.slice(0, 12).map((each, n) => [n > 0 && ", ", h("a", { href: `/jobs/${each.jobId}` }, each.jobId)]),
        jobs.length > 12 && " …",
      ],
      agent?.hostname, agent?.platform, agent?.version,
      agent ? h("span", { title: agent.lastSeenTime }, agent.online ? "now" : ago(agent.lastSeenTime)) : "never",
      identity && !identity.revoked && moment(identity.notAfter),
      identity && !identity.revoked && h("button", { type: "button", class: "quiet", "data-agent": name, onclick: () => this._revoke(name) }, "Revoke"),
    ];
  }

  _state(agent, identity) {
    if (identity?.revoked) return [badge("Revoked", "bad"), h("span", { class: "soft small" }, ` by ${identity.revoker}`)];
    if (agent?.quarantineTime) return badge("Quarantined: two programs use its identity", "bad");
    if (!agent) return badge("Never connected", "calm");
    if (!agent.online) return badge("Offline", "warn");
    return agent.draining ? badge("Draining", "warn") : badge("Online", "good");
  }

  async _pair() {
    let made = null;
    const asked = await ask({
      title: "Pair an agent",
      action: "Make a pairing code",
      content: [
        h("p", {}, "The code is good for one agent, within an hour. An agent that has the name already is replaced when it is used."),
        field("Name", h("input", { name: "name", autocomplete: "off" }), { required: true }),
        field("Group", h("input", { name: "group", autocomplete: "off", value: "default" }), { hint: "Any available member of a group takes its jobs.", required: true }),
      ],
      act: async (form) => {
        made = await post("/v1/agents:pair", { name: form.get("name"), group: form.get("group") });
      },
    });
    if (!asked) return;
    const code = h("textarea", { readonly: true, rows: "4", "aria-label": "Pairing code", value: made.code });
    await ask({
      title: "The pairing code",
      wide: true,
      content: [
        h("p", {}, "Shown this once. Whoever has it becomes that agent, until ", moment(made.expireTime), "."),
        code,
        h("p", {}, "On the agent's machine, with the address at which agents enrol:"),
        h("pre", {}, h("code", {}, "sis-agent enrol --hub HOST:PORT --code -")),
        h("button", { type: "button", onclick: async () => (await navigator.clipboard.writeText(made.code), say("The code was copied.")) }, icon("copy"), "Copy the code"),
      ],
    });
    code.value = "";
    this._load();
  }

  async _revoke(name) {
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
    if (done) {
      say(`The agent ${name} was revoked.`);
      this._load();
    }
  }
}
customElements.define("sis-agent-list", AgentList);
