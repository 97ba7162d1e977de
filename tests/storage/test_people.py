"""What happens to users after they have registered: their details, their passwords, and being disabled."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from ledgerd.engine.ports import StorageUnavailable
from ledgerd.storage.queries import QUERIES
from ledgerd_protocol.errors import ErrorCode, LedgerError
from tests.conftest import Database
from tests.storage.bench import Answer, Bench, fresh_id
from tests.storage.desk import open_desk, posted, refused, register, token_hash
from tests.storage.racing import lanes, post, until_waiting

# -- details ----------------------------------------------------------------------------------------------------------


async def test_a_name_and_an_e_mail_are_changed_and_what_is_not_given_stays(database: Database) -> None:
    async with open_desk(database) as desk:
        user, _, _ = await register(desk.books, name="Ada", email="ada@example.com")
        renamed = await desk.books.update_user(user.user_id, name="Ada L.", email=None)
        assert renamed is not None
        assert (renamed.name, renamed.email) == ("Ada L.", "ada@example.com")
        moved = await desk.books.update_user(user.user_id, name=None, email="Ada@example.com")
        assert moved is not None
        assert (moved.name, moved.email) == ("Ada L.", "Ada@example.com")
        assert await desk.books.user(user.user_id) == moved
        assert await desk.books.update_user(10**6, name="nobody", email=None) is None


async def test_an_e_mail_of_somebody_else_is_refused_whatever_its_case(database: Database) -> None:
    async with open_desk(database) as desk:
        await register(desk.books, email="ada@example.com")
        user, _, _ = await register(desk.books, name="Bob", email="bob@example.com")
        with pytest.raises(LedgerError) as refusal:
            await desk.books.update_user(user.user_id, name="Eve", email="ADA@Example.com")
        assert (refusal.value.code, refusal.value.data) == (ErrorCode.ALREADY_EXISTS, {"resource": "user"})
        assert await desk.books.user(user.user_id) == user


async def test_users_are_listed_by_number(database: Database) -> None:
    async with open_desk(database) as desk:
        users = [(await register(desk.books, name=name))[0] for name in "abc"]
        assert await desk.books.users(0, 100) == users
        assert await desk.books.users(users[0].user_id, 1) == users[1:2]
        assert await desk.books.users(users[2].user_id, 100) == []


# -- passwords --------------------------------------------------------------------------------------------------------


async def test_a_changed_password_ends_every_token_of_the_user_but_the_one_in_use(database: Database) -> None:
    async with open_desk(database) as desk:
        user, _, kept = await register(desk.books, email="ada@example.com", password_hash="old")
        others = [(await desk.principal("user", user_id=user.user_id)).token_id for _ in range(2)]
        revoked = await desk.principal("read", user_id=user.user_id)
        await desk.books.revoke_tokens(token_id=revoked.token_id)
        _, _, strangers = await register(desk.books)

        def change(old_hash: str, new_hash: str) -> Any:
            return desk.books.change_password(
                user_id=user.user_id, old_hash=old_hash, new_hash=new_hash, kept_token_id=kept.token_id
            )

        assert await change("another", "new") is None
        assert await desk.books.revoked_tokens([kept.token_id, *others]) == []
        assert await change("old", "new") == 2
        assert await desk.books.login_material("ada@example.com") == (user, "new")
        ended = await desk.books.revoked_tokens([kept.token_id, *others, strangers.token_id])
        assert sorted(ended) == others


async def test_a_session_is_opened_only_with_the_password_that_is_the_present_one(database: Database) -> None:
    async with open_desk(database) as desk:
        user, _, _ = await register(desk.books, email="ada@example.com", password_hash="old")

        def session(password_hash: str) -> Any:
            return desk.books.open_session(
                token_hash=token_hash(),
                user_id=user.user_id,
                password_hash=password_hash,
                scopes=["user"],
                expires_at_s=2e9,
            )

        token = await session("old")
        assert (token.user_id, token.account_id, token.label, token.expires_at_s) == (
            user.user_id,
            None,
            "session",
            2e9,
        )
        assert await session("new") is None
        assert len(await desk.books.tokens(user.user_id, 0, 100)) == 2


def test_a_session_that_is_being_opened_while_the_password_changes_does_not_outlive_it(bench: Bench) -> None:
    bench.execute("INSERT INTO ledgerd.users (name, password_hash, created_at) VALUES ('Ada', 'old', now())")
    in_use = bench.token("user", user=1)
    session: tuple[Any, ...] = (b"x" * 32, 1, "old", ["user"], None)
    change: tuple[Any, ...] = (1, "old", "new", in_use)

    async def race() -> tuple[Any, Any, Any]:
        async with lanes(bench, 2) as (first, second):
            opening = first.transaction()
            await opening.start()
            token = await first.fetchval(QUERIES["open_session"], *session)
            changing = asyncio.create_task(second.fetchval(QUERIES["change_password"], *change))
            await until_waiting(bench, second, for_="transactionid")
            await opening.commit()
            revoked = await changing

            change_back = second.transaction()
            await change_back.start()
            await second.fetchval(QUERIES["change_password"], 1, "new", "newer", in_use)
            late = asyncio.create_task(first.fetchval(QUERIES["open_session"], b"y" * 32, 1, "new", ["user"], None))
            await until_waiting(bench, first, for_="transactionid")
            await change_back.commit()
            return token, revoked, await late

    token, revoked, late = bench.run(race())
    assert (revoked, late) == (1, None)
    assert bench.value("SELECT revoked_at IS NOT NULL FROM ledgerd.tokens WHERE token_id = $1", token)


# -- disabling --------------------------------------------------------------------------------------------------------


async def test_a_disabled_user_spends_from_no_account_and_receives_on_every_one(database: Database) -> None:
    async with open_desk(database) as desk:
        dollars = await desk.account(balance=100)
        euros = await desk.books.open_account(user_id=dollars.user_id, currency="EUR", scale=2)
        other = await desk.account(balance=100)
        posted(await desk.post(desk.credit(euros, 100)))

        disabled = await desk.books.set_user_status(dollars.user_id, "disabled")
        assert disabled is not None
        assert disabled.status == "disabled"
        for account in (dollars, euros):
            assert refused(await desk.post(desk.debit(account, 1))).code == ErrorCode.USER_DISABLED
            posted(await desk.post(desk.credit(account, 1)))
        out = desk.command("transfer", debit=dollars, credit=other, amount=1)
        assert refused(await desk.post(out)).code == ErrorCode.USER_DISABLED
        posted(await desk.post(desk.command("transfer", debit=other, credit=dollars, amount=1)))

        enabled = await desk.books.set_user_status(dollars.user_id, "active")
        assert enabled is not None
        assert enabled.status == "active"
        for account in (dollars, euros):
            posted(await desk.post(desk.debit(account, 1)))


async def test_nobody_is_disabled_who_does_not_exist_and_a_user_without_accounts_can_be(database: Database) -> None:
    async with open_desk(database) as desk:
        assert await desk.books.set_user_status(10**6, "disabled") is None
        ((number,),) = await desk.owner(
            "INSERT INTO ledgerd.users (name, created_at) VALUES ('a user', now()) RETURNING user_id"
        )
        disabled = await desk.books.set_user_status(number, "disabled")
        assert disabled is not None
        assert disabled.status == "disabled"


async def test_a_debit_from_before_is_replayed_to_a_disabled_user(database: Database) -> None:
    async with open_desk(database) as desk:
        account = await desk.account(balance=100)
        command = desk.debit(account, 1)
        first = posted(await desk.post(command))
        await desk.books.set_user_status(account.user_id, "disabled")
        again = desk.debit(account, 1, transaction_id=command.transaction_id)
        assert posted(await desk.post(again)).record == first.record


async def disable(connection: asyncpg.Connection, user: int, status: str = "disabled") -> None:
    await connection.execute("SELECT ledgerd.set_user_status($1, $2)", user, status)


def owner_of(bench: Bench, account: int) -> int:
    return int(bench.value("SELECT user_id FROM ledgerd.accounts WHERE account_id = $1", account))


def test_disabling_waits_for_the_debits_under_way_and_no_later_one_is_posted(bench: Bench) -> None:
    account = bench.account(balance=100)
    user = owner_of(bench, account)

    async def race() -> Answer:
        async with lanes(bench, 3) as (first, second, third):
            debit = first.transaction()
            await debit.start()
            (before,) = await post(first, bench.debit(account, 10))
            assert before.posted
            disabling = asyncio.create_task(disable(second, user))
            await until_waiting(bench, second, for_="advisory")
            late = asyncio.create_task(post(third, bench.debit(account, 10)))
            await until_waiting(bench, third, for_="advisory")
            await debit.commit()
            await disabling
            (answer,) = await late
            return answer

    assert bench.run(race()).code == ErrorCode.USER_DISABLED
    assert bench.stored_account(account).balance == 90


def test_a_debit_that_waits_for_the_disabling_is_refused_when_it_is_over(bench: Bench) -> None:
    account = bench.account(balance=100)
    user = owner_of(bench, account)

    async def race() -> Answer:
        async with lanes(bench, 2) as (first, second):
            disabling = first.transaction()
            await disabling.start()
            await disable(first, user)
            late = asyncio.create_task(post(second, bench.debit(account, 10)))
            await until_waiting(bench, second, for_="advisory")
            await disabling.commit()
            (answer,) = await late
            return answer

    assert bench.run(race()).code == ErrorCode.USER_DISABLED


@pytest.mark.parametrize("lane_count", [2, 4])
def test_after_the_answer_to_a_disabling_no_lane_posts_a_debit(bench: Bench, lane_count: int) -> None:
    user = bench.user()
    accounts = [bench.account(user, currency, balance=10_000) for currency in ("USD", "EUR", "JPY")]

    async def spend(connection: asyncpg.Connection, refusals: list[int]) -> None:
        while not refusals or len(refusals) < 3:
            for answer in await post(connection, *(bench.debit(account, 1) for account in accounts)):
                if not answer.posted:
                    assert answer.code == ErrorCode.USER_DISABLED
                    refusals.append(1)
                else:
                    assert not refusals, "a debit was posted after one was refused"

    async def race() -> int:
        async with lanes(bench, lane_count) as connections:
            spenders = [asyncio.create_task(spend(connection, [])) for connection in connections]
            while not await bench.owner.fetchval("SELECT count(*) > 30 FROM ledgerd.transactions"):
                pass  # the test's timeout bounds it
            await disable(bench.daemon, user)
            seen = await bench.owner.fetchval("SELECT count(*) FROM ledgerd.transactions WHERE kind = 'debit'")
            await asyncio.gather(*spenders)
            return int(seen)

    seen = bench.run(race())
    assert bench.value("SELECT count(*) FROM ledgerd.transactions WHERE kind = 'debit'") == seen


def test_disabling_locks_the_accounts_of_the_user_as_the_kernel_does(bench: Bench) -> None:
    user = bench.user()
    accounts = [bench.account(user, currency) for currency in ("USD", "EUR", "JPY")]
    bench.account()
    deployment = bench.value("SELECT deployment FROM ledgerd.settings")

    async def keys() -> set[int]:
        async with bench.daemon.transaction():
            await disable(bench.daemon, user)
            rows = await bench.owner.fetch(
                "SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks "
                "WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid = $1",
                bench.daemon.get_server_pid(),
            )
            return {row["key"] for row in rows}

    assert bench.run(keys()) == {(deployment << 48) | account for account in accounts}


@pytest.mark.parametrize("opened_first", [True, False])
def test_an_account_that_is_opened_during_the_disabling_is_disabled_too(bench: Bench, opened_first: bool) -> None:
    user = owner_of(bench, bench.account())
    opening = "SELECT ledgerd.open_account($1, 'EUR', 2)"

    async def race() -> int:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            if opened_first:
                account = await first.fetchval(opening, user)
                waiter = asyncio.create_task(disable(second, user))
            else:
                await disable(first, user)
                waiter = asyncio.create_task(second.fetchval(opening, user))
            await until_waiting(bench, second, for_="transactionid")
            await transaction.commit()
            opened = await waiter
            return int(account if opened_first else opened)

    account = bench.run(race())
    assert bench.post(bench.credit(account, 5)).posted
    assert bench.post(bench.debit(account, 5)).code == ErrorCode.USER_DISABLED


async def test_a_disabling_that_waits_too_long_is_unavailable_and_has_not_happened(database: Database) -> None:
    async with open_desk(database, lock_timeout_s=0.2) as desk:
        account = await desk.account(balance=100)

        async def hold_while_disabling() -> None:
            connection = await asyncpg.connect(database.dsn)
            await connection.execute("BEGIN")
            await connection.execute("UPDATE ledgerd.users SET name = name WHERE user_id = $1", account.user_id)
            holders.append(connection)

        holders: list[asyncpg.Connection] = []
        await desk.generation.crossing.run_unwatched(hold_while_disabling)
        with pytest.raises(StorageUnavailable) as caught:
            await desk.books.set_user_status(account.user_id, "disabled")
        assert caught.value.applied is False
        await desk.generation.crossing.run_unwatched(holders[0].close)
        posted(await desk.post(desk.debit(account, 1)))


# -- tries at passwords -----------------------------------------------------------------------------------------------

TAKE = QUERIES["take_password_try"]
RETURN = QUERIES["return_password_try"]


def take(bench: Bench, email: str | None, address: str | None, per_min: int = 3) -> int:
    return int(bench.run(bench.daemon.fetchval(TAKE, email, address, per_min)))


def pass_time(bench: Bench, seconds: float) -> None:
    """Make what is stored so much older."""
    bench.execute("UPDATE ledgerd.password_tries SET filled_at = filled_at - make_interval(secs => $1)", seconds)


def test_there_are_so_many_tries_for_an_e_mail_whatever_its_case_and_wherever_from(bench: Bench) -> None:
    emails = ["ada@example.com", "ADA@example.com", "Ada@Example.Com"]
    assert [take(bench, email, f"10.0.0.{n}") for n, email in enumerate(emails)] == [0, 0, 0]
    assert 19_000 < take(bench, "ada@example.com", "10.0.0.9") <= 20_000
    assert take(bench, "bob@example.com", "10.0.0.9") == 0


def test_there_are_so_many_tries_from_an_address_whatever_they_are_for(bench: Bench) -> None:
    assert [take(bench, f"{n}@example.com", "10.0.0.1") for n in range(3)] == [0, 0, 0]
    assert take(bench, "another@example.com", "10.0.0.1") > 0
    assert take(bench, "another@example.com", "10.0.0.2") == 0
    assert take(bench, "another@example.com", None) == 0


def test_a_refused_try_takes_nothing_from_the_other_bucket(bench: Bench) -> None:
    for _ in range(3):
        take(bench, "ada@example.com", "10.0.0.1")
    for _ in range(5):
        assert take(bench, "bob@example.com", "10.0.0.1") > 0
        assert take(bench, "ada@example.com", "10.0.0.2") > 0
    assert [take(bench, "bob@example.com", "10.0.0.2") for _ in range(3)] == [0, 0, 0]


def test_tries_come_back_with_time_and_never_more_than_there_were(bench: Bench) -> None:
    for _ in range(3):
        take(bench, "ada@example.com", None)
    pass_time(bench, 10)
    assert 9_000 < take(bench, "ada@example.com", None) <= 10_000
    pass_time(bench, 10)
    assert take(bench, "ada@example.com", None) == 0
    assert take(bench, "ada@example.com", None) > 0
    pass_time(bench, 3_600)
    assert [take(bench, "ada@example.com", None) for _ in range(3)] == [0, 0, 0]
    assert take(bench, "ada@example.com", None) > 0


def test_a_try_that_is_given_back_is_there_again_and_no_more_than_that(bench: Bench) -> None:
    for _ in range(10):
        assert take(bench, "ada@example.com", "10.0.0.1") == 0
        bench.run(bench.daemon.execute(RETURN, "Ada@example.com", "10.0.0.1", 3))
    bench.run(bench.daemon.execute(RETURN, "ada@example.com", "10.0.0.1", 3))
    assert [take(bench, "ada@example.com", "10.0.0.1") for _ in range(3)] == [0, 0, 0]
    assert take(bench, "ada@example.com", "10.0.0.1") > 0


def test_the_ledgers_clock_does_not_move_the_tries(bench: Bench) -> None:
    for _ in range(3):
        take(bench, "ada@example.com", None)
    bench.execute("UPDATE ledgerd.settings SET clock_offset = '1 year'")
    assert take(bench, "ada@example.com", None) > 0


def test_many_daemons_at_once_have_one_allowance_together(bench: Bench) -> None:
    async def race() -> list[int]:
        async with lanes(bench, 6) as connections:

            async def try_often(connection: asyncpg.Connection, number: int) -> list[int]:
                # From the same address for several e-mails, and the other way round: the locks cross.
                return [
                    await connection.fetchval(TAKE, f"{(number + n) % 2}@example.com", f"10.0.0.{n % 3}", 30)
                    for n in range(40)
                ]

            answers = await asyncio.gather(*(try_often(lane, n) for n, lane in enumerate(connections)))
            return [answer for lane in answers for answer in lane]

    answers = bench.run(race())
    # Two e-mails of thirty each, and what trickled in meanwhile.
    assert 60 <= answers.count(0) <= 63
    assert len(answers) == 240


def test_a_second_daemon_waits_for_the_first_ones_try(bench: Bench) -> None:
    async def race() -> tuple[int, int]:
        async with lanes(bench, 2) as (first, second):
            transaction = first.transaction()
            await transaction.start()
            one = await first.fetchval(TAKE, "ada@example.com", "10.0.0.1", 1)
            waiter = asyncio.create_task(second.fetchval(TAKE, "ada@example.com", "10.0.0.2", 1))
            await until_waiting(bench, second, for_="transactionid")
            await transaction.commit()
            return one, await waiter

    one, other = bench.run(race())
    assert one == 0
    assert other > 50_000


def test_full_buckets_are_forgotten_so_that_the_table_stays_small(bench: Bench) -> None:
    for n in range(40):
        take(bench, f"{n}@example.com", f"10.0.0.{n}")
        pass_time(bench, 61)
    assert bench.value("SELECT count(*) FROM ledgerd.password_tries") <= 4
    # Refused tries clear up too.
    for n in range(20):
        take(bench, f"{n}@example.com", f"10.0.1.{n}", 1)
    for _ in range(40):
        pass_time(bench, 61)
        take(bench, "a@example.com", "10.0.0.1", 1)
        take(bench, "a@example.com", "10.0.0.1", 1)
    assert bench.value("SELECT count(*) FROM ledgerd.password_tries") <= 4


def test_who_signs_in_from_where_is_not_to_be_read_in_the_table(bench: Bench) -> None:
    take(bench, "ada@example.com", "10.0.0.1")
    for row in bench.fetch("SELECT t::text AS stored FROM ledgerd.password_tries AS t"):
        assert "ada" not in row["stored"]
        assert "10.0.0.1" not in row["stored"]
    assert bench.value("SELECT relpersistence FROM pg_class WHERE oid = 'ledgerd.password_tries'::regclass") == b"u"


def test_an_e_mail_and_an_address_that_are_spelled_alike_are_two_buckets(bench: Bench) -> None:
    assert [take(bench, "same", None) for _ in range(3)] == [0, 0, 0]
    assert take(bench, None, "same") == 0
    assert take(bench, fresh_id() * 10, "x" * 10_000) == 0
