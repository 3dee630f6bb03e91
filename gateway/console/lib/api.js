// The public JSON API, by the session of this browser.

const CALL_MILLISECONDS = 30_000;
// A comment comes every fifteen seconds while nothing else does.
const SILENCE_MILLISECONDS = 40_000;

/** Why a request was refused, as google.rpc.Status has it. `violations` are the wrong fields, by their JSON names. */
export class ApiError extends Error {
  constructor(code, body, retryAfter = 0) {
    const error = body?.error ?? {};
    super(error.message || `The server answered with ${code}.`);
    this.code = code;
    this.status = error.status ?? "UNKNOWN";
    this.reason = "";
    this.violations = new Map();
    this.retryAfter = retryAfter;
    for (const detail of error.details ?? []) {
      if (detail.reason && detail.domain === "sis") this.reason = detail.reason;
      for (const each of detail.fieldViolations ?? []) {
        const before = this.violations.get(each.field);
        this.violations.set(each.field, before ? `${before}; ${each.description}` : each.description);
      }
    }
  }

  /** Whether it may go by itself. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.code) || this.reason === "VAULT_SEALED";
  }
}

function unreachable() {
  return new ApiError(0, { error: { status: "UNAVAILABLE", message: "The server cannot be reached." } });
}

/** What signs in when a session has ended: a function whose promise is kept once there is another one. */
let signIn = null;

export function onSessionEnd(ask) {
  signIn = ask;
}

/** A URL; of `query`, what is empty is left out, and a list is said item by item. */
export function url(path, query = {}) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of [value].flat()) {
      if (each !== undefined && each !== null && each !== "") parameters.append(name, each);
    }
  }
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}

/** Like `fetch`, with a JSON body or a file. Raises ApiError for an answer that is no success. */
async function send(method, path, { query, body, file, contentType, accept, signal } = {}) {
  const headers = { accept: accept ?? "application/json" };
  if (body !== undefined || file) headers["content-type"] = contentType ?? "application/json";
  const request = { method, headers, body: file ?? (body === undefined ? undefined : JSON.stringify(body)), signal };
  let response;
  try {
    response = await fetch(url(path, query), { ...request, cache: "no-store", credentials: "same-origin" });
  } catch {
    if (signal?.aborted) throw signal.reason;
    throw unreachable();
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => null);
  throw new ApiError(response.status, found, Number(response.headers.get("retry-after") ?? 0));
}

/**
 * What `attempt` gives; when the session has ended, one is begun and it is attempted again. A person may take any time
 * to sign in, so each attempt has a deadline of its own.
 */
async function signedIn(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (error.code !== 401 || !signIn) throw error;
      await signIn();
    }
  }
}

/** The answer to a call, as JSON. Raises ApiError. */
export function call(method, path, { resign = true, ...options } = {}) {
  const attempt = () => callOnce(method, path, options);
  return resign ? signedIn(attempt) : attempt();
}

async function callOnce(method, path, options) {
  const limit = AbortSignal.timeout(CALL_MILLISECONDS);
  const signal = options.signal ? AbortSignal.any([options.signal, limit]) : limit;
  try {
    const response = await send(method, path, { ...options, signal });
    return await response.json();
  } catch (error) {
    if (limit.aborted && !options.signal?.aborted) {
      throw new ApiError(504, { error: { status: "DEADLINE_EXCEEDED", message: "The server did not answer in time." } });
    }
    // An answer that is cut off, or is none of the API's, is no answer.
    throw error instanceof ApiError || options.signal?.aborted ? error : unreachable();
  }
}

export const get = (path, query, options) => call("GET", path, { query, ...options });
export const post = (path, body, options) => call("POST", path, { body, ...options });
export const remove = (path, query) => call("DELETE", path, { query });

/** Send a file as it is, for as long as that takes. Raises ApiError. */
export async function upload(path, file, contentType, signal) {
  const response = await signedIn(() => send("POST", path, { file, contentType, signal }));
  return response.json();
}

/** Sign in with a token. Raises ApiError. */
export const openSession = (token) => call("POST", "/session", { body: { token }, resign: false });
export const showSession = () => call("GET", "/session", { resign: false });
export const closeSession = () => call("DELETE", "/session", { resign: false });

/** The documents of a stream, one after the other. Raises ApiError, also for one in the midst of it. */
export async function* stream(method, path, { query, body, signal, onOpen } = {}) {
  const silence = new AbortController();
  const either = signal ? AbortSignal.any([signal, silence.signal]) : silence.signal;
  let timer = 0;
  // Only while something is awaited: whoever reads may take their time.
  const soon = async (promise) => {
    timer = setTimeout(() => silence.abort(), SILENCE_MILLISECONDS);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  };
  try {
    const request = { query, body, accept: "application/x-ndjson", signal: either };
    const response = await signedIn(() => soon(send(method, path, request)));
    onOpen?.();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await soon(reader.read());
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line) continue;
        const document = JSON.parse(line);
        if (document.error) throw new ApiError(document.error.code, document);
        yield document;
      }
    }
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw error instanceof ApiError ? error : unreachable();
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

const FIRST_PAUSE = 500;
const LAST_PAUSE = 8_000;
const HIDDEN_MILLISECONDS = 60_000;

/**
 * A stream that goes on behind its last resume token when it breaks, until it ends by itself. `onState` is told "live",
 * or "waiting" while it is broken. While nobody sees the page it is given up after a minute: browsers have six
 * connections for all of a server's pages.
 */
export async function* follow(path, { query = {}, token = "", signal, onState = () => {} }) {
  let pause = FIRST_PAUSE;
  for (;;) {
    await shown(signal);
    const away = new AbortController();
    const stop = onHidden(() => away.abort());
    try {
      const parameters = token ? { ...query, resumeToken: token } : query;
      const either = AbortSignal.any([signal, away.signal]);
      for await (const document of stream("GET", path, {
        query: parameters,
        signal: either,
        onOpen: () => onState("live"),
      })) {
        pause = FIRST_PAUSE;
        yield document;
        token = document.resumeToken || token;
      }
      return;
    } catch (error) {
      signal.throwIfAborted();
      if (away.signal.aborted) continue;
      if (error instanceof ApiError && !error.passing) throw error;
      onState("waiting");
      await delay(pause * (0.5 + Math.random() / 2), signal);
      pause = Math.min(pause * 2, LAST_PAUSE);
    } finally {
      stop();
    }
  }
}

function onHidden(act) {
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(act, HIDDEN_MILLISECONDS);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", look);
  };
}

function shown(signal) {
  return new Promise((resolve, reject) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look, { once: true });
    look();
  });
}

export function delay(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** All items of a list, page by page, up to some number. */
export async function all(path, name, query = {}, most = 5_000) {
  const found = [];
  let pageToken = "";
  do {
    const page = await get(path, { ...query, pageSize: 1000, pageToken });
    found.push(...page[name]);
    pageToken = page.nextPageToken;
  } while (pageToken && found.length < most);
  return found;
}
