// The words in which people see jobs: those of the user guide.

const short = (value, prefix) => (value ?? "").replace(prefix, "");

/** By status: its word, and the colour in which it is shown. */
const STATUSES = {
  DEFERRED: ["Deferred", "held"],
  WAITING: ["Waiting", "calm"],
  STARTING: ["Starting", "live"],
  RUNNING: ["Running", "live"],
  PROCESSING_OUTPUT: ["Processing Output", "live"],
  CANCEL_REQUESTED: ["Canceling", "warn"],
  CANCELED: ["Canceled", "ended"],
  SUCCEEDED: ["Success", "good"],
  FAILED: ["Failed", "bad"],
  ABORTED: ["Aborted", "bad"],
  TIMED_OUT: ["Timed Out", "bad"],
  EXPIRED: ["Expired", "bad"],
  AWOL: ["AWOL", "lost"],
};
const TERMINAL = new Set(["CANCELED", "SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "EXPIRED"]);

export const statusName = (value) => short(value, "JOB_STATUS_");
export const statusWord = (value) => STATUSES[statusName(value)]?.[0] ?? statusName(value);
export const statusTone = (value) => STATUSES[statusName(value)]?.[1] ?? "calm";
export const hasEnded = (job) => TERMINAL.has(statusName(job.status));
/** Whether its monitor may have more to say: what has ended may still have to tell how, and what it wrote at last. */
export const mayGoOn = (job) =>
  !hasEnded(job) || (job.log?.verdict === "LOG_VERDICT_OPEN" && job.stopState !== "STOP_STATE_UNCONFIRMED");

export const TYPES = {
  JOB_TYPE_DISCOVERY: "Discovery",
  JOB_TYPE_PACKAGE: "IT Automation",
  JOB_TYPE_ASSET_IMPORT: "Asset Import",
};
/** As the toolbar's filter calls them. */
export const TYPE_FILTERS = {
  JOB_TYPE_DISCOVERY: "Discovery",
  JOB_TYPE_PACKAGE: "Package",
  JOB_TYPE_ASSET_IMPORT: "Asset Import",
};
export const typeWord = (value) => TYPES[value] ?? short(value, "JOB_TYPE_");

export const RUN_STATES = {
  RUN_STATE_READY: "Ready",
  RUN_STATE_ACTIVE: "Active",
  RUN_STATE_CANCELING: "Canceling",
  RUN_STATE_SUCCEEDED: "Succeeded",
  RUN_STATE_FAILED: "Failed",
  RUN_STATE_TIMED_OUT: "Timed Out",
  RUN_STATE_HALTED: "Halted",
};
export const PRIORITIES = {
  PRIORITY_HIGH: "High",
  PRIORITY_NORMAL: "Normal",
  PRIORITY_LOW: "Low",
  PRIORITY_IDLE: "Idle",
};
export const CREDENTIAL_KINDS = {
  CREDENTIAL_KIND_USERNAME_PASSWORD: "Username and password",
  CREDENTIAL_KIND_SSH_KEY: "SSH private key",
  CREDENTIAL_KIND_TOKEN: "Token",
  CREDENTIAL_KIND_DOMAIN_ACCOUNT: "Domain account",
};
export const CREDENTIAL_STATES = {
  CREDENTIAL_STATE_READY: ["Ready", "good"],
  CREDENTIAL_STATE_PENDING: ["Being stored", "warn"],
  CREDENTIAL_STATE_VALUE_MISSING: ["Secret missing in Vault", "bad"],
  CREDENTIAL_STATE_DELETING: ["Being deleted", "warn"],
};
export const ROLES = {
  PROCESS_ROLE_PACKAGE_EXECUTOR: "Package executor",
  PROCESS_ROLE_RUN_AS_EXECUTOR: "Run-as executor",
  PROCESS_ROLE_PAYLOAD: "Payload",
  PROCESS_ROLE_DESCENDANT: "Descendant",
};
export const STOPS = {
  STOP_STATE_NONE: ["None", "calm", "nothing had to be stopped"],
  STOP_STATE_PENDING: ["Pending", "warn", "the evidence is not in"],
  STOP_STATE_CONFIRMED: ["Confirmed", "good", "no process of it is left"],
  STOP_STATE_UNCONFIRMED: ["Not confirmed", "bad", "nobody could see that nothing of it is left"],
};
export const VERDICTS = {
  LOG_VERDICT_OPEN: ["Open", "calm", "more may come"],
  LOG_VERDICT_COMPLETE: ["Complete", "good", "to the last byte"],
  LOG_VERDICT_TRUNCATED: ["Truncated", "warn", "output beyond the cap was discarded at the site"],
  LOG_VERDICT_GAPPED: ["Gapped", "bad", "a part of it is missing, or may be"],
};

/** What can be done to a job: its word, what was done, and what is under way where that takes its time. */
export const VERBS = {
  JOB_VERB_ACTIVATE: { word: "Activate", done: "activated", path: "activate", icon: "play" },
  JOB_VERB_CANCEL: { word: "Cancel", done: "canceled", underWay: "being canceled", path: "cancel", icon: "stop" },
  JOB_VERB_ABORT: { word: "Abort", done: "aborted", path: "abort", icon: "bolt" },
  JOB_VERB_DELETE: { word: "Delete", done: "deleted", path: "", icon: "trash" },
  JOB_VERB_RERUN: { word: "Rerun", done: "rerun", path: "rerun", icon: "again" },
};
export const permits = (job, verb) => job.permittedVerbs.includes(verb);

export const siteWord = (target) =>
  target?.group ? `group ${target.group}` : target?.agent ? `agent ${target.agent}` : "n/a";
export const packageWord = (reference) =>
  reference?.version ? `${reference.name} ${reference.version}` : (reference?.name ?? "");

/** How a process ended. */
export function endWord(process) {
  if (process.endSignal) return `ended by ${process.endSignal}`;
  if (process.exitCode !== undefined) return `exit code ${process.exitCode}`;
  return process.ended ? "ended" : "there";
}

// By the event of the history; {} is who did it.
const SENTENCES = {
  CREATE: "Created by {}",
  ACTIVATE: "Activated by {}",
  CANCEL: "Cancel requested by {}",
  ABORT: "Aborted by {}",
  FORCE: "Aborted with force by {}",
  DELETE: "Deleted by {}",
  RERUN: "Rerun by {}",
  RELEASE: "Released",
  EXPIRE: "Expired",
  SILENCE: "AWOL",
  START_LIMIT: "Failed",
  OUTPUT_LIMIT: "Failed",
  STOP_LIMIT: "The stop could not be confirmed",
  RUN_TIMEOUT: "Timed out",
  UNRUNNABLE: "Cannot be run",
  CLAIM: "Claimed by {}",
  GIVE_BACK: "Given back to the queue",
  LEASE_REFUSED: "Given back to the queue",
  JOURNAL_LOST: "AWOL",
  RETURN_STARTING: "Heard of again",
  RETURN_RUNNING: "Heard of again",
  RETURN_PROCESSING_OUTPUT: "Heard of again",
  RETURN_CANCEL_REQUESTED: "Heard of again",
  RESTORE: "Restored from a backup",
  ADOPT: "Heard of again",
  ACCEPT: "Accepted by {}",
  FIRST_PROCESS: "Running",
  PAYLOAD_ENDED: "Processing output",
  FINISH_SUCCEEDED: "Executed successfully",
  FINISH_FAILED: "Failed",
  FINISH_STOPPED: "The job was canceled",
};
const SAID_BY_THE_SITE = new Set(["FIRST_PROCESS", "PAYLOAD_ENDED", "FINISH_SUCCEEDED", "FINISH_FAILED", "FINISH_STOPPED"]);
const GRAVE = new Set(["SILENCE", "JOURNAL_LOST", "START_LIMIT", "OUTPUT_LIMIT", "STOP_LIMIT", "UNRUNNABLE", "FINISH_FAILED"]);

/** An entry of the history: "Cancel requested by administrator: too slow". */
export function sentence(entry) {
  const said = (SENTENCES[entry.event] ?? `${entry.event} by {}`).replace("{}", entry.actor || "the server");
  if (entry.event === "RERUN") return `${said}, ${entry.message}`;
  if (entry.message.startsWith(said)) return entry.message;
  return entry.message ? `${said}: ${entry.message}` : said;
}

/** An entry beside the log; "" for what the site says there itself, in its own words. */
export const news = (entry) => (SAID_BY_THE_SITE.has(entry.event) ? "" : sentence(entry));

export const isGrave = (entry) => GRAVE.has(entry.event);
