"""A backend that predicts with a thousand models in turn, more than its cache holds, keeps its memory flat."""

from __future__ import annotations

from math import sqrt

import numpy as np
import psycopg
import pytest
import servers
from faults.harness import Tally, constant_model

pytestmark = pytest.mark.extra

MODELS = 1000
PREDICTIONS, LONG_PREDICTIONS = 100_000, 10_000_000
SESSIONS, LONG_SESSIONS = 250, 2500  # opened between two samples
SAMPLES = 40
CACHE_MB = 64  # of small models that is some 250 sessions: each model's turn opens it anew
# The allocator settles over the first 20,000 sessions or so, which is longer than the short form has.
BYTES_A_PREDICTION = 8.0  # less than anything that could be kept of one
NOISE = 1e-6  # of a straight line through equal numbers

# One statement for each sample: so many rows, each by the next model of a thousand.
PREDICT = "SELECT sum(distill.predict('m' || (i / {run} % {models}), ARRAY[i::float8])) FROM generate_series({start}, {end}) i"


@pytest.mark.timeout(3600)
def test_memory_of_a_backend_is_flat(
    server: servers.Server, db: psycopg.Connection, long: bool, tally: Tally
) -> None:
    if not isinstance(server, servers.Container | servers.Local):
        pytest.skip("the memory of a process is read on the server's host")
    db.execute("SELECT distill.change_setting('session_cache_mb', %s)", (str(CACHE_MB),))
    db.execute(
        "SELECT distill.register_model('m0', %s, features => '{x}', task => 'regression')",
        (constant_model(1.0),),
    )
    db.execute(
        "INSERT INTO distill.models SELECT (jsonb_populate_record(m, jsonb_build_object('id', gen_random_uuid(), 'name', 'm' || i))).*"
        f" FROM distill.models m, generate_series(1, {MODELS - 1}) i"
    )
    predictions = LONG_PREDICTIONS if long else PREDICTIONS
    each = predictions // SAMPLES
    run = each // (LONG_SESSIONS if long else SESSIONS)  # predictions by one model before the next
    pid = db.info.backend_pid
    resident = []
    for number in range(-SAMPLES // 4, SAMPLES):  # the first quarter as a warm-up
        start = (number + SAMPLES // 4) * each
        db.execute(PREDICT.format(run=run, models=MODELS, start=start, end=start + each - 1))
        if number >= 0:
            status = server.run("cat", f"/proc/{pid}/status").stdout
            resident.append(int(status.partition("RssAnon:")[2].split()[0]) << 10)
    done = np.arange(SAMPLES) * float(each)
    bytes_ = np.array(resident, np.float64)
    slope, intercept = np.polyfit(done, bytes_, 1)
    residual = bytes_ - (slope * done + intercept)
    error = sqrt(residual @ residual / (SAMPLES - 2) / ((done - done.mean()) ** 2).sum())
    low = slope - 2.02 * error  # t of 38 degrees of freedom, 95 %
    tally["predictions"] = predictions
    tally["sessions opened"] = predictions // run
    tally["bytes a prediction"] = round(float(slope), 2)
    print(f"{slope:.3f} bytes a prediction, from {low:.3f}; {resident[0] >> 20} to {resident[-1] >> 20} MB")
    assert low <= NOISE if long else slope < BYTES_A_PREDICTION
