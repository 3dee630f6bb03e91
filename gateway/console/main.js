// Everything begins here: the pages by their addresses, and the frame around them.

import { onSessionEnd, showSession } from "./lib/api.js";
import { h } from "./lib/dom.js";
import { route, start } from "./lib/router.js";
import { JobList } from "./jobs/list.js";
import { Shell } from "./parts/shell.js";
import { signInAgain, signInPage } from "./parts/sign-in.js";
import { problem } from "./parts/states.js";

customElements.define("sis-shell", Shell);
customElements.define("sis-job-list", JobList);

/** A page whose module is fetched when it is first wanted. */
const later = (load, name) => async (parts) => new ((await load())[name])(parts);
const createJob = () => import("./jobs/create.js");
const jobPage = () => import("./jobs/page.js");
// Safari has no idle callbacks.
const whenIdle = globalThis.requestIdleCallback ?? ((act) => setTimeout(act, 500));

route("/", () => new JobList());
route("/jobs", () => new JobList());
route("/jobs/new", later(createJob, "CreateJob"));
route("/jobs/:id", later(jobPage, "JobPage"));
route("/credentials", later(() => import("./keysafe/list.js"), "CredentialList"));
route("/credentials/:name", later(() => import("./keysafe/page.js"), "CredentialPage"));
route("/packages", later(() => import("./packages/list.js"), "PackageList"));
route("/packages/:name", later(() => import("./packages/page.js"), "PackagePage"));
route("/agents", later(() => import("./agents/list.js"), "AgentList"));
route("/agents/:name", later(() => import("./agents/page.js"), "AgentPage"));

const missing = () => h("section", { class: "page" },
  h("h1", {}, "There is nothing here"),
  h("p", {}, "The address may be misspelt. ", h("a", { href: "/jobs" }, "To the jobs"), "."));

class App extends HTMLElement {
  async connectedCallback() {
    try {
      await showSession();
    } catch (error) {
      if (error.code !== 401) {
        this.replaceChildren(h("main", { class: "lonely" }, problem(error, () => location.reload())));
        return;
      }
      await signInPage(this);
    }
    onSessionEnd(signInAgain);
    const shell = new Shell();
    this.replaceChildren(shell);
    // What is wanted most after the list is there before somebody asks for it.
    // If it cannot be had now, it is fetched, and told of, when it is wanted.
    whenIdle(() => Promise.allSettled([jobPage(), createJob()]), { timeout: 3_000 });
    start(shell.outlet, missing, (retry) => problem({ code: 0, message: "This page could not be fetched." }, retry));
  }
}
customElements.define("sis-app", App);
