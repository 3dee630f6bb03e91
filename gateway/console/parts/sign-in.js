// Signing in: as a page at the beginning, as a dialog over the page when a session has ended.

import { openSession } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { applyTheme } from "./shell.js";

const where = () => ["The stack of ", h("code", {}, "sis up"), " keeps it in the file admin.token of its data directory; ", h("code", {}, "sis status"), " names it."];

/** The form. `done` is called once there is a session. */
function form(lead, done) {
  const token = h("input", {
    id: "token", type: "password", name: "token", autocomplete: "current-password", required: true,
    spellcheck: "false", "aria-describedby": "token-error token-hint",
  });
  const error = h("p", { id: "token-error", class: "error", role: "alert" });
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  return h("form", {
    class: "sign-in",
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      fill(error);
      try {
        await openSession(token.value.trim());
        token.value = "";
        done();
      } catch (found) {
        fill(error, found.code === 401 ? "This token is not known here." : found.message);
        token.focus();
        token.select();
      } finally {
        button.disabled = false;
      }
    },
  },
    h("p", {}, lead),
    h("label", { for: "token" }, "Token"),
    token,
    error,
    h("p", { id: "token-hint", class: "hint" }, where()),
    button);
}

/** Show it instead of everything else; the promise is kept when somebody has signed in. */
export function signInPage(outlet) {
  applyTheme(localStorage.getItem("theme") ?? "");
  document.title = "Sign in - SIS";
  return new Promise((resolve) => {
    const found = form("Sign in with an access token.", resolve);
    outlet.replaceChildren(h("main", { class: "lonely" }, h("div", { class: "card" }, h("h1", {}, "SIS Job Queue"), found)));
    found.querySelector("input").focus();
  });
}

let asking = null;

/** Ask over the present page, which stays as it is. Whoever asks meanwhile waits for the same answer. */
export function signInAgain() {
  asking ??= new Promise((resolve) => {
    const show = () => {
      dialog.showModal();
      dialog.querySelector("input").focus();
    };
    let signed = false;
    const dialog = h("dialog", {
      class: "dialog",
      "aria-labelledby": "again-title",
      oncancel: (event) => event.preventDefault(),
      // Browsers close it all the same when somebody insists. Whoever waits for it would wait for ever.
      onclose: () => {
        if (!signed) show();
      },
    });
    const done = () => {
      signed = true;
      dialog.close();
      dialog.remove();
      asking = null;
      resolve();
    };
    dialog.append(
      h("h2", { id: "again-title" }, "Your session has ended"),
      form("Sign in again to go on. Nothing that you typed is lost.", done));
    document.body.append(dialog);
    show();
  });
  return asking;
}
