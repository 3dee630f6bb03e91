// One version of a package: its operations, and what they take and give.

import { all, get, remove, url } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { bytes, duration, moment, seconds } from "../lib/format.js";
import { navigate, query, setQuery } from "../lib/router.js";
import { CREDENTIAL_KINDS } from "../lib/words.js";
import { ask } from "../parts/dialog.js";
import { loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { say } from "../parts/toasts.js";
import { push } from "./push.js";

export class PackagePage extends HTMLElement {
  constructor({ name }) {
    super();
    this._name = name;
    this._path = `/v1/packages/${encodeURIComponent(name)}`;
    this._loading = new AbortController();
  }

  connectedCallback() {
    document.title = `${this._name} - Packages - SIS`;
    this.className = "page";
    fill(this, loading());
    this._load();
  }

  disconnectedCallback() {
    this._loading.abort();
  }

  /** Another version is wanted. The one that is shown stays until that is there. */
  addressChanged() {
    this._load();
  }

  async _load() {
    this._loading.abort();
    this._loading = new AbortController();
    const { signal } = this._loading;
    const version = query().get("version") ?? "";
    try {
      const [found, versions] = await Promise.all([get(this._path, { version }, { signal }), all("/v1/packages", "packages", { name: this._name })]);
      if (!signal.aborted) this._show(found.package, versions);
    } catch (error) {
      if (signal.aborted) return;
      fill(this, problem(error, error.code === 404 ? null : () => this._load()), h("p", { class: "state" }, h("a", { href: "/packages" }, "To the packages")));
    }
  }

  _show(found, versions) {
    const choosing = this.contains(document.activeElement) && document.activeElement.name === "version";
    const choose = h("select", { name: "version", "aria-label": "Version", onchange: () => setQuery({ version: choose.value }) },
      versions.map((each) => h("option", { value: each.version, selected: each.version === found.version }, each.version)));
    fill(this,
      h("header", {},
        h("p", { class: "small" }, h("a", { href: "/packages" }, "Packages"), ` / ${found.name}`),
        h("div", { class: "row spread" },
          h("div", { class: "row" }, h("h1", {}, found.name), h("span", {}, choose)),
          h("div", { class: "row" },
            h("a", { class: "button", href: `${this._path}/archive?version=${encodeURIComponent(found.version)}`, download: "" }, icon("down"), "Archive"),
            h("button", { type: "button", onclick: () => this._push() }, icon("plus"), "Push a version"),
            h("button", { type: "button", onclick: () => this._delete(found, versions) }, icon("trash"), "Delete"))),
        h("p", {}, found.description),
        h("p", { class: "soft small" }, `${found.publisher}. For ${found.platforms.join(", ")}. ${bytes(found.sizeBytes)}. Pushed `, moment(found.pushTime), ` by ${found.pusher}.`),
        h("p", { class: "soft small" }, "SHA-256 ", h("span", { class: "mono" }, found.digest))),
      found.operations.map((operation) => this._operation(found, operation)));
    if (choosing) choose.focus();
  }

  async _push() {
    const stored = await push(`Push another version of ${this._name}`);
    if (stored && this.isConnected) navigate(`/packages/${encodeURIComponent(stored.name)}?version=${encodeURIComponent(stored.version)}`);
  }

  async _delete({ name, version }, versions) {
    const deleted = await ask({
      title: `Delete ${name} ${version}?`,
      content: h("p", {}, "This version is removed from the library with its archive. Jobs that have ended stay as they are, but cannot be rerun. This cannot be undone."),
      action: "Delete",
      danger: true,
      act: () => remove(`${this._path}/versions/${encodeURIComponent(version)}`),
    });
    if (!deleted) return;
    say(`${name} ${version} was deleted.`);
    // Its own address shows nothing any more.
    if (this.isConnected) navigate(versions.length > 1 ? location.pathname : "/packages", { replace: true });
  }

  _operation(found, operation) {
    const create = url("/jobs/new", { package: found.name, version: found.version, operation: operation.name });
    return h("section", { class: "card operation" },
      h("div", { class: "row spread" }, h("h2", {}, operation.name), h("a", { class: "button", href: create }, icon("plus"), "Create a job")),
      h("p", {}, operation.description),
      h("p", { class: "soft small" }, operation.runTimeout ? `Runs for ${duration(seconds(operation.runTimeout))} at the most.` : "Runs for as long as it takes."),
      operation.inputs.length > 0 && part("Inputs", ["Name", "Type", "Note", "What it is", "Default"], operation.inputs.map((input) => [
        h("span", { class: "mono" }, input.name),
        input.type === "enum" ? input.choices.join(", ") : input.type,
        [input.required && "required", input.sensitive && "sensitive"].filter(Boolean).join(", "),
        [
          input.description,
          input.hint && h("p", { class: "hint" }, "Hint: ", h("span", { class: "mono" }, input.hint)),
          input.pattern && h("p", { class: "hint" }, "Pattern: ", h("span", { class: "mono" }, input.pattern)),
        ],
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
