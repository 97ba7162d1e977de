"""The Trio client: calls multiplexed over one connection, feeds that resume, reconnection with the same ids.

    async with open_client("ws://127.0.0.1:8710", token=secret) as client:
        sent = await client.transfer(source_account_id=7, destination_account_id=8, amount="10.00", currency="USD")
        async with client.subscribe("balances", account_ids=[7]) as events:
            async for event in events:
                ...

Rules of this file:

- **The same command is sent again only with the same id.** A money command without a transaction_id gets a UUIDv7
  before it is first sent. After a lost connection, unanswered money commands and reads go out again as the same bytes,
  in their first order, before anything newer. Everything else (`session_*`, `user_register`, ...) is not repeated
  blindly: the caller gets OutcomeUnknown.
- **Answers that may pass are asked again**, with the same id, until `Retry.call_s` is over: rate_limited,
  overloaded, timeout, shutting_down, unavailable, and for money whatever says ``applied: null``. Then the caller gets
  the last answer. insufficient_funds and the like are answers, not trouble: they are raised at once.
- **applied: false is only believed for the sending it answers.** If an earlier sending of the same command was lost or
  answered null, a refusal is raised with ``applied`` None, and so is that of every member of a batch: the earlier one
  may still be carried out. Send the same transaction_id again, or cancel it.
- **Close codes**: 44xx and the ones that blame our bytes (1002, 1003, 1007, 1009, 1010) end the client; after all
  others it reconnects with backoff and jitter and resumes, until `Retry.reconnect_s` has passed without a connection.
- One task writes: a cancelled send would leave half a frame for the next one to run into. A cancelled call is
  forgotten here and may still be carried out there.
- The daemon pings, trio-websocket answers. A connection on which nothing at all arrives for `Retry.silence_s` is dead.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import trio
from msgspec import Raw, Struct
from trio_websocket import CloseReason, ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection

from ledgerd_protocol import methods, results
from ledgerd_protocol.call import PASSING, SENDS_MAX, Call, Lost, OutcomeUnknown, is_read, with_id
from ledgerd_protocol.codec import BadReply, Notification, Reply, decode_reply
from ledgerd_protocol.connection import (
    FINAL_CLOSES,
    Address,
    CannotConnect,
    ConnectionEnded,
    Dial,
    Retry,
    Unreachable,
    address_of,
    failure,
    rejection,
)
from ledgerd_protocol.cursor import FeedGap as FeedGap
from ledgerd_protocol.errors import LedgerError
from ledgerd_protocol.events import Notice as Notice
from ledgerd_protocol.feed import Feed as Feed

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_client(
    url: str,
    *,
    token: str | None = None,
    retry: Retry | None = None,
    dial: Dial | None = None,
    ca_file: str | None = None,
    on_notice: Callable[[Notice], object] | None = None,
) -> AsyncIterator[Client]:
    """Connect, and stay connected for as long as the block lasts. Errors of the block come out of it unwrapped.

    ``on_notice`` hears what the daemon says about the session: ``expiring`` a minute before the token expires, after
    which ``session_authenticate`` with a newer token keeps the client going. It is called by the task that reads, so it
    must not take long and cannot await; what it raises is logged and changes nothing.

    ``dial`` replaces the way a byte stream to the daemon is opened (a proxy, a Unix socket, a test). For wss:// a
    ``ca_file`` in PEM names the authorities to believe instead of the system's.
    Raises CannotConnect, ConnectionEnded (a bad token: HTTP 401), ValueError (the URL).
    """
    client = Client(address_of(url, dial, ca_file), token, retry or Retry(), on_notice=on_notice)
    outcome: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(client._keep_connected)  # noqa: SLF001  one module
        if client.ended is None:
            try:
                yield client
            except Exception as error:  # noqa: BLE001  handed on below, outside the nursery that would wrap it
                outcome = error
        else:
            outcome = client.ended
        await client._aclose()  # noqa: SLF001
        nursery.cancel_scope.cancel()
    if outcome is not None:
        raise outcome


class Client:
    """Made by `open_client`. Calls may be made from any number of tasks at once."""

    def __init__(
        self,
        address: Address,
        token: str | None,
        retry: Retry,
        *,
        on_notice: Callable[[Notice], object] | None = None,
        in_flight_max: int = 256,
    ) -> None:
        self._address = address
        self._token = token
        self._retry = retry
        self._on_notice = on_notice
        self._ids = itertools.count(1)
        self._room = trio.Semaphore(in_flight_max)
        self._waiting: dict[int, Call] = {}
        self._unsent: deque[Call] = deque()
        self._said_goodbye: trio.Event | None = None  # there once the client closes by its own will
        self._to_write = trio.Event()
        self._feeds: set[Feed] = set()
        self._routes: dict[str, Feed] = {}
        self._socket: WebSocketConnection | None = None
        self._up = trio.Event()
        self.ended: Exception | None = None
        self.connections = 0

    # -- calls -------------------------------------------------------------------------------------------------------

    async def call(self, method: str, /, **params: Any) -> Any:
        """Call a method and return its result: the Struct of `messages`, or plain JSON for a method not known there.

        Raises LedgerError (the daemon refuses), OutcomeUnknown, CannotConnect, ConnectionEnded.
        """
        raw = await self.call_raw(method, params)
        known = methods.METHODS.get(method)
        return msgspec.json.decode(raw, type=Any if known is None else known.result)

    async def call_raw(self, method: str, params: Mapping[str, Any]) -> Raw:
        """`call` with the parameters as one mapping (its values may be `msgspec.Raw`), and the result as raw JSON."""
        if method in {"ledger_subscribe", "ledger_unsubscribe"}:
            raise ValueError(f"{method} belongs to a connection; use Client.subscribe")
        params = with_id(method, params)
        async with self._room:
            result = await self._until_answered(method, params)
        self._note_session(method, params, result)
        return result

    async def _until_answered(self, method: str, params: Mapping[str, Any]) -> Raw:
        done = trio.Event()
        outcomes: list[Raw | Exception] = []

        def settle(outcome: Raw | Exception) -> None:
            outcomes.append(outcome)
            done.set()

        call = Call(next(self._ids), method, params, settle)
        give_up_at = trio.current_time() + self._retry.call_s
        for attempt in itertools.count():
            await self._exchange(call, done)
            outcome = outcomes.pop()
            if isinstance(outcome, Raw):
                return _doubted(outcome) if call.uncertain and method == "transaction_batch" else outcome
            if not isinstance(outcome, LedgerError):
                raise outcome
            pause = self._pause(call, outcome, attempt)
            if pause is None or trio.current_time() + pause > give_up_at:
                if call.uncertain and call.transaction_id is not None:
                    outcome.applied = None
                raise outcome
            call.uncertain = call.uncertain or outcome.applied is None
            await trio.sleep(pause)
            done = trio.Event()
        raise AssertionError("unreachable")

    async def _exchange(self, call: Call, done: trio.Event) -> None:
        """Send a call and wait until it is settled."""
        if self.ended is not None:
            call.settle(self._end_of(call))
            return
        self._post(call)
        try:
            await done.wait()
        finally:
            self._waiting.pop(call.id, None)

    def _pause(self, call: Call, error: LedgerError, attempt: int) -> float | None:
        """How long to wait before asking again; None if this is the answer."""
        unsure = error.applied is None and call.transaction_id is not None
        if not unsure and error.code not in PASSING:
            return None
        if not call.repeatable and error.applied is None:
            return None
        wait_ms = error.data.get("retry_after_ms")
        wait_s = wait_ms / 1000 if isinstance(wait_ms, int) and wait_ms > 0 else 0.0
        return max(wait_s, self._retry.pause(attempt))

    def _note_session(self, method: str, params: Mapping[str, Any], result: Raw) -> None:
        """Whom the connection acts for goes with the client to its next connection."""
        if method == "session_login":
            self._token = msgspec.json.decode(result).get("token") or self._token
        elif method == "session_authenticate":
            self._token = params.get("token")
        elif method == "session_logout":
            self._token = None

    async def credit(self, **params: Any) -> results.Transaction:
        """Money into an account from outside; see `messages.Credit`."""
        return cast("results.Transaction", await self.call("credit", **params))

    async def debit(self, **params: Any) -> results.Transaction:
        """Money out of an account to the outside; see `messages.Debit`."""
        return cast("results.Transaction", await self.call("debit", **params))

    async def transfer(self, **params: Any) -> results.Transaction:
        """Money between two accounts; see `messages.Transfer`."""
        return cast("results.Transaction", await self.call("transfer", **params))

    async def hold(self, **params: Any) -> results.Transaction:
        """Money of an account held back; see `messages.HoldPlace`."""
        return cast("results.Transaction", await self.call("hold_place", **params))

    async def capture(self, **params: Any) -> results.Transaction:
        """The money of a hold taken; see `messages.HoldCapture`."""
        return cast("results.Transaction", await self.call("hold_capture", **params))

    async def release(self, **params: Any) -> results.Transaction:
        """The money of a hold given free; see `messages.HoldRelease`."""
        return cast("results.Transaction", await self.call("hold_release", **params))

    async def reverse(self, **params: Any) -> results.Transaction:
        """What a transaction moved, moved back; see `messages.TransactionReverse`."""
        return cast("results.Transaction", await self.call("transaction_reverse", **params))

    async def balance(self, **params: Any) -> results.Balance:
        """A balance, now or as it was; see `messages.BalanceGet`."""
        return cast("results.Balance", await self.call("balance_get", **params))

    # -- feeds -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(self, channel: str, *, events_max: int = 4_096, **options: Any) -> AsyncIterator[Feed]:
        """Follow a channel; options are those of `messages.SubscribeOptions`. Events come by iterating.

        The feed survives reconnections without a gap, and says so by another `start` event whose accounts are
        ``resumed``. If it cannot be complete it raises FeedGap. ``since`` is ``{"epoch": ..., "versions": {...}}`` as
        `Feed.epoch` and `Feed.versions` gave them in an earlier run; with ``all=True`` it is
        ``{"epoch": ..., "position": ...}``, may have the versions too, by which what comes again is dropped, and a
        `start` with a ``reason`` is one that could not be resumed. At most ``events_max`` events wait unread.
        Raises LedgerError if the daemon refuses the subscription.
        """
        given = {name: value for name, value in options.items() if value is not None}
        feed = Feed(channel, given, self._attach, events_max=events_max)
        self._feeds.add(feed)
        try:
            await feed.settled()
            yield feed
        finally:
            feed.closed = True
            self._feeds.discard(feed)
            if feed.subscription is not None:
                self._let_go(feed.subscription)

    async def _attach(self, feed: Feed) -> None:
        await self._online()
        feed.asked = True

        def settle(outcome: Raw | Exception) -> None:
            self._attached(feed, outcome)

        self._post(Call(next(self._ids), "ledger_subscribe", feed.params(), settle, bound=True))

    def _attached(self, feed: Feed, outcome: Raw | Exception) -> None:
        """Runs in the reader, at the reply: the first event may be the very next message."""
        if isinstance(outcome, Raw):
            subscription = msgspec.json.decode(outcome, type=str)
            if feed.closed:
                self._let_go(subscription)
            else:
                self._routes[subscription] = feed
                feed.attached(subscription)
        elif isinstance(outcome, LedgerError) and outcome.code in PASSING:
            now = trio.current_time()
            feed.refused_since = now if feed.refused_since is None else feed.refused_since
            if now - feed.refused_since > self._retry.reconnect_s:
                feed.fail(outcome)
            feed.attach_at = now + self._retry.pause(3)
            feed.detach()
        elif isinstance(outcome, Lost):
            feed.detach()
        else:
            feed.fail(outcome)

    def _let_go(self, subscription: str) -> None:
        self._routes.pop(subscription, None)
        if self.ended is None and self._socket is not None:
            call = Call(next(self._ids), "ledger_unsubscribe", {"subscription": subscription}, _ignore, bound=True)
            self._post(call)

    # -- the connection ----------------------------------------------------------------------------------------------

    async def _online(self) -> None:
        """Return when a connection stands. Raises why there will not be one any more."""
        while self._socket is None:
            if self.ended is not None:
                raise self.ended
            await self._up.wait()

    def _post(self, call: Call) -> None:
        self._waiting[call.id] = call
        self._unsent.append(call)
        self._to_write.set()

    async def _keep_connected(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect again and again until the client ends. Starts when the first connection stands or cannot be had."""
        failing_since = trio.current_time()
        patience_s = self._retry.first_connect_s
        attempt = 0
        while self.ended is None:
            try:
                useful = await self._one_connection(task_status)
            except Unreachable as error:
                useful = False
                if trio.current_time() - failing_since >= patience_s:
                    self._end(CannotConnect(str(error)))
                    break
            except ConnectionEnded as error:
                self._end(error)
                break
            if self.connections:
                patience_s = self._retry.reconnect_s
            if useful:
                failing_since, attempt = trio.current_time(), 0
            elif trio.current_time() - failing_since >= patience_s:
                self._end(CannotConnect("every connection was closed at once"))
                break
            await trio.sleep(self._retry.pause(attempt))
            attempt += 1
        if not self.connections:
            task_status.started()

    async def _one_connection(self, task_status: trio.TaskStatus[None]) -> bool:
        """Dial, talk, and return when the connection is lost: whether it had been of use.

        Raises Unreachable, and ConnectionEnded after a close code or an HTTP status that forbids another attempt.
        """
        trouble: Exception | None = None
        useful = False
        try:
            stream = await self._address.open_stream(self._retry)
        except (OSError, trio.TooSlowError) as error:
            raise Unreachable(str(error) or "no answer within the time allowed") from error
        try:
            async with trio.open_nursery() as nursery:
                socket = await self._address.shake_hands(nursery, stream, self._token, self._retry)
                opened_at = trio.current_time()
                self._connection_stands(socket)
                if self.connections == 1:
                    task_status.started()
                try:
                    nursery.start_soon(self._write, socket)
                    nursery.start_soon(stream.end_if_silent, self._retry.silence_s)
                    closed = await self._read(socket)
                finally:
                    self._connection_lost()
                useful = stream.heard_at > opened_at or trio.current_time() - opened_at > self._retry.delay_s_max
                if closed.code in FINAL_CLOSES:
                    trouble = ConnectionEnded(closed.code, closed.reason or closed.name)
                if self._said_goodbye is not None:
                    # The reader of the WebSocket, in this nursery, has yet to hear the answer.
                    await self._said_goodbye.wait()
                nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            trouble = rejection(group)
        except* (OSError, HandshakeError, trio.TooSlowError, trio.BrokenResourceError) as group:
            trouble = failure(group)
        finally:
            await trio.aclose_forcefully(stream)
        if trouble is not None:
            raise trouble
        return useful

    def _connection_stands(self, socket: WebSocketConnection) -> None:
        """Unanswered calls go first, in their first order; ids count up, and the dictionary keeps that order."""
        self._unsent = deque(sorted(self._waiting.values(), key=lambda call: call.id))
        self._socket = socket
        self.connections += 1
        self._up.set()

    def _connection_lost(self) -> None:
        self._socket = None
        self._up = trio.Event()
        self._routes.clear()
        for call in list(self._waiting.values()):
            if call.bound:
                self._settle(call, Lost())
            elif call.in_flight and (not call.repeatable or call.sends >= SENDS_MAX):
                self._settle(call, OutcomeUnknown(call.method, call.transaction_id))
            elif call.in_flight:
                call.in_flight, call.uncertain = False, True
        for feed in self._feeds:
            feed.detach()

    async def _write(self, socket: WebSocketConnection) -> None:
        try:
            while True:
                while self._unsent:
                    call = self._unsent.popleft()
                    if self._waiting.get(call.id) is call:
                        call.sends += 1
                        call.in_flight = True
                        await socket.send_message(call.text)
                self._to_write = trio.Event()
                await self._to_write.wait()
        except ConnectionClosed:
            pass  # the reader learns it too, with the reason

    async def _read(self, socket: WebSocketConnection) -> CloseReason:
        """Route messages until the connection is closed; why it was."""
        while True:
            try:
                message = await socket.get_message()
            except ConnectionClosed as error:
                return error.reason or CloseReason(1006, None)
            try:
                self._route(decode_reply(message))
            except BadReply as error:
                with trio.move_on_after(self._retry.close_s):
                    await socket.aclose(1002)
                return CloseReason(1002, str(error))

    def _route(self, message: Reply | Notification | list[Reply]) -> None:
        if isinstance(message, Notification):
            if message.method == "ledger_subscription":
                self._route_event(message.params)
            elif message.method == "ledger_session" and self._on_notice is not None:
                self._tell(self._on_notice, message.params)
            return
        for reply in message if isinstance(message, list) else [message]:
            call = self._waiting.get(reply.id) if isinstance(reply.id, int) else None
            if call is None:
                continue  # of a call that was cancelled
            self._settle(call, LedgerError.from_wire(reply.error or {}) if reply.result is None else reply.result)

    def _tell(self, on_notice: Callable[[Notice], object], params: Raw) -> None:
        try:
            notice = _decode_notice(params)
        except msgspec.MsgspecError as error:
            raise BadReply(str(error)) from error
        try:
            on_notice(notice)
        except Exception:
            log.exception("on_notice failed")

    def _route_event(self, params: Raw) -> None:
        try:
            pushed = _decode_pushed(params)
        except msgspec.MsgspecError as error:
            raise BadReply(str(error)) from error
        feed = self._routes.get(pushed.subscription)
        if feed is not None and not feed.offer(pushed.result):
            self._let_go(pushed.subscription)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _settle(self, call: Call, outcome: Raw | Exception) -> None:
        if self._waiting.pop(call.id, None) is call:
            call.in_flight = False
            call.settle(outcome)

    def _end_of(self, call: Call) -> Exception:
        """What a call gets when the client has ended: a command that had been sent may have been carried out."""
        assert self.ended is not None
        if (call.uncertain or call.in_flight) and not is_read(call.method):
            return OutcomeUnknown(call.method, call.transaction_id)
        return self.ended

    def _end(self, error: Exception) -> None:
        if self.ended is not None:
            return
        self.ended = error
        self._up.set()
        for call in list(self._waiting.values()):
            self._settle(call, self._end_of(call))
        for feed in self._feeds:
            feed.fail(error)

    async def _aclose(self) -> None:
        """Say goodbye if there is somebody to say it to, within `Retry.close_s`."""
        self._end(trio.ClosedResourceError("the client was closed"))
        self._said_goodbye = trio.Event()
        if self._socket is not None:
            with trio.move_on_after(self._retry.close_s):
                await self._socket.aclose()
        self._said_goodbye.set()


def _doubted(raw: Raw) -> Raw:
    """The result of a batch of which an earlier sending was lost: that may still carry out what this one refused."""
    result = msgspec.json.decode(raw, type=dict[str, Raw])
    # What was posted passes as it is: its metadata may have numbers that Python would spell otherwise.
    outcomes = msgspec.json.decode(result["outcomes"], type=list[dict[str, Raw]])
    for outcome in outcomes:
        if "error" in outcome:
            error = msgspec.json.decode(outcome["error"])
            error["data"]["applied"] = None
            outcome["error"] = Raw(msgspec.json.encode(error))
    result["outcomes"] = Raw(msgspec.json.encode(outcomes))
    return Raw(msgspec.json.encode(result))


class _Pushed(Struct):
    """The params of a `ledger_subscription` notification."""

    subscription: str
    result: Raw


_decode_pushed = msgspec.json.Decoder(_Pushed).decode
_decode_notice = msgspec.json.Decoder(Notice).decode


def _ignore(outcome: Raw | Exception) -> None:
    """Nobody waits for this answer."""
