// Choosing one of the credentials that there are.

import { h } from "../lib/dom.js";
import { CREDENTIAL_KINDS } from "../lib/words.js";
import { field } from "../parts/dialog.js";

export class CredentialField {
  /** `value` is chosen where it fits; one that is not there is offered all the same, so that it never becomes "None" unseen. */
  constructor({ name, label, hint = "", kinds = [], required = false, credentials, value = "" }) {
    this.name = name;
    const fitting = credentials.filter((each) => !kinds.length || kinds.includes(each.kind));
    this.control = h("select", { name },
      h("option", { value: "" }, "None"),
      fitting.map((each) => h("option", { value: each.name, selected: each.name === value }, `${each.name} (${CREDENTIAL_KINDS[each.kind]})`)),
      value && !credentials.some((each) => each.name === value) && absent(value));
    this.element = field(label, this.control, { hint, required });
  }

  get value() {
    return this.control.value;
  }
}

/** The option for a credential that somebody chose, and that cannot be used as it is. */
export const absent = (name) => h("option", { value: name, selected: true }, `${name} (not ready in the KeySafe)`);
