"""Attacks on the registry by who holds the documented grants and nothing else: none gets anything, and nothing is lost.

Each is planted anew. What a role could once write into the registry's tables is written here by a superuser in its name, as a
restore or a door that nobody has thought of would: that it is not run must not depend on who can write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import servers
from faults.harness import FEATURES, constant_model, few_teacher, load_few
from psycopg import errors
from sql.conftest import held_place, value

ROOT = Path(__file__).resolve().parents[2]
GRANTS = (ROOT / "extension" / "doc" / "grants.sql").read_text()
TEAMS = (ROOT / "extension" / "doc" / "teams.sql").read_text()
KINDS = ("distill_reader", "distill_predictor", "distill_engineer", "distill_admin")
ROW = "ARRAY[1, 2, 3, 4]::float8[]"
QUICK = "families => '{linear}', time_budget_s => 1, patience => 1, min_accuracy => 0"

Connect = Callable[..., psycopg.Connection]
Role = Callable[..., str]

# Run by a superuser it would leave a role of this name behind.
STRIKE = "(SELECT 0.5 FROM (SELECT public.strike() OFFSET 0) s)"


@pytest.fixture
def victim(db: psycopg.Connection, role: Role) -> psycopg.Connection:
    """Give a superuser's session: a teacher and a student of the superuser's, the documented roles, and what shows that SQL was run."""
    load_few(db)
    for name in KINDS:
        role(name)
    db.execute(GRANTS)
    db.execute(
        "GRANT SELECT ON few TO distill_engineer, distill_predictor; GRANT CREATE ON SCHEMA public TO distill_engineer"
    )
    db.execute("CREATE TABLE struck (by text); GRANT INSERT ON struck TO PUBLIC")
    db.execute(
        "CREATE FUNCTION strike() RETURNS boolean LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO public.struck VALUES (current_user); RETURN true; EXCEPTION WHEN read_only_sql_transaction THEN"
        " RAISE WARNING ''struck''; RETURN true; END'"
    )
    return db


@pytest.fixture
def engineer(victim: psycopg.Connection, connect: Connect) -> psycopg.Connection:
    """Give the session of an engineer, who has what grants.sql gives."""
    return connect(user="distill_engineer")


@pytest.fixture
def warnings(victim: psycopg.Connection) -> list[str]:
    """Give what the superuser's session is warned of: a strike that could not be written says so."""
    heard: list[str] = []
    victim.add_notice_handler(lambda d: heard.append(str(d.message_primary)))
    return heard


def state(connection: psycopg.Connection, statement: str, *arguments: Any) -> str | None:
    """Run a statement and undo it; return its SQLSTATE, None where it was let."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement, arguments or None)  # type: ignore[arg-type]
    except psycopg.Error as error:
        return error.sqlstate
    return None


def registry(connection: psycopg.Connection) -> Any:
    """Return a digest of all that the registry holds."""
    tables = ("models", "runs", "candidates", "owners", "name_locks", "settings")
    parts = ", ".join(
        f"(SELECT md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM distill.{t} t)"
        for t in tables
    )
    return connection.execute(f"SELECT {parts}").fetchone()


# -- rows that a role writes itself

TABLES = ("models", "runs", "candidates", "owners", "checked", "name_locks")
WRITES = (
    "INSERT INTO distill.{0} SELECT * FROM distill.{0}",
    "INSERT INTO distill.{0} SELECT (t).* FROM (SELECT NULL::distill.{0} AS t) s",
    "INSERT INTO distill.{0} DEFAULT VALUES",
    "UPDATE distill.{0} SET {1} = {1}",
    "DELETE FROM distill.{0}",
    "TRUNCATE distill.{0}",
    "WITH gone AS (DELETE FROM distill.{0} RETURNING *) SELECT count(*) FROM gone",
    "MERGE INTO distill.{0} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
    "COPY distill.{0} FROM PROGRAM 'true'",
)
SHAPES = (
    "CREATE TRIGGER mine BEFORE INSERT ON distill.{0} FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
    "ALTER TABLE distill.{0} DISABLE TRIGGER ALL",
    "ALTER TABLE distill.{0} ADD COLUMN mine int",
    "ALTER TABLE distill.{0} OWNER TO distill_engineer",
    "CREATE RULE mine AS ON INSERT TO distill.{0} DO INSTEAD NOTHING",
    "CREATE POLICY mine ON distill.{0} USING (true)",
    "CREATE INDEX ON distill.{0} ({1})",
    "DROP TABLE distill.{0}",
    "LOCK TABLE distill.{0} IN ACCESS EXCLUSIVE MODE",
    "SELECT FROM distill.{0} FOR UPDATE",
    "SELECT FROM distill.{0} FOR KEY SHARE",
)
COLUMN = {
    "models": "accuracy",
    "runs": "student_accuracy",
    "candidates": "accuracy",
    "owners": "role",
    "checked": "rules",
    "name_locks": "name",
}


def test_no_role_writes_a_row_of_the_registry(victim: psycopg.Connection, connect: Connect) -> None:
    """Also where rights to write were granted, as releases before needed, and asked of every table."""
    before = registry(victim)
    sessions = [connect(user=name) for name in KINDS]
    for granted in (False, True):
        if granted:
            victim.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA distill TO {', '.join(KINDS)}"
            )
        wrong = []
        for session in sessions:
            for table in TABLES:
                # What a right to write cannot but give, a lock of the rows, is a matter of who grants it.
                for attack in WRITES if granted else (*WRITES, *SHAPES):
                    statement = attack.format(table, COLUMN[table])
                    found = state(session, statement)
                    if found not in ("42501", "23502", "428C9"):
                        wrong.append(f"{session.info.user}, granted {granted}: {statement}: {found}")
        assert wrong == []
    assert registry(victim) == before


def test_nobody_writes_through_the_gate(victim: psycopg.Connection, engineer: psycopg.Connection) -> None:
    """The one function that lends its rights does nothing that a statement can say, in the middle of our own functions neither."""
    before = registry(victim)
    calls = (
        "SELECT distill._write()",
        "SELECT distill._write() FROM generate_series(1, 3)",
        "DO $$ BEGIN PERFORM distill._write(); END $$",
        "SELECT distill.register_sql_model('mine', '0.5 + 0 * x0', '{x0}', 'SELECT x0, malignant, distill._write() AS w FROM few', 'malignant')",
        "SELECT distill.register_sql_model('mine', '(SELECT 0.5 FROM (SELECT distill._write()) s) + 0 * x0', '{x0}', 'few', 'malignant')",
        "SELECT * FROM distill.score('few', 'SELECT *, distill._write() AS w FROM few', 'x0')",
    )
    assert [state(engineer, call) for call in calls] == ["55000"] * len(calls)
    # Nor has it anything to do after an error of ours.
    engineer.execute("BEGIN")
    register = (
        "SELECT distill.register_model('mine', %s, features => '{x}', task => 'regression', version => '1')"
    )
    engineer.execute(register, (constant_model(1),))
    engineer.execute("SAVEPOINT before")
    with pytest.raises(errors.DuplicateObject):
        engineer.execute(register, (constant_model(1),))
    engineer.execute("ROLLBACK TO before")
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        engineer.execute("SELECT distill._write()")
    engineer.execute("ROLLBACK")
    assert registry(victim) == before
    with pytest.raises(errors.InsufficientPrivilege):
        engineer.execute("ALTER FUNCTION distill._write() RESET search_path")


# -- SQL that another role stored

DOORS = {
    "a student in SQL form": {"form": "sql", "expression": STRIKE},
    "a student with an expression": {"expression": STRIKE},
    "a teacher in SQL form": {"form": "sql", "expression": STRIKE, "teacher_id": None},
    "a teacher with an expression": {"expression": STRIKE, "teacher_id": None},
    "a SQL teacher": {"kind": "sql", "artifact": None, "expression": STRIKE, "teacher_id": None},
    "a SQL teacher in SQL form": {
        "kind": "sql",
        "form": "sql",
        "artifact": None,
        "expression": STRIKE,
        "teacher_id": None,
    },
    "a SQL student": {"kind": "sql", "artifact": None, "expression": STRIKE},
    "a sample": {"sample": "SELECT *, public.strike() AS struck FROM few"},
    "a teacher's sample": {"sample": "SELECT *, public.strike() AS struck FROM few", "teacher_id": None},
}
# What a superuser might do with a model; what it gives back is a matter of the model, but that nothing is run.
ASKED = (
    f"SELECT distill.predict('planted', {ROW})",
    f"SELECT distill.predict_class('planted', {ROW})",
    f"SELECT distill.predict_proba('planted', {ROW})",
    "SELECT distill.predict('planted', to_jsonb(f)) FROM few f LIMIT 2",
    f"SELECT distill.predict_batch('planted', ARRAY[{ROW}])",
    "SELECT count(*) FROM distill.score('planted', 'few', 'x0')",
    "SELECT count(*) FROM distill.score_class('planted', 'few', 'x0')",
    "SELECT distill.to_sql('planted')",
    "SELECT distill.create_function('planted', 'pg_temp.planted_plain')",
    "SELECT distill.create_function('planted', 'pg_temp.planted_sql', as_sql => true)",
    f"SELECT distill_model('planted', {QUICK})",
    "SELECT * FROM distill.check('planted')",
    "SELECT * FROM distill.remeasure('planted')",
    "SELECT * FROM distill.warm_up('{planted}')",
    "SELECT distill.choose_model('few')",
    "SELECT * FROM distill.prune(0)",
)
# The victim names rows of his own, as the hint says; these train or measure.
MEASURED = (
    f"SELECT distill_model('planted', sample => 'SELECT * FROM few', label => 'malignant', {QUICK})",
    "SELECT * FROM distill.check('planted', 'few', 'malignant')",
    "SELECT * FROM distill.check('few', 'few', 'malignant')",
)


def plant(victim: psycopg.Connection, changes: dict[str, Any], owner: str = "distill_engineer") -> None:
    """Write a row in a role's name: a copy of the teacher as its own student, but for ``changes``."""
    given = {"name": "planted", "owner": owner, **changes}
    victim.execute(
        "INSERT INTO distill.models SELECT (jsonb_populate_record(m, jsonb_build_object('id', gen_random_uuid(), 'teacher_id', m.id,"
        " 'attested', false) || %s)).* FROM distill.models m WHERE m.name = 'few'",
        (json.dumps(given),),
    )


@pytest.mark.parametrize("door", DOORS)
def test_stored_sql_of_another_role_is_run_through_no_door(
    victim: psycopg.Connection, warnings: list[str], door: str
) -> None:
    plant(victim, DOORS[door])
    # A sample is not asked for where the caller names rows.
    uses = ASKED if "sample" in DOORS[door] else (*ASKED, *MEASURED)
    refused = 0
    for use in uses:
        refused += state(victim, use) == "42501"
        assert "struck" not in warnings, use
    assert value(victim, "SELECT count(*) FROM struck") == 0
    assert refused > 0
    # Stored by a superuser the same is run or given out: the test can see it.
    victim.execute("UPDATE distill.models SET owner = current_user WHERE name = 'planted'")
    for use in ("SELECT distill.to_sql('planted')", f"SELECT distill_model('planted', {QUICK})"):
        given = "" if state(victim, use) else str(value(victim, use))
        if "struck" in warnings or "strike" in given or value(victim, "SELECT count(*) FROM struck") > 0:
            break
    else:
        raise AssertionError("nothing of it is ever run")


# -- whose it is


def test_a_name_is_not_an_owner(
    victim: psycopg.Connection, role: Role, connect: Connect, server: servers.Server
) -> None:
    """A role that is dropped leaves what it stored to nobody; one that is renamed keeps it; a new one of the name has its own."""
    first = role("first", grant=["distill_engineer"])
    register = "SELECT distill.register_sql_model('{0}', '0.5 + 0 * x0', '{{x0}}', 'few', 'malignant')"
    predict = "SELECT distill.predict('{0}', '{{1}}'::float8[])"
    connect(user=first).execute(register.format("theirs"))
    victim.execute("ALTER ROLE first RENAME TO renamed; ALTER ROLE renamed PASSWORD 'renamed'")
    assert value(connect(user="renamed"), predict.format("theirs")) == 0.5
    # Another one of its old name, a superuser as it comes.
    victim.execute("CREATE ROLE first LOGIN SUPERUSER PASSWORD 'first'")
    usurper = connect(user="first")
    with pytest.raises(errors.InsufficientPrivilege):
        usurper.execute(predict.format("theirs"))
    with pytest.raises(errors.InsufficientPrivilege):
        victim.execute(predict.format("theirs"))
    usurper.execute(register.format("usurped"))
    assert value(usurper, predict.format("usurped")) == 0.5
    assert value(victim, "SELECT count(DISTINCT owner) FROM distill.models WHERE kind = 'sql'") == 2
    victim.execute(
        "ALTER ROLE first RENAME TO second; DROP OWNED BY renamed; REVOKE distill_engineer FROM renamed; DROP ROLE renamed"
    )
    victim.execute("ALTER ROLE second RENAME TO renamed")
    for name, expected in (("theirs", "42501"), ("usurped", None)):
        assert state(victim, predict.format(name)) == expected
    # The dropped role's jobs, too, are nobody's.
    victim.execute("ALTER ROLE renamed RENAME TO first")
    usurper.close()


def test_a_job_is_its_submitters_and_not_its_names(
    victim: psycopg.Connection, role: Role, connect: Connect
) -> None:
    role("submitter", grant=["distill_engineer"])
    connect(user="submitter").execute("SELECT distill.submit('few', sample => 'few', label => 'malignant')")
    victim.execute("ALTER ROLE submitter RENAME TO gone")
    victim.execute("CREATE ROLE submitter LOGIN PASSWORD 'submitter' IN ROLE distill_engineer")
    assert connect(user="submitter").execute("SELECT * FROM distill.jobs").fetchall() == []
    assert connect(user="submitter").execute("SELECT distill.run_next_job()").fetchone() == (None,)
    victim.execute(
        "DROP ROLE submitter; ALTER ROLE gone RENAME TO submitter; ALTER ROLE submitter PASSWORD 'submitter'"
    )
    assert connect(user="submitter").execute("SELECT state FROM distill.jobs").fetchall() == [("queued",)]


@pytest.mark.parametrize(
    "attack",
    [
        "SELECT distill.register_model('few', %(file)s, features => '{x}')",
        "SELECT distill.register_model('few', %(file)s, features => '{x}', version => '9')",
        "SELECT distill.register_sql_model('few', '0.5 + 0 * x0', '{x0}', 'few', 'malignant')",
        "SELECT distill.register_logged_model('few', '{p}', '{x0}', 'SELECT x0, malignant, 0.5 AS p FROM few', 'malignant')",
        "SELECT distill.activate_model('few', '1')",
        "SELECT distill.drop_model('few')",
        "SELECT distill.drop_model('few:1')",
        f"SELECT distill_model('few', sample => 'few', label => 'malignant', student_name => 'few', {QUICK})",
    ],
)
def test_a_name_of_another_role_is_not_taken_over(
    victim: psycopg.Connection, engineer: psycopg.Connection, attack: str
) -> None:
    """Otherwise whoever asks for the name would be answered by the attacker's model."""
    victim.execute("SELECT distill.register_model('few', %s, features => '{x0,x1,x2,x3}')", (few_teacher(),))
    before = registry(victim)
    with pytest.raises(errors.InsufficientPrivilege):
        engineer.execute(attack, {"file": constant_model(1)})  # type: ignore[arg-type]
    assert registry(victim) == before
    assert value(engineer, "SELECT count(*) FROM distill.prune(0, dry_run => false) WHERE pruned") == 0
    assert registry(victim) == before


def test_figures_of_a_model_are_not_to_be_had_by_distilling_it(
    victim: psycopg.Connection, engineer: psycopg.Connection
) -> None:
    """Rows and labels are whoever's who distils: they say nothing of the teacher to anybody else."""
    figures = (
        "SELECT accuracy, avg_latency_ms, measured_on, updated_at FROM distill.models WHERE name = 'few'"
    )
    before = victim.execute(figures).fetchone()
    engineer.execute(
        f"SELECT distill_model('few', sample => 'SELECT x0, x1, x2, x3, 1 - malignant AS malignant FROM few', label => 'malignant', {QUICK})"
    )
    assert value(engineer, "SELECT count(*) FROM distill.runs") == 1
    after = victim.execute(figures).fetchone()
    assert after is not None and before is not None and after[:3] == before[:3]


FORGED_RUN = """
SELECT to_jsonb(r) || jsonb_build_object('run_id', %(job)s::text, 'student_accuracy', 1.0, 'pareto_score', 1e9, 'accepted', true,
    'summary', 'forged') FROM distill.runs r LIMIT 1
"""


def test_what_a_worker_says_counts_for_its_role_alone(
    victim: psycopg.Connection, engineer: psycopg.Connection
) -> None:
    """A worker's process is its role's, which could say what it likes by calling what a worker calls."""
    victim.execute(f"SELECT distill_model('few', student_name => 'honest', {QUICK})")
    job = value(engineer, "SELECT distill.submit('few', sample => 'few', label => 'malignant')::text")
    claim = "5ca1ab1e-0000-0000-0000-000000000000"
    run = value(victim, FORGED_RUN.replace("%(job)s", f"'{job}'"))
    [row] = victim.execute(
        "SELECT jsonb_build_object('signature', jsonb_build_array(input_schema, output_schema), 'id', id) FROM distill.models WHERE name = 'few'"
    ).fetchall()
    student = {
        "name": "few_forged", "version": None, "task": "binary", "kind": "onnx", "artifact": {"file": 0}, "expression": STRIKE,
        "signature": row[0]["signature"], "sample": "SELECT public.strike()", "label": None, "teacher_id": row[0]["id"],
        "types": {}, "form": "predict", "threshold": None,
        "figures": {"metric": "accuracy", "accuracy": 1.0, "accuracy_low": 1.0, "accuracy_high": 1.0, "avg_latency_ms": 1e-6, "latency_high_ms": 1e-6},
    }  # fmt: skip
    for column in ("teacher_id", "student_id", "student_version", "owner", "attested", "created_at"):
        run.pop(column)
    report = {
        "teacher_id": row[0]["id"], "names": ["few_forged"], "student": student, "run": run, "candidates": [],
        "family": {row[0]["id"]: {"accuracy": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.0, "avg_latency_ms": 1e9}},
    }  # fmt: skip
    send = "SELECT distill._record_job(%s, %s, %s, %s)"
    told = (job, claim, json.dumps(report), [few_teacher()])
    with pytest.raises(errors.ObjectNotInPrerequisiteState):  # it does not run
        engineer.execute(send, told)
    engineer.execute("UPDATE distill.job_queue SET state = 'running', claim_id = %s", (claim,))
    for change, file in (
        ({"run": {**run, "run_id": claim}}, few_teacher()),
        ({"student": {**student, "name": "few"}}, few_teacher()),
        ({"student": {**student, "teacher_id": claim}}, few_teacher()),
        ({"student": {**student, "kind": "sql"}}, few_teacher()),
        ({"teacher_id": claim}, few_teacher()),
        ({}, b"no file"),
        ({"student": {**student, "surprise": 1}}, few_teacher()),
        ({"student": {**student, "monotone": {"x0": 1}}}, few_teacher()),
        ({"student": {**student, "monotone": "x0"}}, few_teacher()),
        ({"candidates": [{"candidate": 1, "artifact": {"file": 7}}]}, few_teacher()),
        ({"candidates": [{"artifact": None, "input_schema": {"monotone": {"x0": 1}}}]}, few_teacher()),
        ({"candidates": [{"artifact": None, "input_schema": '{"monotone": {"x0": 1}}'}]}, few_teacher()),
        ({"run": {**run, "owner": "postgres"}}, few_teacher()),
        ({"run": {**run, "attested": True}}, few_teacher()),
        ({"student": {**student, "figures": {**student["figures"], "attested": True}}}, few_teacher()),
        ({"student": {**student, "figures": {"owner": "postgres"}}}, few_teacher()),
        ({"student": {**student, "figures": 1}}, few_teacher()),
    ):
        with pytest.raises(psycopg.Error) as caught:
            engineer.execute(send, (job, claim, json.dumps({**report, **change}), [file]))
        assert caught.value.sqlstate in ("22023", "22P03", "42501"), change
    for garbage in ("null", "[]", "{}", '{"student": 1}', json.dumps({**report, "run": 3})):
        with pytest.raises(errors.InvalidParameterValue):
            engineer.execute(send, (job, claim, garbage, [few_teacher()]))
    honest = victim.execute(
        "SELECT name, accuracy, avg_latency_ms FROM distill.models WHERE name IN ('few', 'honest') ORDER BY 1"
    ).fetchall()
    assert value(engineer, send, *told) is not None
    # For its own role it is there; for nobody else it answers.
    assert value(engineer, "SELECT summary FROM distill.run_report(distill.last_run('few'))") == "forged"
    for query in (
        "SELECT summary FROM distill.run_report(distill.last_run('few'))",
        "SELECT summary FROM distill.leaderboard WHERE summary = 'forged'",
        "SELECT name FROM distill.families WHERE name = 'few_forged'",
        "SELECT name FROM distill.frontier WHERE name = 'few_forged'",
        "SELECT distill.choose_model('few')",
        "SELECT distill.choose_model('few', max_latency_ms => 100)",
    ):
        assert value(victim, query) not in ("forged", "few_forged", "few_forged:1"), query
    assert (
        honest
        == victim.execute(
            "SELECT name, accuracy, avg_latency_ms FROM distill.models WHERE name IN ('few', 'honest') ORDER BY 1"
        ).fetchall()
    )
    assert state(victim, "SELECT distill.to_sql('few_forged')") == "42501"
    assert state(victim, f"SELECT distill_model('few_forged', {QUICK})") == "42501"
    assert value(victim, "SELECT count(*) FROM struck") == 0


# -- locks


def test_locks_of_others_stop_nothing(victim: psycopg.Connection, role: Role, connect: Connect) -> None:
    """Whoever may log in may take advisory locks, any of them; what stops a training or an activation nobody else can lock."""
    role("nobody")
    attacker = connect(user="nobody")
    names = ("few", "few_distilled", "other")
    for key in [f"pg_distill training {place}" for place in range(64)] + [
        f"pg_distill model {name}" for name in names
    ]:
        attacker.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (key,))
    predictor = connect(user="distill_engineer")
    wrong = []
    for lock in (
        "SELECT FROM distill.name_locks FOR UPDATE",
        "SELECT FROM distill.name_locks FOR KEY SHARE",
        "LOCK TABLE distill.name_locks IN SHARE MODE",
        "LOCK TABLE distill.trainings IN ROW EXCLUSIVE MODE",
        "LOCK TABLE distill.trainings IN SHARE MODE",
        "SELECT FROM distill.models FOR SHARE",
        "SELECT distill._take_place(gen_random_uuid())",
    ):
        found = state(predictor, lock)
        if found not in ("42501", "55000"):
            wrong.append((lock, found))
    assert wrong == []
    victim.execute("SET statement_timeout = '60 s'")
    assert value(victim, "SELECT trainings_active FROM distill.metrics") == 0
    assert value(victim, f"SELECT distill_model('few', {QUICK})::text || '' IS NOT NULL") in (True, None)
    victim.execute("SELECT distill.activate_model('few', '1')")
    assert value(victim, "SELECT count(*) FROM distill.runs") == 1


def test_an_open_transaction_keeps_nobody_from_other_names(
    victim: psycopg.Connection, engineer: psycopg.Connection
) -> None:
    """Whoever registers a thousand names, or distils another's teacher, and stays in his transaction, holds his own names."""
    register = "SELECT distill.register_sql_model({0}, '0.5 + 0 * x0', '{{x0}}', 'SELECT x0, malignant FROM few LIMIT 100', 'malignant')"
    victim.execute(
        "SELECT distill.register_model('other', %s, features => '{x0,x1,x2,x3}')", (few_teacher(),)
    )
    engineer.execute("BEGIN")
    engineer.execute(register.format("'mine'"))
    engineer.execute(f"SELECT distill_model('few', sample => 'few', label => 'malignant', {QUICK})")
    victim.execute("SET lock_timeout = '2 s'")
    for name in ("other", "new", "few"):
        victim.execute(register.format(f"'{name}'").replace("'0.5", "'0.25"))
    victim.execute("SELECT distill.activate_model('other', '1')")
    engineer.execute("ROLLBACK")


def test_places_are_the_servers(victim: psycopg.Connection, connect: Connect, server: servers.Server) -> None:
    """Each is one training's, whatever its database, and free again when its session ends, however it ends."""
    victim.execute("SELECT distill.change_setting('concurrent_trainings', '1')")
    other = connect()
    with held_place(other), pytest.raises(errors.ConfigurationLimitExceeded):
        victim.execute(f"SELECT distill_model('few', {QUICK})")
    victim.execute(f"SELECT distill_model('few', {QUICK})")
    # An error gives it back, too.
    with pytest.raises(psycopg.Error):
        victim.execute(f"SELECT distill_model('few', sample => 'SELECT * FROM few WHERE false', {QUICK})")
    victim.execute(f"SELECT distill_model('few', {QUICK})")


# -- teams


@pytest.fixture
def teams(
    victim: psycopg.Connection, role: Role, connect: Connect
) -> tuple[psycopg.Connection, psycopg.Connection]:
    """Give the sessions of two teams, who do not see each other's models."""
    victim.execute(TEAMS)
    victim.execute(TEAMS)  # it can be run again
    names = [role(f"team_{i}", grant=["distill_engineer"]) for i in (1, 2)]
    victim.execute(f"GRANT SELECT ON few TO {', '.join(names)}")
    return connect(user=names[0]), connect(user=names[1])


def test_a_teams_name_is_its_own(
    teams: tuple[psycopg.Connection, psycopg.Connection], victim: psycopg.Connection
) -> None:
    one, two = teams
    register = "SELECT distill.register_model('{0}', %s, features => '{{x0,x1,x2,x3}}', version => {1})"
    one.execute(register.format("taken", "'7'"), (few_teacher(),))
    # Its version numbers block nobody else's, and it is one clear answer that the name is taken.
    two.execute(register.format("mine", "'7'"), (few_teacher(),))
    two.execute(register.format("mine", "NULL"), (few_teacher(),))
    assert value(two, "SELECT string_agg(version, ' ' ORDER BY version) FROM distill.models") == "7 8"
    for version in ("'7'", "'8'", "NULL"):
        with pytest.raises(errors.DuplicateObject):
            two.execute(register.format("taken", version), (few_teacher(),))
    for call in ("drop_model('taken')", "drop_model('taken:7')", "activate_model('taken', '7')"):
        with pytest.raises(errors.UndefinedObject):
            two.execute(f"SELECT distill.{call}")
    assert value(two, "SELECT count(*) FROM distill.prune(0, dry_run => false) WHERE name = 'taken'") == 0
    assert value(one, f"SELECT distill.predict('taken', {ROW}) IS NOT NULL") is True
    assert value(victim, "SELECT active FROM distill.models WHERE name = 'taken'") is True


def test_a_teacher_stays_for_another_teams_student(
    teams: tuple[psycopg.Connection, psycopg.Connection], victim: psycopg.Connection
) -> None:
    one, two = teams
    one.execute("SELECT distill.register_model('shared', %s, features => '{x0,x1,x2,x3}')", (few_teacher(),))
    victim.execute("CREATE POLICY shared ON distill.models FOR SELECT USING (name = 'shared')")
    two.execute(
        f"SELECT distill_model('shared', sample => 'few', label => 'malignant', student_name => 'pupil', target_latency_ms => 1000, {QUICK})"
    )
    if value(two, "SELECT count(*) FROM distill.models WHERE name = 'pupil'") == 0:
        two.execute(
            "SELECT distill.promote_candidate(run_id, candidate) FROM distill.candidates WHERE on_frontier LIMIT 1"
        )
    with pytest.raises(errors.DependentObjectsStillExist) as caught:
        one.execute("SELECT distill.drop_model('shared')")
    assert "pupil" not in str(caught.value.diag.message_detail)
    one.execute("SELECT distill.register_model('shared', %s, features => '{x0,x1,x2,x3}')", (few_teacher(),))
    rows = one.execute(
        "SELECT version, pruned, reason FROM distill.prune(0, dry_run => false) WHERE kind = 'version'"
    ).fetchall()
    assert [row[1] for row in rows] == [False] * len(rows)
    assert not any("pupil" in row[2] for row in rows)


# -- functions that read what is nobody's


def test_functions_with_rights_of_their_own_say_nothing_else(
    victim: psycopg.Connection, engineer: psycopg.Connection
) -> None:
    hostile = ("", "postgres'; DROP TABLE few; --", "x" * 10000, "\\", "%", "pg_catalog.pg_roles", "postgres")
    assert [value(engineer, "SELECT distill._owner_role(%s)::text", text) for text in hostile[:-1]] == [
        None
    ] * (len(hostile) - 1)
    assert [value(engineer, "SELECT distill._is_trusted(%s)", text) for text in hostile[:-1]] == [False] * (
        len(hostile) - 1
    )
    assert value(engineer, "SELECT distill._is_trusted('postgres')") is True
    for text in hostile:
        assert value(engineer, "SELECT distill._run_cost(%s, %s, %s)", text, text, text) is None
    assert len(FEATURES) == 4
