// Create New: a form made from the manifest of the package.

import { all, get, post } from "../lib/api.js";
import { fill, h, uid } from "../lib/dom.js";
import { fromLocal } from "../lib/format.js";
import { navigate, query } from "../lib/router.js";
import { PRIORITIES, TYPES } from "../lib/words.js";
import { field } from "../parts/dialog.js";
import { loading, problem } from "../parts/states.js";
import { report, say } from "../parts/toasts.js";
import { CredentialField } from "./credential-field.js";
import { InputField } from "./input-field.js";
import { SiteField } from "./site-field.js";

const READY = new Set(["JOB_TYPE_PACKAGE"]);
const LIMITS = [
  ["runTimeout", "Run timeout", "Instead of the operation's own."],
  ["startTimeout", "Start timeout", "From the claim to the first process; 300 unless given."],
  ["outputTimeout", "Output timeout", "From the payload's end to the job's; 60 unless given."],
  ["cancelGrace", "Cancel grace", "Between TERM and KILL."],
  ["heartbeatTimeout", "Heartbeat timeout", "Silence of its agent until it is AWOL; 120 unless given."],
  ["deferralLimit", "Deferral limit", "How long it may be held until it expires. Only with a job that is held."],
];
const CREDENTIAL = "credentials.";

export class CreateJob extends HTMLElement {
  constructor() {
    super();
    this._life = new AbortController();
    this._inputs = [];
    this._roles = [];
    this._fields = new Map();
    this._loads = 0;
  }

  async connectedCallback() {
    document.title = "Create a job - SIS";
    this.className = "page form-page";
    fill(this, loading());
    try {
      const copied = query().get("copy");
      const [packages, credentials, agents, copy] = await Promise.all([
        all("/v1/packages", "packages"),
        all("/v1/credentials", "credentials"),
        all("/v1/agents", "agents"),
        copied ? get(`/v1/jobs/${copied}:copy`) : { request: {} },
      ]);
      this._credentials = credentials.filter((each) => each.state === "CREDENTIAL_STATE_READY");
      this._build(packages, agents, copy.request);
      await this._choosePackage(query().get("version") ?? copy.request.package?.version, copy.request);
    } catch (error) {
      fill(this, problem(error, () => this.connectedCallback()));
    }
  }

  disconnectedCallback() {
    this._life.abort();
  }

  _build(packages, agents, from) {
    this._requestId = crypto.randomUUID();
    this._versions = Map.groupBy(packages, (each) => each.name);
    const wanted = query().get("package") ?? from.package?.name;
    this._name = h("input", { name: "displayName", maxlength: "200", autocomplete: "off", value: from.displayName ?? "" });
    this._package = h("select", { name: "package.name", onchange: () => this._choosePackage() },
      [...this._versions.keys()].map((name) => h("option", { value: name, selected: name === wanted }, name)),
      wanted && !this._versions.has(wanted) && removed(wanted));
    this._version = h("select", { name: "package.version", onchange: () => this._loadPackage() });
    this._operation = h("select", { name: "operation", onchange: () => this._showOperation() });
    this._about = h("p", { class: "hint field" });
    this._site = new SiteField(agents, from.siteTarget);
    this._priority = h("select", { name: "priority" },
      Object.entries(PRIORITIES).map(([value, word]) => h("option", { value, selected: value === (from.priority ?? "PRIORITY_NORMAL") }, word)));
    this._deferred = h("input", { type: "checkbox", name: "deferred", checked: from.deferred ?? false, onchange: () => this._showTimes() });
    this._notBefore = h("input", { type: "datetime-local", name: "notBefore" });
    this._latestStart = h("input", { type: "datetime-local", name: "latestStart" });
    this._limits = new Map(LIMITS.map(([name]) => [name, h("input", {
      type: "number", name, min: "0", step: "any", inputmode: "decimal", value: from[name] ? String(Number.parseFloat(from[name])) : "",
    })]));
    const labels = from.labels ?? {};
    this._labels = h("textarea", {
      name: "labels", rows: "2", spellcheck: "false", autocomplete: "off", value: Object.entries(labels).map((each) => each.join("=")).sort().join("\n"),
    });
    this._copied = { labels, text: this._labels.value };
    this._parameters = h("div", {});
    this._accounts = h("div", {});
    this._error = h("p", { class: "error", role: "alert" });
    this._submit = h("button", { class: "primary", type: "submit" }, "Create job");
    const type = uid("type");
    fill(this,
      h("header", {}, h("p", { class: "small" }, h("a", { href: "/jobs" }, "Jobs"), " / New"), h("h1", {}, "Create a job")),
      h("form", { novalidate: true, onsubmit: (event) => this._create(event), oninput: () => (this._requestId = crypto.randomUUID()) },
        h("div", { class: "sides" },
          h("div", {},
            h("fieldset", {},
              h("legend", {}, "What"),
              h("div", { class: "types", role: "radiogroup", "aria-label": "Type" }, Object.entries(TYPES).map(([value, word]) => h("label", { class: "choice" },
                h("input", { type: "radio", name: type, value, checked: READY.has(value), disabled: !READY.has(value) }),
                word, !READY.has(value) && h("span", { class: "soft small" }, "not in this version")))),
              field("Name", this._name, { required: true }),
              h("div", { class: "columns" }, field("Package", this._package), field("Version", this._version), field("Operation", this._operation)),
              this._about,
              field("Labels", this._labels, { mark: "one a line", hint: "KEY=VALUE, for whoever works with the job." })),
            h("fieldset", {}, h("legend", {}, "Parameters"), this._parameters)),
          h("div", {},
            h("fieldset", {}, h("legend", {}, "Where"), this._site),
            h("fieldset", {}, h("legend", {}, "As whom"), this._accounts),
            h("fieldset", {},
              h("legend", {}, "When"),
              h("div", { class: "columns" },
                field("Priority", this._priority),
                field("Not before", this._notBefore, { hint: "In your time zone." }),
                field("Latest start", this._latestStart, { hint: "It expires if nothing has claimed it by then." })),
              h("div", { class: "field" }, h("label", { class: "choice" }, this._deferred, "Hold it until somebody activates it"))),
            h("details", { class: "field" }, h("summary", {}, "Limits, in seconds"),
              h("div", { class: "columns" }, LIMITS.map(([name, word, hint]) => field(word, this._limits.get(name), { hint })))))),
        this._error,
        h("div", { class: "row end" }, h("a", { class: "button", href: "/jobs" }, "Back to the jobs"), this._submit)));
    this._showTimes();
  }

  _showTimes() {
    this._notBefore.disabled = this._deferred.checked;
    this._limits.get("deferralLimit").disabled = !this._deferred.checked;
  }

  // The package, and what its operation takes

  async _choosePackage(version, from) {
    const versions = this._versions.get(this._package.value) ?? [];
    fill(this._version, versions.map((each) => h("option", { value: each.version, selected: each.version === version }, each.version)),
      version && !versions.some((each) => each.version === version) && removed(version));
    await this._loadPackage(from);
  }

  async _loadPackage(from) {
    if (!this._package.value) {
      fill(this._about, "There is no package yet. Push one with ", h("code", {}, "sis packages push"), ".");
      this._submit.disabled = true;
      return;
    }
    const load = ++this._loads;
    this._submit.disabled = true;
    try {
      const path = `/v1/packages/${encodeURIComponent(this._package.value)}`;
      const found = await get(path, { version: this._version.value }, { signal: this._life.signal });
      // Another was chosen meanwhile.
      if (load !== this._loads) return;
      this._manifest = found.package;
    } catch (error) {
      if (load === this._loads && !this._life.signal.aborted) {
        fill(this._error, error.message, " ", h("button", { type: "button", class: "link", onclick: () => this._loadPackage(from) }, "Try again"));
      }
      return;
    }
    fill(this._error);
    this._submit.disabled = false;
    const before = from?.operation ?? query().get("operation") ?? this._operation.value;
    fill(this._operation, this._manifest.operations.map((each) => h("option", { value: each.name, selected: each.name === before }, each.name)));
    this._showOperation(from);
  }

  _showOperation(from = {}) {
    const operation = this._manifest.operations.find((each) => each.name === this._operation.value);
    const reference = `/packages/${encodeURIComponent(this._manifest.name)}?version=${encodeURIComponent(this._manifest.version)}`;
    fill(this._about, operation.description || this._manifest.description, " ", h("a", { href: reference, target: "_blank" }, "Reference of the package"));
    // What somebody chose, typed or picked for a package stays with it, whatever is looked at in between.
    const former = (name) => this._fields.get(this._keyOf(name));
    this._inputs = operation.inputs.map((input) => new InputField(input, this._credentials, from.parameters?.[input.name], former(`parameters.${input.name}`)));
    fill(this._parameters, this._inputs.length ? this._inputs.map((each) => each.element) : h("p", { class: "soft" }, "This operation takes none."));
    const role = (name, label, hint, kinds = [], required = false) => new CredentialField({
      name, label, hint, kinds, required, credentials: this._credentials,
      value: (name.startsWith(CREDENTIAL) ? from.credentials?.[name.slice(CREDENTIAL.length)] : from[name]) || former(name)?.value,
    });
    this._roles = [
      role("admin", "Admin", "With which it is deployed. With none, the agent's own account."),
      role("runAs", "Run As", "As whom the payload runs; the Admin unless given."),
      ...operation.credentials.map((each) => role(`${CREDENTIAL}${each.ref}`, each.ref, each.description, each.kinds, each.required)),
    ];
    fill(this._accounts, h("div", { class: "columns" }, this._roles.map((each) => each.element)));
    for (const each of this._inputs) this._fields.set(this._keyOf(`parameters.${each.input.name}`), each);
    for (const each of this._roles) this._fields.set(this._keyOf(each.name), each);
  }

  /** What another package calls the same is something else; Admin and Run As are the job's. */
  _keyOf(name) {
    return name === "admin" || name === "runAs" ? name : `${this._manifest.name} ${name}`;
  }

  // Sending it

  _request() {
    const request = {
      displayName: this._name.value,
      type: "JOB_TYPE_PACKAGE",
      package: { name: this._package.value, version: this._version.value },
      operation: this._operation.value,
      siteTarget: this._site.value,
      priority: this._priority.value,
      deferred: this._deferred.checked,
      requestId: this._requestId,
      labels: this._labelsGiven(),
      credentials: {},
    };
    if (!this._deferred.checked && this._notBefore.value) request.notBefore = fromLocal(this._notBefore.value);
    if (this._latestStart.value) request.latestStart = fromLocal(this._latestStart.value);
    for (const [name, input] of this._limits) if (input.value !== "" && !input.disabled) request[name] = `${input.value}s`;
    for (const role of this._roles) {
      if (!role.value) continue;
      if (role.name.startsWith(CREDENTIAL)) request.credentials[role.name.slice(CREDENTIAL.length)] = role.value;
      else request[role.name] = role.value;
    }
    return request;
  }

  _labelsGiven() {
    const text = this._labels.value;
    // A key may have an equals sign in it, too.
    if (text === this._copied.text) return this._copied.labels;
    return Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
      const [key, ...value] = line.split("=");
      return [key.trim(), value.join("=")];
    }));
  }

  /** The values of the inputs. Raises an error that names everything that this form itself finds wrong. */
  async _parameterValues() {
    const wrong = new Map();
    // Half a date or number would count as none.
    for (const each of this.querySelectorAll("input")) if (each.validity.badInput) wrong.set(each.name, "is not complete: mend it, or clear it");
    const found = {};
    for (const each of wrong.size ? [] : this._inputs) {
      try {
        const value = await each.read();
        if (value) found[each.input.name] = value;
      } catch (error) {
        if (!error.violations?.size) throw error;
        for (const [name, words] of error.violations) wrong.set(name, words);
      }
    }
    if (wrong.size) throw Object.assign(new Error("Some fields are wrong."), { violations: wrong });
    return found;
  }

  async _create(event) {
    event.preventDefault();
    this._submit.disabled = true;
    this._clear();
    try {
      const request = this._request();
      request.parameters = await this._parameterValues();
      const { job } = await post("/v1/jobs", request);
      await this._tie(job.jobId);
      // Somebody may have gone on meanwhile.
      if (this.isConnected) navigate(`/jobs/${job.jobId}`);
    } catch (error) {
      if (this.isConnected) this._tell(error);
      else report(error);
    } finally {
      this._submit.disabled = false;
    }
  }

  async _tie(jobId) {
    const tied = await Promise.allSettled(this._inputs.map((each) => each.tie(jobId)));
    const failed = tied.find((each) => each.status === "rejected");
    if (!failed) say(`Job ${jobId} was created.`);
    else say(`Job ${jobId} was created, but has a secret only if it starts within the hour: ${failed.reason.message}`, { bad: true });
  }

  _clear() {
    fill(this._error);
    for (const each of this.querySelectorAll("[aria-invalid]")) {
      each.removeAttribute("aria-invalid");
      const others = (each.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id !== `${each.id}-error`);
      each.setAttribute("aria-describedby", others.join(" "));
    }
    for (const each of this.querySelectorAll(".field > .error")) each.remove();
  }

  /** Show each wrong field at its place, in the server's words. */
  _tell(error) {
    const rest = [];
    let first = null;
    for (const [name, words] of error.violations ?? []) {
      const input = this._inputOf(name);
      if (!input) {
        rest.push(`${name} ${words}`);
        continue;
      }
      const note = h("p", { class: "error", id: `${input.id}-error` }, words);
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", `${note.id} ${input.getAttribute("aria-describedby") ?? ""}`.trim());
      input.closest(".field").append(note);
      input.closest("details")?.setAttribute("open", "");
      first ??= input;
    }
    if (rest.length || !first) fill(this._error, rest.length ? rest.join("; ") : error.message);
    else fill(this._error, "Some fields need another look.");
    (first ?? this._error).scrollIntoView({ block: "center" });
    first?.focus();
  }

  _inputOf(name) {
    const parameter = /^parameters\.([^.]+)/.exec(name)?.[1] ?? /^parameters\[['"]?([^'"\]]+)/.exec(name)?.[1];
    if (parameter) return this._inputs.find((each) => each.input.name === parameter)?.place;
    const role = this._roles.find((each) => each.name === name);
    if (role) return role.control;
    if (name.startsWith("siteTarget")) return this._site.control;
    if (/^labels\b/.test(name)) return this._labels;
    return this.querySelector(`[name="${CSS.escape(name)}"]`);
  }
}
customElements.define("sis-create-job", CreateJob);

/** A choice that is not there any more: no other one takes its place unseen. */
const removed = (value) => h("option", { value, selected: true }, `${value} (not in the library)`);
