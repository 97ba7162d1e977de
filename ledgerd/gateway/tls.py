"""The daemon's certificate: an SSL context that can be exchanged while it serves.

Rules of this file:

- Protocols and ciphers are those of Mozilla's "intermediate" recommendation (Security/Server Side TLS, version 5.7;
  TLS 1.2 only with forward secrecy and authenticated encryption, TLS 1.3 as OpenSSL has it, the client's order counts),
  without the DHE suites, which only clients of another decade need and which are the dearest to answer.
- No compression, no renegotiation, and no session tickets: connections are few and long, and a key that opens all
  resumed sessions would have to be rotated.
- A context is tried before it is used: it must complete a handshake with itself. A broken file is found here, with a
  sentence about it, and not by the first client. What is in force stays in force until its successor has passed.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ledgerd.metrics import CERTIFICATE_EXPIRY

log = structlog.get_logger("ledgerd.gateway.tls")

CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for key in ("ECDSA", "RSA")
)
"""Of TLS 1.2."""

_EXPIRED, _NOT_YET_VALID = 10, 9
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""

_GREETINGS_MAX = 10
"""Turns of a handshake with oneself; three are enough."""


class CertificateUnusable(Exception):
    """The files of tls_certificate and tls_key do not make a server: the message says which, and why."""


class ServerTls:
    """The certificate in force. New connections take ``context``; those that are open keep theirs."""

    def __init__(self, certificate: str, key: str = "") -> None:
        """Read the files. ``key`` is empty if the certificate's file holds it too. Raises CertificateUnusable."""
        self._certificate = certificate
        self._key = key
        self.context = self._read()

    def reload(self) -> None:
        """Read the files again. Raises CertificateUnusable, and then goes on with what it had."""
        self.context = self._read()

    def _read(self) -> ssl.SSLContext:
        context = _read_files(Path(self._certificate), Path(self._key or self._certificate))
        expires_at, trouble = _examined(context, self._certificate)
        CERTIFICATE_EXPIRY.set(0 if expires_at is None else expires_at.timestamp())
        until = None if expires_at is None else expires_at.isoformat()
        if trouble:
            log.warning("certificate_read", file=self._certificate, valid_until=until, trouble=trouble)
        else:
            log.info("certificate_read", file=self._certificate, valid_until=until)
        return context


def _read_files(certificate: Path, key: Path) -> ssl.SSLContext:
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise CertificateUnusable(f"{name}: {path} cannot be read: {error.strerror or error}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise CertificateUnusable(_in_words(error, certificate, key)) from error
    except _Locked:
        raise CertificateUnusable(f"tls_key: {key} needs a password; the daemon has nobody to ask for it") from None
    return context


class _Locked(Exception):
    """OpenSSL asks for the key's password."""


def _no_password() -> str:
    raise _Locked


def _in_words(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: {key} is not the key of the certificate in {certificate}"
    if certificate == key:
        return f"tls_certificate: {certificate} must hold a certificate and its key, in PEM, as tls_key is not set"
    if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
        return f"tls_certificate: {certificate} holds no certificate in PEM"
    if b"PRIVATE KEY-----" not in key.read_bytes():
        return f"tls_key: {key} holds no private key in PEM"
    return f"tls_certificate, tls_key: {certificate} and {key} cannot be used: {error.reason or error}"


def _examined(context: ssl.SSLContext, certificate: str) -> tuple[datetime | None, str]:
    """Until when the certificate is good, if that can be said, and what is wrong with it, or nothing.

    Raises CertificateUnusable if no handshake succeeds with it.
    """
    try:
        found = _greet_itself(context, certificate)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            return None, "it has expired: most clients will refuse it"
        if error.verify_code == _NOT_YET_VALID:
            return None, "it is not valid yet: most clients will refuse it"
        return None, f"clients may refuse it: {error.verify_message}"
    except ssl.SSLError as error:
        raise CertificateUnusable(f"tls_certificate: no handshake succeeds with {certificate}: {error}") from error
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(found), UTC), ""


def _greet_itself(context: ssl.SSLContext, certificate: str) -> str:
    """Complete a handshake in memory; the client trusts nothing but the certificate. Answers when that expires.

    Raises ssl.SSLError.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for _ in range(_GREETINGS_MAX):
        done = [_advanced(side) for side in (client, server)]
        if all(done):
            break
    found = client.getpeercert()
    assert found is not None
    return str(found["notAfter"])


def _advanced(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
