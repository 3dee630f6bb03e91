// Storing a credential, and replacing its secret. What is typed goes to the server once and is kept nowhere here.

import { post } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { CREDENTIAL_KINDS } from "../lib/words.js";
import { encoded } from "../jobs/input-field.js";
import { ask, field } from "../parts/dialog.js";
import { say } from "../parts/toasts.js";

const secret = (text) => encoded(new TextEncoder().encode(text));

/** The fields of a secret of a kind. */
function secretFields(kind) {
  if (kind !== "CREDENTIAL_KIND_SSH_KEY") {
    const word = kind === "CREDENTIAL_KIND_TOKEN" ? "Token" : "Password";
    return field(word, h("input", { name: "secret", type: "password", autocomplete: "new-password" }), {
      hint: "8 characters at least. It cannot be read back.", required: true,
    });
  }
  return [
    field("Private key", h("textarea", { name: "secret", spellcheck: "false", rows: "6" }), { hint: "In PEM or OpenSSH form.", required: true }),
    field("Passphrase", h("input", { name: "passphrase", type: "password", autocomplete: "new-password" }), { hint: "Of an encrypted key." }),
  ];
}

function value(form) {
  const found = { secret: secret(form.get("secret")) };
  if (form.get("passphrase")) found.passphrase = secret(form.get("passphrase"));
  return found;
}

/** Mark the field that an error names. */
async function marked(element, act) {
  try {
    await act();
  } catch (error) {
    for (const [name, words] of error.violations ?? []) {
      const input = element.querySelector(`[name="${CSS.escape(name.replace(/^value\./, ""))}"]`);
      input?.setAttribute("aria-invalid", "true");
      if (input) throw Object.assign(new Error(`${input.closest(".field").querySelector("label").firstChild.data}: ${words}`), { code: error.code });
    }
    throw error;
  }
}

/** Ask for a new credential, and store it; whether one was. */
export async function create() {
  const requestId = crypto.randomUUID();
  const account = h("div", {});
  const secrets = h("div", {});
  const kind = h("select", { name: "kind", onchange: () => show() },
    Object.entries(CREDENTIAL_KINDS).map(([number, word]) => h("option", { value: number }, word)));
  const show = () => {
    fill(account,
      kind.value === "CREDENTIAL_KIND_DOMAIN_ACCOUNT" && field("Domain", h("input", { name: "domain", autocomplete: "off" }), { required: true }),
      kind.value !== "CREDENTIAL_KIND_TOKEN" && field("Username", h("input", { name: "username", autocomplete: "off" }), { required: true }));
    fill(secrets, secretFields(kind.value));
  };
  show();
  let stored = "";
  const done = await ask({
    title: "New credential",
    action: "Store",
    content: [
      field("Name", h("input", { name: "name", autocomplete: "off" }), { hint: "By which jobs ask for it: letters, digits, '.', '_', '-'.", required: true }),
      field("Kind", kind), account,
      field("Description", h("input", { name: "description", maxlength: "500", autocomplete: "off" })), secrets,
    ],
    act: (form, element) => marked(element, async () => {
      const { credential } = await post("/v1/credentials", {
        name: form.get("name"), kind: kind.value, username: form.get("username") ?? "", domain: form.get("domain") ?? "",
        description: form.get("description"), value: value(form), requestId,
      });
      stored = credential.name;
    }),
  });
  if (done) say(`The credential ${stored} was stored.`);
  return done;
}

/** Ask for another secret of a credential, and replace it; whether it was. */
export async function replace(credential) {
  const done = await ask({
    title: `Replace the secret of ${credential.name}?`,
    action: "Replace",
    content: [
      h("p", {}, "Jobs that have started keep the secret that they have."),
      credential.kind !== "CREDENTIAL_KIND_TOKEN" && field("Username", h("input", { name: "username", autocomplete: "off", value: credential.username })),
      field("Description", h("input", { name: "description", maxlength: "500", autocomplete: "off", value: credential.description })),
      secretFields(credential.kind),
    ],
    act: (form, element) => marked(element, async () => {
      const body = { version: credential.version, value: value(form), description: form.get("description") };
      if (form.get("username") !== null) body.username = form.get("username");
      await post(`/v1/credentials/${encodeURIComponent(credential.name)}:replace`, body);
    }),
  });
  if (done) say(`The secret of ${credential.name} was replaced.`);
  return done;
}
