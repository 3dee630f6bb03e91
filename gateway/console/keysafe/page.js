// One credential, and who used it.

import { get, remove } from "../lib/api.js";
import { fill, h, icon, update } from "../lib/dom.js";
import { moment } from "../lib/format.js";
import { navigate } from "../lib/router.js";
import { CREDENTIAL_KINDS, CREDENTIAL_STATES } from "../lib/words.js";
import { ask } from "../parts/dialog.js";
import { badge, empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { report, say } from "../parts/toasts.js";
import { replace } from "./form.js";

const USES = 100;
const ROLES = { admin: "Admin", run_as: "Run As" };

/** As what a job used it: "credential.token" is what the operation calls "token", "param.key" its input "key". */
function roleWord(ref) {
  const [kind, ...name] = ref.split(".");
  if (!name.length) return ROLES[ref] ?? ref;
  return kind === "param" ? `Input ${name.join(".")}` : `Credential ${name.join(".")}`;
}

export class CredentialPage extends HTMLElement {
  constructor({ name }) {
    super();
    this._name = name;
    this._path = `/v1/credentials/${encodeURIComponent(name)}`;
    this._credential = null;
  }

  connectedCallback() {
    document.title = `${this._name} - KeySafe - SIS`;
    this.className = "page";
    fill(this, loading());
    this._load();
  }

  async _load() {
    try {
      const [{ credential }, { usage }] = await Promise.all([get(this._path), get(`${this._path}/usage`, { pageSize: USES })]);
      this._show(credential, usage);
    } catch (error) {
      // What is shown stays, unless it is gone.
      if (this._credential && error.code !== 404) report(error);
      else fill(this, problem(error, error.code === 404 ? null : () => this._load()), h("p", { class: "state" }, h("a", { href: "/credentials" }, "To the KeySafe")));
    }
  }

  _show(credential, usage) {
    this._credential = credential;
    const facts = (...found) => h("dl", { class: "facts" }, found.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    const account = facts(
      ["Kind", CREDENTIAL_KINDS[credential.kind]],
      credential.kind !== "CREDENTIAL_KIND_TOKEN" && ["Account", credential.domain ? `${credential.domain}\\${credential.username}` : credential.username],
      ["State", badge(...(CREDENTIAL_STATES[credential.state] ?? [credential.state, "warn"]))],
      ["Description", credential.description || h("span", { class: "none" }, "none")],
    );
    const secret = facts(
      ["Value", ["•••••••• ", h("span", { class: "soft small" }, `version ${credential.version}`)]],
      ["Created", [moment(credential.createTime), ` by ${credential.creator}`]],
      ["Replaced", credential.updater ? [moment(credential.updateTime), ` by ${credential.updater}`] : "never"],
      ["Last used", moment(credential.lastUseTime, { empty: "never" })],
    );
    update(this,
      h("header", {},
        h("p", { class: "small" }, h("a", { href: "/credentials" }, "KeySafe"), ` / ${credential.name}`),
        h("div", { class: "row spread" }, h("h1", {}, credential.name),
          h("div", { class: "row" },
            h("button", { type: "button", onclick: () => this._replace() }, icon("again"), "Replace secret"),
            h("button", { type: "button", onclick: () => this._delete() }, icon("trash"), "Delete")))),
      h("div", { class: "facts-grid" },
        h("section", { class: "card" }, h("h2", {}, "Credential"), account),
        h("section", { class: "card" }, h("h2", {}, "Secret"), secret)),
      h("h2", {}, "Who used it"),
      usage.length ? this._uses(usage) : h("div", { class: "sheet" }, empty("No job has used it yet")));
  }

  _uses(usage) {
    return table("Uses", ["Job", "As", "At agent", "For", "Version", "From", "Until"], usage.map((use) => [
      h("a", { href: `/jobs/${use.jobId}` }, `Job ${use.jobId}`),
      roleWord(use.ref), use.agent, use.requester, use.version, moment(use.takeTime), moment(use.endTime, { empty: "in use" }),
    ]));
  }

  async _replace() {
    await replace(this._credential);
    // If it was refused, because somebody else was faster, say, what is shown is old.
    this._load();
  }

  async _delete() {
    const deleted = await ask({
      title: `Delete ${this._name}?`,
      content: h("p", {}, "Every version of its secret is removed from Vault. Jobs that wait for it will fail. This cannot be undone."),
      action: "Delete",
      danger: true,
      act: () => remove(this._path),
    });
    if (!deleted) return;
    say(`The credential ${this._name} was deleted.`);
    if (this.isConnected) navigate("/credentials");
  }
}
customElements.define("sis-credential-page", CredentialPage);
