"""Fixtures over real servers; see servers.py, and pytest --fixtures for what each one is for."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import once
import psycopg
import pytest
import servers
import spread
from psycopg import sql
from servers import create_database, drop_database

# A machine that others use too is no fault of what is tested.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

TEMPLATE = "pg_distill_template"
HOW_MANY = ("every_server", "one_server", "any_server")
TESTS = Path(__file__).parent

# Which marked tests a tier leaves out, beside those marked long: see the targets quick, test and test-all of the Makefile.
TIERS = {"quick": {"slow", "extra"}, "test": {"extra"}, "extra": set(), "all": set()}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        default="auto",
        help="auto: every server that can be had here (default); all: every server, one missing is an error; "
        "local, pg15, pg17, pg18, or several with commas; or a connection string of a superuser; none: skip what needs a server",
    )
    parser.addoption(
        "--upgraded-from",
        help="a released version: the tests' databases are made with it and brought up by ALTER EXTENSION UPDATE",
    )
    parser.addoption("--long", action="store_true", help="also the tests that take minutes each")
    parser.addoption(
        "--tier",
        choices=list(TIERS),
        default="all",
        help="quick: without what is marked slow or extra; test: without extra; extra: that alone; all (default)",
    )
    parser.addoption(
        "--second-try",
        action="store_true",
        help="with --last-failed: it is an error unless all that failed is in tests/second_try.txt",
    )
    parser.addoption(
        "--write-seconds", action="store_true", help="write tests/seconds.txt anew for the modules that run"
    )
    parser.addoption(
        "--seed", type=int, help="the seed of the tests of faults; a new one each time unless given"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tier = config.getoption("--tier")
    out = TIERS[tier] | (set() if config.getoption("--long") else {"long"})

    def is_asked_for(item: pytest.Item) -> bool:
        marks = {mark.name for mark in item.iter_markers()}
        return not out & marks and (tier != "extra" or "extra" in marks)

    config.hook.pytest_deselected(items=[item for item in items if not is_asked_for(item)])
    items[:] = [item for item in items if is_asked_for(item)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of one server in one process where xdist runs several: it is started once.

    The mark xdist_group would say the same, but has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneProcessAServer(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            of = SERVER.search(nodeid)
            return spread.process_of(of[1], config.stash[CHOSEN]) if of else nodeid

    return OneProcessAServer(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Have a test that is marked so run while no other does. Waiting for it is not part of its time limit."""
    with once.machine(alone=item.get_closest_marker("alone") is not None):
        return (yield)


SERVER = re.compile(rf"\[(?:.*-)?({'|'.join((*servers.CONTAINERS, 'local'))})(?:-.*)?\]$")


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "every_server: asks the server, and runs on each; a test without it on one, as spread.py says",
        "any_server: runs on one, in a module whose others run on every server",
        "one_server(name): needs this server, and runs there where it can be had",
        "local: runs on the local cluster too where there are containers",
        "alone: holds a promise in milliseconds, of which other tests' installations and trainings would be measured too",
        "long: takes minutes, and runs with --long only",
        "slow: of the units those that train or wait; not run by make quick",
        "extra: wheels, images, a pooler, dbt, a browser, or what takes longest; run by make test-all, not by make test",
    ):
        config.addinivalue_line("markers", line)
    # A test run that is told to end removes its servers first. A shell's background job ignores SIGINT, and so would the programs
    # that the tests interrupt, were it not handled here.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    if once.begin(is_part=hasattr(config, "workerinput")):
        config.add_cleanup(once.end)
    if config.getoption("--second-try"):
        assert config.cache is not None
        require_listed(config.cache.get("cache/lastfailed", {}))
    chosen, missing = _choose(config.getoption("--server"))
    config.stash[CHOSEN] = chosen
    config.stash[MISSING] = missing


CHOSEN = pytest.StashKey[list[str]]()
MISSING = pytest.StashKey[dict[str, str]]()


def _choose(option: str) -> tuple[list[str], dict[str, str]]:
    """Give the servers to run on, and why the others are left out."""
    if option == "none":
        return [], {}
    known = [*servers.CONTAINERS, "local"]
    names = known if option in ("auto", "all") else option.split(",")
    if not set(names) <= set(known):
        return [option], {}
    faults = servers.available()
    missing = {name: fault for name in names if (fault := faults[name]) is not None}
    # A run that skips every test of a server is no proof of anything: it has to be asked for.
    if len(missing) == len(names) or (missing and option != "auto"):
        raise pytest.UsageError(
            "; ".join(f"server {name}: {fault}" for name, fault in missing.items())
            + "; --server=none runs the tests that need no server"
        )
    return [name for name in names if name not in missing], missing


def may_fail_once() -> set[str]:
    """Name the tests that have a second try."""
    lines = (TESTS / "second_try.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if not line.startswith("#")}


def require_listed(last_failed: Iterable[str]) -> None:
    """Have the last run's failures run again, if they all may be: a fault that comes and goes is a fault."""
    failed = {name.partition("[")[0] for name in last_failed}
    others = sorted(failed - may_fail_once())
    if others or not failed:
        raise pytest.UsageError(f"no second try: {', '.join(others) or 'nothing failed that is known'}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    chosen, missing = config.stash[CHOSEN], config.stash[MISSING]
    named = [name if name in (*servers.CONTAINERS, "local") else "dsn" for name in chosen]
    lines = [f"servers: {', '.join(named) or 'none'}"]
    return lines + [f"no server {name}: {fault}" for name, fault in missing.items()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how many faults the tests of faults injected, from which seeds."""
    reports = [
        r for found in terminalreporter.stats.values() for r in found if isinstance(r, pytest.TestReport)
    ]
    config = terminalreporter.config
    if config.getoption("--write-seconds") and not hasattr(config, "workerinput"):
        _write_seconds(reports)
    reports = [report for report in reports if report.when == "teardown"]
    tallies = [(r.nodeid, value) for r in reports for key, value in r.user_properties if key == "faults"]
    if tallies:
        terminalreporter.section("faults injected")
    failed = {report.nodeid for report in terminalreporter.stats.get("failed", [])}
    for name, tally in tallies:
        counts = ", ".join(f"{what} {n}" for what, n in tally.items())
        terminalreporter.write_line(
            f"{name}: {counts}; lost {'something: it failed' if name in failed else 0}"
        )


def _how_many(node: pytest.Item, chosen: list[str]) -> str | None:
    """Say "every", or the one server that a test needs, or None for one that any server can run.

    The nearest mark holds: a test's own over its module's.
    """
    nearest = next((mark for mark in node.iter_markers() if mark.name in HOW_MANY), None)
    if nearest is None or nearest.name == "any_server":
        return None
    if nearest.name == "every_server":
        return "every"
    return str(nearest.args[0]) if nearest.args[0] in chosen else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses a server on one of those chosen, or on each where it asks for that."""
    if "server" not in metafunc.fixturenames:
        return
    chosen, node = metafunc.config.stash[CHOSEN], metafunc.definition
    # A test that is marked so runs on the local cluster beside a container; others have it only where there is none.
    containers = [name for name in chosen if name != "local"] or chosen
    also = [name for name in chosen if name == "local" and node.get_closest_marker("local")]
    asked = _how_many(node, chosen)
    if asked == "every":
        names = [*containers, *also]
    elif asked is not None:
        names = [asked, *also]
    elif chosen:
        places = metafunc.config.stash.setdefault(PLACES, spread.spread(containers, chosen))
        names = [spread.place(_module(node), places, containers), *also]
    else:
        names = []
    names = list(dict.fromkeys(names))
    ids = [name if name in (*servers.CONTAINERS, "local") else "dsn" for name in names]
    metafunc.parametrize("server", names or [None], ids=ids or ["none"], indirect=True, scope="session")


PLACES = pytest.StashKey[dict[str, str]]()


def _module(node: pytest.Item) -> str:
    return str(node.path.relative_to(TESTS))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note where a test runs, for the table of seconds."""
    name = getattr(item, "callspec", None) and item.callspec.params.get("server")  # type: ignore[attr-defined]
    if name in (*servers.CONTAINERS, "local") and item.config.getoption("--write-seconds"):
        chosen = item.config.stash[CHOSEN]
        is_spread = _how_many(item, chosen) is None and (name != "local" or chosen == ["local"])
        tier = "extra" if item.get_closest_marker("extra") else "test"
        item.user_properties.append(("where", f"{_module(item)} {spread.ANY if is_spread else name} {tier}"))


def _write_seconds(reports: list[pytest.TestReport]) -> None:
    where = {r.nodeid: value for r in reports for key, value in r.user_properties if key == "where"}
    seconds: Counter[spread.Key] = Counter()
    for report in reports:
        # A longer setup is that of `shared`, which whoever comes first on a server pays.
        if report.nodeid in where and not (report.when == "setup" and report.duration > 20):
            module, server, tier = where[report.nodeid].split()
            seconds[module, server, tier] += report.duration  # type: ignore[assignment]
    spread.write(dict(seconds))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """Give a running server. One that a test breaks comes from `start_server`."""
    if request.param is None:
        pytest.skip("no server")
    with servers.start(request.param) as running:
        yield running


@pytest.fixture
def start_server(server: servers.Server) -> Iterator[Callable[..., servers.Server]]:
    """Start one more server of the same kind, to crash: start_server(init=False, settings={...})."""
    with contextlib.ExitStack() as stack:

        def start(*, init: bool = True, settings: dict[str, str] | None = None) -> servers.Server:
            if isinstance(server, servers.External):
                pytest.skip("a server of somebody else is not started or crashed")
            if isinstance(server, servers.Local) and not init:
                pytest.skip("the postmaster is PID 1 in a container only")
            return stack.enter_context(servers.start(server.name, init=init, settings=settings))

        yield start


@pytest.fixture(scope="session")
def template(request: pytest.FixtureRequest, server: servers.Server) -> Iterator[str]:
    """Give a UTF-8 database with pg_distill, to copy: nobody may be connected to it."""
    older = request.config.getoption("--upgraded-from")
    create_database(server, TEMPLATE, version=older)
    if older:
        with server.connect(TEMPLATE) as connection:
            connection.execute("ALTER EXTENSION pg_distill UPDATE")
    yield TEMPLATE
    drop_database(server, TEMPLATE)


@pytest.fixture
def database(server: servers.Server, template: str) -> Iterator[str]:
    """Give the name of a fresh database with pg_distill."""
    name = "pg_distill_test"
    create_database(server, name, template)
    yield name
    drop_database(server, name)


@pytest.fixture
def connect(server: servers.Server, database: str) -> Iterator[Callable[..., psycopg.Connection]]:
    """Open sessions in the fresh database: connect(user=..., autocommit=True, application_name=...)."""
    with contextlib.ExitStack() as stack:

        def open_session(
            *, user: str | None = None, autocommit: bool = True, **keywords: Any
        ) -> psycopg.Connection:
            if user is not None:
                keywords |= {"user": user, "password": user}
            connection = server.connect(database, autocommit=autocommit, **keywords)
            stack.callback(connection.close)
            return connection

        yield open_session


@pytest.fixture
def db(connect: Callable[..., psycopg.Connection]) -> psycopg.Connection:
    """Give the superuser's session in the fresh database, in autocommit."""
    return connect()


@pytest.fixture
def role(server: servers.Server, database: str) -> Iterator[Callable[..., str]]:
    """Create login roles, with their name as password: role("alice", "CREATEDB", grant=["pg_monitor"])."""
    made: list[str] = []

    def create(name: str, *options: str, grant: list[str] | None = None) -> str:
        with server.connect(database) as connection:
            statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}").format(
                sql.Identifier(name), sql.Literal(name), sql.SQL(" ".join(options))
            )
            connection.execute(statement)
            made.append(name)
            for parent in grant or []:
                connection.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(parent), sql.Identifier(name))
                )
        return name

    yield create
    # The roles own and are granted things in this database only, so it goes first.
    drop_database(server, database)
    with server.connect() as connection:
        for name in reversed(made):
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def dbt_command() -> str:
    """Return dbt's program, in an environment of its own: it and the converters want other versions of protobuf."""
    done = subprocess.run(
        ["make", "--silent", "--directory", str(servers.ROOT), "build/dbt/.made"],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(servers.ROOT / "build" / "dbt" / "bin" / "dbt")
