"""What a stack consists of: the first choice is kept, a later one changes it, a wrong one is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sis.stack import settings, up
from sis.stack.errors import StackError
from sis.stack.layout import Layout
from sis.stack.settings import Options, Settings


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "data")
    layout.create()
    return layout


def test_without_a_choice_it_is_one_of_each(layout: Layout) -> None:
    assert settings.load(layout, Options(layout.data)) == Settings(replicas=1, agents=1, slots=8)


def test_a_choice_is_kept_and_a_later_one_changes_it(layout: Layout) -> None:
    settings.save(layout, settings.load(layout, Options(layout.data, replicas=2, agents=4)))
    kept = settings.load(layout, Options(layout.data, agents=0, queue_port=7001))
    assert (kept.replicas, kept.agents, kept.queue_port) == (2, 0, 7001)


def test_every_wrong_option_is_named(layout: Layout) -> None:
    with pytest.raises(StackError) as refused:
        settings.load(layout, Options(layout.data, replicas=0, queue_port=70000))
    assert str(refused.value) == (
        "--replicas: input should be greater than or equal to 1; "
        "--queue-port: input should be less than or equal to 65535"
    )


def test_a_damaged_file_is_refused(layout: Layout) -> None:
    layout.settings.write_text("{")
    with pytest.raises(StackError, match=r"settings\.json is damaged; correct or remove it"):
        settings.load(layout, Options(layout.data))


def test_everything_is_the_owners_alone(layout: Layout) -> None:
    settings.save(layout, Settings())
    assert stat.S_IMODE(layout.settings.stat().st_mode) == 0o600
    directories = [layout.data, *(path for path in layout.data.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


@pytest.mark.parametrize("mark", ["up.lock", "admin.token", "stack.json"])
def test_a_directory_of_a_stack_is_made_private_whatever_else_is_in_it(tmp_path: Path, mark: str) -> None:
    (tmp_path / mark).touch()
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    Layout(tmp_path).create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("names", [[], ["lost+found"], ["tls", "vault"], ["agents"]])
def test_an_empty_directory_and_a_start_that_was_cut_short_are_taken(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    tmp_path.chmod(0o755)
    Layout(tmp_path).create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_directory_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    for name in ("logs", "settings.json", "www"):
        (tmp_path / name).mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(
        StackError, match="is no stack's: it has www; name a directory that is new or empty with --data"
    ):
        up(Options(tmp_path, detach=True))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, tmp_path / "logs")] == [0o755, 0o755]
    assert len(list(tmp_path.iterdir())) == 3


def test_retention_is_kept_changed_and_switched_off(layout: Layout) -> None:
    first = Options(layout.data, retention_days=30, retention_jobs=1000, retention_export="/exports")
    settings.save(layout, settings.load(layout, first))
    kept = settings.load(layout, Options(layout.data, retention_days=0))
    assert (kept.retention_days, kept.retention_jobs, kept.retention_export) == (0, 1000, "/exports")
    settings.save(layout, kept)
    assert settings.load(layout, Options(layout.data, retention_jobs=0, retention_export="")) == Settings()


def test_an_export_without_a_rule_is_refused(layout: Layout) -> None:
    with pytest.raises(StackError, match="--retention-export: nothing is deleted; give --retention-days"):
        settings.load(layout, Options(layout.data, retention_export="/exports"))
