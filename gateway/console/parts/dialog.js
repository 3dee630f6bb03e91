// Questions in a dialog.

import { fill, h, uid } from "../lib/dom.js";
import { keepFocus } from "../lib/router.js";

/**
 * Ask something. `content` are nodes; the form's fields are given to `act`, whose promise is awaited: an error of it is
 * shown in the dialog, which stays. The promise is true once it was done, false when nobody wants it.
 *
 * While `act` is under way, nobody can close the dialog and miss what comes of it; with `stop`, an AbortController, they
 * can stop it, and the promise is false. A dialog that only asks goes when another page is shown.
 */
export function ask({ title, content = [], action, danger = false, act = () => {}, wide = false, stop = null }) {
  return new Promise((resolve) => {
    const heading = uid("dialog");
    const error = h("p", { class: "error", role: "alert" });
    const confirm = h("button", { class: danger ? "danger" : "primary", type: "submit" }, action);
    const word = danger ? "Go back" : "Close";
    const dismiss = h("button", { type: "button", onclick: () => dialog.close() }, word);
    let underWay = false;
    const begun = (value) => {
      underWay = confirm.disabled = value;
      dismiss.disabled = value && !stop;
      fill(dismiss, value && stop ? "Stop" : word);
    };
    const leave = () => underWay || dialog.close();
    const form = h("form", {
      method: "dialog",
      novalidate: true,
      onsubmit: async (event) => {
        event.preventDefault();
        begun(true);
        error.replaceChildren();
        for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
        try {
          await act(new FormData(form), form);
          done = true;
        } catch (found) {
          const wrong = [...(found.violations ?? [])].map(([name, words]) => `${name} ${words}`);
          error.replaceChildren(wrong.length > 1 ? wrong.slice(0, 20).join("\n") : found.message);
        } finally {
          begun(false);
        }
        if (done) dialog.close();
      },
    }, content, error, h("div", { class: "row end" }, action && dismiss, action ? confirm : dismiss));
    let done = false;
    const dialog = h("dialog", {
      class: ["dialog", wide && "wide"],
      "aria-labelledby": heading,
      oncancel: (event) => underWay && !stop && event.preventDefault(),
      onclose: () => {
        // Browsers close it all the same when somebody insists.
        if (underWay && !stop) {
          dialog.showModal();
          return;
        }
        if (underWay) stop.abort();
        removeEventListener("sis-page", leave);
        dialog.remove();
        // What had it before may be disabled by what was done.
        keepFocus();
        resolve(done);
      },
    }, h("h2", { id: heading }, title), form);
    addEventListener("sis-page", leave);
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A field with its label; `mark` is a word behind that. */
export function field(label, input, { hint = "", required = false, mark = "" } = {}) {
  input.id ||= uid("field");
  const note = hint.length ? h("p", { class: "hint", id: `${input.id}-hint` }, hint) : null;
  if (note) input.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" },
    h("label", { for: input.id }, label, mark && h("span", { class: "mark" }, ` ${mark}`),
      required && h("span", { class: "mark", "aria-hidden": "true" }, " required")),
    input, note);
}

/** Where somebody says why, for the history. */
export const reasonField = (name = "reason") =>
  field("Reason", h("input", { name, maxlength: "500", autocomplete: "off" }), {
    hint: "Stands in the history. May be left out.",
  });
