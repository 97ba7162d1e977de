"""The table of methods: which parameters, which result, and whose scopes allow it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ledgerd_protocol.messages import (
    AccountClose,
    AccountFreeze,
    AccountGet,
    AccountList,
    AccountOpen,
    AccountSetLimit,
    AccountUnfreeze,
    AdvanceGet,
    AdvanceList,
    AdvanceRepay,
    AdvanceRequest,
    BalanceGet,
    Credit,
    Debit,
    HoldCapture,
    HoldPlace,
    HoldRelease,
    LedgerSubscribe,
    LedgerUnsubscribe,
    MonitorList,
    MonitorRemove,
    MonitorSet,
    Nothing,
    Params,
    SessionAuthenticate,
    SessionChangePassword,
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
    TransactionReport,
    TransactionReverse,
    Transfer,
    UserDisable,
    UserEnable,
    UserGet,
    UserList,
    UserRegister,
    UserUpdate,
    WalletBalance,
    WalletBet,
    WalletCreateUsers,
    WalletRollback,
    WalletWin,
)
from ledgerd_protocol.results import (
    Account,
    Advance,
    Balance,
    BatchResult,
    Monitor,
    Page,
    Pong,
    Registered,
    Removed,
    ReportPage,
    Revoked,
    Session,
    SystemInfo,
    TokenInfo,
    Transaction,
    TransactionPage,
    User,
    WalletAnswer,
    WalletCreated,
)

READERS = frozenset({"read", "user", "service", "operator"})
SPENDERS = frozenset({"user", "service", "operator"})
ISSUERS = frozenset({"topup", "service", "operator"})
OWNERS = frozenset({"user", "operator"})
OVERSEERS = frozenset({"service", "operator"})
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
    Method("session_change_password", SessionChangePassword, Revoked, OWNERS),
    Method("user_register", UserRegister, Registered, ANYBODY),
    Method("user_get", UserGet, User, READERS),
    Method("user_list", UserList, Page, OVERSEERS),
    Method("user_update", UserUpdate, User, OWNERS),
    Method("user_disable", UserDisable, User, OPERATORS),
    Method("user_enable", UserEnable, User, OPERATORS),
    Method("token_create", TokenCreate, TokenInfo, OWNERS),
    Method("token_list", TokenList, Page, OWNERS),
    Method("token_revoke", TokenRevoke, Revoked, OWNERS),
    Method("account_open", AccountOpen, Account, OWNERS),
    Method("account_get", AccountGet, Account, READERS),
    Method("account_list", AccountList, Page, READERS),
    Method("account_set_limit", AccountSetLimit, Account, OPERATORS, money=True),
    Method("account_freeze", AccountFreeze, Account, OPERATORS, money=True),
    Method("account_unfreeze", AccountUnfreeze, Account, OPERATORS, money=True),
    Method("account_close", AccountClose, Account, OWNERS, money=True),
    Method("balance_get", BalanceGet, Balance, READERS),
    Method("credit", Credit, Transaction, ISSUERS, money=True),
    Method("debit", Debit, Transaction, SPENDERS, money=True),
    Method("transfer", Transfer, Transaction, SPENDERS, money=True),
    Method("hold_place", HoldPlace, Transaction, SPENDERS, money=True),
    Method("hold_capture", HoldCapture, Transaction, OVERSEERS, money=True),
    Method("hold_release", HoldRelease, Transaction, SPENDERS, money=True),
    Method("transaction_reverse", TransactionReverse, Transaction, OVERSEERS, money=True),
    Method("transaction_batch", TransactionBatch, BatchResult, SPENDERS | ISSUERS, money=True),
    Method("transaction_get", TransactionGet, Transaction, READERS),
    Method("transaction_cancel", TransactionCancel, Transaction, SPENDERS, money=True),
    Method("transaction_list", TransactionList, TransactionPage, READERS),
    Method("transaction_report", TransactionReport, ReportPage, READERS),
    Method("advance_request", AdvanceRequest, Advance, OVERSEERS, money=True),
    Method("advance_get", AdvanceGet, Advance, READERS),
    Method("advance_list", AdvanceList, Page, READERS),
    Method("advance_repay", AdvanceRepay, Advance, SPENDERS, money=True),
    Method("monitor_set", MonitorSet, Monitor, SPENDERS),
    Method("monitor_list", MonitorList, Page, READERS),
    Method("monitor_remove", MonitorRemove, Removed, SPENDERS),
    Method("wallet_create_users", WalletCreateUsers, WalletCreated, OVERSEERS),
    Method("wallet_balance", WalletBalance, WalletAnswer, OVERSEERS),
    Method("wallet_bet", WalletBet, WalletAnswer, OVERSEERS, money=True),
    Method("wallet_win", WalletWin, WalletAnswer, OVERSEERS, money=True),
    Method("wallet_rollback", WalletRollback, WalletAnswer, OVERSEERS, money=True),
    Method("ledger_subscribe", LedgerSubscribe, str, READERS),
    Method("ledger_unsubscribe", LedgerUnsubscribe, bool, READERS),
)

BATCHABLE = frozenset(
    {"credit", "debit", "transfer", "hold_place", "hold_capture", "hold_release", "transaction_reverse"}
)
"""Methods that transaction_batch takes as items."""
