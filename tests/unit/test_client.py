"""The client against a daemon of paper: real WebSocket frames over memory streams, the clock jumps."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from msgspec import UNSET
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from ledgerd_protocol.call import SENDS_MAX, Call, OutcomeUnknown, with_id
from ledgerd_protocol.client import open_client
from ledgerd_protocol.connection import CannotConnect, ConnectionEnded, Retry
from ledgerd_protocol.cursor import FeedGap
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.events import Live, Notice, Start, Update
from ledgerd_protocol.results import Transaction

URL = "ws://ledger.test:8710"
TRANSFER: dict[str, Any] = {"source_account_id": 1, "destination_account_id": 2, "amount": "10.00", "currency": "USD"}
POSTED = {
    "transaction_id": "0190b3f0-0000-7000-8000-000000000001",
    "kind": "transfer",
    "status": "posted",
    "amount": "10.00",
    "currency": "USD",
    "debit_account_id": 1,
    "credit_account_id": 2,
    "entries": [],
    "reference": None,
    "reason": None,
    "metadata": None,
    "created_at": "2026-01-01T00:00:00.000000Z",
    "member_of_a_later_version": True,
}


class PaperSession:
    """The daemon's end of one connection, moved by hand."""

    def __init__(self, stream: trio.abc.Stream, socket: WebSocketConnection, headers: dict[bytes, bytes]) -> None:
        self._stream = stream
        self._socket = socket
        self.headers = headers

    async def receive(self) -> dict[str, Any]:
        return msgspec.json.decode(await self._socket.get_message())

    async def send(self, message: dict[str, Any]) -> None:
        await self._socket.send_message(msgspec.json.encode({"jsonrpc": "2.0", **message}).decode())

    async def reply(self, request: dict[str, Any], result: Any) -> None:
        await self.send({"id": request["id"], "result": result})

    async def refuse(self, request: dict[str, Any], code: ErrorCode, **members: Any) -> None:
        await self.send({"id": request["id"], "error": LedgerError(code, **members).to_wire()})

    async def push(self, subscription: str, *events: dict[str, Any]) -> None:
        for event in events:
            params = {"subscription": subscription, "result": event}
            await self.send({"method": "ledger_subscription", "params": params})

    async def close(self, code: int) -> None:
        await self._socket.aclose(code, "told so")

    async def drop(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def until_closed(self) -> int:
        while True:
            try:
                await self._socket.get_message()
            except ConnectionClosed as closed:
                return closed.reason.code


class PaperDaemon:
    """Accepts connections; `session` gives them in order. ``refuse_with`` and ``away`` shape the next handshakes."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._offered, self._sessions = trio.open_memory_channel[PaperSession](math.inf)
        self.dials: list[float] = []
        self.refuse_with = 0
        self.away = False
        self.abandon = False

    async def dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dials.append(trio.current_time())
        if self.away:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        if self.abandon:
            await stream.aclose()
            return
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            if self.refuse_with:
                await request.reject(self.refuse_with, body=b"no")
                await stream.aclose()
                return
            socket = await request.accept()
            self._offered.send_nowait(PaperSession(stream, socket, dict(request.headers)))

    async def session(self) -> PaperSession:
        return await self._sessions.receive()


@pytest.fixture
def daemon(nursery: trio.Nursery) -> PaperDaemon:
    return PaperDaemon(nursery)


class Later:
    """What a task running in the background came to."""

    def __init__(self, nursery: trio.Nursery, function: Any, *args: Any, **named: Any) -> None:
        self._done = trio.Event()
        self._value: Any = None
        self._error: Exception | None = None
        nursery.start_soon(self._run, function, args, named)

    async def _run(self, function: Any, args: Any, named: Any) -> None:
        try:
            self._value = await function(*args, **named)
        except Exception as error:
            self._error = error
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    async def result(self) -> Any:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value


def start(*accounts: tuple[int, str, int], epoch: str = "e1", **members: Any) -> dict[str, Any]:
    money = {"balance": "0.00", "held": "0.00", "available": "0.00", "currency": "USD"}
    listed = [
        {"account_id": number, "from": origin, "version": version, **money} for number, origin, version in accounts
    ]
    return {"type": "start", "epoch": epoch, "accounts": listed, **members}


def update(account_id: int, version: int, **members: Any) -> dict[str, Any]:
    return {
        "type": "update",
        "account_id": account_id,
        "version": version,
        "balance": "1.00",
        "held": "0.00",
        "available": "1.00",
        "currency": "USD",
        "balance_change": "1.00",
        "held_change": "0.00",
        "transaction_id": "0190b3f0-0000-7000-8000-000000000001",
        "kind": "credit",
        "created_at": "2026-01-01T00:00:00.000000Z",
        **members,
    }


# -- the end -------------------------------------------------------------------------------------------------------


async def test_closing_ends_when_the_daemon_has_answered_the_close(daemon, nursery, autojump_clock):
    before = trio.current_time()
    async with open_client(URL, dial=daemon.dial, retry=Retry(close_s=3600)):
        session = await daemon.session()
        closed = Later(nursery, session.until_closed)
    assert await closed.result() == 1000
    assert trio.current_time() - before < 3600


# -- calls ---------------------------------------------------------------------------------------------------------


async def test_answers_find_their_calls_in_whatever_order_they_come(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        first = Later(nursery, client.call, "system_ping", echo="first")
        asked_first = await session.receive()
        second = Later(nursery, client.call, "system_ping", echo="second")
        asked_second = await session.receive()
        await session.reply(asked_second, {"time": "t", "echo": "second"})
        assert (await second.result()).echo == "second"
        assert not first.done
        await session.reply(asked_first, {"time": "t", "echo": "first"})
        assert (await first.result()).echo == "first"


async def test_a_money_command_without_an_id_gets_a_version_7_uuid(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        asked = await session.receive()
        assert asked["params"]["transaction_id"][14] == "7"
        await session.reply(asked, POSTED)
        assert (await sent.result()).amount == "10.00"


async def test_a_batch_without_an_id_gets_a_batch_id_and_a_cancel_gets_none(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        Later(nursery, client.call, "transaction_batch", items=[])
        assert (await session.receive())["params"]["batch_id"][14] == "7"
        Later(nursery, client.call, "transaction_cancel")
        assert "transaction_id" not in (await session.receive())["params"]


async def test_unanswered_money_and_reads_go_out_again_as_they_were_before_anything_newer(
    daemon, nursery, autojump_clock
):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        first = await session.receive()
        read = Later(nursery, client.call, "balance_get", account_id=1)
        second = await session.receive()
        daemon.away = True
        await session.drop()
        await trio.testing.wait_all_tasks_blocked()
        Later(nursery, client.transfer, **TRANSFER)
        await trio.testing.wait_all_tasks_blocked()
        daemon.away = False
        session = await daemon.session()
        assert [await session.receive(), await session.receive()] == [first, second]
        newer = await session.receive()
        assert newer["params"]["transaction_id"] != first["params"]["transaction_id"]
        await session.reply(first, POSTED)
        assert (await sent.result()).status == "posted"
        assert not read.done


async def test_a_registration_in_flight_is_not_repeated_and_its_outcome_is_said_to_be_unknown(
    daemon, nursery, autojump_clock
):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        registering = Later(nursery, client.call, "user_register", name="Ann")
        await session.receive()
        await session.drop()
        with pytest.raises(OutcomeUnknown, match="user_register"):
            await registering.result()
        session = await daemon.session()
        Later(nursery, client.call, "system_ping")
        assert (await session.receive())["method"] == "system_ping"


async def test_a_registration_that_was_never_sent_goes_out_on_the_next_connection(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        daemon.away = True
        await session.drop()
        await trio.testing.wait_all_tasks_blocked()
        Later(nursery, client.call, "user_register", name="Ann")
        await trio.testing.wait_all_tasks_blocked()
        daemon.away = False
        session = await daemon.session()
        assert (await session.receive())["method"] == "user_register"


@pytest.mark.parametrize(
    "code", [ErrorCode.UNAVAILABLE, ErrorCode.OVERLOADED, ErrorCode.TIMEOUT, ErrorCode.RATE_LIMITED]
)
async def test_a_passing_refusal_is_asked_again_with_the_same_id(daemon, nursery, autojump_clock, code):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        asked = await session.receive()
        await session.refuse(asked, code)
        assert await session.receive() == asked
        await session.reply(asked, POSTED)
        assert (await sent.result()).status == "posted"


async def test_a_rate_limited_call_waits_as_long_as_it_is_told(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        Later(nursery, client.call, "system_ping")
        asked = await session.receive()
        refused_at = trio.current_time()
        await session.refuse(asked, ErrorCode.RATE_LIMITED, retry_after_ms=7_000)
        await session.receive()
        assert trio.current_time() - refused_at >= 7


async def test_a_refusal_that_does_not_pass_is_raised_when_the_time_for_a_call_is_over(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial, retry=Retry(call_s=3)) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        times = 0
        while not sent.done:
            with trio.move_on_after(3):
                await session.refuse(await session.receive(), ErrorCode.UNAVAILABLE)
                times += 1
        with pytest.raises(LedgerError) as refused:
            await sent.result()
        assert refused.value.code is ErrorCode.UNAVAILABLE
        assert refused.value.applied is False
        assert times > 2


async def test_insufficient_funds_is_an_answer_and_raised_at_once(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.debit, account_id=1, amount="10.00")
        await session.refuse(await session.receive(), ErrorCode.INSUFFICIENT_FUNDS, available="1.00")
        with pytest.raises(LedgerError) as refused:
            await sent.result()
        assert refused.value.code is ErrorCode.INSUFFICIENT_FUNDS
        assert refused.value.applied is False
        assert refused.value.data["available"] == "1.00"


async def test_a_refusal_after_a_lost_sending_does_not_claim_that_nothing_happened(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.debit, account_id=1, amount="10.00")
        await session.receive()
        await session.drop()
        session = await daemon.session()
        await session.refuse(await session.receive(), ErrorCode.INSUFFICIENT_FUNDS)
        with pytest.raises(LedgerError) as refused:
            await sent.result()
        assert refused.value.applied is None


async def test_the_members_of_a_batch_refused_after_a_lost_sending_do_not_claim_it_either(
    daemon, nursery, autojump_clock
):
    async with open_client(URL, dial=daemon.dial) as client:
        items = [{"method": "transfer", "params": TRANSFER}] * 2
        session = await daemon.session()
        sent = Later(nursery, client.call, "transaction_batch", items=items)
        await session.receive()
        await session.drop()
        session = await daemon.session()
        refused = {"error": LedgerError(ErrorCode.UNAVAILABLE).to_wire()}
        await session.reply(await session.receive(), {"outcomes": [{"result": POSTED}, refused]})
        batch = await sent.result()
        assert batch.outcomes[0].result["transaction_id"] == POSTED["transaction_id"]
        assert batch.outcomes[1].error["data"]["applied"] is None


async def test_an_unknown_outcome_is_asked_again_with_the_same_id_whatever_the_code(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        asked = await session.receive()
        await session.refuse(asked, ErrorCode.INTERNAL_ERROR, applied=None)
        assert await session.receive() == asked
        await session.reply(asked, {**POSTED, "replayed": True})
        assert (await sent.result()).replayed is True


async def test_an_error_code_of_a_later_version_is_raised_with_its_own_words(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.call, "system_ping")
        asked = await session.receive()
        data = {"code": "moon_is_full", "retryable": False, "applied": False, "detail": "Not tonight."}
        await session.send({"id": asked["id"], "error": {"code": 9876, "message": "Full moon.", "data": data}})
        with pytest.raises(LedgerError, match=r"moon_is_full \(9876\): Not tonight") as refused:
            await sent.result()
        assert int(refused.value.code) == 9876


async def test_a_bare_json_rpc_error_is_raised_too(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.call, "system_ping")
        await session.send({"id": (await session.receive())["id"], "error": {"code": -32601, "message": "No."}})
        with pytest.raises(LedgerError) as refused:
            await sent.result()
        assert refused.value.code is ErrorCode.METHOD_NOT_FOUND


async def test_a_cancelled_call_is_forgotten_and_its_late_answer_harms_nobody(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        with trio.move_on_after(1) as scope:
            await client.call("system_ping")
        assert scope.cancelled_caught
        late = await session.receive()
        await session.reply(late, {"time": "t"})
        sent = Later(nursery, client.call, "system_ping", echo="next")
        await session.reply(await session.receive(), {"time": "t", "echo": "next"})
        assert (await sent.result()).echo == "next"


async def test_a_command_that_kills_every_connection_is_given_up_as_unknown(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial, retry=Retry(reconnect_s=100_000)) as client:
        sent = Later(nursery, client.transfer, **TRANSFER)
        for _ in range(SENDS_MAX):
            session = await daemon.session()
            await session.receive()
            await session.close(1011)
        with pytest.raises(OutcomeUnknown) as unknown:
            await sent.result()
        assert unknown.value.transaction_id is not None


async def test_an_exception_in_the_block_comes_out_as_it_is(daemon, autojump_clock):
    with pytest.raises(KeyError, match="mine"):
        async with open_client(URL, dial=daemon.dial):
            raise KeyError("mine")


async def test_leaving_the_block_says_goodbye_and_ends_what_still_waits(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        await session.receive()
        ending = Later(nursery, session.until_closed)
    assert await ending.result() == 1000
    with pytest.raises(OutcomeUnknown):
        await sent.result()


# -- the connection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [4400, 4401, 4403, 4408, 4429, 1009])
async def test_a_final_close_code_ends_the_client_without_another_attempt(daemon, nursery, autojump_clock, code):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        read = Later(nursery, client.call, "system_ping")
        sent = Later(nursery, client.transfer, **TRANSFER)
        await session.receive()
        await session.receive()
        await session.close(code)
        with pytest.raises(ConnectionEnded) as ended:
            await read.result()
        assert ended.value.code == code
        with pytest.raises(OutcomeUnknown):
            await sent.result()
        await trio.sleep(1_000)
        assert len(daemon.dials) == 1
        with pytest.raises(ConnectionEnded):
            await client.call("system_ping")


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4500, 4503, 4504])
async def test_after_any_other_close_code_the_client_comes_back(daemon, nursery, autojump_clock, code):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.call, "system_ping")
        await session.receive()
        await session.close(code)
        session = await daemon.session()
        await session.reply(await session.receive(), {"time": "t"})
        assert (await sent.result()).time == "t"


async def test_a_daemon_that_is_not_there_is_said_at_once(daemon, autojump_clock):
    daemon.away = True
    with pytest.raises(CannotConnect, match="refused"):
        async with open_client(URL, dial=daemon.dial):
            raise AssertionError("there is no connection")
    assert len(daemon.dials) == 1


async def test_reconnecting_backs_off_and_ends_with_a_bound(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial, retry=Retry(reconnect_s=60, delay_s_max=5)) as client:
        session = await daemon.session()
        sent = Later(nursery, client.transfer, **TRANSFER)
        await session.receive()
        daemon.away = True
        await session.drop()
        lost_at = trio.current_time()
        with pytest.raises(OutcomeUnknown):
            await sent.result()
        assert 60 <= trio.current_time() - lost_at <= 60 + 5
        with pytest.raises(CannotConnect):
            await client.call("system_ping")
    waits = [later - sooner for sooner, later in zip(daemon.dials[1:], daemon.dials[2:], strict=False)]
    assert max(waits) <= 5
    assert waits[0] < 0.5
    assert len(waits) < 30


async def test_a_daemon_that_closes_every_connection_at_once_does_not_keep_the_client_for_ever(
    daemon, nursery, autojump_clock
):
    async def turn_away() -> None:
        while True:
            session = await daemon.session()
            await session.drop()

    async with open_client(URL, dial=daemon.dial, retry=Retry(reconnect_s=30)) as client:
        nursery.start_soon(turn_away)
        await trio.sleep(100)
        with pytest.raises(CannotConnect):
            await client.call("system_ping")


async def test_a_refused_handshake_is_final_for_a_bad_token_and_passing_for_a_busy_daemon(daemon, autojump_clock):
    daemon.refuse_with = 401
    with pytest.raises(ConnectionEnded) as ended:
        async with open_client(URL, dial=daemon.dial, token="lgd_wrong", retry=Retry(first_connect_s=60)):
            pass
    assert ended.value.code == 401
    daemon.refuse_with = 503
    with pytest.raises(CannotConnect, match="503"):
        async with open_client(URL, dial=daemon.dial):
            pass


async def test_a_handshake_that_the_daemon_abandons_is_a_failed_attempt_not_a_hang(daemon, autojump_clock):
    daemon.abandon = True
    with pytest.raises(CannotConnect, match="handshake"):
        async with open_client(URL, dial=daemon.dial):
            pass
    assert trio.current_time() - daemon.dials[0] < 1


async def test_the_token_travels_in_the_header_and_the_one_of_a_login_replaces_it(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial, token="lgd_first") as client:
        session = await daemon.session()
        assert session.headers[b"authorization"] == b"Bearer lgd_first"
        login = Later(nursery, client.call, "session_login", email="a@b.c", password="long enough")
        answer = {"authenticated": True, "user": None, "account_id": None, "scopes": [], "expires_at": None}
        await session.reply(await session.receive(), {**answer, "token": "lgd_second"})
        await login.result()
        await session.drop()
        session = await daemon.session()
        assert session.headers[b"authorization"] == b"Bearer lgd_second"


async def test_a_connection_without_a_word_for_too_long_is_replaced(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial, retry=Retry(silence_s=90)) as client:
        await daemon.session()
        silent_from = trio.current_time()
        Later(nursery, client.call, "system_ping")
        session = await daemon.session()
        assert trio.current_time() - silent_from >= 90
        assert (await session.receive())["method"] == "system_ping"


async def test_something_that_is_not_json_rpc_ends_the_client(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        sent = Later(nursery, client.call, "system_ping")
        await session.receive()
        await session.send({"id": 1})
        with pytest.raises(ConnectionEnded) as ended:
            await sent.result()
        assert ended.value.code == 1002


async def test_what_the_daemon_says_about_the_session_is_heard_and_a_listener_that_fails_harms_nobody(
    daemon, nursery, autojump_clock, caplog
):
    heard: list[Notice] = []

    def listen(notice: Notice) -> None:
        heard.append(notice)
        if notice.expires_at is UNSET:
            raise ValueError("a mistake of the application")

    expiring = {"type": "expiring", "expires_at": "2026-01-01T00:00:00.000000Z", "of_a_later_version": 1}
    async with open_client(URL, dial=daemon.dial, on_notice=listen) as client:
        session = await daemon.session()
        for params in ({"type": "going_away"}, expiring):
            await session.send({"method": "ledger_session", "params": params})
        sent = Later(nursery, client.call, "system_ping")
        await session.reply(await session.receive(), {"time": "2026-01-01T00:00:00.000000Z"})
        await sent.result()
    assert heard == [Notice(type="going_away"), Notice(type="expiring", expires_at="2026-01-01T00:00:00.000000Z")]
    assert "a mistake of the application" in caplog.text


async def test_a_notice_that_is_none_ends_the_client_only_if_somebody_listens(daemon, autojump_clock):
    for on_notice, expected in ((None, False), (print, True)):
        async with open_client(URL, dial=daemon.dial, on_notice=on_notice) as client:
            session = await daemon.session()
            await session.send({"method": "ledger_session", "params": {"type": 7}})
            await trio.testing.wait_all_tasks_blocked(1)
            assert isinstance(client.ended, ConnectionEnded) is expected


# -- feeds ---------------------------------------------------------------------------------------------------------


async def test_events_of_the_message_after_the_reply_are_not_missed(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()

        async def follow() -> list[Any]:
            async with client.subscribe("balances", account_ids=[7]) as events:
                return [await anext(events) for _ in range(3)]

        following = Later(nursery, follow)
        asked = await session.receive()
        assert asked["params"] == {"channel": "balances", "options": {"account_ids": [7]}}
        await session.reply(asked, "sub_1")
        strange = {"type": "of_a_later_version", "anything": 1}
        await session.push("sub_1", start((7, "snapshot", 41)), strange, {"type": "live"}, update(7, 42, more="x"))
        got = await following.result()
        assert [type(event) for event in got] == [Start, Live, Update]
        ended = await session.receive()
        assert (ended["method"], ended["params"]) == ("ledger_unsubscribe", {"subscription": "sub_1"})


async def test_a_feed_resumes_after_a_lost_connection_from_what_it_has(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 41)), {"type": "live"}, update(7, 42))
        await read(events, 3)
        next_event = Later(nursery, anext, events)
        await session.drop()
        session = await daemon.session()
        asked = await session.receive()
        assert asked["params"]["options"] == {"account_ids": [7], "since": {"epoch": "e1", "versions": {"7": 42}}}
        await session.reply(asked, "sub_1")
        missed = [start((7, "resumed", 44)), update(7, 43), update(7, 44), {"type": "live"}, update(7, 45)]
        await session.push("sub_1", *missed)
        resumed = await next_event.result()
        assert resumed.accounts[0].origin == "resumed"
        got = await read(events, 4)
        assert [event.version for event in got if isinstance(event, Update)] == [43, 44, 45]
        assert (events.epoch, events.versions) == ("e1", {7: 45})


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (update(7, 43), "missing"),
        (update(7, 41), "again"),
        (update(8, 1), "before the account's start"),
    ],
)
async def test_a_feed_that_is_not_contiguous_fails_loudly_after_what_was_good(
    daemon, nursery, autojump_clock, second, what
):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 40)), update(7, 41), second)
        assert (await session.receive())["method"] == "ledger_unsubscribe"
        await read(events, 2)
        with pytest.raises(FeedGap, match=what):
            await anext(events)


async def test_a_feed_that_goes_live_before_it_has_caught_up_fails_loudly(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        since = {"epoch": "e1", "versions": {7: 42}}
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7], since=since))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "resumed", 45)), update(7, 43), {"type": "live"})
        await read(events, 2)
        with pytest.raises(FeedGap, match="caught up"):
            await anext(events)


async def test_a_new_epoch_brings_snapshots_and_is_no_gap(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 41)), {"type": "live"})
        await read(events, 2)
        later = Later(nursery, read, events, 3)
        await session.drop()
        session = await daemon.session()
        await session.reply(await session.receive(), "sub_1")
        await session.push("sub_1", start((7, "snapshot", 12), epoch="e2"), {"type": "live"}, update(7, 13))
        assert [type(event) for event in await later.result()] == [Start, Live, Update]
        assert (events.epoch, events.versions) == ("e2", {7: 13})


async def test_latest_mode_counts_what_it_left_out(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7], mode="latest"))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 41)), update(7, 50, skipped=8), update(7, 60, skipped=8))
        await read(events, 2)
        with pytest.raises(FeedGap):
            await anext(events)


async def test_a_slow_reader_lets_go_and_later_reads_on_where_it_was(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7], events_max=3))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 0)), *(update(7, version) for version in range(1, 9)))
        assert (await session.receive())["method"] == "ledger_unsubscribe"
        ping = Later(nursery, client.call, "system_ping")
        await session.reply(await session.receive(), {"time": "t"})
        await ping.result()
        got = await read(events, 3)
        later = Later(nursery, read, events, 3)
        asked = await session.receive()
        assert asked["params"]["options"]["since"]["versions"] == {"7": 2}
        await session.reply(asked, "sub_2")
        await session.push("sub_2", start((7, "resumed", 4)), update(7, 3), update(7, 4))
        got += await later.result()
        assert [event.version for event in got if isinstance(event, Update)] == [1, 2, 3, 4]


async def test_a_refused_subscription_raises_and_a_passing_refusal_is_asked_again(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.refuse(await session.receive(), ErrorCode.UNAVAILABLE)
        await session.reply(await session.receive(), "sub_1")
        await subscribing.result()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[8]))
        await session.refuse(await session.receive(), ErrorCode.NOT_FOUND)
        with pytest.raises(LedgerError) as refused:
            await subscribing.result()
        assert refused.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("code", ["session_expired", "a_reason_of_a_later_version"])
async def test_a_subscription_that_the_daemon_ends_for_good_raises_why(daemon, nursery, autojump_clock, code):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", {"type": "closed", "code": code})
        with pytest.raises(LedgerError, match=code):
            await anext(events)


async def test_a_subscription_that_the_daemon_ends_for_now_is_made_again(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 3)), {"type": "closed", "code": "overloaded"})
        await read(events, 1)
        Later(nursery, anext, events)
        while (asked := await session.receive())["method"] != "ledger_subscribe":
            pass
        assert asked["params"]["options"]["since"]["versions"] == {"7": 3}


async def test_a_cancelled_wait_for_an_event_loses_none(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 0)))
        await read(events, 1)
        with trio.move_on_after(5) as scope:
            await anext(events)
        assert scope.cancelled_caught
        await session.push("sub_1", update(7, 1), update(7, 2))
        assert [event.version for event in await read(events, 2)] == [1, 2]


async def test_a_feed_ends_with_the_reason_the_client_ended(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", account_ids=[7]))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start((7, "snapshot", 0)))
        await session.close(4401)
        await read(events, 1)
        with pytest.raises(ConnectionEnded):
            await anext(events)


async def test_a_feed_of_everything_resumes_from_its_position_and_drops_what_comes_again(
    daemon, nursery, autojump_clock
):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", all=True))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        first = [update(7, 12, position="30"), update(7, 13, position="30"), update(9, 2, position="34")]
        await session.push("sub_1", start(position="30"), *first)
        await read(events, 4)
        assert (events.epoch, events.position, events.versions) == ("e1", "34", {7: 13, 9: 2})
        later = Later(nursery, read, events, 3)
        await session.drop()
        session = await daemon.session()
        asked = await session.receive()
        assert asked["params"]["options"] == {"all": True, "since": {"epoch": "e1", "position": "34"}}
        await session.reply(asked, "sub_1")
        again = [update(7, 13, position="34"), update(9, 2, position="34")]
        await session.push("sub_1", start(position="34"), *again, update(7, 14, position="34"), {"type": "live"})
        got = await later.result()
        assert [type(event) for event in got] == [Start, Update, Live]
        assert got[1].version == 14


async def test_a_feed_of_everything_that_resumes_with_a_hole_fails_loudly(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        since = {"epoch": "e1", "position": "34", "versions": {7: 13}}
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", all=True, since=since))
        asked = await session.receive()
        assert asked["params"]["options"]["since"] == {"epoch": "e1", "position": "34"}
        await session.reply(asked, "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start(position="34"), update(7, 15, position="34"))
        await read(events, 1)
        with pytest.raises(FeedGap, match="missing"):
            await anext(events)


async def test_a_feed_of_everything_that_could_not_be_resumed_goes_on_and_says_why(daemon, nursery, autojump_clock):
    async with open_client(URL, dial=daemon.dial) as client:
        session = await daemon.session()
        subscribing = Later(nursery, enter, nursery, client.subscribe("balances", all=True))
        await session.reply(await session.receive(), "sub_1")
        events = await subscribing.result()
        await session.push("sub_1", start(position="30"), update(7, 12, position="30"))
        await read(events, 2)
        later = Later(nursery, read, events, 2)
        await session.drop()
        session = await daemon.session()
        await session.reply(await session.receive(), "sub_1")
        anew = start(epoch="e2", position="9", reason="epoch_changed")
        await session.push("sub_1", anew, update(7, 3, position="9"))
        begun, changed = await later.result()
        assert (begun.reason, changed.version) == ("epoch_changed", 3)
        assert (events.epoch, events.position) == ("e2", "9")


async def enter(nursery: trio.Nursery, manager: Any) -> Any:
    """The feed of a subscription that lasts as long as the test."""

    async def hold(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with manager as feed:
            task_status.started(feed)
            await trio.sleep_forever()

    return await nursery.start(hold)


async def read(events: Any, count: int) -> list[Any]:
    return [await anext(events) for _ in range(count)]


def test_a_transaction_with_metadata_can_be_read() -> None:
    raw = msgspec.json.encode(POSTED | {"metadata": {"order": 17, "parts": [{"n": 1.5}]}})
    assert msgspec.json.decode(raw, type=Transaction).metadata == {"order": 17, "parts": [{"n": 1.5}]}


@pytest.mark.parametrize(
    ("method", "name"),
    [("wallet_bet", "transaction_uuid"), ("transaction_batch", "batch_id"), ("debit", "transaction_id")],
)
def test_a_command_is_given_the_id_that_makes_it_safe_to_send_twice(method: str, name: str) -> None:
    params = with_id(method, {"amount": 5})
    assert set(params) == {"amount", name}
    call = Call(1, method, params, lambda _: None)
    assert call.repeatable
    assert call.transaction_id == params[name]
    assert with_id(method, params) is params
