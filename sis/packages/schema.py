"""The published JSON Schema of `package.yaml`, for editors and programs: made from the models that read it.

It describes a document as `document.read` gives it. What `manifest.parse` accepts it accepts. It refuses most of what
that refuses; the rest are rules between distant parts, such as a command that names an undeclared input.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sis.packages.fields import Part
from sis.packages.manifest import FILE_NAME, Manifest

DIALECT: Final = GenerateJsonSchema.schema_dialect


def document_schema() -> dict[str, Any]:
    """The schema, as JSON has it."""
    schema = Manifest.model_json_schema(schema_generator=_Generator)
    schema |= {"$schema": DIALECT, "title": FILE_NAME, "description": "The manifest of an automation package."}
    for name, definition in (("Manifest", schema), *schema["$defs"].items()):
        if name in _models():
            _describe(_models()[name], definition["properties"])
    return schema


def text() -> str:
    """The schema as it is published."""
    return json.dumps(document_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A mapping by name: a name that is not permitted is refused, which pydantic's own rendering forgets."""
        made: JsonSchemaValue = {"type": "object"}
        names = self.generate_inner(schema["keys_schema"]).copy()
        names.pop("type")
        made |= {"propertyNames": names, "additionalProperties": self.generate_inner(schema["values_schema"])}
        self.update_with_validations(made, schema, self.ValidationsMapping.object)
        return made


def _models() -> dict[str, type[BaseModel]]:
    return {model.__name__: model for model in Part.__subclasses__()}


def _describe(model: type[BaseModel], properties: dict[str, Any]) -> None:
    """Give each property the sentences that stand below its field."""
    for name, sentences in _docstrings(model):
        properties[name]["description"] = " ".join([sentences, properties[name].get("description", "")]).rstrip()


def _docstrings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    [definition] = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(sentences))):
                yield name, " ".join(sentences.split())
