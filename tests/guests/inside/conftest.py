"""Inside a guest: its description, and what the tests share. Nothing here is collected outside of one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.guests.inside.common import DESCRIPTION, description

collect_ignore_glob = [] if DESCRIPTION.exists() else ["*"]


@pytest.fixture(scope="session")
def guest() -> dict[str, Any]:
    """The description of this guest that QEMU was started with."""
    return description()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `library` runs once for each OpenMP runtime of the guest."""
    if "library" in metafunc.fixturenames:
        metafunc.parametrize("library", list(description()["libraries"]))
