"""How hard the faults strike, from which seed, and how many did."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import servers
from conftest import create_database
from faults.harness import DATABASE, Tally, load_few


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Give the counters of this test, which the summary shows."""
    counters: Tally = Counter()
    yield counters
    # As plain values, which a process of xdist can send. A test that failed has its counts, too.
    request.node.user_properties.append(("faults", dict(counters)))


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Say whether the long form is asked for (make test-faults)."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def dice(request: pytest.FixtureRequest, tally: Tally) -> random.Random:
    """Give a generator whose seed the summary shows; --seed repeats one."""
    given = request.config.getoption("--seed")
    seed = given if given is not None else random.SystemRandom().randrange(1_000_000)
    tally["seed"] = seed
    return random.Random(seed)


@pytest.fixture
def few_server(server: servers.Server, start_server: Callable[..., servers.Server]) -> servers.Server:
    """Give a server of its own with the teacher "few"; in a container its postmaster is PID 1, the harder case."""
    started = start_server(init=not isinstance(server, servers.Container))
    create_database(started, DATABASE)
    with started.connect(DATABASE) as connection:
        load_few(connection)
    return started
