"""What the gateway and the hub ask of the database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from ledgerd.engine.commands import AccountRef, Record
from ledgerd.engine.states import AccountState, DueHold
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.conftest import Database
from tests.storage.desk import Desk, open_desk, posted, principal_of, refused, register, token_hash


async def busy_account(desk: Desk) -> tuple[AccountState, list[Record]]:
    """An account with versions 1 to 7 on either side, and the records in order."""
    account, other = await desk.account(), await desk.account(balance=1_000)
    operator = await desk.principal("operator")
    commands = [
        desk.credit(account, 100, reference="salary"),
        desk.debit(account, 10),
        desk.command("transfer", debit=other, credit=account, amount=50, reference="gift"),
        desk.command("transfer", debit=account, credit=other, amount=25),
        desk.command("limit", debit=account, amount=500, principal=operator),
        desk.command("cancel", debit=account),
        desk.debit(account, 200, reference="salary"),
        desk.credit(account, 5),
    ]
    outcomes = [posted(await desk.post(command)) for command in commands]
    return account, [outcome.record for outcome in outcomes if outcome.record.kind != "cancel"]


def version_of(record: Record, account: AccountState) -> int:
    return next(side.version for side in record.sides if side.account_id == account.account_id)


# -- directory and feed -----------------------------------------------------------------------------------------------


async def test_accounts_are_found_by_number_and_by_user_in_the_order_asked(database: Database) -> None:
    async with open_desk(database) as desk:
        one, two = await desk.account(), await desk.account(currency="EUR")
        found = await desk.books.find_accounts(
            [
                (AccountRef(user_id=two.user_id), "EUR"),
                (AccountRef(account_id=10**6), "USD"),
                (AccountRef(account_id=one.account_id), "EUR"),
                (AccountRef(user_id=two.user_id), "USD"),
                (AccountRef(user_id=one.user_id), "USD"),
                (AccountRef(account_id=-1), "USD"),
            ]
        )
        assert [facts and facts.account_id for facts in found] == [
            two.account_id,
            None,
            one.account_id,
            None,
            one.account_id,
            None,
        ]
        assert found[0] is not None
        assert (found[0].user_id, found[0].currency, found[0].scale) == (two.user_id, "EUR", 2)
        assert await desk.books.find_accounts([]) == []


async def test_accounts_are_found_by_wallet_and_the_first_stands_in_for_a_currency_it_lacks(database: Database) -> None:
    async with open_desk(database) as desk:
        maker = (await desk.principal("service")).token_id
        made = {"token_id": maker, "currency": "USD", "scale": 2, "amount": 1}
        assert await desk.books.create_wallet_users(["ada"], **made) == 1
        (one,) = await desk.books.accounts(None, 0, 10)
        euros = await desk.books.open_account(user_id=one.user_id, currency="EUR", scale=2)
        refs = [AccountRef(wallet="ada"), AccountRef(wallet="Ada")]
        found = await desk.books.find_accounts([(ref, currency) for ref in refs for currency in ("USD", "EUR", "JPY")])
        assert [facts and facts.account_id for facts in found] == [
            one.account_id,
            euros.account_id,
            one.account_id,
            None,
            None,
            None,
        ]


async def test_accounts_are_found_as_sides_of_transactions_and_the_world_is_the_other_side(database: Database) -> None:
    async with open_desk(database) as desk:
        one, two = await desk.account(balance=100), await desk.account()
        moved = posted(await desk.post(desk.command("transfer", debit=one, credit=two, amount=1)))
        paid = posted(await desk.post(desk.debit(one, 1)))
        brought = posted(await desk.post(desk.credit(two, 1)))
        ids = [outcome.record.transaction_id for outcome in (moved, paid, brought)]
        ids.append("019cc9b0-1c00-7a11-8a01-000000000001")
        refs = [ref for each in ids for ref in (AccountRef(payer_of=each), AccountRef(receiver_of=each))]
        found = await desk.books.find_accounts([(ref, "") for ref in refs])
        assert [facts and facts.account_id for facts in found] == [
            one.account_id,
            two.account_id,
            one.account_id,
            one.account_id,
            two.account_id,
            two.account_id,
            None,
            None,
        ]


async def test_due_holds_are_answered_oldest_first_by_the_ledgers_clock(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=100)
        assert await desk.books.expired_holds(10) == []
        holds = [
            posted(await desk.post(desk.command("hold", debit=account, amount=1, expires_in_s=seconds)))
            for seconds in (120, 60, 3600)
        ]
        assert await desk.books.expired_holds(10) == []
        await desk.owner("UPDATE ledgerd.settings SET clock_offset = '121 seconds'")
        due = [DueHold(holds[n].record.transaction_id, account.account_id) for n in (1, 0)]
        assert await desk.books.expired_holds(10) == due
        assert await desk.books.expired_holds(1) == due[:1]


async def test_account_states_come_in_the_order_of_their_numbers(database: Database) -> None:
    async with open_desk(database) as desk:
        one, two = await desk.account(balance=5), await desk.account(balance=7)
        states = await desk.books.account_states([two.account_id, 10**6, one.account_id])

        assert [(state.account_id, state.balance, state.version) for state in states] == [
            (one.account_id, 5, 1),
            (two.account_id, 7, 1),
        ]
        assert await desk.books.heads([one.account_id, two.account_id, 10**6]) == {
            one.account_id: 1,
            two.account_id: 1,
        }


async def test_history_has_every_version_once_in_order_without_a_hole(database: Database) -> None:
    async with open_desk(database) as desk:
        account, records = await busy_account(desk)
        history = await desk.books.history(account.account_id, 0, 100)

        assert history == records
        assert [version_of(record, account) for record in history] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_history_goes_on_where_it_is_told(database: Database, after: int, limit: int) -> None:
    async with open_desk(database) as desk:
        account, records = await busy_account(desk)
        assert await desk.books.history(account.account_id, after, limit) == records[after : after + limit]


# -- lists ------------------------------------------------------------------------------------------------------------


async def listed(
    desk: Desk,
    account: AccountState,
    *,
    newest_first: bool = False,
    after_version: int | None = None,
    limit: int = 100,
    kind: str | None = None,
    status: str | None = None,
    reference: str | None = None,
    created_from: str | None = None,
    created_before: str | None = None,
) -> list[int]:
    """Versions of the records that the filters let through."""
    listing = await desk.books.transactions(
        account.account_id,
        newest_first=newest_first,
        after_version=after_version,
        limit=limit,
        kind=kind,
        status=status,
        reference=reference,
        created_from=created_from,
        created_before=created_before,
    )
    return [version_of(record, account) for record in listing.records]


async def test_transactions_are_listed_in_both_directions_page_by_page(database: Database) -> None:
    async with open_desk(database) as desk:
        account, _ = await busy_account(desk)

        assert await listed(desk, account) == [1, 2, 3, 4, 5, 6, 7]
        assert await listed(desk, account, newest_first=True) == [7, 6, 5, 4, 3, 2, 1]
        assert await listed(desk, account, after_version=2, limit=2) == [3, 4]
        assert await listed(desk, account, after_version=4, limit=100) == [5, 6, 7]
        assert await listed(desk, account, newest_first=True, after_version=6, limit=3) == [5, 4, 3]
        assert await listed(desk, account, after_version=7) == []
        assert await listed(desk, account, newest_first=True, after_version=1) == []


async def test_transactions_are_filtered_by_each_member(database: Database) -> None:
    async with open_desk(database) as desk:
        account, records = await busy_account(desk)

        for newest_first in (False, True):

            def directed(*versions: int, backwards: bool = newest_first) -> list[int]:
                return sorted(versions, reverse=backwards)

            assert await listed(desk, account, newest_first=newest_first, kind="transfer") == directed(3, 4)
            assert await listed(desk, account, newest_first=newest_first, kind="hold") == []
            assert await listed(desk, account, newest_first=newest_first, kind="no such kind") == []
            assert await listed(desk, account, newest_first=newest_first, reference="salary") == directed(1, 6)
            assert await listed(desk, account, newest_first=newest_first, reference="salary", kind="debit") == [6]
            assert await listed(desk, account, newest_first=newest_first, status="cancelled") == []
            assert await listed(desk, account, newest_first=newest_first, status="posted", limit=7) == directed(
                1, 2, 3, 4, 5, 6, 7
            )
            since, before = records[2].created_at, records[5].created_at
            assert await listed(
                desk, account, newest_first=newest_first, created_from=since, created_before=before
            ) == directed(3, 4, 5)


async def test_accounts_and_tokens_are_listed_by_user_or_of_everybody(database: Database) -> None:
    async with open_desk(database) as desk:
        user, first, token = await register(desk.books)
        second = await desk.books.open_account(user_id=user.user_id, currency="EUR", scale=2)
        other = await desk.account()

        of_user = await desk.books.accounts(user.user_id, 0, 100)
        assert of_user == [first, second]
        assert await desk.books.accounts(user.user_id, first.account_id, 100) == [second]
        assert await desk.books.accounts(user.user_id, 0, 1) == [first]
        assert [account.account_id for account in await desk.books.accounts(None, 0, 100)] == [
            first.account_id,
            second.account_id,
            other.account_id,
        ]

        assert await desk.books.tokens(user.user_id, 0, 100) == [token]
        assert await desk.books.tokens(user.user_id, token.token_id, 100) == []
        everybodys = await desk.books.tokens(None, 0, 100)
        assert token in everybodys
        assert [entry.token_id for entry in everybodys] == sorted(entry.token_id for entry in everybodys)


# -- balances in the past ---------------------------------------------------------------------------------------------


async def test_a_balance_is_known_after_every_version(database: Database) -> None:
    async with open_desk(database) as desk:
        account, _ = await busy_account(desk)
        balances = [await desk.books.balance_at(account.account_id, version=version) for version in range(9)]

        assert [state and (state.version, state.balance, state.available) for state in balances] == [
            (0, 0, 0),
            (1, 100, 100),
            (2, 90, 90),
            (3, 140, 140),
            (4, 115, 115),
            (5, 115, 615),
            (6, -85, 415),
            (7, -80, 420),
            None,
        ]


async def test_a_balance_is_known_at_every_time_since_the_account_was_opened(database: Database) -> None:
    async with open_desk(database) as desk:
        account, records = await busy_account(desk)

        async def at(time: str) -> tuple[int, int] | None:
            state = await desk.books.balance_at(account.account_id, at=time)
            return None if state is None else (state.version, state.balance)

        assert await at("2001-01-01T00:00:00.000000Z") is None
        assert await at(account.created_at) == (0, 0)
        assert await at(records[0].created_at) == (1, 100)
        assert await at(records[3].created_at) == (4, 115)
        just_before = datetime.fromisoformat(records[3].created_at) - timedelta(microseconds=1)
        assert await at(just_before.isoformat()) == (3, 140)
        assert await at("2999-01-01T00:00:00.000000Z") == (7, -80)
        assert await desk.books.balance_at(10**6, at=account.created_at) is None
        assert await desk.books.balance_at(10**6, version=0) is None


# -- users and tokens -------------------------------------------------------------------------------------------------


async def test_registering_makes_a_user_an_account_at_zero_and_a_token(database: Database) -> None:
    async with open_desk(database) as desk:
        secret = token_hash()
        expires = datetime.now(UTC).timestamp() + 60
        user, account, token = await register(
            desk.books, name="Ada", email="Ada@example.com", password_hash="h", token_hash=secret, expires_at_s=expires
        )

        assert (user.name, user.email, user.status) == ("Ada", "Ada@example.com", "active")
        assert (account.user_id, account.currency, account.balance, account.version) == (user.user_id, "USD", 0, 0)
        assert (token.user_id, token.scopes, token.revoked_at) == (user.user_id, ("user",), None)
        assert token.expires_at_s == pytest.approx(expires, abs=1e-3)
        assert await desk.books.user(user.user_id) == user
        assert await desk.books.token_by_hash(secret) == await desk.books.token(token.token_id) == token
        assert await desk.books.login_material("ADA@EXAMPLE.COM") == (user, "h")


async def test_what_does_not_exist_is_none(database: Database) -> None:
    async with open_desk(database) as desk:
        assert await desk.books.user(1) is None
        assert await desk.books.token(1) is None
        assert await desk.books.token_by_hash(b"x" * 32) is None
        assert await desk.books.login_material("nobody@example.com") is None
        assert await desk.books.transaction("00000000-0000-4000-8000-000000000000") is None


async def test_an_email_in_use_is_refused_and_nothing_of_the_registration_stays(database: Database) -> None:
    async with open_desk(database) as desk:
        await register(desk.books, email="ada@example.com")
        with pytest.raises(LedgerError) as refusal:
            await register(desk.books, email="ADA@example.com")

        assert refusal.value.code == ErrorCode.ALREADY_EXISTS
        assert refusal.value.data == {"resource": "user"}
        assert len(await desk.books.accounts(None, 0, 100)) == 1
        assert len(await desk.books.tokens(None, 0, 100)) == 1


async def test_house_accounts_need_no_email(database: Database) -> None:
    async with open_desk(database) as desk:
        users = [(await register(desk.books))[0] for _ in range(2)]
        assert [user.email for user in users] == [None, None]


async def test_a_user_has_one_account_per_currency(database: Database) -> None:
    async with open_desk(database) as desk:
        user, _, _ = await register(desk.books)
        euros = await desk.books.open_account(user_id=user.user_id, currency="EUR", scale=2)
        assert (euros.user_id, euros.currency, euros.balance, euros.status) == (user.user_id, "EUR", 0, "active")

        with pytest.raises(LedgerError) as refusal:
            await desk.books.open_account(user_id=user.user_id, currency="EUR", scale=2)
        assert (refusal.value.code, refusal.value.data) == (ErrorCode.ALREADY_EXISTS, {"resource": "account"})


async def test_an_account_of_nobody_is_not_opened(database: Database) -> None:
    async with open_desk(database) as desk:
        with pytest.raises(LedgerError) as refusal:
            await desk.books.open_account(user_id=10**6, currency="EUR", scale=2)
        assert (refusal.value.code, refusal.value.data) == (ErrorCode.NOT_FOUND, {"resource": "user"})


async def test_an_account_of_a_disabled_user_pays_nothing_from_its_first_day(database: Database) -> None:
    async with open_desk(database) as desk:
        first = await desk.account()
        await desk.owner("UPDATE ledgerd.users SET status = 'disabled' WHERE user_id = $1", first.user_id)
        account = await desk.books.open_account(user_id=first.user_id, currency="EUR", scale=2)
        posted(await desk.post(desk.credit(account, 5)))

        assert refused(await desk.post(desk.debit(account, 5))).code == ErrorCode.USER_DISABLED


async def test_a_token_may_be_limited_to_an_account_and_expire(database: Database) -> None:
    async with open_desk(database) as desk:
        user, account, _ = await register(desk.books)
        token = await desk.books.create_token(
            token_hash=token_hash(),
            user_id=user.user_id,
            account_id=account.account_id,
            scopes=["user", "topup"],
            expires_at_s=1.5,
            label="till",
        )
        assert (token.account_id, token.label, token.expires_at_s) == (account.account_id, "till", 1.5)
        assert token.expires_at == "1970-01-01T00:00:01.500000Z"
        assert await desk.books.token(token.token_id) == token

        with pytest.raises(LedgerError) as refusal:
            await desk.books.create_token(
                token_hash=token_hash(), user_id=10**6, account_id=None, scopes=["user"], expires_at_s=None, label=None
            )
        assert refusal.value.code == ErrorCode.NOT_FOUND


async def test_tokens_are_revoked_one_by_one_or_all_of_a_user_and_only_once(database: Database) -> None:
    async with open_desk(database) as desk:
        user, _, first = await register(desk.books)
        second = await desk.principal("read", user_id=user.user_id)
        _, _, others = await register(desk.books)
        numbers = [first.token_id, second.token_id, others.token_id, 10**6]

        assert await desk.books.revoked_tokens(numbers) == [10**6]
        assert await desk.books.revoke_tokens(token_id=first.token_id) == 1
        assert await desk.books.revoke_tokens(token_id=first.token_id) == 0
        assert sorted(await desk.books.revoked_tokens(numbers)) == [first.token_id, 10**6]
        assert await desk.books.revoke_tokens(user_id=user.user_id) == 1
        assert sorted(await desk.books.revoked_tokens(numbers)) == [first.token_id, second.token_id, 10**6]
        revoked = await desk.books.token(first.token_id)
        assert revoked is not None
        assert revoked.revoked_at is not None


async def test_attempts_are_shown_to_who_acted_and_to_those_who_see_all(database: Database) -> None:
    async with open_desk(database) as desk:
        user, account, token = await register(desk.books)
        _, _, strangers = await register(desk.books)
        actor = principal_of(token)
        commands = [desk.debit(account, 5, principal=actor)]
        commands.append(desk.debit(account, 6, principal=actor, transaction_id=commands[0].transaction_id))
        for command in commands:
            refused(await desk.post(command))

        expected = [command.attempt_id for command in commands]
        transaction_id = commands[0].transaction_id
        everybody = {
            "actor": actor,
            "the actor's other token": await desk.principal("read", user_id=user.user_id),
            "operator": await desk.principal("operator"),
        }
        for principal in everybody.values():
            found = await desk.books.attempts(transaction_id, principal)
            assert [attempt.attempt_id for attempt in found] == expected
        assert await desk.books.attempts(transaction_id, principal_of(strangers)) == []


async def test_times_are_utc_with_six_digits(database: Database) -> None:
    async with open_desk(database) as desk:
        account, records = await busy_account(desk)
        for time in (account.created_at, account.updated_at, records[0].created_at):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time)


async def test_a_currency_is_known_from_its_first_account_on_to_every_daemon_that_meets_it(database: Database) -> None:
    async with open_desk(database) as desk, open_desk(database) as other:
        assert desk.books.facts().currencies == {}
        account = await desk.account(currency="EUR")
        assert desk.books.facts().currencies == {"EUR": 2}
        assert other.books.facts().currencies == {}
        await other.books.find_accounts([(AccountRef(account_id=account.account_id), "")])
        assert other.books.facts().currencies == {"EUR": 2}
