"""What is recorded of an attempt that has secrets."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.sis_agent.agent.recording.recorder import Recorder
from services.sis_agent.agent.recording.spool import MAX_TEXT_CHARACTERS, SpoolReader, SpoolWriter
from services.sis_agent.agent.secrecy.masking import Masker
from sis.queue.v1 import frame_pb2 as pb
from sis.queue.v1 import job_pb2

SECRET = b"correct horse"


def notices(path: Path) -> list[pb.Notice]:
    with SpoolReader(path) as reader:
        return [pb.Frame.FromString(raw).notice for raw in reader.read(0, 1 << 20)]


def test_every_text_of_a_notice_is_masked(tmp_path: Path) -> None:
    process = job_pb2.Process(
        pid=1, name="correct horse", identity="x correct horse", signals=["correct horse", "TERM"]
    )
    finished = pb.Finished(
        outcome=pb.OUTCOME_FAILED,
        failure_reason="Y29ycmVjdCBob3JzZQ==",
        outputs=[job_pb2.OutputParameter(name="correct horse", value="636f727265637420686f727365")],
        evidence=job_pb2.StopEvidence(method="environment", processes=[process], survivors=[process]),
    )
    before = finished.SerializeToString()
    with SpoolWriter.open(tmp_path / "spool") as writer:
        recorder = Recorder(writer, Masker([SECRET]))
        recorder.notice(pb.SEVERITY_INFO, "it is correct%20horse", pb.Progress(percent=1, text="correct\\ horse!"))
        recorder.notice(pb.SEVERITY_ERROR, "x" * (MAX_TEXT_CHARACTERS - 8) + SECRET.decode(), finished)
    assert finished.SerializeToString() == before
    first, last = notices(tmp_path / "spool")
    assert (first.text, first.progress.text) == ("it is ***", "***!")
    assert last.text == "x" * (MAX_TEXT_CHARACTERS - 8) + "***"
    masked = job_pb2.Process(pid=1, name="***", identity="x ***", signals=["***", "TERM"])
    assert last.finished.failure_reason == "***"
    assert list(last.finished.outputs) == [job_pb2.OutputParameter(name="***", value="***")]
    assert (list(last.finished.evidence.processes), list(last.finished.evidence.survivors)) == ([masked], [masked])
    assert last.finished.evidence.method == "environment"
    assert last.finished.digest


def test_names_that_were_cut_off_show_no_part_of_a_secret(tmp_path: Path) -> None:
    """Also where they were cut within a character, or are no text at all."""
    with SpoolWriter.open(tmp_path / "spool") as writer:
        for secret in (b"a secret of 24 characters", "ab€cdéfghé€jklmno-secret".encode(), b"Tr0ub4dor\xff3-correct"):
            recorder = Recorder(writer, Masker([secret]))
            assert recorder.masked_name(secret[:15]) == "***"
            assert recorder.masked_name(b"-" + secret[:14]) == "-***"
            assert recorder.masked_name(secret[:14]) == secret[:14].decode(errors="replace")
            assert recorder.masked_name(b"s\xffh") == "s\ufffdh"


def test_without_secrets_everything_is_recorded_as_it_is(tmp_path: Path) -> None:
    with SpoolWriter.open(tmp_path / "spool") as writer:
        Recorder(writer, Masker()).notice(pb.SEVERITY_INFO, "correct horse", pb.Progress(text="correct horse"))
    assert notices(tmp_path / "spool")[0].progress.text == "correct horse"


def test_facts_hold_no_texts_but_in_fields_that_are_masked() -> None:
    """Of bytes there is the digest alone, which the spool puts in; of maps, none."""
    kinds = {field.full_name for field in fields(pb.Notice.DESCRIPTOR, set()) if not is_masked(field)}
    assert kinds == {"sis.queue.v1.Finished.digest"}


def is_masked(field: FieldDescriptor) -> bool:
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return field.type != FieldDescriptor.TYPE_BYTES and not is_map


def fields(message: Descriptor, seen: set[str]) -> list[FieldDescriptor]:
    found = list(message.fields)
    seen.add(message.full_name)
    for field in message.fields:
        if field.message_type is not None and field.message_type.full_name not in seen:
            found += fields(field.message_type, seen)
    return found
