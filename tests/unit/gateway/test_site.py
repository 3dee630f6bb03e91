"""The console's files: how they are served, and that the policy under which they are leaves nothing to be desired."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from xml.etree import ElementTree

import pytest

from gateway.errors import RouteNotFound
from gateway.site import DIRECTORY, FILES, PAGES, POLICY, Site
from tests.support.exchanges import Sent, exchange

SITE = Site()
GZIP = ("accept-encoding", "gzip")
SOURCES = {
    path.relative_to(DIRECTORY).as_posix(): path.read_text()
    for path in sorted(DIRECTORY.rglob("*"))
    if path.suffix in (".html", ".js", ".css", ".svg")
}
MODULES = [name for name in SOURCES if name.endswith(".js")]
# The name of a vocabulary, which nobody fetches.
SVG = "http://www.w3.org/2000/svg"


async def page(site: Site = SITE, *, verb: str = "GET", headers: Sequence[tuple[str, str]] = ()) -> Sent:
    found, sent = exchange(verb, "/", headers)
    await site.page(found)
    return sent


async def file(path: str, site: Site = SITE, *, headers: Sequence[tuple[str, str]] = ()) -> Sent:
    found, sent = exchange("GET", path, headers)
    await site.file(found)
    return sent


async def base(site: Site = SITE) -> str:
    """/console/DIGEST, as the page has it."""
    (found,) = set(re.findall(r'"(/console/[0-9a-f]{16})/', (await page(site)).body.decode()))
    return str(found)


# --- how they are served ---


async def test_the_page_is_asked_for_anew_and_what_it_loads_is_kept() -> None:
    sent = await page()
    assert (sent.status, sent.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert sent.headers["cache-control"] == "no-cache"
    assert b"{{" not in sent.body
    module = await file(f"{await base()}/main.js")
    assert (module.status, module.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert module.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert module.body.decode() == SOURCES["main.js"]


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "index.html"])
async def test_a_file_is_the_same_in_both_forms(name: str) -> None:
    plain, compressed = await file(f"{await base()}/{name}"), await file(f"{await base()}/{name}", headers=[GZIP])
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    for sent in (plain, compressed):
        assert sent.headers["content-type"] == types[name.rpartition(".")[2]]
        assert sent.headers["content-length"] == str(len(sent.body))
        assert sent.headers.get_all("vary") == ["accept-encoding"]
        # That of the gateway, which permits nothing, goes for what is no page.
        assert sent.headers["content-security-policy"] is None
        # One name for two sequences of bytes is a weak one (RFC 9110, section 8.8.3.3).
        assert sent.headers["etag"] == plain.headers["etag"] and re.fullmatch('W/"[0-9a-f]{16}"', plain.headers["etag"])
    assert plain.headers["content-encoding"] is None and plain.body.decode() == SOURCES[name]
    assert compressed.headers["content-encoding"] == "gzip" and gzip.decompress(compressed.body) == plain.body


async def test_what_a_browser_has_is_not_sent_again() -> None:
    for tag in (own := (await page()).headers["etag"], own.removeprefix("W/"), f'"other", {own}', "*"):
        same = await page(headers=[("if-none-match", tag), GZIP])
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", own)
        assert (same.headers["cache-control"], same.headers["vary"]) == ("no-cache", "accept-encoding")
        assert same.headers["content-length"] is same.headers["content-encoding"] is None
    for tag in ('"other"', own.strip('W/"'), ""):
        assert (await page(headers=[("if-none-match", tag)])).status == 200


async def test_a_head_says_what_the_whole_would_be() -> None:
    whole, head = await page(), await page(verb="HEAD")
    assert head.headers.items() == whole.headers.items()


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "index.html", "../main.py", "%6dain.js", "main.js/", "parts", "x" * 999]
)
async def test_there_is_nothing_else(name: str) -> None:
    for path in (f"{await base()}/{name}", f"/console/{name}", "/console/"):
        with pytest.raises(RouteNotFound):
            await file(path)


async def test_another_version_is_another_address(tmp_path: Path) -> None:
    changed = tmp_path / "console"
    shutil.copytree(DIRECTORY, changed)
    assert await base(Site(changed)) == await base()
    with (changed / "parts" / "toasts.js").open("a") as module:
        module.write("\n")
    other = Site(changed)
    assert await base(other) != await base()
    assert (await page(other)).headers["etag"] != (await page()).headers["etag"]
    # A gateway of the one version is asked for a file of the other: it is not to be kept under that name.
    strange = await file(f"{await base()}/parts/toasts.js", other)
    assert (strange.status, strange.headers["cache-control"]) == (200, "no-cache")


def test_the_policy_makes_no_exception() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.decode().split("; "))
    assert "unsafe" not in POLICY.decode() and "*" not in POLICY.decode() and ":" not in POLICY.decode()
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert set(rules.values()) == {"'self'", "'none'"}
    nothing = {name for name, value in rules.items() if value == "'none'"}
    assert nothing == {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"}


def test_the_pages_that_the_console_knows_are_served() -> None:
    routed = re.findall(r'^route\("([^"]+)"', SOURCES["main.js"], re.MULTILINE)
    patterns = [re.compile(re.sub(r"\{rest:path\}", ".*", path)) for path in PAGES]
    for path in routed:
        assert any(each.fullmatch(path) for each in patterns), path
    assert routed and FILES.startswith("/console/")


# --- what they are ---


def test_there_are_files_of_four_kinds_alone() -> None:
    files = [path for path in DIRECTORY.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".html", ".js", ".css", ".svg"}
    assert {path.relative_to(DIRECTORY).as_posix() for path in files if path.suffix == ".html"} == {"index.html"}
    assert not [path for path in DIRECTORY.rglob("*") if path.is_symlink() or not re.fullmatch(r"[a-z.-]+", path.name)]


def imports(name: str, *, later: bool = True) -> list[str]:
    """The files that a module takes something from, at once and later."""
    found = re.findall(r"""^import\s+(?:[^"';]*?\bfrom\s+)?["']([^"']+)["'];""", SOURCES[name], re.MULTILINE)
    assert len(found) == len(re.findall(r"^\s*import\b", SOURCES[name], re.MULTILINE))
    # What passes on what another has is not looked for.
    assert not re.search(r"^export\s*[*{][^;]*?\bfrom\s+[\"']", SOURCES[name], re.MULTILINE)
    loaded = re.findall(r'\bimport\("([^"]+)"\)', SOURCES[name])
    assert len(loaded) == len(re.findall(r"\bimport\s*\(", SOURCES[name]))
    found += loaded if later else []
    assert all(each.startswith(("./", "../")) for each in found), found
    return [normpath(join(dirname(name), each)) for each in found]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_is_imported_is_there(name: str) -> None:
    for each in imports(name):
        assert each in MODULES, each


@pytest.mark.parametrize("name", MODULES)
def test_every_name_that_is_imported_is_exported(name: str) -> None:
    for names, source in re.findall(r'^import\s*\{([^}]*)\}\s*from\s*"([^"]+)"', SOURCES[name], re.MULTILINE):
        text = SOURCES[normpath(join(dirname(name), source))]
        exported = set(
            re.findall(r"^export\s+(?:async\s+)?(?:const|let|class|function\*?)\s+(\w+)", text, re.MULTILINE)
        )
        for listed in re.findall(r"^export\s*\{([^}]*)\}", text, re.MULTILINE):
            exported |= {each.split()[-1] for each in listed.split(",") if each.strip()}
        wanted = {each.split()[0] for each in names.split(",") if each.strip()}
        assert wanted <= exported, (source, wanted - exported)


def reached(*, later: bool) -> set[str]:
    """The modules that the first one comes to."""
    seen, pending = set[str](), ["main.js"]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += imports(name, later=later)
    return seen


def test_every_module_is_used() -> None:
    assert reached(later=True) == set(MODULES)


class Markup(HTMLParser):
    """The elements of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


async def test_everything_that_the_page_names_is_there() -> None:
    elements = Markup((await page()).body.decode()).elements
    named = {str(value) for _, found in elements for key, value in found.items() if key in ("href", "src")}
    for path in named:
        assert (await file(path)).headers["cache-control"].endswith("immutable")
    names = {path.removeprefix(f"{await base()}/") for path in named}
    # Style sheets and the icon by name, and the modules that are needed at once.
    assert names == set(SOURCES) - {"index.html"} - set(MODULES) | reached(later=False)
    preloaded = [str(found["href"]) for _, found in elements if found.get("rel") == "modulepreload"]
    assert len(preloaded) == len(reached(later=False)) < len(MODULES)


async def test_nothing_in_the_page_is_inline() -> None:
    elements = Markup((await page()).body.decode()).elements
    for tag, found in elements:
        assert tag not in ("style", "base", "iframe", "object", "embed", "form")
        assert not [name for name in found if name == "style" or name.startswith("on")]
        if tag == "script":
            assert found.keys() == {"type", "src"}
        assert not str(found.get("http-equiv", ""))
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", (await page()).body.decode(), re.DOTALL)
    assert scripts == [""]


@pytest.mark.parametrize("name", SOURCES)
def test_no_text_becomes_code_or_markup(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|parseHTMLUnsafe|createContextualFragment|srcdoc",
        r"\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\(|document\.write|DOMParser|importScripts",
        r"set(?:Timeout|Interval)\s*\(\s*[\"'`]|javascript:|createPolicy|\.setAttribute\(\s*[\"'`]on",
        r"\.on[a-z]+\s*=[^=]",
        r"\bstyle\s*:\s*[\"'`]|\bstyle=|\.cssText",
        r"document\.cookie|postMessage|sessionStorage",
    )
    for pattern in forbidden:
        assert not (found := re.search(pattern, SOURCES[name])), found


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = SOURCES[name].replace(SVG, "")
    assert not (found := re.search(r"[a-z]+://|[\"'(=]//[a-z0-9]", text, re.IGNORECASE)), found
    if name.endswith(".css"):
        assert not (found := re.search(r"@import|url\(|image-set\(|expression\(", text)), found
    if name.endswith(".svg"):
        for element in ElementTree.fromstring(SOURCES[name]).iter():
            assert element.tag.removeprefix(f"{{{SVG}}}") not in ("script", "foreignObject", "use", "image", "a")
            assert not [each for each in element.attrib if each.startswith("on") or "href" in each or each == "style"]
