"""The shipped package `core.shell`, run for real."""

from __future__ import annotations

import os
import sys

from tests.integration.packages.operation_runner import Runner


def test_a_script_runs_in_its_working_directory(run: Runner) -> None:
    ended = run("core.shell", "run", script='pwd; echo problem >&2; echo result=42 >> "$SIS_OUTPUT"')
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, f"{ended.work}\n", "problem\n")
    assert ended.outputs == {"result": "42"}


def test_the_exit_code_is_the_script_s(run: Runner) -> None:
    assert run("core.shell", "run", script="exit 3").exit_code == 3


def test_arguments_and_environment_arrive_as_they_are(run: Runner) -> None:
    ended = run(
        "core.shell",
        "run",
        script='printf \'<%s>\' "$@"; printf \'[%s]\' "$A" "$B" "$IFS"',
        arguments=["-e", "a  b", "*", "", "$(touch hacked)", "é"],
        environment=["A=1 = * $HOME `id` 'x' \"y\"", "B=", "IFS= "],
    )
    assert ended.stdout == "<-e><a  b><*><><$(touch hacked)><é>[1 = * $HOME `id` 'x' \"y\"][][ \t\n]"
    assert [path.name for path in ended.work.iterdir()] == ["script"]
    # Whatever they are called.
    names = ["script", "interpreter", "environment", "assignment", "SIS_PARAM_SCRIPT"]
    ended = run(
        "core.shell",
        "run",
        script="import os, sys; print(sys.argv[1:], *(os.environ.get(name) for name in %r))" % [*names, "IFS", "LAST"],
        arguments=["a"],
        environment=[*(f"{name}=my {name}" for name in names), "IFS=0", "LAST=x"],
        interpreter=sys.executable,
    )
    assert ended.stdout == f"['a'] {' '.join(f'my {name}' for name in names)} 0 x\n"


def test_the_script_arrives_as_it_is(run: Runner) -> None:
    script = 'cat "$0"\n# \\n %s `x` $(y) \'z\' "\\\\" é\n\n'
    assert run("core.shell", "run", script=script).stdout == script + "\n"


def test_a_long_script_fits(run: Runner) -> None:
    script = "echo begin\n" + "# filling\n" * 6_000 + "echo end\n"
    assert run("core.shell", "run", script=script).stdout == "begin\nend\n"


def test_the_script_is_the_initial_process(run: Runner) -> None:
    assert run("core.shell", "run", script="echo $PPID").stdout == f"{os.getpid()}\n"


def test_another_interpreter(run: Runner) -> None:
    ended = run(
        "core.shell",
        "run",
        script="import os, sys; print(sys.argv[1:], [k for k in os.environ if k.startswith('SIS_PARAM')])",
        arguments=["a b"],
        interpreter=sys.executable,
    )
    assert ended.stdout == "['a b'] []\n"


def test_an_interpreter_that_is_not_there(run: Runner) -> None:
    ended = run("core.shell", "run", script="true", interpreter="/no/such/program")
    assert ended.exit_code == 127
    assert "/no/such/program" in ended.stderr
