"""Log lines: JSON for a machine, nothing secret for anybody."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from ledgerd import logs

SECRET = "lgd_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_abcde"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    written = io.StringIO()
    logs.configure("info", written)
    yield written
    root.handlers[:], _ = before
    root.setLevel(before[1])
    logging.getLogger("ledgerd").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_what_was_said(stream: io.StringIO):
    structlog.get_logger("ledgerd.somewhere").info("opened", account_id=7)
    (line,) = lines(stream)
    assert (line["event"], line["account_id"], line["level"]) == ("opened", 7, "info")
    assert str(line["timestamp"]).endswith("Z")


def test_levels_below_the_chosen_one_are_silent_and_libraries_speak_from_warnings_up(stream: io.StringIO):
    structlog.get_logger("ledgerd.somewhere").debug("quiet")
    logging.getLogger("trio-websocket").info("sending %s", SECRET)
    logging.getLogger("hypercorn.error").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


@pytest.mark.parametrize("member", sorted(logs.SECRET_MEMBERS))
def test_a_member_with_a_telling_name_is_masked(stream: io.StringIO, member: str):
    structlog.get_logger("ledgerd.somewhere").info("said", **{member: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][member] == "***"


def test_tokens_and_passwords_are_masked_wherever_they_stand(stream: io.StringIO):
    log = structlog.get_logger("ledgerd.somewhere")
    log.info(f"event with {SECRET}", detail=f"text {SECRET}", listed=[SECRET], url="postgresql://me:hunter2@db/bank")
    try:
        int(f"cannot connect to postgresql://me:hunter2@db/bank as {SECRET}")
    except ValueError:
        log.exception("failed")
    logging.getLogger("somebody.else").error("password=hunter2 %s", SECRET)
    assert len(lines(stream)) == 3
    assert "hunter2" not in stream.getvalue()
    assert "AbCdEfGh" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()
