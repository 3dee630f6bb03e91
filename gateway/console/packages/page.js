// One version of a package: its operations, and what they take and give.

import { all, get } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { bytes, duration, moment, seconds } from "../lib/format.js";
import { query, setQuery } from "../lib/router.js";
import { CREDENTIAL_KINDS } from "../lib/words.js";
import { loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";

export class PackagePage extends HTMLElement {
  constructor({ name }) {
    super();
    this._name = name;
    this._path = `/v1/packages/${encodeURIComponent(name)}`;
  }

  connectedCallback() {
    document.title = `${this._name} - Packages - SIS`;
    this.className = "page";
    this.addressChanged();
  }

  addressChanged() {
    fill(this, loading());
    this._load();
  }

  async _load() {
    const version = query().get("version") ?? "";
    try {
      const [found, versions] = await Promise.all([get(this._path, { version }), all("/v1/packages", "packages", { name: this._name })]);
      this._show(found.package, versions);
    } catch (error) {
      fill(this, problem(error, error.code === 404 ? null : () => this._load()), h("p", { class: "state" }, h("a", { href: "/packages" }, "To the packages")));
    }
  }

  _show(found, versions) {
    const choose = h("select", { "aria-label": "Version", onchange: () => setQuery({ version: choose.value }) },
      versions.map((each) => h("option", { value: each.version, selected: each.version === found.version }, each.version)));
    fill(this,
      h("header", {},
        h("p", { class: "small" }, h("a", { href: "/packages" }, "Packages"), ` / ${found.name}`),
        h("div", { class: "row spread" },
          h("div", { class: "row" }, h("h1", {}, found.name), h("span", {}, choose)),
          h("div", { class: "row" },
            h("a", { class: "button", href: `${this._path}/archive?version=${encodeURIComponent(found.version)}`, download: "" }, icon("down"), "Archive"))),
        h("p", {}, found.description),
        h("p", { class: "soft small" }, `${found.publisher}. For ${found.platforms.join(", ")}. ${bytes(found.sizeBytes)}. Pushed `, moment(found.pushTime), ` by ${found.pusher}. `,
          h("span", { class: "mono" }, `SHA-256 ${found.digest}`))),
      found.operations.map((operation) => this._operation(found, operation)));
  }

  _operation(found, operation) {
    const create = `/jobs/new?package=${encodeURIComponent(found.name)}&operation=${encodeURIComponent(operation.name)}`;
    return h("section", { class: "card operation" },
      h("div", { class: "row spread" }, h("h2", {}, operation.name), h("a", { class: "button", href: create }, icon("plus"), "Create a job")),
      h("p", {}, operation.description),
      h("p", { class: "soft small" }, operation.runTimeout ? `Runs for ${duration(seconds(operation.runTimeout))} at the most.` : "Runs for as long as it takes."),
      operation.inputs.length > 0 && part("Inputs", ["Name", "Type", "Note", "What it is", "Default"], operation.inputs.map((input) => [
        h("span", { class: "mono" }, input.name),
        input.type === "enum" ? input.choices.join(", ") : input.type,
        [input.required && "required", input.sensitive && "sensitive"].filter(Boolean).join(", "),
        [input.description, input.hint && h("p", { class: "hint" }, input.hint), input.pattern && h("p", { class: "hint mono" }, input.pattern)],
        input.defaultValue ? h("span", { class: "mono" }, input.defaultValue) : "",
      ])),
      operation.outputs.length > 0 && part("Outputs", ["Name", "Note", "What it is"], operation.outputs.map((output) => [
        h("span", { class: "mono" }, output.name), output.required ? "required" : "", output.description,
      ])),
      operation.credentials.length > 0 && part("Credentials", ["Reference", "Note", "What it is", "Kinds", "Reaches the payload"], operation.credentials.map((each) => [
        h("span", { class: "mono" }, each.ref), each.required ? "required" : "", each.description,
        each.kinds.map((kind) => CREDENTIAL_KINDS[kind]).join(", ") || "any", each.delivery,
      ])));
  }
}
customElements.define("sis-package-page", PackagePage);

const part = (title, heads, rows) => [h("h3", {}, title), table(title, heads, rows)];
