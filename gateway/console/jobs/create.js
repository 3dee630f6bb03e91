// Create New: a form made from the manifest of the package.

import { all, get, post } from "../lib/api.js";
import { fill, h, uid } from "../lib/dom.js";
import { fromLocal } from "../lib/format.js";
import { navigate, query } from "../lib/router.js";
import { PRIORITIES, TYPES } from "../lib/words.js";
import { field } from "../parts/dialog.js";
import { loading, problem } from "../parts/states.js";
import { say } from "../parts/toasts.js";
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
];

export class CreateJob extends HTMLElement {
  constructor() {
    super();
    this._life = new AbortController();
    this._inputs = [];
    this._roles = [];
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
      await this._choosePackage(copy.request.package?.version, copy.request);
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
      [...this._versions.keys()].map((name) => h("option", { value: name, selected: name === wanted }, name)));
    this._version = h("select", { name: "package.version", onchange: () => this._loadPackage() });
    this._operation = h("select", { name: "operation", onchange: () => this._showOperation() });
    this._about = h("p", { class: "hint" });
    this._site = new SiteField(agents, from.siteTarget);
    this._priority = h("select", { name: "priority" },
      Object.entries(PRIORITIES).map(([value, word]) => h("option", { value, selected: value === (from.priority ?? "PRIORITY_NORMAL") }, word)));
    this._deferred = h("input", { type: "checkbox", name: "deferred", checked: from.deferred ?? false, onchange: () => this._showTimes() });
    this._notBefore = h("input", { type: "datetime-local", name: "notBefore" });
    this._latestStart = h("input", { type: "datetime-local", name: "latestStart" });
    this._limits = new Map(LIMITS.map(([name]) => [name, h("input", {
      type: "number", name, min: "0", step: "1", inputmode: "numeric", value: from[name] && name !== "heartbeatTimeout" ? String(Number.parseFloat(from[name])) : "",
    })]));
    this._parameters = h("div", {});
    this._accounts = h("div", {});
    this._error = h("p", { class: "error", role: "alert" });
    this._submit = h("button", { class: "primary", type: "submit" }, "Create job");
    const type = uid("type");
    fill(this,
      h("header", {}, h("p", { class: "small" }, h("a", { href: "/jobs" }, "Jobs"), " / New"), h("h1", {}, "Create a job")),
      h("form", { novalidate: true, onsubmit: (event) => this._create(event), oninput: () => (this._requestId = crypto.randomUUID()) },
        h("fieldset", {},
          h("legend", {}, "What"),
          h("div", { class: "types", role: "radiogroup", "aria-label": "Type" }, Object.entries(TYPES).map(([value, word]) => h("label", { class: "choice" },
            h("input", { type: "radio", name: type, value, checked: READY.has(value), disabled: !READY.has(value) }),
            word, !READY.has(value) && h("span", { class: "soft small" }, "not in this version")))),
          field("Name", this._name, { required: true }),
          h("div", { class: "columns" }, field("Package", this._package), field("Version", this._version), field("Operation", this._operation)),
          this._about),
        h("fieldset", {}, h("legend", {}, "Parameters"), this._parameters),
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
          h("div", { class: "columns" }, LIMITS.map(([name, word, hint]) => field(word, this._limits.get(name), { hint })))),
        this._error,
        h("div", { class: "row end" }, h("a", { class: "button", href: "/jobs" }, "Do nothing"), this._submit)));
    this._showTimes();
  }

  _showTimes() {
    this._notBefore.disabled = this._deferred.checked;
  }

  // The package, and what its operation takes

  async _choosePackage(version, from) {
    const versions = this._versions.get(this._package.value) ?? [];
    fill(this._version, versions.map((each) => h("option", { value: each.version, selected: each.version === version }, each.version)));
    await this._loadPackage(from);
  }

  async _loadPackage(from) {
    if (!this._package.value) {
      fill(this._about, "There is no package yet. Push one with `sis packages push`.");
      this._submit.disabled = true;
      return;
    }
    try {
      const path = `/v1/packages/${encodeURIComponent(this._package.value)}`;
      this._manifest = (await get(path, { version: this._version.value }, { signal: this._life.signal })).package;
    } catch (error) {
      if (!this._life.signal.aborted) fill(this._error, error.message);
      return;
    }
    const before = from?.operation ?? query().get("operation") ?? this._operation.value;
    fill(this._operation, this._manifest.operations.map((each) => h("option", { value: each.name, selected: each.name === before }, each.name)));
    this._showOperation(from);
  }

  _showOperation(from = {}) {
    const operation = this._manifest.operations.find((each) => each.name === this._operation.value);
    const reference = `/packages/${encodeURIComponent(this._manifest.name)}?version=${encodeURIComponent(this._manifest.version)}`;
    fill(this._about, operation.description || this._manifest.description, " ", h("a", { href: reference, target: "_blank" }, "Reference of the package"));
    const before = new Map(this._inputs.map((each) => [each.input.name, each]));
    this._inputs = operation.inputs.map((input) => new InputField(input, this._credentials, from.parameters?.[input.name], before.get(input.name)));
    fill(this._parameters, this._inputs.length ? this._inputs.map((each) => each.element) : h("p", { class: "soft" }, "This operation takes none."));
    const role = (name, label, hint, kinds = [], required = false) => new CredentialField({
      name, label, hint, kinds, required, credentials: this._credentials,
      value: name.startsWith("credentials.") ? from.credentials?.[name.slice(12)] : from[name],
    });
    this._roles = [
      role("admin", "Admin", "With which it is deployed. With none, the agent's own account."),
      role("runAs", "Run As", "As whom the payload runs; the Admin unless given."),
      ...operation.credentials.map((each) => role(`credentials.${each.ref}`, each.ref, each.description, each.kinds, each.required)),
    ];
    fill(this._accounts, h("div", { class: "columns" }, this._roles.map((each) => each.element)));
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
      parameters: {},
      credentials: {},
    };
    if (!this._deferred.checked && this._notBefore.value) request.notBefore = fromLocal(this._notBefore.value);
    if (this._latestStart.value) request.latestStart = fromLocal(this._latestStart.value);
    for (const [name, input] of this._limits) if (input.value !== "") request[name] = `${input.value}s`;
    for (const role of this._roles) {
      if (!role.value) continue;
      if (role.name.startsWith("credentials.")) request.credentials[role.name.slice(12)] = role.value;
      else request[role.name] = role.value;
    }
    return request;
  }

  async _create(event) {
    event.preventDefault();
    this._submit.disabled = true;
    this._clear();
    try {
      const request = this._request();
      for (const each of this._inputs) {
        const value = await each.read();
        if (value) request.parameters[each.input.name] = value;
      }
      const { job } = await post("/v1/jobs", request);
      say([`Job ${job.jobId} was created.`]);
      navigate(`/jobs/${job.jobId}`);
    } catch (error) {
      this._tell(error);
    } finally {
      this._submit.disabled = false;
    }
  }

  _clear() {
    fill(this._error);
    for (const each of this.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
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
      const note = h("p", { class: "error", id: uid("error") }, words);
      input.setAttribute("aria-invalid", "true");
      input.setAttribute("aria-describedby", `${note.id} ${input.getAttribute("aria-describedby") ?? ""}`.trim());
      input.closest(".field").append(note);
      first ??= input;
    }
    if (rest.length || !first) fill(this._error, rest.length ? rest.join("; ") : error.message);
    else fill(this._error, "Some fields need another look.");
    (first ?? this._error).scrollIntoView({ block: "center" });
    first?.focus();
  }

  _inputOf(name) {
    const parameter = /^parameters\.([^.]+)/.exec(name)?.[1] ?? /^parameters\[['"]?([^'"\]]+)/.exec(name)?.[1];
    if (parameter) return this._inputs.find((each) => each.input.name === parameter)?.control;
    const role = this._roles.find((each) => each.name === name);
    if (role) return role.control;
    if (name.startsWith("siteTarget")) return this._site.control;
    return this.querySelector(`[name="${CSS.escape(name)}"]`);
  }
}
customElements.define("sis-create-job", CreateJob);
