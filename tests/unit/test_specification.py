"""protocol/README.md says what the code does: its tables and every line of its transcripts are read here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ledgerd.config import Config
from ledgerd_protocol.codec import Limits, Notification, Reply, Request, decode_frame, decode_params, decode_reply
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.events import Event
from ledgerd_protocol.messages import SubscribeOptions
from ledgerd_protocol.methods import METHODS
from ledgerd_protocol.results import Transaction

TEXT = (Path(__file__).parents[2] / "protocol" / "README.md").read_text(encoding="utf-8")
LIMITS = Limits(message_bytes_max=262_144, depth_max=32, batch_members_max=1_000)


def rows(heading: str) -> list[list[str]]:
    """The cells of every table whose heading row is this, without the heading."""
    found: list[list[str]] = []
    inside = False
    for line in TEXT.splitlines():
        if line == heading:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert found
    return found


def transcripts() -> Iterator[list[tuple[str, str]]]:
    for block in re.findall(r"```transcript\n(.*?)```", TEXT, re.DOTALL):
        yield [(line[:3], line[4:]) for line in block.splitlines()]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    documented = [
        (cells[0], cells[1], cells[2], cells[3]) for cells in rows("| code | data.code | retryable | meaning |")
    ]
    assert documented == [
        (str(int(code)), f"`{code.text}`", "yes" if code.retryable else "no", code.sentence) for code in ErrorCode
    ]


METHOD_ROWS = {cells[0].strip("`"): cells for cells in rows("| method | params | result | needs |")}


def test_every_method_is_documented_once_and_no_other() -> None:
    assert len(rows("| method | params | result | needs |")) == len(METHOD_ROWS)
    assert set(METHOD_ROWS) == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_row_of_a_method_has_its_params_in_order_and_its_scopes(name: str) -> None:
    _, params, _, needs = METHOD_ROWS[name]
    method = METHODS[name]
    fields = msgspec.structs.fields(method.params)
    assert re.findall("`([^`]+)`", params) == [field.name + ("" if field.required else "?") for field in fields]
    assert set(re.findall("[a-z]+", needs)) == (set(method.scopes) or {"nothing"})


def test_every_option_and_every_event_is_documented() -> None:
    options = {name for cells in rows("| option | meaning |") for name in re.findall("`([^`]+)`", cells[0])}
    assert options == set(SubscribeOptions.__struct_fields__)
    kinds = {cells[0].strip("`"): set(re.findall("`([^`]+)`", cells[1])) for cells in rows("| type | members |")}
    for event in Event.__args__:
        assert set(event.__struct_encode_fields__) <= kinds.pop(event.__struct_config__.tag), event
    assert not kinds


def test_every_request_of_the_transcripts_is_one_the_daemon_reads() -> None:
    for transcript in transcripts():
        for direction, text in transcript:
            if direction == "-->":
                (member,) = decode_frame(text, LIMITS).members
                assert isinstance(member, Request)
                decode_params(METHODS[member.method], member.params)


def test_every_answer_of_the_transcripts_is_one_the_daemon_could_give() -> None:
    seen = set()
    for transcript in transcripts():
        methods: dict[int | str | None, str] = {}
        for direction, text in transcript:
            if direction == "-->":
                request = msgspec.json.decode(text)
                methods[request["id"]] = request["method"]
                continue
            message = decode_reply(text)
            if isinstance(message, Notification):
                seen.add("event")
                assert message.method == "ledger_subscription"
                event = msgspec.json.decode(message.params, type=Delivered).result
                assert msgspec.json.encode(event) in text.encode()
            else:
                assert isinstance(message, Reply)
                seen.add("error" if message.error else "result")
                check_reply(methods[message.id], message)
    assert seen == {"event", "error", "result"}


class Delivered(msgspec.Struct):
    """The params of a ledger_subscription notification."""

    subscription: str
    result: Event


def check_reply(method: str, reply: Reply) -> None:
    if reply.error is not None:
        (code,) = (code for code in ErrorCode if code == reply.error["code"])
        assert reply.error["message"] == code.sentence
        assert reply.error["data"]["code"] == code.text
        assert reply.error["data"]["retryable"] is code.retryable
        return
    assert reply.result is not None
    result = msgspec.json.decode(reply.result, type=METHODS[method].result)
    assert msgspec.json.encode(result) == bytes(reply.result), "it has members that the Struct has not, or lacks some"


def test_the_members_of_a_transaction_are_all_named() -> None:
    section = TEXT.partition("\nTransaction: ")[2].partition("\n\n")[0]
    named = set(re.findall(r"[a-z_]+", section))
    assert set(Transaction.__struct_fields__) - {"attempts"} <= named


def test_links_within_the_page_lead_to_headings() -> None:
    anchors = {
        re.sub("[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall("^#+ (.*)$", TEXT, re.MULTILINE)
    }
    targets = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert targets
    assert set(targets) <= anchors


def test_what_the_page_says_of_amounts_is_so() -> None:
    for spelling in ('"10.00"', '"10"', '"10.0"', "10.00"):
        decode_params(METHODS["debit"], f'{{"amount":{spelling}}}'.encode())
    grammar = re.search(r"`(\(0\|.*)`: no exponent", TEXT)
    assert grammar is not None
    for text, good in (("10.00", True), ("1e2", False), ("01", False), ("0.123456789", False), ("0", True)):
        assert bool(re.fullmatch(grammar[1], text)) is good


def test_the_default_limits_of_the_page_are_those_of_the_configuration() -> None:
    config = Config()
    told = {cells[0]: cells[1] for cells in rows("| limit | default |")}
    assert told["one message in"] == (
        f"{config.message_bytes_max // 1024} KiB, {config.depth_max} levels, {config.batch_members_max:,} members"
    )
    assert told["one message out"].startswith(f"{config.frame_out_bytes_max >> 20} MiB")
    assert told["executing per connection"].startswith(f"{config.in_flight_max} messages")
    assert told["waiting behind them"].startswith(
        f"{config.waiting_commands_max} messages or {config.waiting_bytes_max >> 20} MiB"
    )
    each = f"{config.accounts_per_subscription_max:,} accounts each"
    assert told["subscriptions"] == f"{config.subscriptions_per_connection_max} per connection, {each}"
    assert told["one atomic batch"] == f"{config.unit_accounts_max} accounts"
    assert told["waiting for a command"] == f"{config.command_ttl_s:g} s"
    assert f"After {config.ping_after_s:g} seconds without any frame" in TEXT
    assert f"more than {config.resume_max:,}\n  versions" in TEXT
