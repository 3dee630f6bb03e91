// The frame around every page.

import { closeSession } from "../lib/api.js";
import { h, icon } from "../lib/dom.js";
import { report } from "./toasts.js";

const PLACES = [
  ["/jobs", "Jobs"],
  ["/credentials", "KeySafe"],
  ["/packages", "Packages"],
  ["/agents", "Agents"],
];
const THEMES = { "": "as the system", light: "light", dark: "dark" };

export class Shell extends HTMLElement {
  constructor() {
    super();
    this.outlet = h("main", { id: "main", tabindex: "-1" });
    this._links = PLACES.map(([path, word]) => h("a", { href: path }, word));
    this._mark = () => this._markPlace();
  }

  connectedCallback() {
    applyTheme(localStorage.getItem("theme") ?? "");
    addEventListener("sis-page", this._mark);
    this.replaceChildren(
      h("a", { class: "skip", href: "#main", onclick: (event) => this._skip(event) }, "Skip to the content"),
      h("header", { class: "bar" },
        h("a", { class: "brand", href: "/jobs", "aria-label": "SIS: job queue" }, h("b", {}, "SIS"), " Job Queue"),
        h("nav", { "aria-label": "Main" }, this._links),
        h("div", { class: "tools" },
          this._themeButton(),
          h("button", { class: "quiet", type: "button", "aria-label": "Sign out", onclick: () => this._signOut() },
            icon("out"), h("span", {}, "Sign out")))),
      this.outlet);
  }

  disconnectedCallback() {
    removeEventListener("sis-page", this._mark);
  }

  _skip(event) {
    event.preventDefault();
    this.outlet.focus();
  }

  _markPlace() {
    const path = location.pathname === "/" ? "/jobs" : location.pathname;
    for (const link of this._links) {
      const here = path === link.pathname || path.startsWith(`${link.pathname}/`);
      link.toggleAttribute("aria-current", here);
      if (here) link.setAttribute("aria-current", path === link.pathname ? "page" : "true");
    }
  }

  _themeButton() {
    const button = h("button", { class: "quiet", type: "button" }, icon("theme"));
    const tell = () => {
      const word = THEMES[localStorage.getItem("theme") ?? ""];
      button.title = `Theme: ${word}`;
      button.setAttribute("aria-label", `Theme: ${word}. Change it`);
    };
    button.addEventListener("click", () => {
      const names = Object.keys(THEMES);
      const next = names[(names.indexOf(localStorage.getItem("theme") ?? "") + 1) % names.length];
      localStorage.setItem("theme", next);
      applyTheme(next);
      tell();
    });
    tell();
    return button;
  }

  async _signOut() {
    try {
      await closeSession();
      location.assign("/");
    } catch (error) {
      report(error);
    }
  }
}

export function applyTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}
