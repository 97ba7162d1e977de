"""The betting wallet: bodies and answers as in the operator wallet API of Hub88, on the same kernel as everything else.

A bet is a debit, a win a credit that refers to its bet, a rollback a credit of the stake. Their transaction_id is the
supplier's transaction_uuid. What the profile has a rule for is answered as a result with a status; only what is about
the daemon (who may call, the database is away, ...) is an error, because then `applied` and `retryable` matter.

The kernel judges in the profile's order: account and amount, the uuid, currency, status, reference, funds. What the
profile looks at after all of these rides along as the command's late problem.
"""

from __future__ import annotations

from functools import partial

from msgspec import Struct, UnsetType
from uuid_utils import uuid7

from ledgerd.engine.commands import AccountRef, Command, Outcome, Posted, Refused
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.views import refusal_error
from ledgerd.gateway import wallet_bodies as bodies
from ledgerd.gateway.access import currency_scale, owns
from ledgerd.gateway.call import Call, Desk, Handler, Money, Plan, Read
from ledgerd.gateway.wallet_bodies import Body
from ledgerd_protocol.errors import ErrorCode, LedgerError
from ledgerd_protocol.messages import (
    WalletBalance,
    WalletBet,
    WalletCreateUsers,
    WalletRequest,
    WalletRollback,
    WalletWin,
)
from ledgerd_protocol.results import WalletAnswer, WalletCreated
from ledgerd_protocol.results import WalletStatus as Status

FIRST_UNITS = 100_000
FIRST_CURRENCY = "USD"
"""What every new user begins with."""


class _Play(Struct):
    """One bet, win or rollback on its way. ``late`` may still change: tokens are looked at before it is routed."""

    body: Body
    command: Command
    late: Status | None
    unit_decimals: int | None


# -- bets, wins and rollbacks -----------------------------------------------------------------------------------------


def wallet_bet(call: Call, params: WalletBet) -> Plan:
    """Answer `wallet_bet`."""
    return _plan(call, "bet", params)


def wallet_win(call: Call, params: WalletWin) -> Plan:
    """Answer `wallet_win`."""
    return _plan(call, "win", params)


def wallet_rollback(call: Call, params: WalletRollback) -> Plan:
    """Answer `wallet_rollback`."""
    return _plan(call, "rollback", params)


def _plan(call: Call, kind: str, params: WalletRequest) -> Plan:
    body = bodies.read(params)
    if isinstance(body, str):
        return _settled(bodies.said(params.user), body, bodies.said(params.request_uuid))
    if body.user is None:
        return _settled(body.said_user, "RS_ERROR_UNKNOWN", body.request_uuid)
    play = _play(call, kind, params, body, AccountRef(wallet=body.user))
    plan = Plan([play.command], partial(_conclude, play))
    if kind == "bet" and call.desk.config.wallet_tokens == "check":
        plan.prepare = partial(_look_at_token, play, bodies.text_of(params.token))
    return plan


def _settled(user: str | UnsetType, status: Status, request_uuid: str | UnsetType) -> Plan:
    """The plan of a request that is answered without asking anybody."""
    answer = WalletAnswer(user=user, status=status, request_uuid=request_uuid)
    return Plan([], lambda _: answer)


def _play(call: Call, kind: str, params: WalletRequest, body: Body, ref: AccountRef) -> _Play:
    unit_decimals = call.desk.config.wallet_unit_decimals
    late, amount = body.late, None
    if body.units is not None:
        scale = _scale(call, ref, body.currency)
        if scale is None:
            amount = "1"  # of a currency nobody has: the kernel comes as far as that
        else:
            if unit_decimals is not None and scale > unit_decimals:
                late = "RS_ERROR_WRONG_CURRENCY"
            amount = bodies.amount_of(body.units, scale if unit_decimals is None else unit_decimals)
    command = Command(
        kind=kind,
        principal=call.principal,
        transaction_id=body.transaction_id,
        attempt_id=str(uuid7()),
        debit=ref if kind == "bet" else None,
        credit=None if kind == "bet" else ref,
        amount=amount,
        # A rollback is of whatever account the bet was on.
        currency=None if kind == "rollback" else body.currency,
        reference=body.round,
        reason=body.game_code,
        metadata=bodies.kept(params, body.request_uuid),
        arrived_at=call.arrived_at,
        refers_to=body.refers_to,
        late_problem=None if late is None else ErrorCode.INVALID_PARAMS,
    )
    return _Play(body, command, late, unit_decimals)


def _scale(call: Call, ref: AccountRef, currency: str) -> int | None:
    """The decimals of a currency; None if there is no such currency. Raises LedgerError ``unavailable``."""
    facts = call.desk.directory.known(ref, currency)
    if facts is not None:
        return facts.scale
    try:
        return currency_scale(call, currency)
    except LedgerError:
        return None
    except StorageUnavailable as error:
        raise LedgerError(ErrorCode.UNAVAILABLE) from error


async def _look_at_token(play: _Play, secret: str | None, desk: Desk) -> None:
    """Whether the bet's token is one of its user: what is wrong with it is answered after funds, before formats.

    So a bet that is sent again gets its stored answer although the token has expired since.
    """
    user = play.body.user
    (facts,) = await desk.directory.find([(AccountRef(wallet=user), play.body.currency)])
    if facts is None:
        return
    status = await _token_status(desk, secret, facts.user_id)
    if status is not None:
        play.late = status
        play.command.late_problem = ErrorCode.INVALID_CREDENTIALS


async def _token_status(desk: Desk, secret: str | None, user_id: int) -> Status | None:
    try:
        principal = await desk.tokens.principal(secret or "")
    except LedgerError as error:
        expired = error.code is ErrorCode.SESSION_EXPIRED
        return "RS_ERROR_TOKEN_EXPIRED" if expired else "RS_ERROR_INVALID_TOKEN"
    return None if principal.user_id == user_id else "RS_ERROR_INVALID_TOKEN"


def _conclude(play: _Play, outcomes: list[Outcome]) -> WalletAnswer:
    (outcome,) = outcomes
    body = play.body
    if isinstance(outcome, Refused):
        return WalletAnswer(user=body.said_user, status=_status(play, outcome), request_uuid=body.request_uuid)
    if outcome.replayed and play.body.odd:  # the kernel compared all that it was given
        return WalletAnswer(
            user=body.said_user, status="RS_ERROR_DUPLICATE_TRANSACTION", request_uuid=body.request_uuid
        )
    return _stored_answer(play, outcome)


def _stored_answer(play: _Play, posted: Posted) -> WalletAnswer:
    """The answer as it was when the transaction was posted, whatever the balance is now."""
    record = posted.record
    decimals = record.scale if play.unit_decimals is None else play.unit_decimals
    return WalletAnswer(
        user=play.body.said_user,
        status="RS_OK",
        request_uuid=bodies.first_request_uuid(record.metadata) if posted.replayed else play.body.request_uuid,
        currency=record.currency,
        balance=bodies.units_of(record.sides[0].balance, record.scale, decimals),
    )


def _status(play: _Play, refused: Refused) -> Status:
    """What a refusal is called here. Raises LedgerError if it says nothing about the request."""
    command = play.command
    if play.late is not None and refused.code is command.late_problem:
        return play.late
    if refused.code is ErrorCode.AMOUNT_PRECISION:
        # Read in the stated currency's decimals, which are not those of the account.
        facts = command.debit_facts or command.credit_facts
        if facts is not None and facts.currency != command.currency:
            return "RS_ERROR_WRONG_CURRENCY"
    status = bodies.STATUSES.get(refused.code)
    if status is None:
        raise refusal_error(refused, command)
    return status


# -- users and balances -----------------------------------------------------------------------------------------------


async def wallet_balance(call: Call, params: WalletBalance) -> WalletAnswer:
    """Answer `wallet_balance`: of the account in the stated currency, else in the default one, else the first."""
    desk = call.desk
    user, request_uuid = bodies.said(params.user), bodies.said(params.request_uuid)

    def failed(status: Status) -> WalletAnswer:
        return WalletAnswer(user=user, status=status, request_uuid=request_uuid)

    if not user:
        return failed("RS_ERROR_UNKNOWN")
    stated = bodies.stated_currency(params)
    currency = desk.config.default_currency if stated is None else stated
    (facts,) = await desk.directory.find([(AccountRef(wallet=user), currency)])
    if facts is None or not owns(call.principal, facts):
        return failed("RS_ERROR_UNKNOWN")
    if desk.config.wallet_tokens == "check":
        token_status = await _token_status(desk, bodies.text_of(params.token), facts.user_id)
        if token_status is not None:
            return failed(token_status)
    decimals = facts.scale if desk.config.wallet_unit_decimals is None else desk.config.wallet_unit_decimals
    if stated not in (None, facts.currency) or facts.scale > decimals:
        return failed("RS_ERROR_WRONG_CURRENCY")
    late = bodies.late_of_balance(params)
    if late is not None:
        return failed(late)
    (state,) = await desk.books.account_states([facts.account_id])
    return WalletAnswer(
        user=user,
        status="RS_OK",
        request_uuid=request_uuid,
        currency=state.currency,
        balance=bodies.units_of(state.balance, state.scale, decimals),
    )


async def wallet_create_users(call: Call, params: WalletCreateUsers) -> WalletCreated:
    """Answer `wallet_create_users`. All of them or, if the call is refused, none."""
    names = bodies.read_names(params.users)
    if isinstance(names, str):
        return WalletCreated(created=0, status=names)
    if not names:
        return WalletCreated(created=0)
    desk = call.desk
    scale = currency_scale(call, FIRST_CURRENCY)
    decimals = scale if desk.config.wallet_unit_decimals is None else desk.config.wallet_unit_decimals
    amount, rest = divmod(FIRST_UNITS * 10**scale, 10**decimals)
    if scale > decimals or rest:
        return WalletCreated(created=0, status="RS_ERROR_WRONG_CURRENCY")
    created = await desk.books.create_wallet_users(
        names, token_id=call.principal.token_id, currency=FIRST_CURRENCY, scale=scale, amount=amount
    )
    if created:
        desk.hub.stir()
    return WalletCreated(created=created)


METHODS: dict[str, Handler] = {
    "wallet_create_users": Read(wallet_create_users, 128),
    "wallet_balance": Read(wallet_balance, bodies.ANSWER_BYTES_MAX),
    "wallet_bet": Money(wallet_bet),
    "wallet_win": Money(wallet_win),
    "wallet_rollback": Money(wallet_rollback),
}
