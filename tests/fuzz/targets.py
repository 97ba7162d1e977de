"""The table of targets: what is fuzzed, and with which words a fuzzer gets further than with bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from ledgerd_protocol.methods import METHODS
from tests.fuzz import codec, conversation, door, wire

CORPUS = Path(__file__).parent / "corpus"


class Target(Struct, frozen=True):
    """``run`` raises if something does not hold. Inputs longer than ``bytes_max`` find nothing more."""

    name: str
    about: str
    run: Callable[[bytes], None]
    bytes_max: int
    words: tuple[bytes, ...] = ()

    @property
    def corpus(self) -> Path:
        """Where the inputs are kept that are worth repeating."""
        return CORPUS / self.name

    def kept(self) -> list[Path]:
        """The inputs that are kept, in the order of their names."""
        return sorted(self.corpus.iterdir()) if self.corpus.is_dir() else []


_JSON = (
    b'"jsonrpc":"2.0",', b'"id":1', b'"method":"credit"', b'"params":{', b'"amount":"1.00"', b'"account_id":11',
    b"\\u0000", b"\\ud800", b"\\ud83d\\ude00", b"\\u0061", b"NaN", b"Infinity", b"\xef\xbb\xbf", b"[[[[", b"]]]]",
    b'{"jsonrpc":"2.0","method":"m"}', b"-0", b"1e5", b"null", b"true", b"\xc2\xa0", b"\x00", b'"id":"a",',
)  # fmt: skip
_NAMES = tuple(
    sorted({f'"{name}"'.encode() for method in METHODS.values() for name in method.params.__struct_fields__})
)
_NUMBERS = (b"999999999999999999", b"0.00000001", b"-", b"1e2", b"1_000", b"\\u0031", b"NaN", b"00", b"\xd9\xa1")
_HTTP = (
    b"GET / HTTP/1.1\r\n", b"Host: ledger.example\r\n", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n",
    b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"\r\n\r\n",
    b"Sec-WebSocket-Protocol: ledgerd.v1\r\n", b"Origin: https://app.example\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n", b"Authorization: Bearer lgd_x\r\n", b"X-Forwarded-For: ",
)  # fmt: skip
_FRAMES = (
    b"\x81\x85\0\0\0\0",
    b"\x01\x80\0\0\0\0",
    b"\x80\x80\0\0\0\0",
    b"\x89\x80\0\0\0\0",
    b"\x88\x80\0\0\0\0",
    b"\x81\xfe\x00\x7e",
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "codec", "decode_frame against a second, slow reading of JSON and its rules", codec.frames, 2_000, _JSON
        ),
        Target(
            "parameters",
            "parameters of every method, and the places of mistakes",
            codec.parameters,
            600,
            _JSON + _NAMES,
        ),
        Target("amounts", "amounts against decimal", codec.amounts, 64, _NUMBERS),
        Target("metadata", "the canonical text of metadata", codec.metadata, 600, _JSON),
        Target("cursors", "cursors of lists", codec.cursors, 200),
        Target(
            "wire", "WebSocket bytes: short cut, trio-websocket and wsproto, in any pieces", wire.wire, 600, _FRAMES
        ),
        Target("session", "one connection of the gateway, whatever is said on it", conversation.conversation, 1_500),
        Target("handshake", "HTTP and headers, and who is let in", door.door, 1_500, _HTTP),
    )
}


def named(names: Iterable[str]) -> list[Target]:
    """The targets of these names; ``all`` is all of them."""
    return [target for target in TARGETS.values() if target.name in names or "all" in names]
