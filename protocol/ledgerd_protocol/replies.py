"""The client's half of the codec: requests to text, and what the daemon sends to replies and notifications.

Pure, like `ledgerd_protocol.codec`, but less strict: keys and depth are not checked, and members that are not known are
ignored, because results and events may gain members.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

_ENCODER = msgspec.json.Encoder()


class BadReply(ValueError):
    """What the daemon sent is neither a reply nor a notification of JSON-RPC 2.0."""


class Reply(Struct, frozen=True):
    """The reply to one request: a raw result, or an error object as `LedgerError.to_wire` makes it."""

    id: int | str | None
    result: Raw | None
    error: dict[str, Any] | None


class Notification(Struct, frozen=True):
    """A message of the daemon's own accord: ``ledger_subscription`` or ``ledger_session``."""

    method: str
    params: Raw


class _Incoming(Struct):
    id: int | str | None = None
    result: Raw | UnsetType = UNSET
    error: dict[str, Any] | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw = Raw(b"{}")


_INCOMING = msgspec.json.Decoder(_Incoming | list[_Incoming])


def encode_request(id: int | str, method: str, params: Any = None) -> str:  # noqa: A002
    """A request as text. ``params`` is a Struct of `messages`, a mapping or a list; None leaves them out."""
    head = b'{"jsonrpc":"2.0","id":%b,"method":%b' % (_ENCODER.encode(id), _ENCODER.encode(method))
    tail = b"}" if params is None else b',"params":%b}' % _ENCODER.encode(params)
    return (head + tail).decode()


def decode_reply(text: str | bytes) -> Reply | Notification | list[Reply]:
    """What the daemon sent: a reply, a notification, or the replies to a batch. Raises BadReply."""
    try:
        incoming = _INCOMING.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise BadReply(f"Not a message of JSON-RPC 2.0: {error}") from error
    if isinstance(incoming, list):
        return [_reply(member) for member in incoming]
    if incoming.method is not UNSET:
        return Notification(incoming.method, incoming.params)
    return _reply(incoming)


def _reply(incoming: _Incoming) -> Reply:
    if (incoming.result is UNSET) == (incoming.error is UNSET):
        raise BadReply("A reply must have either a result or an error.")
    result = None if incoming.result is UNSET else incoming.result
    error = None if incoming.error is UNSET else incoming.error
    return Reply(incoming.id, result, error)
