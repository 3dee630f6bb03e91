// The library of automation packages.

import { all } from "../lib/api.js";
import { fill, h, icon } from "../lib/dom.js";
import { bytes, moment } from "../lib/format.js";
import { empty, loading, problem } from "../parts/states.js";
import { table } from "../parts/table.js";
import { push } from "./push.js";

export class PackageList extends HTMLElement {
  connectedCallback() {
    document.title = "Packages - SIS";
    this.className = "page";
    this._place = h("div", {}, loading());
    fill(this,
      h("header", { class: "row spread" },
        h("div", {}, h("h1", {}, "Packages"), h("p", { class: "soft" }, "What jobs can run. A version, once it is stored, never changes.")),
        h("button", { class: "primary", type: "button", onclick: () => this._push() }, icon("plus"), "Push a package")),
      this._place);
    this._load();
  }

  async _load() {
    try {
      const packages = await all("/v1/packages", "packages");
      fill(this._place, packages.length ? this._table(packages) : empty("There are no packages yet"));
    } catch (error) {
      fill(this._place, problem(error, () => this._load()));
    }
  }

  async _push() {
    if (await push("Push a package")) this._load();
  }

  _table(packages) {
    const newest = [...Map.groupBy(packages, (each) => each.name).values()];
    return table("Packages", ["Name", { word: "Version", class: "id" }, "Description", "Publisher", "Platforms", { word: "Size", class: "number" }, "Pushed"], newest.map(([each, ...older]) => [
      h("a", { href: `/packages/${encodeURIComponent(each.name)}` }, each.name),
      [each.version, older.length > 0 && h("span", { class: "soft small" }, ` and ${older.length} older`)],
      each.description, each.publisher, each.platforms.join(", "), bytes(each.sizeBytes), moment(each.pushTime),
    ]));
  }
}
customElements.define("sis-package-list", PackageList);
