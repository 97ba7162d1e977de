"""The table of methods: which parameters, which result, and whose scopes allow it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ledgerd_protocol.messages import (
    AccountGet,
    AccountList,
    AccountOpen,
    AccountSetLimit,
    BalanceGet,
    Credit,
    Debit,
    LedgerSubscribe,
    LedgerUnsubscribe,
    Nothing,
    Params,
    SessionAuthenticate,
    SessionLogin,
    SessionLogout,
    SystemPing,
    TokenCreate,
    TokenList,
    TokenRevoke,
    TransactionBatch,
    TransactionCancel,
    TransactionGet,
    TransactionList,
    Transfer,
    UserGet,
    UserRegister,
)
from ledgerd_protocol.results import (
    Account,
    Balance,
    BatchResult,
    Page,
    Pong,
    Registered,
    Revoked,
    Session,
    SystemInfo,
    TokenInfo,
    Transaction,
    User,
)

READERS = frozenset({"read", "user", "service", "operator"})
SPENDERS = frozenset({"user", "service", "operator"})
ISSUERS = frozenset({"topup", "service", "operator"})
OWNERS = frozenset({"user", "operator"})
OPERATORS = frozenset({"operator"})
ANYBODY: frozenset[str] = frozenset()
"""Needs no scope; the only set that also serves connections that have not signed in."""


class Method(Struct, frozen=True):
    """One method: its parameters, its result, and the scopes of which the caller needs one."""

    name: str
    params: type[Params]
    result: Any
    scopes: frozenset[str]
    money: bool = False

    @property
    def positional(self) -> bool:
        """Whether positional parameters are accepted: for reads, system, session and feed methods, never for money."""
        return not self.money


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS: dict[str, Method] = _table(
    Method("rpc.discover", Nothing, dict[str, Any], ANYBODY),
    Method("system_ping", SystemPing, Pong, ANYBODY),
    Method("system_info", Nothing, SystemInfo, ANYBODY),
    Method("session_login", SessionLogin, Session, ANYBODY),
    Method("session_authenticate", SessionAuthenticate, Session, ANYBODY),
    Method("session_status", Nothing, Session, ANYBODY),
    Method("session_logout", SessionLogout, Revoked, ANYBODY),
    Method("user_register", UserRegister, Registered, ANYBODY),
    Method("user_get", UserGet, User, READERS),
    Method("token_create", TokenCreate, TokenInfo, OWNERS),
    Method("token_list", TokenList, Page, OWNERS),
    Method("token_revoke", TokenRevoke, Revoked, OWNERS),
    Method("account_open", AccountOpen, Account, OWNERS),
    Method("account_get", AccountGet, Account, READERS),
    Method("account_list", AccountList, Page, READERS),
    Method("account_set_limit", AccountSetLimit, Account, OPERATORS, money=True),
    Method("balance_get", BalanceGet, Balance, READERS),
    Method("credit", Credit, Transaction, ISSUERS, money=True),
    Method("debit", Debit, Transaction, SPENDERS, money=True),
    Method("transfer", Transfer, Transaction, SPENDERS, money=True),
    Method("transaction_batch", TransactionBatch, BatchResult, SPENDERS | ISSUERS, money=True),
    Method("transaction_get", TransactionGet, Transaction, READERS),
    Method("transaction_cancel", TransactionCancel, Transaction, SPENDERS, money=True),
    Method("transaction_list", TransactionList, Page, READERS),
    Method("ledger_subscribe", LedgerSubscribe, str, READERS),
    Method("ledger_unsubscribe", LedgerUnsubscribe, bool, READERS),
)

BATCHABLE = frozenset({"credit", "debit", "transfer"})
"""Methods that transaction_batch takes as items."""
