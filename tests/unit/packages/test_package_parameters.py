"""Which values an operation takes, and what its payload is started with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.packages import arguments, parameters, templates, values
from sis.packages.manifest import Input, Operation
from sis.packages.values import MAX_FILE_BYTES, File, Given, InputType

NO_FILE_NAME = "has a file name that is no plain name: give it without directories and control characters"
PACKAGE = Path("/cache/abc")
WORK = Path("/attempt/work")


def operation(*command: str, **inputs: Input) -> Operation:
    return Operation(command=["go", *command], inputs=inputs)


def an_input(type_: str = "string", **fields: object) -> Input:
    return Input.model_validate({"type": type_, **fields})


def problems_of(declared: Operation, **given_values: Given) -> dict[str, str]:
    _, problems = parameters.check(declared, given_values)
    return {problem.path: problem.message for problem in problems}


def line(declared: Operation, **given_values: Given) -> list[str]:
    resolved, problems = parameters.check(declared, given_values)
    assert problems == []
    placed = arguments.with_paths(resolved, lambda file: Path("/private", file.name))
    return arguments.command_line(declared, placed, PACKAGE, WORK)


def test_defaults_are_applied_and_absent_inputs_stay_absent() -> None:
    declared = operation(a=an_input(default="x"), b=an_input(), c=an_input("list", default=["1", "2"]))
    assert parameters.check(declared, {}) == ({"a": "x", "c": ["1", "2"]}, [])
    assert parameters.check(declared, {"a": ""}) == ({"a": "", "c": ["1", "2"]}, [])


def test_each_mistake_is_named() -> None:
    declared = operation(
        count=an_input("integer"),
        flag=an_input("boolean"),
        mode=an_input("enum", choices=["fast", "slow"]),
        name=an_input(required=True),
        path=an_input(pattern="/[a-z]+"),
        items=an_input("list", pattern="[0-9]+"),
        secret=an_input(sensitive=True),
    )
    assert problems_of(
        declared,
        count="many",
        flag="yes",
        mode="medium",
        path="/x/../y",
        items=["1", "b"],
        secret="hunter22",
        surplus="1",
    ) == {
        "count": "must be a whole number of at most 64 bits, such as 42",
        "flag": "must be true or false",
        "mode": "must be one of fast, slow",
        "name": "is required: give a value",
        "path": "must match the pattern /[a-z]+",
        "items": "item 2 must match the pattern [0-9]+",
        "secret": "is sensitive: it takes a credential, never a plain value",
        "surplus": ("is not an input of this operation; its inputs: count, flag, mode, name, path, items, secret"),
    }


@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        (an_input(), ["a"], "must be one string value, not a list"),
        (an_input(), "a\0b", "has a NUL character, which no process can be given"),
        (an_input(), "\ud800", "is not valid Unicode"),
        (an_input(), "é" * 32_769, "is longer than 64 KiB"),
        (an_input(required=True), "", "is required: give a value that is not empty"),
        (an_input("list", required=True), [], "is required: give a value that is not empty"),
        (an_input("list"), ["a\nb"], "item 1 has a line break: an item is one line"),
        (an_input("list"), ["a"] * 1_001, "has more than 1,000 items"),
        (an_input("list"), ["a" * 40_000, "b" * 40_000], "is longer than 64 KiB"),
        (an_input("integer"), "9223372036854775808", "must be a whole number of at most 64 bits, such as 42"),
        (an_input("integer"), "1_000", "must be a whole number of at most 64 bits, such as 42"),
        (an_input("integer"), "٣", "must be a whole number of at most 64 bits, such as 42"),
        (an_input("integer"), "9" * 60_000, "must be a whole number of at most 64 bits, such as 42"),
        (an_input("boolean"), "True", "must be true or false"),
        (an_input(pattern="a|b"), "ab", "must match the pattern a|b"),
        (an_input(pattern="a"), "a\n", "must match the pattern a"),
        (an_input(), File("a", b""), "must be a string value, not a file"),
        (an_input("list"), File("a", b""), "must be a list value, not a file"),
        (an_input("file"), "a", "must be a file: give its name and its content"),
        (an_input("file"), [], "must be a file: give its name and its content"),
        (an_input("file"), File("", b""), "has a file name that is not of 1 to 255 characters"),
        (an_input("file"), File("a" * 256, b""), "has a file name that is not of 1 to 255 characters"),
        *(
            (an_input("file"), File(name, b""), NO_FILE_NAME)
            for name in ("..", ".", "a/b", "/", "a\\b", "a\nb", "\ud800")
        ),
        (an_input("file"), File("a", bytes(MAX_FILE_BYTES + 1)), "is a file of more than 1 MiB"),
        (an_input("file", required=True), "", "must be a file: give its name and its content"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(declared: Input, value: Given, message: str) -> None:
    assert problems_of(operation(x=declared), x=value) == {"x": message}


def test_values_are_made_canonical() -> None:
    declared = operation(count=an_input("integer"), items=an_input("list"))
    resolved, problems = parameters.check(declared, {"count": "+007", "items": "a\nb"})
    assert (resolved, problems) == ({"count": "7", "items": ["a", "b"]}, [])
    assert parameters.check(declared, resolved) == (resolved, [])


def test_all_values_together_are_bounded() -> None:
    declared = operation(**{f"x{number}": an_input() for number in range(9)})
    big = {f"x{number}": "a" * 65_536 for number in range(9)}
    assert problems_of(declared, **big) == {
        "x0": "all values together are longer than 512 KiB: shorten this one or others"
    }


def test_all_files_together_are_bounded_on_their_own() -> None:
    declared = operation(text=an_input(), **{f"x{number}": an_input("file") for number in range(3)})
    whole = {f"x{number}": File("a", bytes(MAX_FILE_BYTES)) for number in range(2)}
    assert problems_of(declared, text="a" * 65_536, **whole) == {}
    assert problems_of(declared, **whole, x2=File("a", b"1")) == {
        "x0": "all files together are longer than 2 MiB: shorten this one or others"
    }


def test_a_file_is_its_path_for_the_payload() -> None:
    declared = operation(
        "--from={param.config}",
        "{param.config}",
        "{param.other}",
        "--x={param.other}",
        **{name: an_input("file") for name in ("config", "other")},
    )
    assert line(declared, config=File("a.json", b"")) == ["go", "--from=/private/a.json", "/private/a.json"]
    assert arguments.environment({"config": "/private/a.json"}) == {"SIS_PARAM_CONFIG": "/private/a.json"}


def test_an_endless_list_of_mistakes_is_cut() -> None:
    _, problems = parameters.check(operation(), {f"x{number}": "" for number in range(10_000)})
    assert len(problems) == 50


def test_a_hostile_pattern_takes_no_time() -> None:
    assert problems_of(operation(x=an_input(pattern="(a+)+b")), x="a" * 65_536)


def test_templates_are_filled_in() -> None:
    declared = operation(
        "{package}/data",
        "--name={param.name}",
        "{param.items}",
        "{work}",
        "{{param.name}}",
        name=an_input(),
        items=an_input("list"),
    )
    assert line(declared, name="a b; $(c)", items=["1", "", "{work}"]) == [
        "go", "/cache/abc/data", "--name=a b; $(c)", "1", "", "{work}", "/attempt/work", "{param.name}",
    ]  # fmt: skip


def test_an_argument_vanishes_with_its_value() -> None:
    declared = operation(
        "--name={param.name}", "{param.name}", "{param.items}", "end", name=an_input(), items=an_input("list")
    )
    assert line(declared) == ["go", "end"]
    assert line(declared, name="", items=[]) == ["go", "end"]


def test_the_interpreter_comes_first() -> None:
    declared = Operation(interpreter="python3", command=["{package}/go.py", "a"])
    assert line(declared) == ["python3", "/cache/abc/go.py", "a"]


def test_the_environment_has_every_value() -> None:
    assert arguments.environment({"free_space": "1", "items": ["a", "b"], "empty": ""}) == {
        "SIS_PARAM_FREE_SPACE": "1",
        "SIS_PARAM_ITEMS": "a\nb",
        "SIS_PARAM_EMPTY": "",
    }


@given(st.text(max_size=40))
def test_an_escaped_text_is_that_text(text: str) -> None:
    assert templates.split(templates.escape(text)) == ((text,) if text else ())


@given(st.text(alphabet="{}ab.param", max_size=20), st.text(max_size=20))
def test_what_is_filled_in_is_never_read_again(literal: str, value: str) -> None:
    parts = templates.split(f"{templates.escape(literal)}{{param.x}}")
    assert parts == ((literal, templates.Reference("param", "x")) if literal else (templates.Reference("param", "x"),))
    declared = Operation(command=["go", f"{templates.escape(literal)}{{param.x}}"], inputs={"x": an_input()})
    expected = [literal + value] if value else []
    assert arguments.command_line(declared, {"x": value}, PACKAGE, WORK) == ["go", *expected]


@given(st.text(alphabet="{}ab.param_", max_size=20))
def test_a_template_is_read_or_refused(text: str) -> None:
    try:
        parts = templates.split(text)
    except templates.InvalidTemplate:
        return
    written = "".join(
        templates.escape(part) if isinstance(part, str) else f"{{{part.kind}.{part.name}}}".replace(".}", "}")
        for part in parts
    )
    assert templates.split(written) == parts


SCALARS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(
    st.sampled_from(list(InputType)),
    SCALARS | st.lists(SCALARS, max_size=4) | st.integers().map(str) | st.sampled_from(["true", "false", "a"]),
)
def test_what_is_accepted_is_canonical_and_survives_its_text_form(type_: InputType, value: str | list[str]) -> None:
    try:
        canonical = values.check(type_, value, choices=["a", "b"])
    except values.InvalidValue:
        return
    assert values.check(type_, canonical, choices=["a", "b"]) == canonical
    if canonical != [""]:  # A list of one empty item reads as the empty list.
        assert values.check(type_, values.text(canonical), choices=["a", "b"]) == canonical


def test_a_sensitive_input_takes_a_credential_and_nothing_else_does() -> None:
    declared = operation(password=an_input(sensitive=True, required=True), name=an_input(required=True))

    def problems(given_values: dict[str, str], *refs: str) -> dict[str, str]:
        return {p.path: p.message for p in parameters.check(declared, given_values, refs)[1]}

    assert parameters.check(declared, {"name": "x"}, ["password"]) == ({"name": "x"}, [])
    assert problems({"name": "x"}) == {"password": "is required: name a credential"}
    assert problems({"name": "x", "password": "y"}, "password") == {
        "password": "is sensitive: it takes a credential, never a plain value"
    }
    assert problems({}, "password", "name") == {"name": "is not sensitive: it takes a value, not a credential"}
    assert problems({"name": "x"}, "password", "pin") == {
        "pin": "is not an input of this operation; its inputs: password, name"
    }


CREDENTIALS = Operation.model_validate(
    {
        "command": ["go"],
        "credentials": {
            "db": {"required": True},
            "mail": {},
            "admin": {"required": True},
            "run_as": {"required": True},
        },
    }
)


@pytest.mark.parametrize(
    ("given_names", "admin", "run_as", "problems"),
    [
        ({"db": "figures"}, "root", "", {}),
        ({"db": "figures", "mail": "post"}, "root", "alice", {}),
        (
            {},
            "",
            "alice",
            {"db": "is required: name a credential", "admin": "is required: give the admin of the job"},
        ),
        (
            {"db": ""},
            "",
            "",
            {
                "db": "must name a credential",
                "admin": "is required: give the admin of the job",
                "run_as": "is required: give the run_as of the job",
            },
        ),
        (
            {"db": "figures", "admin": "root", "pin": "x"},
            "root",
            "",
            {
                "admin": "is no reference: give it as the admin of the job",
                "pin": "is not a reference of this operation; its references: db, mail",
            },
        ),
    ],
)
def test_the_credentials_of_a_job_are_checked(
    given_names: dict[str, str], admin: str, run_as: str, problems: dict[str, str]
) -> None:
    found = parameters.check_credentials(CREDENTIALS, given_names, admin=admin, run_as=run_as)
    assert {problem.path: problem.message for problem in found} == problems


def test_an_endless_list_of_unknown_references_is_cut() -> None:
    found = parameters.check_credentials(CREDENTIALS, {f"x{number}": "c" for number in range(999)}, admin="", run_as="")
    assert len(found) == 50


def test_secrets_stand_beside_the_other_values() -> None:
    assert arguments.environment({"name": "x", "items": ["1", "2"]}, {"password": "hunter22"}) == {
        "SIS_PARAM_NAME": "x",
        "SIS_PARAM_ITEMS": "1\n2",
        "SIS_PARAM_PASSWORD": "hunter22",
    }
