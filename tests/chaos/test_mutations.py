"""The suite is itself tested: each bug turns the very run red that is green without it."""

from __future__ import annotations

import pytest

from ledgerd_loadtest.chaos.run import Plan, run_chaos
from tests.chaos.bugs import BUGS, CONTENTION, CROWDS, FOLLOWED, IN_ORDER, LOST_REPLIES, PULLED_PLUG, SAME_IDS, Bug

PLANS = [CONTENTION, CROWDS, SAME_IDS, IN_ORDER, FOLLOWED, LOST_REPLIES, PULLED_PLUG]

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_ledger_with_this_bug_is_found_out(bug: Bug) -> None:
    findings = run_chaos(bug.put_in(), print)
    red = {name for name, problems in findings.checks.items() if problems}
    assert red & bug.seen_by, f"red: {red or 'nothing'}\n" + "\n".join(findings.problems)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"seed {plan.seed}: {', '.join(plan.workloads)}")
def test_the_ledger_as_it_is_passes_the_same_run(plan: Plan) -> None:
    assert run_chaos(plan, print).problems == []
