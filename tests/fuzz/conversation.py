"""Target of the gateway: one connection, everything a client may say on it, and what must come back.

Books, router and hub are those of the gateway's own tests; passwords cost nothing. Of the answers everything must hold
that the specification says whatever was asked, see `_Ledger`.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import trio
import trio.testing

from ledgerd.engine.commands import Command, Outcome, Refused
from ledgerd.gateway.server import RECEIVE_BYTES
from ledgerd.gateway.session import NEWCOMER_REQUESTS_MAX
from ledgerd.metrics import SESSION_CRASHES
from ledgerd_protocol.codec import Limits
from ledgerd_protocol.errors import ERROR_CODES, ErrorCode
from ledgerd_protocol.methods import METHODS
from tests.fuzz import oracle, schedule
from tests.fuzz.books import FuzzDoor, open_fuzz_door
from tests.fuzz.oracle import Id, Members, Wanted
from tests.fuzz.requests import message_of
from tests.fuzz.source import Source
from tests.fuzz.wire import frame_of
from tests.gateway.fakes import Pair, frames_until_close, posted, text_frame

MESSAGES_MAX = 16
LAST = "the last question"

SMALL: dict[str, Any] = {
    "in_flight_max": 2,
    "waiting_commands_max": 3,
    "waiting_bytes_max": 2_000,
    "batch_members_max": 4,
    "outbox_bytes_max": 4_000,
    "message_bytes_max": 3_000,
    "depth_max": 8,
    "command_ttl_s": 10_000,
}
ROOMY: dict[str, Any] = {"command_ttl_s": 10_000}

KEPT_BYTES_SLACK = RECEIVE_BYTES * 12
"""What one read may bring of the smallest messages, at what a short text costs in memory."""

SIGNED_OUT_BY = (b"session_logout", b"session_change_password", b"token_revoke", b"session_authenticate")


def conversation(data: bytes) -> None:
    """Every request with an id is answered once, notifications move nothing, and the connection stays usable."""
    schedule.run(partial(_converse, Source(data)), data)


async def _converse(source: Source) -> None:
    crashes = SESSION_CRASHES._value.get()
    settings = source.pick([ROOMY, SMALL])
    scope = source.pick(["service", "user", "operator", "read", "topup", None])
    async with open_fuzz_door(settings) as door:
        door.router.outcome = partial(_outcome, source.pick([None, ErrorCode.INSUFFICIENT_FUNDS]))
        door.router.holding = source.one_in(4)
        stream = await door.raw(None if scope is None else door.token(scope))
        ledger = _Ledger(door, anonymous=scope is None)
        told: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, stream, told, ledger)
            await _speak(source, stream, ledger)
            await _settle(door, ledger)
        ledger.check(told)
    assert SESSION_CRASHES._value.get() == crashes, "the session crashed"


async def _listen(stream: Pair, told: list[bytes], ledger: _Ledger) -> None:
    texts, ledger.closed_with = await frames_until_close(_Tapped(stream, ledger))  # type: ignore[arg-type]
    told.extend(texts)
    ledger.ended = True


class _Tapped:
    """A stream of which somebody else sees the texts, too, as they come."""

    def __init__(self, stream: Pair, ledger: _Ledger) -> None:
        self._stream = stream
        self._ledger = ledger

    async def receive_some(self) -> bytes:
        data = bytes(await self._stream.receive_some())
        self._ledger.heard += data
        return data


def _outcome(refusal: ErrorCode | None, command: Command) -> Outcome:
    if refusal is None or command.amount != "0.01":
        return posted(command)
    return Refused(refusal, data={"available": 5, "requested": 7, "version": 3}, scale=2)


async def _speak(source: Source, stream: Pair, ledger: _Ledger) -> None:
    """Say what the source makes up, and at the end something harmless."""
    for _ in range(MESSAGES_MAX):
        if source.exhausted:
            break
        if source.one_in(50):
            spoken = frame_of(source)
            ledger.frame_is_said()
        else:
            text = message_of(source)
            ledger.text_is_said(text)
            spoken = text_frame(text)
        for piece in source.pieces(spoken) if source.one_in(8) else [spoken]:
            if not await _sent(stream, piece):
                return
        if source.one_in(3):
            await trio.testing.wait_all_tasks_blocked()
            ledger.check_memory()
    text = b'{"jsonrpc":"2.0","id":"%b","method":"system_ping"}' % LAST.encode()
    ledger.text_is_said(text)
    await _sent(stream, text_frame(text))


async def _sent(stream: Pair, piece: bytes) -> bool:
    try:
        await stream.send_all(piece)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return False
    return True


async def _settle(door: FuzzDoor, ledger: _Ledger) -> None:
    """Let everything be answered, then end the connection."""
    with trio.move_on_after(8):
        while not ledger.ended and not ledger.all_heard():
            await trio.testing.wait_all_tasks_blocked()
            ledger.check_memory()
            if door.router.holding:
                door.release()
            else:
                await trio.sleep(0.5)
    await trio.testing.wait_all_tasks_blocked()
    door.hang_up()


class _Ledger:
    """What was said and what must come of it."""

    def __init__(self, door: FuzzDoor, *, anonymous: bool) -> None:
        config = door.config
        self._door = door
        self._anonymous = anonymous
        self._limits = Limits(config.message_bytes_max, config.depth_max, config.batch_members_max)
        self._texts: list[bytes] = []
        self._odd_frames = False
        self._due: Counter[tuple[Id, ...] | Id] = Counter()
        self._in_doubt = False
        self._requests = 0
        self._commands_max = 0
        self._asked = b""
        self._noted = b""
        self._methods: dict[Id, set[str]] = {}
        self.heard = b""
        self.closed_with: int | None = None
        self.ended = False

    def frame_is_said(self) -> None:
        """A frame that is not one whole text may end the connection, or change what the next ones mean."""
        self._odd_frames = True

    def text_is_said(self, text: bytes) -> None:
        """Count what must come of a text."""
        self._texts.append(text)
        try:
            verdict = oracle.judge(text.decode(), self._limits)
        except UnicodeDecodeError:
            self._odd_frames = True
            return
        self._in_doubt |= verdict.bottomless or any(wanted.id_in_doubt for wanted in verdict.members)
        self._requests += len(verdict.members)
        for wanted in verdict.members:
            self._count_money(wanted)
        answered = [wanted for wanted in verdict.members if wanted.code is not None or wanted.has_id]
        if verdict.batch:
            if answered:
                self._due[tuple(wanted.id for wanted in answered)] += 1
        else:
            self._due.update(wanted.id for wanted in answered)

    def _count_money(self, wanted: Wanted) -> None:
        if wanted.method not in METHODS:
            return
        spelled = repr(wanted.params).encode()
        if not wanted.has_id:
            self._noted += spelled
            return
        self._asked += spelled
        self._methods.setdefault(wanted.id, set()).add(wanted.method)
        if METHODS[wanted.method].money:
            self._commands_max += spelled.count(b"'method'") if wanted.method == "transaction_batch" else 1

    # -- while it goes on ---------------------------------------------------------------------------------------------

    def all_heard(self) -> bool:
        """Whether the last question is answered, and nothing that was asked before can still be on its way."""
        return LAST.encode() in self.heard and all(session.idle for session in self._door.gateway._sessions)

    def check_memory(self) -> None:
        """What is kept of messages stays within the documented bound."""
        config = self._door.config
        for session in self._door.gateway._sessions:
            assert session._waiting_bytes <= config.waiting_bytes_max + 2 * config.message_bytes_max + KEPT_BYTES_SLACK
            assert session._executing <= config.in_flight_max

    # -- at the end ---------------------------------------------------------------------------------------------------

    def check(self, told: list[bytes]) -> None:
        """Everything that must hold of what the client was told."""
        came = [oracle.read(text.decode()) for text in told]
        answers = [one for one in came if not (isinstance(one, Members) and one.named("method"))]
        for answer in answers:
            for one in [answer] if isinstance(answer, Members) else answer:
                self._check_answer(one)
        self._check_money()
        keys = Counter(
            oracle.id_of(answer.get("id"))
            if isinstance(answer, Members)
            else tuple(oracle.id_of(one.get("id")) for one in answer)
            for answer in answers
        )
        if self._odd_frames:
            assert self.closed_with != 1011
        if self._odd_frames or self._in_doubt:
            return
        assert not keys - self._due, f"never asked: {keys - self._due}"
        if self.closed_with is None:
            assert keys == self._due, f"not answered: {self._due - keys}"
        else:
            self._check_close(self.closed_with)

    def _check_answer(self, answer: Any) -> None:
        assert isinstance(answer, Members)
        assert answer.get("jsonrpc") == "2.0"
        assert answer.named("id") == 1
        assert answer.named("result") + answer.named("error") == 1
        error = answer.get("error")
        if error is None:
            assert answer.get("id") is not None
            return
        code = ERROR_CODES[int(error.get("code"))]
        data = error.get("data")
        assert code is not ErrorCode.INTERNAL_ERROR, error
        assert data.get("code") == code.text
        assert data.get("retryable") is code.retryable
        assert data.get("applied") in (False, None)
        moved = self._methods.get(oracle.id_of(answer.get("id")), set())
        assert code is not ErrorCode.RESPONSE_TOO_LARGE or not all(METHODS[name].money for name in moved)

    def _check_money(self) -> None:
        commands = self._door.router.commands
        if not self._odd_frames:
            assert len(commands) <= self._commands_max
        for command in commands:
            spelled = command.transaction_id.encode()
            assert spelled not in self._noted or spelled in self._asked, "a notification moved money"

    def _check_close(self, code: int) -> None:
        said = b"".join(self._texts)
        if code == 1009:
            assert any(len(text) > min(self._limits.message_bytes_max, 16_384) for text in self._texts)
        elif code == 4429:
            assert self._anonymous or b"session_logout" in said
            assert self._requests > NEWCOMER_REQUESTS_MAX
        elif code == 4401:
            assert any(word in said for word in SIGNED_OUT_BY)
        else:
            raise AssertionError(f"closed with {code}")
