"""Names of accounts, without waiting for anybody."""

from __future__ import annotations

import os
import pwd

import pytest

from services.sis_agent.agent.linux import processes

UNKNOWN = 3_999_999_999


def test_the_name_service_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not answer for minutes: a supervisor that waits for it stops nothing."""
    own = pwd.getpwuid(os.geteuid()).pw_name

    def hang(_: int) -> None:
        raise AssertionError("the name service is asked")

    monkeypatch.setattr(pwd, "getpwuid", hang)
    assert processes.account_name(os.geteuid()) == own
    assert processes.account_name(UNKNOWN) == str(UNKNOWN)


def test_an_account_of_a_directory_service_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_learnt", {})
    processes.learn_account(UNKNOWN, "corp\\ann")
    assert processes.account_name(UNKNOWN) == "corp\\ann"
    processes.learn_own_account()
    assert processes.account_name(os.geteuid()) == pwd.getpwuid(os.geteuid()).pw_name
