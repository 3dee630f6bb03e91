"""The OpenAPI document as a page for people: one file of HTML and one of CSS, without a script."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from typing import Any, TypeAlias

from gateway import openapi
from gateway.examples import PARAMETERS

Json: TypeAlias = Mapping[str, Any]

_CODE = re.compile(r"`([^`]+)`")
_VERBS = ("get", "post", "put", "patch", "delete")


@cache
def page() -> bytes:
    """The page. What it needs beside itself is /static/reference.css."""
    return render(json.loads(openapi.document())).encode()


def render(document: Json) -> str:
    """The page of an OpenAPI document as `openapi.build` makes it."""
    return "\n".join(_Page(document).lines()) + "\n"


class _Page:
    def __init__(self, document: Json) -> None:
        self._document = document
        self._tags: dict[str, list[tuple[str, str, Json]]] = {tag["name"]: [] for tag in document["tags"]}
        for path, item in document["paths"].items():
            for verb in _VERBS:
                if verb in item:
                    self._tags[item[verb]["tags"][0]].append((path, verb, item))

    def lines(self) -> Iterator[str]:
        info = self._document["info"]
        title = f"{escape(info['title'])} HTTP API {escape(info['version'])}"
        yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1" />'
        yield f'<title>{title}</title>\n<link rel="stylesheet" href="/static/reference.css" />\n</head>\n<body>'
        yield '<a class="skip" href="#content">Skip to the content</a>'
        yield from self._navigation()
        yield f'<main id="content" tabindex="-1">\n<h1>{title}</h1>'
        yield _text(info["description"])
        yield '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>. In the examples'
        yield "<code>$SIS</code> is the address of this server, and the file <code>token.header</code> holds the line"
        yield "<code>Authorization: Bearer</code> with the token.</p>"
        for tag in self._document["tags"]:
            yield f'<section id="{_id(tag["name"])}">\n<h2>{escape(tag["name"])}</h2>'
            yield _text(tag.get("description", ""))
            for path, verb, item in self._tags[tag["name"]]:
                yield from self._operation(path, verb, item)
            yield "</section>"
        yield '<section id="schemas">\n<h2>Schemas</h2>'
        for name, schema in self._document["components"]["schemas"].items():
            yield from _schema(name, schema)
        yield "</section>\n</main>\n</body>\n</html>"

    def _navigation(self) -> Iterator[str]:
        yield '<nav aria-label="Operations">'
        for name, operations in self._tags.items():
            yield f'<h2><a href="#{_id(name)}">{escape(name)}</a></h2>\n<ul>'
            for _, verb, item in operations:
                operation = item[verb]
                link = f'<a href="#{_id(operation["operationId"])}">{escape(operation["summary"])}</a>'
                yield f"<li>{_verb(verb)} {link}</li>"
            yield "</ul>"
        yield '<h2><a href="#schemas">Schemas</a></h2>\n</nav>'

    def _operation(self, path: str, verb: str, item: Json) -> Iterator[str]:
        operation = item[verb]
        yield f'<article id="{_id(operation["operationId"])}">\n<h3>{escape(operation["summary"])}</h3>'
        yield f'<p class="route">{_verb(verb)} <code>{escape(path)}</code></p>'
        yield _text(operation.get("description", ""))
        parameters = [self._resolved(each) for each in [*operation.get("parameters", ()), *item.get("parameters", ())]]
        if parameters:
            rows = (
                (_name(each), each["in"], _type(each["schema"]), _text(each.get("description", "")))
                for each in parameters
            )
            yield from _table("Parameters", ("Name", "In", "Type", "Meaning"), rows)
        body = operation.get("requestBody")
        if body is not None:
            kinds = body["content"].items()
            told = "; ".join(f"<code>{escape(kind)}</code> {_type(media.get('schema', {}))}" for kind, media in kinds)
            yield f"<h4>Body</h4>\n<p>{told}{'' if body.get('required') else ', may be left out'}</p>"
        responses = operation["responses"].items()
        answers = (self._response(code, self._resolved(each)) for code, each in responses)
        yield from _table("Responses", ("Code", "Meaning", "Content", "Headers"), answers)
        example = escape(_curl(path, verb, operation))
        yield f'<h4>Example</h4>\n<pre tabindex="0"><code>{example}</code></pre>\n</article>'

    def _response(self, code: str, response: Json) -> tuple[str, ...]:
        content = [
            f"<code>{escape(kind)}</code> {_item(media.get('schema', {}))}"
            for kind, media in response.get("content", {}).items()
        ]
        headers = [f"<code>{escape(name)}</code>" for name in response.get("headers", {})]
        return (
            f"<code>{escape(code)}</code>",
            _text(response["description"]),
            "<br />".join(content),
            ", ".join(headers),
        )

    def _resolved(self, node: Json) -> Json:
        reference = node.get("$ref")
        if reference is None:
            return node
        _, _, kind, name = reference.split("/")
        found: Json = self._document["components"][kind][name]
        return found


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f'<article id="schema-{_id(name)}">\n<h3>{escape(name)}</h3>{_text(schema.get("description", ""))}'
    for choice in schema.get("allOf", ()):
        yield _text(choice["description"])
    if "oneOf" in schema:
        yield f"<p>One of {', '.join(_type(each) for each in schema['oneOf'])}.</p>"
    properties = schema.get("properties", {})
    if properties:
        required = schema.get("required", ())
        rows = (
            (_name({"name": each, "required": each in required}), _type(of), _meaning(of))
            for each, of in properties.items()
        )
        yield from _table("", ("Name", "Type", "Meaning"), rows)
    yield "</article>"


def _table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    if title:
        yield f"<h4>{escape(title)}</h4>"
    yield '<div class="scroll" tabindex="0"><table>'
    yield "<thead><tr>" + "".join(f'<th scope="col">{escape(each)}</th>' for each in head) + "</tr></thead>\n<tbody>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{each}</td>" for each in row) + "</tr>"
    yield "</tbody></table></div>"


def _name(of: Json) -> str:
    required = ' <span class="required">required</span>' if of.get("required") else ""
    return f"<code>{escape(of['name'])}</code>{required}"


def _meaning(schema: Json) -> str:
    read_only = "<p>Only in answers.</p>" if schema.get("readOnly") else ""
    return _text(schema.get("description", "")) + read_only


def _item(schema: Json) -> str:
    """The type of a response; of a stream, that of its events or lines."""
    events = [each["properties"]["data"]["contentSchema"] for each in schema.get("oneOf", ())]
    if events:
        return f"events of {_type(events[0])}"
    if "anyOf" in schema:
        return f"lines of {_type(schema['anyOf'][0])}"
    return _type(schema)


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{_id(name)}">{escape(name)}</a>'
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    if "type" not in schema:
        return ""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    told = " or ".join(kinds)
    detail = schema.get("format") or schema.get("contentEncoding")
    if detail:
        told += f" ({detail})"
    if "examples" in schema:
        told += f", such as {schema['examples'][0]}"
    return escape(told)


def _text(text: str) -> str:
    """Paragraphs, lists of lines that begin with a dash, and `code`."""
    found = []
    for block in text.split("\n\n"):
        lines = [_CODE.sub(r"<code>\1</code>", escape(line)) for line in block.splitlines()]
        if lines and all(line.startswith("- ") for line in lines):
            found.append("<ul>" + "".join(f"<li>{line[2:]}</li>" for line in lines) + "</ul>")
        elif lines:
            found.append(f"<p>{' '.join(lines)}</p>")
    return "\n".join(found)


def _verb(verb: str) -> str:
    return f'<span class="verb {verb}">{verb.upper()}</span>'


def _id(name: str) -> str:
    return escape(re.sub(r"[^A-Za-z0-9_.-]", "-", name))


def _curl(path: str, verb: str, operation: Json) -> str:
    """How to call it from a shell."""
    url = re.sub(r"\{(\w+)\}", lambda found: PARAMETERS[found[1]], path)
    words = ["curl"]
    content = operation["responses"].get("200", {}).get("content", {})
    streams = "text/event-stream" in content
    file = [kind for kind in content if kind.startswith("application/") and "json" not in kind]
    if streams and not file:
        words.append("-N")
    if operation.get("security") != []:
        words.append("-H @token.header")
    if verb not in ("get", "post"):
        words.append(f"-X {verb.upper()}")
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if "example" in media:
            words.append("--json " + shlex.quote(json.dumps(media["example"], ensure_ascii=False)))
            if streams:
                words.append("-H 'Accept: application/x-ndjson'")
        else:
            words += [f"-H 'Content-Type: {kind}'", "--data-binary @file"]
    if file:
        words.append("-o file")
    return " ".join([*words, f'"$SIS{url}"'])
