"""From the door to the acting user's worker: who acts, on which accounts, with how much.

Commands whose accounts are remembered go on at once, without a task and without waiting. The others stand in one line
while a single task asks the database for all of them together, and a command never passes an earlier one of the same
token that still stands there: what is asked for is whose command it is, so nothing narrower keeps a user's order.

A command may refer to one that was sent just before it and is not posted yet. So the router also remembers the accounts
of what each token has sent lately. A wrong memory only costs a detour: which accounts a transaction is really on is for
the kernel to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import structlog
import trio

from ledgerd.config import Config
from ledgerd.engine.commands import ABSENT, REFERRING, AccountFacts, AccountRef, Command, Principal, Unit
from ledgerd.engine.committer import Committer
from ledgerd.engine.directory import AccountDirectory, Key, key_of
from ledgerd.engine.ports import StorageUnavailable
from ledgerd.engine.user_worker import UserWorker
from ledgerd_protocol.errors import ErrorCode
from ledgerd_protocol.money import AmountOutOfRange, AmountPrecision, to_minor

log = structlog.get_logger(__name__)

Look = Callable[[AccountRef, str], AccountFacts | None]
"""Finds an account by ref and currency without waiting."""

SENT_MAX = 50_000
"""Commands whose accounts are remembered for those that refer to them: some seconds at full speed."""


class SentLately:
    """The accounts of commands that were sent lately: who pays and who receives; for the world, the other side.

    Found only by the token that sent them: what others send under an id that they learned is none of its business. In
    two generations, like the directory: what is older than half of what fits may be forgotten.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, entries_max: int = SENT_MAX) -> None:
        self._half = max(1, entries_max // 2)
        self._young: dict[str, tuple[int, AccountFacts, AccountFacts]] = {}
        self._old: dict[str, tuple[int, AccountFacts, AccountFacts]] = {}

    def keep(self, token_id: int, transaction_id: str, payer: AccountFacts, receiver: AccountFacts) -> None:
        """Remember the accounts of a command."""
        young = self._young
        if len(young) >= self._half:
            self._old = young
            self._young = young = {}
        young[transaction_id] = (token_id, payer, receiver)

    def find(self, token_id: int, ref: AccountRef) -> AccountFacts | None:
        """The account that is meant as a side of a transaction which this token sent lately."""
        payer_of = ref.payer_of
        transaction_id = ref.receiver_of if payer_of is None else payer_of
        if transaction_id is None:
            return None
        sent = self._young.get(transaction_id) or self._old.get(transaction_id)
        if sent is None or sent[0] != token_id:
            return None
        return sent[2] if payer_of is None else sent[1]


class Router:
    """Hands units to user workers, and starts and retires these."""

    def __init__(
        self, config: Config, directory: AccountDirectory, committer: Committer, nursery: trio.Nursery
    ) -> None:
        """Workers run in ``nursery``, which ends with the daemon, not with a database generation."""
        self._config = config
        self._directory = directory
        self._committer = committer
        self._nursery = nursery
        self._accepting = True
        self._workers: dict[int, UserWorker] = {}
        self._asking: dict[Unit, trio.Event] = {}  # in order; the event is set when the unit has left
        self._asking_tokens: Counter[int] = Counter()
        self._sent = SentLately()
        committer.watch(self._in_inboxes)

    # -- taking units in -----------------------------------------------------------------------------------------

    def try_route(self, unit: Unit) -> bool:
        """Take the unit in. True: it is at its worker, or refused. False: the accounts must be asked for first.

        Either way the unit will be answered. After False, `route` may be awaited to know when it is on its way.
        """
        if unit.routed:
            return unit not in self._asking
        unit.routed = True
        if not self._accepting:
            unit.refuse(ErrorCode.SHUTTING_DOWN)
            return True
        token_id = unit.commands[0].principal.token_id
        if token_id not in self._asking_tokens and self._fill(unit, self._directory.known):
            self._hand_over(unit)
            return True
        if not self._asking:
            self._nursery.start_soon(self._ask)
        self._asking[unit] = trio.Event()
        self._asking_tokens[token_id] += 1
        return False

    async def route(self, unit: Unit) -> None:
        """Take the unit in and return when it is at its worker or refused; trouble with the database refuses it."""
        if not self.try_route(unit):
            await self._asking[unit].wait()

    def stop_accepting(self) -> None:
        """Refuse every further unit: the daemon is stopping."""
        self._accepting = False

    async def drain(self) -> None:
        """Return when everything taken in has been answered. Bound it with a deadline."""
        while self._asking:
            await next(reversed(self._asking.values())).wait()
        for worker in list(self._workers.values()):
            await worker.wait_idle()

    # -- asking for accounts -------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        """Serve the line until it is empty, everybody in it at once."""
        while self._asking:
            units = list(self._asking)
            refusal = await self._find(units)
            for unit in units:
                try:
                    if refusal is not None:
                        unit.refuse(refusal)
                    else:
                        self._hand_over(unit)
                except Exception:
                    # Who is told can fail: those behind in the line must not suffer for it.
                    log.exception("answer_failed", **unit.ids())
                token_id = unit.commands[0].principal.token_id
                self._asking_tokens[token_id] -= 1
                if not self._asking_tokens[token_id]:
                    del self._asking_tokens[token_id]
                self._asking.pop(unit).set()

    async def _find(self, units: list[Unit]) -> ErrorCode | None:
        """Fill in the units' accounts; why that was impossible, or None."""
        oldest = min(unit.commands[0].arrived_at for unit in units)
        try:
            with trio.fail_at(oldest + self._config.unavailable_after_s):
                look = await self._look_up(units)
        except (StorageUnavailable, trio.TooSlowError):
            return ErrorCode.UNAVAILABLE
        except Exception:
            log.exception("account_lookup_failed", units=len(units), **units[0].ids())
            return ErrorCode.INTERNAL_ERROR
        for unit in units:
            self._fill(unit, look)
        return None

    async def _look_up(self, units: list[Unit]) -> Look:
        """All accounts the units name. First those named by id: their currency may say which of a user's is meant."""
        found: dict[Key, AccountFacts | None] = {}

        def look(ref: AccountRef, currency: str) -> AccountFacts | None:
            return found.get(key_of(ref, currency))

        commands = [command for unit in units for command in unit.commands]
        refs = [(command, ref) for command in commands for ref in (command.debit, command.credit) if ref is not None]
        by_id = [(ref, "") for _, ref in refs if ref.account_id is not None]
        found.update(zip((key_of(*named) for named in by_id), await self._directory.find(by_id), strict=True))
        by_user = [(ref, self._currency(command, look)) for command, ref in refs if ref.account_id is None]
        found.update(zip((key_of(*named) for named in by_user), await self._directory.find(by_user), strict=True))
        return look

    # -- what a command is about ---------------------------------------------------------------------------------

    def _fill(self, unit: Unit, look: Look) -> bool:
        """Write the accounts and the amount into every command; whether all named accounts were found."""
        complete = True
        for command in unit.commands:
            complete = self._fill_command(command, look) and complete
        unit.gather_accounts()
        return complete

    def _fill_command(self, command: Command, look: Look) -> bool:
        if command.kind in REFERRING:
            return self._fill_referring(command, look)
        debit, credit = command.debit, command.credit
        currency = command.currency or self._currency(command, look)
        paying = receiving = None
        complete = True
        if debit is not None:
            paying = look(debit, currency)
            command.debit_facts = paying
            command.debit_account = ABSENT if paying is None else paying.account_id
            complete = paying is not None
        if credit is not None:
            receiving = look(credit, currency)
            command.credit_facts = receiving
            command.credit_account = ABSENT if receiving is None else receiving.account_id
            complete = complete and receiving is not None
        if complete:
            payer, receiver = paying or receiving, receiving or paying
            assert payer is not None
            assert receiver is not None
            self._sent.keep(command.principal.token_id, command.transaction_id, payer, receiver)
        # Without an acting account there is nothing to judge the amount by, and the kernel answers not_found first.
        _judge_amount(command, receiving if debit is None else paying)
        return complete

    def _fill_referring(self, command: Command, look: Look) -> bool:
        """The same for a command whose accounts are those of the transaction it refers to."""
        principal, token_id = command.principal, command.principal.token_id
        debit, credit = command.debit, command.credit
        assert debit is not None
        paying = self._sent.find(token_id, debit) or look(debit, "")
        receiving = None if credit is None else self._sent.find(token_id, credit) or look(credit, "")
        complete = paying is not None and (credit is None or receiving is not None)
        if paying is not None and not _acts_for(principal, paying):
            # Like one that does not exist, and nothing of a stranger's waits in the owner's line.
            paying = receiving = None
        command.debit_facts, command.credit_facts = paying, receiving
        command.debit_account = ABSENT if paying is None else paying.account_id
        command.credit_account = None if receiving is None else receiving.account_id
        if paying is not None:
            self._sent.keep(token_id, command.transaction_id, paying, receiving or paying)
            if command.amount is not None:
                # Read in this currency: should the memory be wrong, the kernel refuses rather than move another amount.
                command.currency = paying.currency
        _judge_amount(command, paying)
        if paying is None and command.amount is not None:
            # Nothing says how many minor units that is, and without an amount it would mean all there is.
            command.amount_problem = ErrorCode.REFERENCE_NOT_FOUND
        return complete

    def _currency(self, command: Command, look: Look) -> str:
        """The currency in which a user's account is meant: as stated, of the account named by id, or the default."""
        if command.currency is not None:
            return command.currency
        for ref in (command.debit, command.credit):
            if ref is not None and ref.account_id is not None:
                facts = look(ref, "")
                if facts is not None:
                    return facts.currency
        return self._config.default_currency

    # -- workers -------------------------------------------------------------------------------------------------

    def _hand_over(self, unit: Unit) -> None:
        if unit.atomic and len(unit.accounts) > self._config.unit_accounts_max:
            unit.refuse(ErrorCode.BATCH_TOO_LARGE)
            return
        if self._committer.gives_up_on(unit):
            # What waited in its session until others were answered: a sweep for each few of them would add up.
            unit.refuse(ErrorCode.UNAVAILABLE)
            return
        first = unit.commands[0]
        acting = first.credit_facts if first.debit is None else first.debit_facts
        # User ids are positive: minus the token is a key of its own, for commands on accounts that do not exist.
        key = -first.principal.token_id if acting is None else acting.user_id
        worker = self._workers.get(key)
        if worker is None:
            worker = self._start_worker(key)
        worker.submit(unit)

    def _start_worker(self, key: int) -> UserWorker:
        worker = UserWorker(self._config, self._committer)
        if not self._workers:
            self._nursery.start_soon(self._retire_idle)
        self._workers[key] = worker
        self._nursery.start_soon(worker.run)
        return worker

    async def _retire_idle(self) -> None:
        """Retire workers that had nothing to do for long; one task for all, there only while there are workers."""
        while self._workers:
            await trio.sleep(self._config.user_idle_s / 4)
            long_ago = trio.current_time() - self._config.user_idle_s
            for key, worker in list(self._workers.items()):
                if worker.idle and worker.idle_since <= long_ago:
                    del self._workers[key]
                    worker.retire()

    def _in_inboxes(self) -> Iterator[Unit]:
        for worker in self._workers.values():
            yield from worker.inbox


def _acts_for(principal: Principal, facts: AccountFacts) -> bool:
    """Whether the account is one that the principal may act for."""
    if principal.sees_all:
        return True
    if principal.account_id is not None:
        return facts.account_id == principal.account_id
    return facts.user_id == principal.user_id


def _judge_amount(command: Command, acting: AccountFacts | None) -> None:
    """Write the amount in minor units of the acting account's currency into the command, or what is wrong with it."""
    command.amount_minor = command.amount_problem = None
    if command.amount is not None and acting is not None:
        try:
            command.amount_minor = to_minor(command.amount, acting.scale, zero_allowed=command.kind == "limit")
        except AmountPrecision:
            command.amount_problem = ErrorCode.AMOUNT_PRECISION
        except AmountOutOfRange:
            command.amount_problem = ErrorCode.AMOUNT_OUT_OF_RANGE
