"""Each guest boots, and all of its tests pass inside."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.guests.boot import Outcome, pytest_command, run_in_guest
from tests.guests.image import NoGuestError
from tests.guests.table import GUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guests.table import Guest

pytestmark = pytest.mark.guest


def parameter(guest: Guest) -> object:
    return pytest.param(guest.name, marks=() if guest.in_ci else pytest.mark.more_guests)


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Outcome]]]:
    """The outcome of every guest that was asked for; as many run at once as there are CPUs, for each takes one."""
    chosen = [item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_a_guest[")]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            yield {name: pool.submit(run_in_guest, GUESTS[name], pytest_command(GUESTS[name])) for name in chosen}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("name", [parameter(guest) for guest in GUESTS.values()])
def test_a_guest(name: str, outcomes: dict[str, Future[Outcome]]) -> None:
    try:
        outcome = outcomes[name].result()
    except NoGuestError as reason:
        pytest.skip(str(reason))
    print(outcome.output)
    assert outcome.status == 0
    summary = outcome.output.splitlines()[-1]
    assert " passed" in summary
    # What is skipped inside is in the wrong guest's list.
    assert " skipped" not in summary
