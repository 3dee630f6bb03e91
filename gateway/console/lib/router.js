// Which page an address shows. The state of a page is in its address.

const routes = [];
let outlet = null;
let failed = null;
let current = null;
let heading = null;
let growing = null;
/** So long a page that one comes back to may take until it is as high as it was. */
const GROW_MILLISECONDS = 5_000;

/** Have addresses of a pattern, such as "/jobs/:id", shown by the element that `make` gives, or promises, for its parts. */
export function route(pattern, make) {
  const names = [];
  const source = pattern.replace(/:(\w+)/g, (_, name) => (names.push(name), "([^/]+)"));
  routes.push({ pattern: new RegExp(`^${source}$`), names, make });
}

/**
 * Show the pages in an element from now on. `missing` makes the page for an address that nothing matches, `failed` that
 * for one whose module cannot be had; it is given how to try again.
 */
export function start(element, missing, whenFailed) {
  outlet = element;
  failed = whenFailed;
  route(".*", missing);
  addEventListener("popstate", ({ state }) => show(state?.top ?? 0));
  const stay = () => growing?.disconnect();
  for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) addEventListener(act, stay, { passive: true });
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented) return;
    const link = event.target.closest?.("a[href]");
    const plain = event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
    if (!link || !plain || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
    if (!routes.some((each) => each !== routes.at(-1) && each.pattern.test(link.pathname))) return;
    event.preventDefault();
    navigate(link.href);
  });
  show();
}

/** Go to an address. With `replace`, it takes the place of the present one in the history; `state` is kept beside it. */
export function navigate(address, { replace = false, state = null } = {}) {
  const before = location.pathname;
  // Whoever comes back is to find the place again.
  if (!replace) history.replaceState({ ...history.state, top: scrollY }, "");
  history[replace ? "replaceState" : "pushState"](state, "", address);
  if (location.pathname === before && current?.addressChanged) current.addressChanged();
  else show();
}

/** Change parameters of the present address; what is empty is left out. */
export function setQuery(changes, options) {
  const address = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    address.searchParams.delete(name);
    for (const each of [value].flat()) if (each) address.searchParams.append(name, each);
  }
  navigate(address.href, options);
}

export const query = () => new URLSearchParams(location.search);

async function show(top = 0) {
  const path = location.pathname;
  if (current?.isConnected && current.dataset.path === path && current.addressChanged) {
    current.addressChanged();
    return;
  }
  const { pattern, names, make } = routes.find((each) => each.pattern.test(path));
  const found = pattern.exec(path);
  let page;
  try {
    page = await make(Object.fromEntries(names.map((name, n) => [name, decodeURIComponent(found[n + 1])])));
  } catch {
    // Its module cannot be had: the server is away, or has another version by now.
    page = failed(() => location.reload());
  }
  // Somebody may have gone on meanwhile.
  if (location.pathname !== path) return;
  current = page;
  page.dataset.path = path;
  const first = !outlet.hasChildNodes();
  outlet.replaceChildren(page);
  scrollTo(0, top);
  growing?.disconnect();
  if (top) scrollOnceThere(top);
  if (!first) focusHeading(page);
  dispatchEvent(new CustomEvent("sis-page"));
}

/** Scroll to a place once the page is so high, unless somebody has done something by then. */
function scrollOnceThere(top) {
  const from = performance.now();
  growing = new ResizeObserver((_, observer) => {
    const late = performance.now() - from > GROW_MILLISECONDS;
    if (!late) scrollTo(0, top);
    if (late || scrollY >= top - 1) observer.disconnect();
  });
  growing.observe(outlet);
}

/** Have the focus on the page, where nothing else has it. */
export function keepFocus() {
  if (current && document.activeElement === document.body) focusHeading(current);
}

/** Have the focus on the page's main heading, once that is there, unless somebody has gone elsewhere by then. */
function focusHeading(page) {
  heading?.disconnect();
  outlet.focus({ preventScroll: true });
  const look = () => {
    const found = page.querySelector("h1");
    if (!found) return;
    heading.disconnect();
    if (document.activeElement !== outlet) return;
    found.tabIndex = -1;
    found.focus({ preventScroll: true });
  };
  heading = new MutationObserver(look);
  heading.observe(page, { childList: true, subtree: true });
  look();
}
