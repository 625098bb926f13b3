"""Modules are spread over whatever servers there are: each runs once, and the servers' processes have about as much to do."""

from __future__ import annotations

from itertools import combinations

import pytest
import spread

SERVERS = ("pg15", "pg17", "pg18", "local")
CHOSEN = [list(some) for n in range(1, 5) for some in combinations(SERVERS, n)]


@pytest.mark.parametrize("chosen", [*CHOSEN, ["host=somewhere dbname=postgres"]], ids=" ".join)
def test_each_module_has_one_of_the_servers(chosen: list[str]) -> None:
    candidates = [name for name in chosen if name != "local"] or chosen
    places = spread.spread(candidates, chosen)
    assert set(places.values()) <= set(candidates)
    assert spread.spread(candidates, chosen) == places
    for module in (*places, "sql/test_that_is_new.py"):
        assert spread.place(module, places, candidates) in candidates


def test_processes_have_about_as_much_to_do() -> None:
    chosen, candidates = list(SERVERS), ["pg15", "pg17", "pg18"]
    places = spread.spread(candidates, chosen)
    for tier in ("test", "extra"):
        table = {key: took for key, took in spread.read().items() if key[2] == tier}
        load = dict.fromkeys(candidates, 0.0)
        for (module, server, _), took in table.items():
            load[spread.process_of(places[module] if server == spread.ANY else server, chosen)] += took
        longest = max(took for (_, server, _), took in table.items() if server == spread.ANY)
        assert max(load.values()) - min(load.values()) <= longest


def test_the_table_names_modules_that_exist() -> None:
    assert [module for module, _, _ in spread.read() if not (spread.TABLE.parent / module).exists()] == []
