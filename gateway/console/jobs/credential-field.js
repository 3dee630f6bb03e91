// Choosing one of the credentials that there are.

import { h } from "../lib/dom.js";
import { CREDENTIAL_KINDS } from "../lib/words.js";
import { field } from "../parts/dialog.js";

export class CredentialField {
  constructor({ name, label, hint = "", kinds = [], required = false, credentials, value = "" }) {
    this.name = name;
    const fitting = credentials.filter((each) => !kinds.length || kinds.includes(each.kind));
    this.control = h("select", { name },
      h("option", { value: "" }, "None"),
      fitting.map((each) => h("option", { value: each.name, selected: each.name === value }, `${each.name} (${CREDENTIAL_KINDS[each.kind]})`)));
    this.element = field(label, this.control, { hint, required });
  }

  get value() {
    return this.control.value;
  }
}
