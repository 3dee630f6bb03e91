"""Jobs go to agents of the platforms that their packages are for, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.queue import dispatch
from services.queue.dispatch import Capacity
from services.runtime.errors import InvalidArgument
from tests.integration.queue.rig import Rig

MANIFEST = """
name: test.{name}
version: 1.0.0
platforms: [{platforms}]
operations:
  use: {{command: ["true"]}}
"""


@pytest.fixture
async def packaged(rig: Rig, tmp_path: Path) -> Rig:
    """The rig, with packages for windows alone and for both platforms; core.shell is for linux."""
    for name, platforms in (("windows", "windows"), ("both", "linux, windows")):
        await rig.push(tmp_path, MANIFEST.format(name=name, platforms=platforms))
    return rig


async def create(rig: Rig, platform: str, count: int = 1, **changes: str) -> list[int]:
    if platform == "linux":
        return await rig.create_many(count, **changes)
    return await rig.create_many(count, package_name=f"test.{platform}", operation="use", parameters={}, **changes)


async def claim(rig: Rig, **slots: int) -> dict[int, str]:
    """Who got which job, with so many free slots."""
    capacities = [Capacity(rig.agent(name), rig.epochs[name], free) for name, free in slots.items()]
    async with rig.database.begin() as connection:
        claimed, _ = await dispatch.claim(connection, capacities)
    found = {assignment.job_id: agent.removeprefix(f"{rig.group}-") for agent, assignment in claimed}
    assert len(found) == len(claimed), "a job was claimed twice"
    return found


async def test_nobody_waits_behind_what_only_others_can_run(packaged: Rig) -> None:
    for name, platform in (("l", "linux"), ("w", "windows")):
        await packaged.hello(name, platform=platform)
    windows = await create(packaged, "windows", 5)
    linux = await create(packaged, "linux", 5)
    assert await claim(packaged, l=2) == dict.fromkeys(linux[:2], "l")
    assert await claim(packaged, l=1, w=2) == {linux[2]: "l"} | dict.fromkeys(windows[:2], "w")
    assert await claim(packaged, w=8) == dict.fromkeys(windows[2:], "w")
    assert await claim(packaged, w=8) == {}


async def test_what_runs_anywhere_fills_a_mixed_group(packaged: Rig) -> None:
    for name, platform in (("l", "linux"), ("w", "windows"), ("u", "")):
        await packaged.hello(name, platform=platform)
    both = await create(packaged, "both", 9)
    assert sorted(await claim(packaged, l=2, w=3, u=1)) == both[:6]
    await create(packaged, "windows")
    found = await claim(packaged, l=2, w=2)
    assert sorted(found.values()) == ["l", "l", "w", "w"]


async def test_an_agent_of_which_nothing_is_known_takes_everything(packaged: Rig) -> None:
    await packaged.hello("u", platform="")
    job_ids = [*await create(packaged, "windows"), *await create(packaged, "linux")]
    assert await claim(packaged, u=8) == dict.fromkeys(job_ids, "u")


async def test_a_job_of_before_packages_had_platforms_goes_to_anybody(packaged: Rig) -> None:
    await packaged.hello("w", platform="windows")
    (job_id,) = await create(packaged, "linux")
    assert await claim(packaged, w=1) == {}
    await packaged.execute("UPDATE queue.jobs SET platforms = DEFAULT WHERE job_id = :job_id", job_id=job_id)
    assert await claim(packaged, w=1) == {job_id: "w"}


async def test_a_job_for_an_agent_of_another_platform_is_refused(packaged: Rig) -> None:
    await packaged.hello("w", platform="windows")
    with pytest.raises(InvalidArgument) as caught:
        await create(packaged, "linux", agent="w")
    (violation,) = caught.value.violations
    assert violation.field == "site_target.agent"
    assert "is a windows machine" in violation.description and "is for linux" in violation.description
    await packaged.hello("u", platform="")
    fitting = [*await create(packaged, "windows", agent="w"), *await create(packaged, "both", agent="w")]
    assert await claim(packaged, w=8) == dict.fromkeys(fitting, "w")
    await create(packaged, "windows", agent="u")


async def test_an_agent_that_has_changed_its_platform_leaves_its_own_jobs(packaged: Rig) -> None:
    await packaged.hello("a", platform="linux")
    (job_id,) = await create(packaged, "linux", agent="a")
    await packaged.hello("a", platform="windows")
    assert await claim(packaged, a=1) == {}
    assert "runs windows" in (await packaged.explain(job_id)).summary
