"""What holds for every test: a private Postfix needs root, and in CI nothing is skipped in silence."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster

# Set in many a container. Each process that a test starts would compile the package anew, for a third of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `postfix` start Postfix's master, which only root can."""
    if item.get_closest_marker("postfix") and os.geteuid() != 0:
        pytest.skip("starts a private Postfix, whose master has to be started by root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """In CI a skipped test is a failed one: what is not run keeps no promise."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL for all who ask; each makes a database of its own in it."""
    with Cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Gives the URLs of stores that nobody has opened yet: a file that is not there, an empty database."""
    if request.param == "sqlite":
        names = (f"{letter}.db" for letter in "abc")
        yield lambda: f"sqlite:///{tmp_path / next(names)}"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    made: list[str] = []

    def make() -> str:
        made.append(cluster.database(empty=True))
        return made[-1]

    yield make
    for url in made:
        cluster.drop(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store is that holds nothing: once for each kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/mm4.db"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.database()
    yield url
    cluster.drop(url)
