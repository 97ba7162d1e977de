"""The pure parts of the load tester: frames, replies, audit and arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import socket
import struct
import sys
import threading
from typing import Any

import msgspec
import pytest
from wsproto.frame_protocol import FrameProtocol

from ledgerd.dev import State
from ledgerd_loadtest.attackers import KINDS, Attacker
from ledgerd_loadtest.attackers import Order as AttackOrder
from ledgerd_loadtest.audit import NOT_SHOWN, PROBLEMS_MAX, Harvest, Point, differences, minor, take_reply
from ledgerd_loadtest.commands import (
    AMOUNT,
    Request,
    Supply,
    Transfer,
    batch_request,
    draw,
    request_maker,
    single_request,
)
from ledgerd_loadtest.flood import REFUSED
from ledgerd_loadtest.measure import Cpu, Target, Window, best, joined, pair_ratios, percentile
from ledgerd_loadtest.processes import parse_resident_kib, parse_stat
from ledgerd_loadtest.socket_client import ConnectionFailed, FrameReader, masked_frame, text_frame
from ledgerd_loadtest.target import DaemonFile
from ledgerd_protocol.codec import Limits, decode_frame, decode_params
from ledgerd_protocol.codec import Request as Decoded
from ledgerd_protocol.messages import TransactionBatch
from ledgerd_protocol.messages import Transfer as TransferParams
from ledgerd_protocol.methods import METHODS

TRANSFER = Transfer("01890000-0000-7000-8000-000000000001", 7, 8)
OTHER = Transfer("01890000-0000-7000-8000-000000000002", 8, 9)
LIMITS = Limits(message_bytes_max=262_144, depth_max=32, batch_members_max=1_000)


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)]
)
def test_a_percentile_is_a_measured_value_and_never_one_between_two(share: float, expected: float) -> None:
    assert percentile([1, 2, 3, 4], share) == expected


def test_the_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_ratios_are_taken_round_by_round_so_that_a_slow_minute_divides_out() -> None:
    fast_minute, slow_minute = (1000.0, 500.0), (100.0, 50.0)
    ratios = pair_ratios([fast_minute[0], slow_minute[0]], [fast_minute[1], slow_minute[1]])
    assert ratios == [2.0, 2.0]


def test_a_round_that_is_missing_on_one_side_is_an_error_rather_than_another_pairing() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pair_ratios([1.0, 2.0], [1.0])


def test_a_target_is_judged_by_the_median_and_not_by_the_best_round() -> None:
    assert not Target("bulk", 0.7, least=True, values=[0.6, 0.69, 0.9]).reached
    assert Target("bulk", 0.7, least=True, values=[0.1, 0.7, 0.9]).reached
    assert Target("idle", 2.5, least=False, values=[2.5, 2.5, 9.0]).reached
    assert not Target("idle", 2.5, least=False, values=[1.0, 2.6, 2.6]).reached


def window(transfers: int, *, seconds: float = 1.0, client_s: float = 0.1, refused: int = 0) -> Window:
    return Window(
        transfers=transfers,
        seconds=seconds,
        latency_p50_s=0.0,
        latency_p99_s=0.0,
        cpu=Cpu(client_s, 0.5, None),
        client_busy=client_s / seconds,
        refused=refused,
    )


def test_the_best_configuration_has_the_highest_median_and_not_the_luckiest_round() -> None:
    assert (
        best({"steady": [window(10), window(11), window(10)], "lucky": [window(99), window(1), window(2)]}) == "steady"
    )


def test_windows_of_several_generators_add_up_while_the_daemon_is_counted_once() -> None:
    whole = joined([window(100, client_s=0.2, refused=1), window(300, client_s=0.9, refused=2)], [0.4, 0.1, 0.2, 0.3])
    assert (whole.transfers, whole.rate, whole.refused) == (400, 400.0, 3)
    assert (whole.latency_p50_s, whole.latency_p99_s) == (0.2, 0.4)
    assert whole.cpu.client_s == pytest.approx(1.1)
    assert (whole.cpu.daemon_s, whole.cpu.postgres_s) == (0.5, None)
    assert whole.client_busy == 0.9


def test_cpu_of_a_process_that_could_not_be_read_stays_unknown() -> None:
    assert Cpu(3.0, 5.0, None).since(Cpu(1.0, 4.0, 2.0)) == Cpu(2.0, 1.0, None)


def test_the_name_in_a_process_status_may_have_blanks_and_brackets() -> None:
    fields = ["S", "41", *["0"] * 9, "200", "100", "60", "40", *["0"] * 30]
    parent, times = parse_stat(f"42 (postgres: a) b (c) {' '.join(fields)}")
    assert parent == 41
    assert times.own_s == 3 * times.reaped_s > 0


def test_resident_memory_is_read_in_kib_and_missed_loudly() -> None:
    assert parse_resident_kib("Name:\tx\nVmRSS:\t   51200 kB\nThreads:\t1\n") == 51_200
    with pytest.raises(ValueError, match="ended"):
        parse_resident_kib("Name:\tx\nState:\tZ (zombie)\n")


def test_what_the_developers_daemon_writes_down_is_what_the_load_tester_reads() -> None:
    dsns = ("postgresql://owner@/ledgerd", "postgresql://ledgerd@/ledgerd")
    written = State("ws://127.0.0.1:1", "http://127.0.0.1:2", *dsns, "/tmp/operator.token", 42)
    read = msgspec.json.decode(msgspec.json.encode(written), type=DaemonFile)
    names = DaemonFile.__struct_fields__
    assert [getattr(read, name) for name in names] == [getattr(written, name) for name in names]


# -- frames ------------------------------------------------------------------------------------------------------------


def text_at_server(frame: bytes) -> str:
    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(frame)
    return "".join(str(part.payload) for part in server.received_frames())


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 65_535, 65_536, 100_001])
def test_a_frame_is_what_a_websocket_server_reads_back(size: int) -> None:
    text = "".join(itertools.islice(itertools.cycle("transfer €"), size))
    assert text_at_server(text_frame(text)) == text


def test_a_mask_is_applied_byte_for_byte() -> None:
    frame = masked_frame(0x1, b"abcde", b"\x01\x02\x03\x04")
    assert frame == b"\x81\x85\x01\x02\x03\x04" + bytes([0x60, 0x60, 0x60, 0x60, 0x64])


def server_frame(payload: bytes, opcode: int = 0x1) -> bytes:
    if len(payload) < 126:
        return bytes((0x80 | opcode, len(payload))) + payload
    if len(payload) < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, len(payload)) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, len(payload)) + payload


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
def test_frames_are_read_wherever_the_network_cuts_them(step: int) -> None:
    payloads = [b"", b"a" * 125, b"b" * 126, b"c" * 70_000, b"d"]
    stream = b"".join(map(server_frame, payloads))
    reader = FrameReader()
    found = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert found == [(0x1, payload) for payload in payloads]


def test_a_ping_between_two_messages_is_told_from_them() -> None:
    assert FrameReader().feed(server_frame(b"x") + server_frame(b"?", 0x9)) == [(0x1, b"x"), (0x9, b"?")]


@pytest.mark.parametrize("head", [b"\x01\x01", b"\xc1\x01", b"\x81\x81"])
def test_a_fragment_an_extension_or_a_masked_frame_is_not_taken(head: bytes) -> None:
    with pytest.raises(ConnectionFailed):
        FrameReader().feed(head + b"\x00" * 8)


def decoded(request: Request) -> Any:
    (member,) = decode_frame(text_at_server(request.frame), LIMITS).members
    assert isinstance(member, Decoded)
    assert member.id == str(request.id).encode()
    return decode_params(METHODS[member.method], member.params)


def test_a_single_request_is_a_transfer_that_the_daemon_accepts() -> None:
    params = decoded(single_request(5, TRANSFER))
    assert isinstance(params, TransferParams)
    assert (params.transaction_id, params.source_account_id, params.destination_account_id, bytes(params.amount)) == (
        TRANSFER.transaction_id,
        TRANSFER.source,
        TRANSFER.destination,
        f'"{AMOUNT}"'.encode(),
    )


def test_a_batch_request_carries_its_transfers_in_order() -> None:
    params = decoded(batch_request(6, [TRANSFER, OTHER]))
    assert isinstance(params, TransactionBatch)
    assert [item.method for item in params.items] == ["transfer", "transfer"]
    ids = [msgspec.json.decode(item.params)["transaction_id"] for item in params.items]
    assert ids == [TRANSFER.transaction_id, OTHER.transaction_id]


def test_a_frame_of_one_hundred_transfers_fits_into_a_message() -> None:
    dice = random.Random(1)
    transfers = [draw(dice, range(2**62, 2**62 + 100)) for _ in range(100)]
    assert len(batch_request(sys.maxsize, transfers).frame) < LIMITS.message_bytes_max


def test_a_transfer_never_pays_itself_and_pays_from_the_given_source() -> None:
    dice = random.Random(1)
    drawn = [draw(dice, [1, 2]) for _ in range(50)] + [draw(dice, [1, 2], source=2) for _ in range(50)]
    assert all(transfer.source != transfer.destination for transfer in drawn)
    assert {transfer.source for transfer in drawn[:50]} == {1, 2}
    assert {transfer.source for transfer in drawn[50:]} == {2}
    assert len({transfer.transaction_id for transfer in drawn}) == 100


def test_requests_of_two_connections_never_share_a_number() -> None:
    numbers = itertools.count(1)
    singles = request_maker(random.Random(1), [1, 2], 1, None, numbers)
    batches = request_maker(random.Random(1), [1, 2], None, 3, numbers)
    made = [singles(), batches(), singles(), batches()]
    assert [request.id for request in made] == [1, 2, 3, 4]
    assert [len(request.transfers) for request in made] == [1, 3, 1, 3]


def test_a_supply_gives_what_it_has_made_first_and_then_makes_more() -> None:
    numbers = itertools.count()
    supply = Supply(lambda: next(numbers), 2)
    assert next(numbers) == 2
    assert [supply.take() for _ in range(3)] == [0, 1, 3]


# -- replies -----------------------------------------------------------------------------------------------------------


def transaction(transfer: Transfer, **members: Any) -> dict[str, Any]:
    entries = [
        {"account_id": transfer.source, "balance_change": f"-{AMOUNT}", "version": 41},
        {"account_id": transfer.destination, "balance_change": AMOUNT, "version": 12},
    ]
    made = {"transaction_id": transfer.transaction_id, "status": "posted", "amount": AMOUNT, "entries": entries}
    return made | members


def error(code: str, applied: object) -> dict[str, Any]:
    return {"code": 1, "message": "m", "data": {"code": code, "applied": applied, "retryable": True}}


def taken(request: Request, **members: Any) -> Harvest:
    harvest = Harvest(sent=len(request.transfers))
    take_reply(harvest, request, json.dumps({"jsonrpc": "2.0", "id": request.id, **members}).encode())
    return harvest


def rows(harvest: Harvest) -> list[tuple[int, int, int]]:
    touches = harvest.touches
    return list(zip(touches.accounts, touches.versions, touches.changes, strict=True))


def test_a_posted_transfer_touches_both_accounts() -> None:
    harvest = taken(single_request(1, TRANSFER), result=transaction(TRANSFER))
    assert (harvest.posted, harvest.unaccounted(), harvest.problems) == (1, 0, [])
    assert rows(harvest) == [(7, 41, -1), (8, 12, 1)]
    assert harvest.sample == [TRANSFER.transaction_id]


def test_a_side_that_is_not_shown_is_touched_without_a_version() -> None:
    shown = transaction(TRANSFER)["entries"][:1]
    assert rows(taken(single_request(1, TRANSFER), result=transaction(TRANSFER, entries=shown))) == [
        (7, 41, -1),
        (8, NOT_SHOWN, 1),
    ]


@pytest.mark.parametrize(
    "members",
    [
        {"transaction_id": OTHER.transaction_id},
        {"status": "failed"},
        {"amount": "0.02"},
        {"replayed": True},
        {"entries": [{"account_id": 7, "balance_change": "0.01", "version": 1}]},
        {"entries": [{"account_id": 9, "balance_change": "-0.01", "version": 1}]},
    ],
)
def test_a_reply_that_is_not_of_the_transfer_sent_is_a_problem(members: dict[str, Any]) -> None:
    assert len(taken(single_request(1, TRANSFER), result=transaction(TRANSFER, **members)).problems) == 1


def test_a_refusal_is_counted_by_its_code_and_touches_nothing() -> None:
    harvest = taken(single_request(1, TRANSFER), error=error("overloaded", applied=False))
    assert (harvest.refused, harvest.posted, harvest.problems) == ({"overloaded": 1}, 0, [])
    assert rows(harvest) == []
    assert harvest.unaccounted() == 0


def test_an_unknown_outcome_is_a_problem_because_nothing_adds_up_after_it() -> None:
    assert len(taken(single_request(1, TRANSFER), error=error("unavailable", applied=None)).problems) == 1


@pytest.mark.parametrize("members", [{}, {"result": {"transaction_id": 5}}])
def test_a_reply_that_says_nothing_leaves_its_transfer_unaccounted(members: dict[str, Any]) -> None:
    harvest = taken(single_request(1, TRANSFER), **members)
    assert (len(harvest.problems), harvest.unaccounted()) == (1, 1)


def test_outcomes_of_a_batch_are_paired_with_its_transfers_in_order() -> None:
    outcomes = [{"error": error("overloaded", applied=False)}, {"result": transaction(OTHER)}]
    harvest = taken(batch_request(1, [TRANSFER, OTHER]), result={"outcomes": outcomes})
    assert (harvest.posted, harvest.refused, harvest.problems) == (1, {"overloaded": 1}, [])
    assert harvest.sample == [OTHER.transaction_id]


def test_a_batch_refused_as_a_whole_refuses_every_transfer_in_it() -> None:
    harvest = taken(batch_request(1, [TRANSFER, OTHER]), error=error("timeout", applied=False))
    assert (harvest.refused, harvest.unaccounted()) == ({"timeout": 2}, 0)


def test_a_batch_that_lost_an_outcome_is_a_problem() -> None:
    harvest = taken(batch_request(1, [TRANSFER, OTHER]), result={"outcomes": [{"result": transaction(TRANSFER)}]})
    assert (len(harvest.problems), harvest.unaccounted()) == (1, 2)


# -- audit -------------------------------------------------------------------------------------------------------------

BEFORE = {7: Point(1000, 40), 8: Point(1000, 11), 9: Point(1000, 0)}


def after(**changed: Point) -> dict[int, Point]:
    return {7: Point(999, 41), 8: Point(1001, 12), 9: Point(1000, 0)} | {
        int(name.removeprefix("account_")): point for name, point in changed.items()
    }


def one_transfer() -> Harvest:
    harvest = Harvest(sent=1)
    harvest.note_posted(TRANSFER, 41, 12)
    return harvest


def test_books_that_add_up_have_no_differences() -> None:
    assert differences(BEFORE, after(), one_transfer()) == []


def test_a_version_that_was_not_shown_is_still_counted() -> None:
    harvest = Harvest(sent=1)
    harvest.note_posted(TRANSFER, 41, NOT_SHOWN)
    assert differences(BEFORE, after(), harvest) == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"account_8": Point(1002, 12)}, "sum"),
        ({"account_7": Point(998, 41), "account_8": Point(1002, 12)}, "balance of account 7"),
        ({"account_7": Point(999, 42)}, "from version 40 to 42"),
        ({"account_9": Point(1000, 1)}, "account 9"),
    ],
)
def test_an_account_that_moved_otherwise_than_it_was_told_is_found(changed: dict[str, Point], word: str) -> None:
    assert any(word in text for text in differences(BEFORE, after(**changed), one_transfer()))


def test_an_account_that_is_gone_is_found() -> None:
    assert "account 9 is gone" in differences(BEFORE, {7: Point(999, 41), 8: Point(1001, 12)}, one_transfer())


def test_a_version_given_twice_is_found_although_the_count_is_right() -> None:
    harvest = Harvest(sent=2)
    harvest.note_posted(TRANSFER, 41, 12)
    harvest.note_posted(OTHER, 12, 1)
    found = differences(BEFORE, {7: Point(999, 41), 8: Point(1000, 13), 9: Point(1001, 1)}, harvest)
    assert found == ["a version of account 8 was given to two transfers"]


def test_a_version_from_before_the_run_is_found() -> None:
    harvest = Harvest(sent=1)
    harvest.note_posted(TRANSFER, 40, 12)
    assert differences(BEFORE, after(), harvest) == ["a version of account 7 lies outside 41 to 41"]


def test_a_transfer_without_an_answer_is_found() -> None:
    harvest = one_transfer()
    harvest.sent += 1
    assert differences(BEFORE, after(), harvest) == ["1 of 2 transfers have no valid answer"]


def test_a_transfer_of_somebody_elses_account_is_found() -> None:
    harvest = one_transfer()
    harvest.touches.add(99, 1, 1)
    assert differences(BEFORE, after(), harvest) == ["account 99 was touched and is not one of ours"]


def test_many_differences_are_told_in_few_lines() -> None:
    harvest = Harvest(problems=["wrong"] * 1000)
    accounts = {number: Point(0, 0) for number in range(1000)}
    moved = {number: Point(0, 1) for number in range(1000)}
    found = differences(accounts, moved, harvest)
    assert len(found) == 2 * (PROBLEMS_MAX + 1)
    assert "990 more" in found[-1]


def test_harvests_of_several_windows_are_audited_as_one() -> None:
    harvest = one_transfer()
    second = Harvest(sent=2, refused={"timeout": 1})
    second.note_posted(OTHER, 13, 1)
    harvest.merge(second)
    harvest.merge(Harvest(sent=1, refused={"timeout": 1}))
    assert (harvest.sent, harvest.posted, harvest.refused) == (4, 2, {"timeout": 2})
    assert differences(BEFORE, {7: Point(999, 41), 8: Point(1000, 13), 9: Point(1001, 1)}, harvest) == []


@pytest.mark.parametrize(("text", "value"), [("-0.01", -1), ("0.00", 0), ("12.34", 1234), ("-5.00", -500)])
def test_balances_and_changes_are_read_with_their_sign(text: str, value: int) -> None:
    assert minor(text) == value


def test_every_way_to_attack_says_what_it_sends() -> None:
    order = AttackOrder("silent", 8710, sockets=1, rate_per_s=1, seconds=1, token="lgd_x")
    for kind in KINDS.values():
        sent = kind.opening(order) + (kind.drip(order) if kind.drip else b"") + (kind.inside() if kind.inside else b"")
        assert sent or kind.leaves or kind.title.startswith(("sockets", "the same"))


def test_refusals_are_read_from_the_metrics() -> None:
    text = 'ledgerd_connections_refused_total{reason="gave_way"} 12.0\nledgerd_newcomers 3.0\n'
    assert REFUSED.findall(text) == [("gave_way", "12.0")]


def test_an_attacker_floods_and_stops_when_nobody_gives_orders() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        order = AttackOrder("garbage", server.getsockname()[1], sockets=3, rate_per_s=1_000, seconds=30)
        reading, writing = os.pipe()
        heard: list[int] = []

        def hear() -> None:
            for _ in range(3):
                with server.accept()[0] as opened:
                    heard.append(len(opened.recv(4_096)))
            os.close(writing)

        victim = threading.Thread(target=hear)
        victim.start()
        try:
            done = Attacker(order).run(reading)
        finally:
            victim.join()
            os.close(reading)
    assert min(heard) > 0
    assert done.opened >= 3
