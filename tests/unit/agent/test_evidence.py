"""What is recorded of processes that have named themselves after a secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.sis_agent.agent.linux.processes import ProcessInfo
from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import SpoolReader, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from services.sis_agent.agent.supervision.evidence import Evidence
from sis.queue.v1 import frame_pb2 as pb


@pytest.mark.parametrize(
    "secret", [b"Tr0ub4dor&3-correct", "ab€cdéfghé€jklmno-secret".encode(), b"Tr0ub4dor\xff3-correct"]
)
def test_a_name_that_the_kernel_cut_is_masked_in_every_line_and_fact(tmp_path: Path, secret: bytes) -> None:
    process = ProcessInfo(os.getpid(), 1, 1, 1, "S", 1, secret[:15])
    with SpoolWriter.open(tmp_path / "spool") as writer:
        evidence = Evidence(Recorder(writer, Masker([secret])), tmp_path / "processes")
        evidence.seen([process])
        evidence.signalled(process, "TERM")
        evidence.reaped(process, 0)
        (record,) = evidence.to_proto("subreaper", [process], tree_empty=False).survivors
        evidence.close()
    assert record.name == "***"
    with SpoolReader(tmp_path / "spool") as reader:
        notices = [pb.Frame.FromString(raw).notice for raw in reader.read(0, 1 << 20)]
    assert [notice.text.partition(",")[0].partition(" started")[0] for notice in notices] == [
        "Process ***",
        "Sent TERM to ***",
        "Process ***",
    ]
    assert notices[0].process_started.process.name == "***"
