"""Pages of the list of jobs that would be larger than a message can be."""

from __future__ import annotations

import pytest

from services.queue import listing
from services.queue.listing import JobFilter, ListJobs
from tests.integration.queue.rig import Rig


async def test_a_page_of_long_texts_is_shorter_and_the_next_one_goes_on_behind_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGE_BYTES", 10_000)
    made = await rig.create_many(7, display_name=rig.group, labels={f"key-{n}": "ä" * 200 for n in range(8)})
    made += await rig.create_many(1, display_name=rig.group, labels={f"key-{n}": "ä" * 200 for n in range(32)})
    found: list[list[int]] = []
    token = ""
    while token or not found:
        async with rig.database.begin() as connection:
            wanted = ListJobs(JobFilter(text=rig.group), 1_000, token, "job_id", False, b"")
            page = await listing.list_page(connection, wanted)
        assert page.total == len(made)
        found.append([row.job_id for row in page.jobs])
        token = page.next_page_token
    assert found == [made[:3], made[3:6], made[6:7], made[7:]]
