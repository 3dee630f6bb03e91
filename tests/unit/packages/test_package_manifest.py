"""What a `package.yaml` may say, and how each mistake in it is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sis.packages import manifest, shipped
from sis.packages.manifest import InvalidManifest, Manifest
from sis.packages.values import InputType

GOOD = """
name: disk.clean-up
version: 1.2.0-rc.1
publisher: Example
description: Frees space.
platforms: [linux]
operations:
  clean:
    description: Removes old files.
    run_timeout: 5m
    interpreter: python3
    command: ["{package}/clean.py", "--days={param.days}", "{param.paths}", "{work}", "{{literal}}"]
    inputs:
      days: {type: integer, default: 30, hint: "7"}
      paths: {type: list, required: true, pattern: "/.*"}
      mode: {type: enum, choices: [yes, no, 1.10], default: no}
      password: {type: string, sensitive: true}
    credentials:
      store: {description: Where it goes., required: true, kinds: [ssh-key, token], delivery: file}
      admin: {}
    outputs:
      freed_bytes: {description: What was freed., required: true}
"""


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as caught:
        manifest.parse(text)
    return {problem.path: problem.message for problem in caught.value.problems}


def operation_with(**fields: object) -> str:
    operation: dict[str, object] = {"command": ["/bin/true"], **fields}
    return json.dumps({"name": "a", "version": "1.0.0", "operations": {"run": operation}})


def test_a_manifest_is_read() -> None:
    read = manifest.parse(GOOD)
    clean = read.operations["clean"]
    assert (read.name, read.version, read.platforms) == ("disk.clean-up", "1.2.0-rc.1", ["linux"])
    assert clean.run_timeout == 300
    assert clean.inputs["days"].default == "30"
    assert clean.inputs["paths"].type is InputType.LIST
    assert clean.inputs["mode"].choices == ["yes", "no", "1.10"]
    assert clean.outputs["freed_bytes"].required
    store, admin = clean.credentials["store"], clean.credentials["admin"]
    assert (store.required, store.kinds, store.delivery) == (True, ["ssh-key", "token"], "file")
    assert (admin.required, admin.kinds, admin.delivery) == (False, [], "environment")


def test_a_manifest_survives_json() -> None:
    read = manifest.parse(GOOD)
    assert Manifest.model_validate_json(read.model_dump_json()) == read
    assert Manifest.model_validate_json(read.model_dump_json(exclude_defaults=True)) == read


def test_every_shipped_manifest_is_right() -> None:
    names = {manifest.load(path.parent).name for path in shipped().glob("*/package.yaml")}
    assert {"core.shell", "linux.facts"} <= names
    assert all(manifest.load(shipped() / name).name == name for name in names)


BAD = """
        name: Bad Name
        version: "1.0"
        colour: red
        platforms: [linux, plan9]
        operations:
          run:
            speed: 3
            run_timeout: 5x
            command: [go, "{param.absent}", "{param.secret}", "a{param.items}b", "{oops", "{foo}"]
            inputs:
              x: {type: text}
              Y: {type: string}
              choice: {type: enum}
              count: {type: integer, default: many}
              shape: {type: string, pattern: "(?=a)"}
              secret: {type: string, sensitive: true}
              items: {type: list}
          "bad op": {command: []}
        """


def test_every_mistake_is_named_at_once() -> None:
    assert problems_of(BAD) == {
        "name": "must be lower-case letters and digits joined by . or -, such as disk.clean-up",
        "version": "must be a semantic version, such as 1.0.0 or 2.1.0-beta.1",
        "colour": ("is not a field; the fields here are name, version, publisher, description, platforms, operations"),
        "platforms[1]": "must be one of linux, darwin, windows",
        "operations.run.speed": (
            "is not a field; the fields here are "
            "description, inputs, credentials, outputs, interpreter, command, run_timeout, cancel_grace, output_markers"
        ),
        "operations.run.run_timeout": ("must be seconds, or a number with s, m, h or d, such as 5m; 0 means no limit"),
        "operations.run.inputs.x.type": "must be one of string, integer, boolean, enum, list, file",
        "operations.run.inputs.Y": "must be lower-case letters and digits and _, such as free_space",
        "operations.run.inputs.choice.choices": "is missing: an enum needs the list of what it may be",
        "operations.run.inputs.count.default": "must be a whole number of at most 64 bits, such as 42",
        "operations.run.inputs.shape.pattern": (
            "is not a usable regular expression: look-around, including look-ahead and look-behind, is not supported"
        ),
        "operations.run.command[1]": "names absent, which is not an input: declare it or correct the name",
        "operations.run.command[2]": ("names the sensitive input secret: a command line is no secret; remove it"),
        "operations.run.command[3]": "has the list items within other text: give it an argument of its own",
        "operations.run.command[4]": "has a lone '{': write '{{' for a brace",
        "operations.run.command[5]": (
            "has the unknown template {foo}: write {param.NAME}, {package} or {work}, and {{ or }} for a brace"
        ),
        "operations.bad op": "must be lower-case letters and digits joined by . _ or -, such as clean-up",
        "operations.bad op.command": "must not be empty",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping that begins with name: and version:"),
        ("- a", "must be a mapping that begins with name: and version:"),
        ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("name: a\nname: b", "line 2, column 1: the key 'name' is there twice"),
        ("x: &a 1\ny: *a", "line 1, column 4: anchors and aliases are not supported: write the value out"),
        ("x: !!python/object:os.system y", "line 1, column 4: tags are not supported: remove it"),
        ("? [a]\n: b", "line 1, column 3: a key must be text"),
        ("[" * 10_000, "line 1, column 13: it is nested too deeply"),
        ("\x07", "unacceptable character #x0007: special characters are not allowed"),
        ("a" * 70_000, "it has more than 65,536 characters"),
        ("a: 1\n--- \nb: 2", "line 2, column 1: but found another document"),
    ],
)
def test_what_is_no_document_is_refused(text: str, message: str) -> None:
    assert problems_of(text) == {"package.yaml": message}


MISTAKES: list[tuple[dict[str, object], str, str]] = [
    (
        {"command": ["{param.x}"], "inputs": {"x": {"type": "string"}}},
        "command",
        "must begin with a program",
    ),
    ({"command": [""]}, "command", "must begin with a program"),
    ({"command": ["a\0b"]}, "command[0]", "has a NUL character"),
    ({"command": "echo hello"}, "command", "must be a list"),
    ({"command": ["go", "}"]}, "command[1]", "has a lone '}'"),
    ({"command": ["go"] * 201}, "command", "has more than 200 entries"),
    ({"run_timeout": "400d"}, "run_timeout", "is longer than a year"),
    ({"cancel_grace": "61m"}, "cancel_grace", "is longer than an hour"),
    (
        {"cancel_grace": "soon"},
        "cancel_grace",
        "must be seconds, or a number with s, m, h or d, such as 5m; 0 means KILL",
    ),
    ({"run_timeout": -1}, "run_timeout", "must be seconds"),
    ({"run_timeout": True}, "run_timeout", "must be seconds"),
    (
        {"inputs": {"x": {"type": "string", "choices": ["a"]}}},
        "inputs.x.choices",
        "goes with the type enum only",
    ),
    (
        {"inputs": {"x": {"type": "enum", "choices": ["a", "a"]}}},
        "inputs.x.choices",
        "must be different texts",
    ),
    (
        {"inputs": {"x": {"type": "list", "sensitive": True}}},
        "inputs.x.sensitive",
        "goes with the type string",
    ),
    (
        {"inputs": {"x": {"type": "string", "sensitive": True, "default": "a"}}},
        "inputs.x.default",
        "cannot be given for a sensitive input",
    ),
    ({"inputs": {"x": {"type": "file", "sensitive": True}}}, "inputs.x.sensitive", "goes with the type string"),
    ({"inputs": {"x": {"type": "file", "choices": ["a"]}}}, "inputs.x.choices", "goes with the type enum only"),
    ({"inputs": {"x": {"type": "file", "pattern": "a"}}}, "inputs.x.pattern", "does not go with the type file"),
    ({"inputs": {"x": {"type": "file", "default": "a"}}}, "inputs.x.default", "does not go with the type file"),
    (
        {"inputs": {"x": {"type": "string", "required": True, "default": "a"}}},
        "inputs.x.default",
        "is never used for a required input",
    ),
    ({"inputs": {"x": {"type": "string", "default": {}}}}, "inputs.x.default", "must be text, or a list"),
    (
        {"inputs": {"x": {"type": "integer", "default": [1]}}},
        "inputs.x.default",
        "must be one integer value",
    ),
    (
        {"inputs": {"x": {"type": "string", "required": "yes"}}},
        "inputs.x.required",
        "must be true or false",
    ),
    (
        {"inputs": {"x": {"type": "string", "pattern": "a)|(b"}}},
        "inputs.x.pattern",
        "is not a usable regular",
    ),
    ({"inputs": {"x": "string"}}, "inputs.x", "must be a mapping"),
    ({"inputs": {"x": {}}}, "inputs.x.type", "is missing"),
    ({"outputs": {"a b": {}}}, "outputs.a b", "must be letters, digits"),
    (
        {"outputs": {"a": {"type": "string"}}},
        "outputs.a.type",
        "is not a field; the fields here are description",
    ),
    (
        {"credentials": {"Db": {}}},
        "credentials.Db",
        "must be lower-case letters and digits and _, such as database",
    ),
    ({"credentials": {"db": "token"}}, "credentials.db", "must be a mapping"),
    ({"credentials": {"db": {"kinds": ["pin"]}}}, "credentials.db.kinds[0]", "must be one of username-password"),
    ({"credentials": {"db": {"kinds": ["token", "token"]}}}, "credentials.db.kinds", "names one of them twice"),
    ({"credentials": {"db": {"delivery": "argv"}}}, "credentials.db.delivery", "must be one of environment, file"),
    (
        {"credentials": {"db": {"type": "token"}}},
        "credentials.db.type",
        "is not a field; the fields here are description, required, kinds, delivery",
    ),
    (
        {"credentials": {"a": {"delivery": "stdin"}, "b": {"delivery": "stdin"}}},
        "credentials",
        "has more than one delivery by stdin",
    ),
    ({"credentials": {"admin": {"kinds": ["token"]}}}, "credentials", "has the kind token for admin"),
    ({"interpreter": "a\nb"}, "interpreter", "must be one line of printable text"),
    ({"description": None}, "description", "must be text"),
    ({"description": "a" * 10_001}, "description", "is longer than 10,000 characters"),
]


@pytest.mark.parametrize(("fields", "path", "message"), MISTAKES)
def test_a_mistake_in_an_operation_is_named(fields: dict[str, object], path: str, message: str) -> None:
    found = problems_of(operation_with(**fields))
    assert list(found) == [f"operations.run.{path}"]
    assert found[f"operations.run.{path}"].startswith(message)


def test_an_endless_list_of_mistakes_is_cut() -> None:
    with pytest.raises(InvalidManifest) as caught:
        manifest.parse(operation_with(**{f"field{number}": 1 for number in range(500)}))
    assert len(caught.value.problems) == manifest.MAX_PROBLEMS


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"package\.yaml: cannot be read: No such file"):
        manifest.load(tmp_path)


def test_a_manifest_in_another_encoding_is_refused() -> None:
    with pytest.raises(InvalidManifest, match=r"is not UTF-8 \(byte 6\)"):
        manifest.parse_bytes("name: ä".encode("latin-1"))
    with pytest.raises(InvalidManifest, match="is larger than"):
        manifest.parse_bytes(b" " * (manifest.MAX_BYTES + 1))


@given(st.text(alphabet=st.sampled_from("ab:-[]{}?!&*#|>'\"%@` \n\t0.~<é\x00\x85\ud800"), max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(InvalidManifest):
        manifest.parse(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "name",
                        "version",
                        "operations",
                        "run",
                        "command",
                        "inputs",
                        "outputs",
                        "x",
                        "type",
                        "default",
                    ]
                )
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_no_shape_breaks_the_reader(tree: object) -> None:
    with pytest.raises(InvalidManifest) as caught:
        manifest.parse(yaml.safe_dump(tree))
    assert all(problem.message for problem in caught.value.problems)


PRECEDENCE = [
    *("0.0.1", "0.9.0", "0.10.0", "1.0.0-0", "1.0.0-9", "1.0.0-10", "1.0.0-10.a", "1.0.0-alpha"),
    *("1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-alpha-b", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"),
    *("1.0.0-rc.1", "1.0.0", "1.0.1-a", "1.0.1", "1.10.0", "2.0.0", "10.0.0"),
]


def test_versions_have_the_order_of_their_precedence() -> None:
    keys = [manifest.version_key(version) for version in PRECEDENCE]
    assert [key.encode() for key in keys] == sorted(key.encode() for key in keys)
    assert len(set(keys)) == len(keys)
    assert manifest.version_key("1.0.0+build.7") == manifest.version_key("1.0.0")


@pytest.mark.parametrize("version", ["1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "1.0.0 ", ""])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="is not a semantic version"):
        manifest.version_key(version)


VERSIONS = st.from_regex(manifest.VERSION, fullmatch=True).filter(lambda version: len(version) < 60)


@given(VERSIONS, VERSIONS)
def test_keys_agree_with_the_rules_of_precedence(one: str, other: str) -> None:
    assert (manifest.version_key(one) < manifest.version_key(other)) == (precedence(one) < precedence(other))


def precedence(version: str) -> tuple[object, ...]:
    """As semver.org words it."""
    release, _, identifiers = version.partition("+")[0].partition("-")
    return (
        *(int(number) for number in release.split(".")),
        not identifiers,
        [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in identifiers.split(".") if part],
    )
