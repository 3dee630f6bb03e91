// One input of an operation, as its manifest describes it.

import { post } from "../lib/api.js";
import { h, uid } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { field } from "../parts/dialog.js";

const FILE_BYTES = 1024 * 1024;

/** Bytes in base64. */
export function encoded(data) {
  let text = "";
  for (let n = 0; n < data.length; n += 0x8000) text += String.fromCharCode(...data.subarray(n, n + 0x8000));
  return btoa(text);
}

export class InputField {
  /** `given` is what a copied job has; `former` is the field of that name of another operation, whose text is kept. */
  constructor(input, credentials, given, former) {
    this.input = input;
    this._given = given;
    const text = given?.plain ?? given?.list?.items.join("\n") ?? (former?.input.type === input.type && !input.sensitive ? former.control.value : undefined);
    this.control = input.sensitive ? this._secret(credentials, given?.credentialRef) : this._plain(text ?? input.defaultValue ?? "");
    const note = [input.description, input.type === "list" && "One item a line.", input.pattern && `Must match ${input.pattern}`];
    this.element = field(input.name, this.control, { hint: note.filter(Boolean).join(" "), required: input.required });
    if (this._typed) this.control.after(this._typed);
  }

  _plain(text) {
    const { name, type, choices, required, hint } = this.input;
    const common = { name: `parameters.${name}`, autocomplete: "off", spellcheck: "false", placeholder: hint || null };
    if (type === "boolean" || type === "enum") {
      const values = type === "boolean" ? ["true", "false"] : choices;
      return h("select", common, !required && h("option", { value: "" }, ""),
        values.map((value) => h("option", { value, selected: value === text }, type === "boolean" ? { true: "Yes", false: "No" }[value] : value)));
    }
    if (type === "integer") return h("input", { ...common, inputmode: "numeric", value: text });
    if (type === "file") return h("input", { ...common, type: "file" });
    if (type === "list") return h("textarea", { ...common, rows: "3", value: text });
    if (/script|content|body|text/.test(name) || text.includes("\n")) return h("textarea", { ...common, rows: "6", value: text });
    return h("input", { ...common, value: text });
  }

  /** A credential that there is, or a secret that is typed: it becomes one for this job alone. */
  _secret(credentials, chosen) {
    this._typed = h("input", { type: "password", autocomplete: "off", "aria-label": `${this.input.name}: the secret`, hidden: Boolean(chosen) });
    const select = h("select", {
      id: uid("field"), name: `parameters.${this.input.name}`,
      onchange: () => (this._typed.hidden = select.value !== ""),
    },
      h("option", { value: "" }, "Type it, for this job alone"),
      credentials.map((each) => h("option", { value: each.name, selected: each.name === chosen }, `Credential ${each.name}`)));
    this._typed.addEventListener("input", () => (this._stored = null));
    return select;
  }

  /** The value as a request has it; nothing where it is left out. Raises ApiError. */
  async read() {
    const { type, sensitive } = this.input;
    if (sensitive) return this._readSecret();
    if (type === "file") return this._readFile();
    const text = this.control.value;
    if (text === "") return this.input.required && type === "string" ? { plain: "" } : null;
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
    this._stored ??= { name: `job-${crypto.randomUUID()}`, requestId: crypto.randomUUID() };
    await post("/v1/credentials", {
      ...this._stored,
      kind: "CREDENTIAL_KIND_TOKEN",
      forOneJob: true,
      description: `Typed for ${this.input.name}`,
      value: { secret: encoded(new TextEncoder().encode(this._typed.value)) },
    });
    return { credentialRef: this._stored.name };
  }
}
