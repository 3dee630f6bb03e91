"""What a JSON Schema accepts, as a Hypothesis strategy; for the keywords that the gateway's document uses."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import strategies as st

Json = dict[str, Any]

_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def instances(schema: Json, components: Json) -> st.SearchStrategy[Any]:
    """Everything that fits; `components` are the schemas that references name."""
    if "$ref" in schema:
        return instances(components[schema["$ref"].rpartition("/")[2]], components)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_of_kind(kind, schema, components) for kind in kinds])


def _of_kind(kind: str, schema: Json, components: Json) -> st.SearchStrategy[Any]:
    match kind:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "string":
            return _text(schema)
        case "array":
            return st.lists(instances(schema["items"], components), max_size=3)
        case "object" if "properties" not in schema:
            return st.dictionaries(
                st.text(max_size=5), instances(schema["additionalProperties"], components), max_size=2
            )
        case "object":
            return _object(schema, components)
        case other:
            raise TypeError(other)


def _text(schema: Json) -> st.SearchStrategy[str]:
    if "pattern" not in schema:
        return st.text(min_size=schema.get("minLength", 0), max_size=20)
    # In Python "$" is also before a line end.
    found = st.from_regex(schema["pattern"].removesuffix("$") + r"\Z")
    if "format" in schema:
        return found.filter(lambda text: _FORMATS.conforms(text, schema["format"]))
    return found


def _object(schema: Json, components: Json) -> st.SearchStrategy[Json]:
    fields = {name: instances(each, components) for name, each in schema["properties"].items()}
    required = schema.get("required", [])
    found: st.SearchStrategy[Json] = st.fixed_dictionaries(
        {name: fields[name] for name in required},
        optional={name: each for name, each in fields.items() if name not in required},
    )
    for choice in schema.get("allOf", ()):
        names = [each["required"][0] for each in choice["oneOf"] if "required" in each]
        found = st.tuples(found, st.sampled_from(names)).map(lambda both, names=names: _only(*both, names))
    return found


def _only(instance: Json, kept: str, names: list[str]) -> Json:
    return {name: value for name, value in instance.items() if name == kept or name not in names}
