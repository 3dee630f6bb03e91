// KeySafe: the credentials, without their secrets.

import { all } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { CREDENTIAL_KINDS, CREDENTIAL_STATES } from "../lib/words.js";
import { badge, empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { create } from "./form.js";

export class CredentialList extends HTMLElement {
  connectedCallback() {
    document.title = "KeySafe - SIS";
    this.className = "page";
    this._place = h("div", {}, loading());
    fill(this,
      h("header", { class: "row spread" },
        h("div", {}, h("h1", {}, "KeySafe"), h("p", { class: "soft" }, "Credentials for jobs. Their secrets are in Vault, and nobody can read them back.")),
        h("button", { class: "primary", type: "button", onclick: () => this._create() }, icon("plus"), "New credential")),
      this._place);
    this._load();
  }

  async _load() {
    try {
      const credentials = await all("/v1/credentials", "credentials");
      if (!credentials.length) fill(this._place, empty("There are no credentials yet", "Without one, a job runs as the agent's own account."));
      else fill(this._place, this._table(credentials));
    } catch (error) {
      fill(this._place, problem(error, () => this._load()));
    }
  }

  _table(credentials) {
    return table("Credentials", ["Name", "Kind", "Account", "State", "Description", "Replaced", "Last used"], credentials.map((each) => [
      h("a", { href: `/credentials/${encodeURIComponent(each.name)}` }, each.name),
      CREDENTIAL_KINDS[each.kind],
      each.domain ? `${each.domain}\\${each.username}` : each.username,
      badge(...(CREDENTIAL_STATES[each.state] ?? [each.state, "warn"])),
      each.description && h("span", { class: "soft" }, each.description),
      each.updater ? moment(each.updateTime) : h("span", { class: "none" }, "never"),
      moment(each.lastUseTime, { empty: "never" }),
    ]));
  }

  async _create() {
    if (await create()) this._load();
  }
}
customElements.define("sis-credential-list", CredentialList);
