"""The first token of a database, made with the owner's connection: afterwards operators make them over the wire."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence

import asyncpg


def create_first_token(dsn: str, scopes: Sequence[str], label: str, user_id: int | None = None) -> str:
    """Create a token that does not expire and answer its secret.

    Raises OSError or asyncpg.PostgresError (a scope that does not exist is a check violation).
    """
    secret = "lgd_" + secrets.token_urlsafe(32)
    asyncio.run(_create(dsn, hashlib.sha256(secret.encode()).digest(), list(scopes), label, user_id))
    return secret


def token_is_valid(dsn: str, secret: str) -> bool:
    """Whether a secret belongs to a token that is neither revoked nor expired."""
    return asyncio.run(_is_valid(dsn, hashlib.sha256(secret.encode()).digest()))


async def _create(dsn: str, token_hash: bytes, scopes: list[str], label: str, user_id: int | None) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.fetchval(
            "SELECT ledgerd.create_token($1, $2, NULL, $3, NULL, $4)", token_hash, user_id, scopes, label
        )
    finally:
        await connection.close()


async def _is_valid(dsn: str, token_hash: bytes) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return bool(
            await connection.fetchval(
                "SELECT EXISTS (SELECT FROM ledgerd.tokens WHERE token_hash = $1 AND revoked_at IS NULL "
                "AND (expires_at IS NULL OR expires_at > now()))",
                token_hash,
            )
        )
    finally:
        await connection.close()
