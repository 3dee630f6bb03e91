// Pushing a package, a new one or a new version of one that is there.

import { upload } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { ask, field } from "../parts/dialog.js";
import { say } from "../parts/toasts.js";

/** Ask for an archive and store it: the package as it is stored then, null if none was. */
export async function push(title) {
  const file = h("input", { type: "file", name: "archive", accept: ".gz,.tgz,application/gzip" });
  const stop = new AbortController();
  let answer = null;
  await ask({
    title,
    action: "Push",
    stop,
    content: [
      field("Archive", file, { hint: "A gzip-compressed tar of its directory, with package.yaml; 64 MiB at most.", required: true }),
      h("p", { class: "soft" }, "From the command line: ", h("code", {}, "sis packages push DIRECTORY")),
    ],
    act: async () => {
      if (!file.files.length) throw new Error("Choose an archive.");
      answer = await upload("/v1/packages", file.files[0], "application/gzip", stop.signal);
    },
  });
  if (!answer) return null;
  const { package: stored, existed } = answer;
  say(`${stored.name} ${stored.version} ${existed ? "is there already" : "was stored"}.`);
  return stored;
}
