from __future__ import annotations

import json
import logging
import sys

from services.runtime.telemetry import JsonFormatter


def test_a_record_is_one_line_with_its_extra_fields() -> None:
    record = logging.makeLogRecord(
        {"name": "rpc", "levelno": logging.INFO, "levelname": "INFO", "msg": "two\nlines %s", "args": ("x",)}
    )
    record.code = "OK"
    record.odd = object()
    text = JsonFormatter("queue").format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "two\nlines x"
    assert line["process"] == "queue"
    assert line["level"] == "info"
    assert line["code"] == "OK"
    assert line["time"].endswith("+00:00")
    assert "exception" not in line


def test_an_exception_brings_its_traceback() -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    assert "KeyError: 'lost'" in json.loads(JsonFormatter("hub").format(record))["exception"]
