// Where a job may run: a group or an agent, and who of them is online.

import { fill, h, uid } from "../lib/dom.js";

export class SiteField extends HTMLElement {
  constructor(agents, target) {
    super();
    this._groups = Map.groupBy(agents, (each) => each.group);
    this._agents = agents;
    this._kind = target?.agent ? "agent" : "group";
    /** What is chosen, by kind. A copied job goes where its original went, whoever is known there now. */
    this._chosen = { group: target?.group ?? "", agent: target?.agent ?? "" };
    this._name = uid("site");
  }

  connectedCallback() {
    const choice = (kind, word) => h("label", { class: "choice" },
      h("input", { type: "radio", name: this._name, value: kind, checked: this._kind === kind, onchange: () => ((this._kind = kind), this._offer()) }), word);
    this.control = h("select", { id: uid("field"), name: "siteTarget", "aria-label": "Site target", onchange: () => this._choose() });
    this._note = h("p", { class: "hint" });
    fill(this, h("div", { class: "field" },
      h("div", { class: "types", role: "radiogroup", "aria-label": "Site target" }, choice("group", "Any agent of a group"), choice("agent", "One agent")),
      this.control, this._note));
    this._offer();
  }

  get value() {
    return this.control.value ? { [this._kind]: this.control.value } : {};
  }

  _offer() {
    const names = this._kind === "group" ? [...this._groups.keys()] : this._agents.map((each) => each.name);
    const chosen = this._chosen[this._kind];
    if (chosen && !names.includes(chosen)) names.push(chosen);
    const first = chosen || names.find((name) => this._members(name).some((each) => each.online));
    fill(this.control, names.map((name) => h("option", { value: name, selected: name === first }, this._label(name))));
    this._tell();
  }

  _choose() {
    this._chosen[this._kind] = this.control.value;
    this._tell();
  }

  _members(name) {
    return this._kind === "group" ? (this._groups.get(name) ?? []) : this._agents.filter((each) => each.name === name);
  }

  _label(name) {
    const members = this._members(name);
    const online = members.filter((each) => each.online).length;
    if (this._kind === "agent") return `${name} (${online ? "online" : "offline"})`;
    return `${name} (${online} of ${members.length} online)`;
  }

  _tell() {
    const members = this._members(this.control.value);
    const online = members.filter((each) => each.online);
    if (!this._agents.length) fill(this._note, "No agent has ever been connected. ", h("a", { href: "/agents" }, "Pair one"), " first.");
    else if (!online.length) fill(this._note, "Nobody of it is online: the job will wait.");
    else fill(this._note, `Online: ${online.slice(0, 8).map((each) => each.name).join(", ")}${online.length > 8 ? " …" : ""}`);
  }
}
customElements.define("sis-site-field", SiteField);
