"""The runner of examples itself: what it reads, what it lets pass, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.console_examples import Example, Mismatch, matches, read, run

PAGE = """\
Text with `$ no example`.

```sh
$ echo this is not run
```

```console
$ NAME=world
$ echo "hello $NAME" \\
    again
hello … again
$ printf '%s\\n' 1 2 3 |
> cat
1
…
```

```console
$ echo "still $NAME"
still world
```
"""


def test_it_reads_commands_with_their_lines_and_output() -> None:
    assert read(PAGE) == [
        Example(8, "NAME=world", ()),
        Example(9, 'echo "hello $NAME" \\\n    again', ("hello … again",)),
        Example(12, "printf '%s\\n' 1 2 3 |\ncat", ("1", "…")),
        Example(19, 'echo "still $NAME"', ("still world",)),
    ]


def test_a_block_that_begins_with_output_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        read("```console\nhello\n```")


def test_all_of_a_page_is_one_session(tmp_path: Path) -> None:
    run(read(PAGE), os.environ, tmp_path)


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        ("echo a", "b", "printed something else"),
        ("echo a", "", "printed something else"),
        ("false", "", "failed with status 1"),
        ("false | true", "", "failed with status 1"),
        ("echo $NOT_SET_ANYWHERE", "…", "unbound variable"),
        ("echo why >&2; false", "", "why"),
        ("while :; do :; done", "", "did not end within 1 s"),
    ],
)
def test_what_does_not_do_as_its_page_says_fails(tmp_path: Path, command: str, expected: str, told: str) -> None:
    lines = f"```console\n$ true\n$ {command}\n{expected}".rstrip()
    with pytest.raises(Mismatch, match=told) as raised:
        run(read(f"{lines}\n```"), os.environ, tmp_path, seconds=1.0)
    assert str(raised.value).startswith("line 3: ")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ([], [], True),
        ([], ["a"], False),
        (["a"], [], False),
        (["a"], ["a "], True),
        (["…"], [], True),
        (["…"], ["a", "b"], True),
        (["a", "…", "c"], ["a", "c"], True),
        (["a", "…", "c"], ["a", "b", "c", "c"], True),
        (["a", "…", "c"], ["a", "b"], False),
        (["  …", "c"], ["c", "d"], False),
        (['"id": "…",'], ['"id": "42",'], True),
        (['"id": "…",'], ['"id": "42"'], False),
        (["a.c"], ["abc"], False),
    ],
)
def test_an_ellipsis_stands_for_anything_and_all_else_for_itself(
    expected: list[str], printed: list[str], same: bool
) -> None:
    assert matches(expected, printed) is same
