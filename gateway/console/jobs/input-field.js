// One input of an operation, as its manifest describes it.

import { post } from "../lib/api.js";
import { h, uid } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { field } from "../parts/dialog.js";
import { absent } from "./credential-field.js";

const FILE_BYTES = 1024 * 1024;
/** As credentials are called that were typed for one job, and end with it. */
const FOR_ONE_JOB = /^job-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Bytes in base64. */
export function encoded(data) {
  let text = "";
  for (let n = 0; n < data.length; n += 0x8000) text += String.fromCharCode(...data.subarray(n, n + 0x8000));
  return btoa(text);
}

export class InputField {
  /**
   * `given` is what a copied job has. `former` is the field of that name of another operation or version: what somebody
   * gave it stays, if this one takes the same type.
   */
  constructor(input, credentials, given, former) {
    this.input = input;
    const same = former?.input.type === input.type && former.input.sensitive === input.sensitive ? former : null;
    this._given = given ?? same?._given;
    this.control = input.sensitive ? this._secret(credentials, same) : this._plain(given ? textOf(given) : (same?.changed ?? input.defaultValue ?? ""));
    this._shown = given ? this.control.value : same?._shown;
    if (same && input.type === "file" && !input.sensitive) this.control.files = same.control.files;
    this.element = field(input.name, this.control, {
      hint: this._hint(), required: input.required, mark: input.type === "list" && !input.sensitive ? "one a line" : "",
    });
    if (this._typed) this.control.after(this._typed);
  }

  /** What somebody made of the default; undefined where it is still that. */
  get changed() {
    return this.control.value === (this.input.defaultValue ?? "") ? undefined : this.control.value;
  }

  /** The control at which what is wrong is told. */
  get place() {
    return this._typed && !this.control.value ? this._typed : this.control;
  }

  _hint() {
    const { description, pattern, type, defaultValue } = this.input;
    const file = this._given?.file;
    return [
      description,
      pattern && [type === "list" ? " Each has" : " Has", " to match the regular expression ", h("code", {}, pattern), "."],
      type === "integer" && defaultValue && ` Left empty, it is ${defaultValue}.`,
      file && ` Unless another is chosen, it is ${file.name} of the copied job.`,
      FOR_ONE_JOB.test(this._given?.credentialRef) && " What was typed for the copied job has ended with that: type it again.",
    ].filter(Boolean);
  }

  _plain(text) {
    const { name, type, choices, required, hint, defaultValue } = this.input;
    const common = { name: `parameters.${name}`, autocomplete: "off", spellcheck: "false", placeholder: hint || null };
    if (type === "boolean" || type === "enum") {
      const values = type === "boolean" ? ["true", "false"] : choices;
      // Left out, it is its default: that is among the choices.
      return h("select", common, !required && !defaultValue && h("option", { value: "" }, ""),
        values.map((value) => h("option", { value, selected: value === text }, type === "boolean" ? { true: "Yes", false: "No" }[value] : value)));
    }
    if (type === "integer") return h("input", { ...common, inputmode: "numeric", value: text });
    if (type === "file") return h("input", { ...common, type: "file" });
    if (type === "list") return h("textarea", { ...common, rows: "3", value: text });
    if (/script|content|body|text/.test(name) || text.includes("\n")) return h("textarea", { ...common, rows: "6", value: text });
    return h("input", { ...common, value: text });
  }

  /** A credential that there is, or a secret that is typed: it becomes one for this job alone. */
  _secret(credentials, same) {
    const given = this._given?.credentialRef ?? "";
    const chosen = same ? same.control.value : FOR_ONE_JOB.test(given) ? "" : given;
    this._stored = same?._stored ?? null;
    this._typed = h("input", {
      id: uid("field"), type: "password", autocomplete: "off", "aria-label": `${this.input.name}: the secret`, value: same?._typed.value, hidden: chosen !== "",
    });
    const select = h("select", {
      id: uid("field"), name: `parameters.${this.input.name}`,
      onchange: () => (this._typed.hidden = select.value !== ""),
    },
      h("option", { value: "" }, "Type it, for this job alone"),
      credentials.map((each) => h("option", { value: each.name, selected: each.name === chosen }, `Credential ${each.name}`)),
      chosen && !credentials.some((each) => each.name === chosen) && absent(chosen));
    this._typed.addEventListener("input", () => (this._stored = null));
    return select;
  }

  /** The value as a request has it; nothing where it is left out. Raises ApiError. */
  async read() {
    const { type, sensitive } = this.input;
    if (sensitive) return this._readSecret();
    if (type === "file") return this._readFile();
    const text = this.control.value;
    // A text box may not be able to hold all that a job was given.
    if (this._given && text === this._shown && (type === "string" || type === "list")) return this._given;
    const { required, defaultValue } = this.input;
    // Left out, it would be its default.
    if (text === "" && type === "string") return required || defaultValue ? { plain: "" } : null;
    if (text === "" && !(type === "list" && defaultValue)) return null;
    if (type === "list") return { list: { items: text.split("\n").filter((item) => item !== "") } };
    return { plain: type === "integer" ? text.trim() : text };
  }

  async _readFile() {
    const file = this.control.files[0];
    if (!file) return this._given?.file ? this._given : null;
    if (file.size > FILE_BYTES) {
      const words = `has ${bytes(file.size)}; a file may have 1 MiB at most`;
      throw Object.assign(new Error(words), { violations: new Map([[`parameters.${this.input.name}`, words]]) });
    }
    return { file: { name: file.name, content: encoded(new Uint8Array(await file.arrayBuffer())) } };
  }

  async _readSecret() {
    if (this.control.value) return { credentialRef: this.control.value };
    if (!this._typed.value) return null;
    // Made once, however often the form is sent.
    const repeated = this._stored !== null;
    this._stored ??= { name: `job-${crypto.randomUUID()}`, requestId: crypto.randomUUID() };
    try {
      await this._store();
    } catch (error) {
      // It has expired: no job took it within its hour.
      if (repeated && error.reason === "CREDENTIAL_NOT_FOUND") {
        this._stored = null;
        return this._readSecret();
      }
      // The form knows nothing of this request, but it does of the input.
      if (error.violations?.size) error.violations = new Map([[`parameters.${this.input.name}`, [...error.violations.values()].join("; ")]]);
      throw error;
    }
    return { credentialRef: this._stored.name };
  }

  /** Tie the secret that was typed to the job that was created with it, so that it waits as long as that. Raises ApiError. */
  async tie(jobId) {
    if (!this._stored || this.control.value) return;
    try {
      await post(`/v1/credentials/${this._stored.name}:bind`, { jobId });
    } catch (error) {
      // The job has ended already, and the secret with it.
      if (error.reason !== "CREDENTIAL_NOT_FOUND") throw error;
    }
  }

  _store() {
    return post("/v1/credentials", {
      ...this._stored,
      kind: "CREDENTIAL_KIND_TOKEN",
      forOneJob: true,
      description: `Typed for ${this.input.name}`,
      value: { secret: encoded(new TextEncoder().encode(this._typed.value)) },
    });
  }
}

/** The value of a copied job as a control holds it. */
const textOf = (given) => given.plain ?? given.list?.items.join("\n") ?? "";
