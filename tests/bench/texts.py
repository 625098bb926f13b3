#!/usr/bin/env python
"""Students of texts beside their teacher, a transformer, and beside what needs no database: ``make bench-text``.

A teacher is all-MiniLM-L6-v2 with a logistic regression that learned from ``k`` human labels. It answers for all training
texts; a table holds these and its answers, and nothing else. ``distill_model`` makes a student of it, which is then asked
for the test texts, by SQL, and held against human labels. It has to answer texts of 300 characters within ``--target`` ms, and
longer and shorter ones in proportion; where a busy machine lets none, it gets three times as much. It learns from all training
texts (``refit_on_all``), as the script does: other texts judge both. Beside it stand:

- *control*: logistic regression on tf-idf of the ``k`` labelled texts: what one has without a teacher.
- *script*: logistic regression on tf-idf of all training texts, taught by the teacher's answers: twenty lines of Python.
- *on embeddings*: the student of a ``float4[]`` column of the encoder's vectors, from which the teacher answers too.

With ``--run-teacher`` the teacher itself is registered in the place of its answers: it runs in the database, on made-up texts too,
which takes time from the search.

With ``--vectors`` the server's Python has static word vectors, the extra ``vectors``.

Election tweets have counts and a time beside the text: students of the text, of the others, and of all, from human labels too.

Prints tables, and writes them as JSON; ``--record`` writes them where the documents take them from.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "bench"), str(ROOT / "python")]

import minilm  # noqa: E402
import numpy as np  # noqa: E402
import servers  # noqa: E402
import text_sets  # noqa: E402
from pg_distill.frame import FloatArray  # noqa: E402

LENGTHS = (50, 300, 3000)
"""Characters of the texts whose calls are timed apart."""
MAX_TOKENS = 128
COLUMNS_TARGET_MS = 0.5
"""Of students that read other columns beside a text: what these are worth is asked, not how fast they are read."""


def embeddings(data: text_sets.TextSet, options: argparse.Namespace) -> tuple[FloatArray, FloatArray, float]:
    """Return the vectors of training and test texts, from the cache where they are there, and the seconds that a text took."""
    path = options.cache / f"{data.name}.npz"
    if not path.exists():
        encoder = minilm.Encoder(options.packages, max_tokens=MAX_TOKENS)
        began = time.monotonic()
        train, test = encoder.embed(data.train), encoder.embed(data.test)
        each = (time.monotonic() - began) / (len(train) + len(test))
        options.cache.mkdir(parents=True, exist_ok=True)
        np.savez(path, train=train, test=test, seconds=each)
    found = np.load(path)
    return found["train"], found["test"], float(found["seconds"])


def plain(texts: Any, weights: Any, answers: Any, n_classes: int, test: Any) -> Any:
    """Return the classes that logistic regression on tf-idf of words and pairs of words gives the test texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    reader = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = reader.fit_transform(texts)
    model = LogisticRegression(C=10, max_iter=300).fit(x, answers, sample_weight=weights)
    return model.predict(reader.transform(test))


def script(texts: Any, soft: FloatArray, test: Any) -> Any:
    """Return the classes of the plain script: each text once for each class, weighed by the teacher's probability."""
    rows, classes = np.nonzero(soft > 0.01)
    return plain([texts[i] for i in rows], soft[rows, classes], classes, soft.shape[1], test)


def run_set(name: str, options: argparse.Namespace, server: servers.Server) -> list[dict[str, Any]]:
    """Return a row for each number of labels and each seed."""
    from sklearn.linear_model import LogisticRegression

    data = text_sets.load(name, options.packages)
    train, test, teacher_s = embeddings(data, options)
    classes = data.classes
    y = np.array([classes.index(label) for label in data.train_labels])
    truth = np.array([classes.index(label) for label in data.test_labels])
    found = []
    for labels in options.labels:
        for seed in options.seeds:
            order = np.random.default_rng(seed).permutation(len(y))
            # Of each class two, so that the teacher knows them all.
            first = [i for k in range(len(classes)) for i in order[y[order] == k][:2].tolist()]
            chosen = np.array(list(dict.fromkeys([*first, *order.tolist()]))[: max(labels, len(first))])
            model = LogisticRegression(C=10, max_iter=1000).fit(train[chosen], y[chosen])
            soft = np.zeros((len(train), len(classes)))
            soft[:, model.classes_] = model.predict_proba(train)
            row: dict[str, Any] = {
                "set": name, "labels": labels, "seed": seed, "train": len(y), "test": len(truth),
                "characters": int(statistics.median(map(len, data.test))), "teacher_ms": 1000 * teacher_s,
                "teacher": float((model.classes_[model.decision_function(test).argmax(1)] == truth).mean())
                if len(model.classes_) > 2 else float((model.predict(test) == truth).mean()),
                "control": float((plain([data.train[i] for i in chosen], None, y[chosen], len(classes), data.test) == truth).mean()),
                "script": float((script(data.train, soft, data.test) == truth).mean()),
            }  # fmt: skip
            head = (model.coef_, model.intercept_, [classes[k] for k in model.classes_])
            row |= in_database(data, soft, truth, options, server, head if options.run_teacher else None)
            if not options.no_vectors:
                row |= on_embeddings(data, train, test, soft, truth, options, server)
            row["kept"] = row["student"] / row["teacher"]
            found.append(row)
            print(
                " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()),
                flush=True,
            )
    return found


def distil(db: Any, target_ms: float, seconds: float | None) -> dict[str, Any]:
    """Distil the teacher ``t`` within a target, or within more where nothing fits; return what came of it."""
    for factor in (1, 3, 9, 27):
        began = time.monotonic()
        db.execute(
            "SELECT distill_model('t', target_latency_ms => %s, min_accuracy => 0, time_budget_s => %s, refit_on_all => true)",
            (factor * target_ms, seconds),
        )
        took = time.monotonic() - began
        found = db.execute(
            "SELECT c.family, r.student_latency_ms FROM distill.runs r JOIN distill.candidates c USING (run_id)"
            " WHERE c.chosen AND r.accepted ORDER BY r.created_at DESC LIMIT 1"
        ).fetchone()
        if found is not None:
            return {
                "family": found[0],
                "latency_ms": float(found[1]),
                "target_ms": factor * target_ms,
                "seconds": took,
            }
    raise SystemExit("no student within 27 times the target")


def answers_of(db: Any, classes: list[str]) -> Any:
    """Return the classes that the student gives the rows of ``asked``, as numbers."""
    given = db.execute(
        "SELECT distill.predict_class('t_distilled', to_jsonb(a)) FROM asked a ORDER BY id"
    ).fetchall()
    return np.array([classes.index(answer) for (answer,) in given])


def proportionate(options: argparse.Namespace, texts: Any) -> float:
    """Return the target for a call over these texts, so that one of 300 characters takes ``--target`` at most.

    Half of that a call takes whatever the text; the rest grows as texts do.
    """
    return float(options.target * (0.5 + 0.5 * statistics.mean(map(len, texts)) / 300))


def log_answers(
    db: Any, column: str, train: Sequence[Any], test: Sequence[Any], soft: FloatArray, classes: Sequence[str]
) -> None:
    """Register what the teacher said of the rows to train on; ``column`` is its name and type. The others are in ``asked``."""
    db.execute(f"CREATE TABLE log (id int, {column}, answer jsonb)")
    db.execute(f"CREATE TABLE asked (id int, {column})")
    with db.cursor().copy("COPY log FROM STDIN") as copy:
        for i, (given, p) in enumerate(zip(train, soft.tolist(), strict=True)):
            copy.write_row((i, given, json.dumps(dict(zip(classes, p, strict=True)))))
    with db.cursor().copy("COPY asked FROM STDIN") as copy:
        for i, given in enumerate(test):
            copy.write_row((i, given))
    db.execute(
        "SELECT distill.register_logged_model('t', '{answer}', %s, 'log', latency_ms => 15)",
        ([column.partition(" ")[0]],),
    )


def in_database(
    data: text_sets.TextSet,
    soft: FloatArray,
    truth: Any,
    options: argparse.Namespace,
    server: servers.Server,
    head: tuple[Any, Any, list[str]] | None,
) -> dict[str, Any]:
    """Distil the answers, or the teacher with this ``head``, ask the student for the test texts, and time it on several lengths."""
    classes = data.classes
    servers.create_database(server, "bench_texts")
    try:
        with server.connect("bench_texts", autocommit=True) as db:
            train, test = ([text.replace("\0", "") for text in texts] for texts in (data.train, data.test))
            log_answers(db, "body text", train, test, soft, classes)
            if head is not None:
                db.execute("SELECT distill.drop_model('t')")
                db.execute(
                    "SELECT distill.register_model('t', %s, tokenizer => %s, max_tokens => %s, features => '{body}', sample => 'log')",
                    (*minilm.classifier(*head, options.packages), MAX_TOKENS),
                )
            out = distil(db, proportionate(options, data.train), options.seconds)
            out["student"] = float((answers_of(db, classes) == truth).mean())
            long = "\n".join(data.test)
            for characters in LENGTHS:
                texts = [
                    long[i * characters : (i + 1) * characters]
                    for i in range(min(200, len(long) // characters))
                ]
                out[f"us_{characters}"] = time_calls(db, texts)
            return out
    finally:
        servers.drop_database(server, "bench_texts")


def on_embeddings(
    data: text_sets.TextSet,
    train: FloatArray,
    test: FloatArray,
    soft: FloatArray,
    truth: Any,
    options: argparse.Namespace,
    server: servers.Server,
) -> dict[str, Any]:
    """Return the accuracy of the student on the encoder's vectors, and the microseconds of a call."""
    classes = data.classes
    servers.create_database(server, "bench_vectors")
    try:
        with server.connect("bench_vectors", autocommit=True) as db:
            log_answers(db, "embedding float4[]", train.tolist(), test.tolist(), soft, classes)
            out = distil(db, options.target, options.seconds)
            return {
                "on_embeddings": float((answers_of(db, classes) == truth).mean()),
                "embeddings_family": out["family"], "embeddings_ms": out["latency_ms"],
            }  # fmt: skip
    finally:
        servers.drop_database(server, "bench_vectors")


def run_columns(options: argparse.Namespace, server: servers.Server) -> list[dict[str, Any]]:
    """Return the accuracy of students of election tweets: of the text, of counts and time, and of all together."""
    data = text_sets.load("tweets", options.packages)
    truth, found = np.array(data.test_labels), []
    kinds = {"retweets": "float8", "favourites": "float8", "posted": "timestamp"}
    columns = {"the text": ["body"], "counts and time": list(kinds), "all": ["body", *kinds]}
    for what, names in columns.items():
        servers.create_database(server, "bench_columns")
        try:
            with server.connect("bench_columns", autocommit=True) as db:
                typed = "".join(f", {name} {kind}" for name, kind in kinds.items())
                for place, table in enumerate(("log", "asked")):
                    texts, labels = ((data.train, data.train_labels), (data.test, data.test_labels))[place]
                    db.execute(f"CREATE TABLE {table} (id int, body text, author text{typed})")
                    with db.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                        for i, text in enumerate(texts):
                            others = (data.others[name][place][i] for name in kinds)
                            copy.write_row((i, text.replace("\0", ""), labels[i], *others))
                db.execute(
                    "SELECT distill.register_logged_model('t', '{author}', %s, 'log', latency_ms => 15)",
                    (names,),
                )
                out = distil(db, COLUMNS_TARGET_MS, options.seconds)
                given = db.execute(
                    "SELECT distill.predict_class('t_distilled', to_jsonb(a)) FROM asked a ORDER BY id"
                ).fetchall()
            accuracy = float((np.array([g for (g,) in given]) == truth).mean())
            error = (accuracy * (1 - accuracy) / len(truth)) ** 0.5
            found.append({"columns": what, "accuracy": accuracy, "error": error, "family": out["family"]})
            print(found[-1], flush=True)
        finally:
            servers.drop_database(server, "bench_columns")
    return found


def time_calls(db: Any, texts: list[str]) -> float:
    """Return the mean microseconds of a call by jsonb over these texts, less those of a call that predicts nothing."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS timed (body text)")
    db.execute("TRUNCATE timed")
    with db.cursor().copy("COPY timed FROM STDIN") as copy:
        for text in texts:
            copy.write_row((text,))
    best = []
    for query in (
        "length(distill.predict_class('t_distilled', '{}'::float8[], ARRAY[t.body]))",
        "length(t.body)",
    ):
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            db.execute(f"SELECT sum({query}) FROM timed t, generate_series(1, 5)")
            taken.append(time.perf_counter() - began)
        best.append(min(taken))
    return (best[0] - best[1]) / (5 * len(texts)) * 1e6


SHORT = 80
"""Characters of the texts that are scored by the million."""


def run_scoring(options: argparse.Namespace, server: servers.Server) -> dict[str, Any]:
    """Return how many short texts a second score_class scores, and an application with scikit-learn, in turns.

    The application fetches ids and texts by COPY, asks its own pipeline, and writes ids and classes back by COPY.
    """
    import io

    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    data = text_sets.load("reviews", options.packages)
    texts = [text[i : i + SHORT].replace("\0", "").replace("\\", " ").replace("\t", " ").replace("\n", " ").replace("\r", " ")
             for text in data.train for i in range(0, len(text), SHORT)]  # fmt: skip
    servers.create_database(server, "bench_scoring")
    try:
        with server.connect("bench_scoring", autocommit=True) as db:
            db.execute("CREATE TABLE log (id int, body text, answer text)")
            with db.cursor().copy("COPY log FROM STDIN") as copy:
                for i, (text, label) in enumerate(zip(data.train, data.train_labels, strict=True)):
                    copy.write_row((i, text.replace("\0", "")[:SHORT], label))
            db.execute(
                "SELECT distill.register_logged_model('t', '{answer}', '{body}', 'log', latency_ms => 15)"
            )
            db.execute(
                "SELECT distill_model('t', families => '{linear}', min_accuracy => 0, time_budget_s => 20)"
            )
            db.execute("CREATE TABLE many (id int, body text)")
            with db.cursor().copy("COPY many FROM STDIN") as copy:
                for i in range(options.rows):
                    copy.write_row((i, texts[i % len(texts)]))
            db.execute("CREATE TABLE scored (id int, class text)")
            pipeline = make_pipeline(
                TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
                LogisticRegression(C=10, max_iter=300),
            ).fit([text[:SHORT] for text in data.train], data.train_labels)

            def database() -> None:
                db.execute(
                    "INSERT INTO scored SELECT s.key::int, s.class FROM distill.score_class('t_distilled', 'SELECT * FROM many', 'id') s"
                )

            def application() -> None:
                with db.cursor().copy("COPY many TO STDOUT") as copy:
                    rows = [line.split("\t", 1) for line in b"".join(map(bytes, copy)).decode().splitlines()]
                with db.cursor().copy("COPY scored FROM STDIN") as copy:
                    for start in range(0, len(rows), 50_000):
                        part = rows[start : start + 50_000]
                        classes = pipeline.predict([text for _, text in part])
                        out = io.StringIO()
                        for (key, _), name in zip(part, classes, strict=True):
                            out.write(f"{key}\t{name}\n")
                        copy.write(out.getvalue())

            seconds: dict[str, list[float]] = {"score_class": [], "application": []}
            for _ in range(options.rounds):
                for name, work in (("score_class", database), ("application", application)):
                    db.execute("TRUNCATE scored")
                    began = time.perf_counter()
                    work()
                    seconds[name].append(time.perf_counter() - began)
                    scored = db.execute("SELECT count(*) FROM scored").fetchone()
                    assert scored == (options.rows,), scored
            usual = {name: options.rows / statistics.median(taken) for name, taken in seconds.items()}
            return {"rows": options.rows, **usual, "times": usual["score_class"] / usual["application"]}
    finally:
        servers.drop_database(server, "bench_scoring")


def merged(earlier: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return earlier rows and new ones, which take the place of those of their set, labels and seed."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["set"], row["labels"], row["seed"]

    known = {key(row) for row in new}
    return [row for row in earlier if key(row) not in known] + new


def joined(earlier: str | None, new: str, by: str) -> str:
    """Return what is said of earlier figures and of new ones, once where it is the same."""
    return new if earlier is None else earlier if earlier.endswith(new) else earlier + by + new


def machine_text(db: Any) -> str:
    """Return what the server runs on, in words."""
    found = db.execute("SELECT distill._describe_machine()").fetchone()[0]
    return f"{found['cores']} cores of an {found['processor']}, a shared host"


def summary(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table: means over seeds."""
    columns = [
        "set",
        "labels",
        "teacher",
        "student",
        "kept",
        "script",
        "control",
        "on embeddings",
        "family",
        "µs 50 / 300 / 3,000",
        "seeds",
    ]
    out = []
    for name, labels in dict.fromkeys((r["set"], r["labels"]) for r in rows):
        mine = [r for r in rows if (r["set"], r["labels"]) == (name, labels)]

        def mean(key: str, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.mean(r[key] for r in mine if key in r)

        out.append([
            name, f"{labels:,}", *(f"{mean(k):.3f}" for k in ("teacher", "student")), f"{100 * mean('kept'):.1f} %",
            *(f"{mean(k):.3f}" for k in ("script", "control")),
            f"{mean('on_embeddings'):.3f}" if any("on_embeddings" in r for r in mine) else "-", ", ".join(sorted({r["family"] for r in mine})),
            " / ".join(f"{mean(f'us_{n}'):.0f}" for n in LENGTHS), str(len(mine)),
        ])  # fmt: skip
    return columns, out


def main() -> None:
    """Run the benchmark."""
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--output", type=Path, default=ROOT / "build/bench/texts.json")
    places.add_argument("--packages", type=Path, default=ROOT / "build/bench/packages")
    places.add_argument("--cache", type=Path, default=ROOT / "build/bench/texts")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[places]
    )
    parser.add_argument(
        "--sets", default="reviews,tomatoes,bbc,newsgroups,r8,r52,tweets", help="names with commas"
    )
    parser.add_argument("--labels", default="200,1000", help="human labels of the teacher, with commas")
    parser.add_argument("--seeds", default="0,1,2", help="which labels the teacher had, with commas")
    parser.add_argument(
        "--seconds",
        type=float,
        help="time budget of a search (default: by the rows, as a distillation has it)",
    )
    parser.add_argument(
        "--target", type=float, default=0.05, help="ms for 300 characters; for others in proportion"
    )
    parser.add_argument("--run-teacher", action="store_true", help="in the database, instead of its answers")
    parser.add_argument(
        "--vectors", action="store_true", help="with static word vectors; of the local server"
    )
    parser.add_argument("--no-vectors", action="store_true", help="without the students on embeddings")
    parser.add_argument(
        "--no-columns", action="store_true", help="without tweets with their counts and times"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of scoring; medians count")
    parser.add_argument("--rows", type=int, default=1_000_000, help="short texts that are scored; 0: none")
    parser.add_argument("--server", default="local")
    parser.add_argument(
        "--merge", action="store_true", help="into the output: what is not run now stays as it was"
    )
    parser.add_argument("--record", action="store_true", help="into tests/bench/results, for the documents")
    options = parser.parse_args()
    options.labels = [int(k) for k in options.labels.split(",")]
    options.seeds = [int(k) for k in options.seeds.split(",")]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[dict[str, Any]] = []
    if options.merge and options.output.exists():
        rows = json.loads(options.output.read_text())
    wheels = [text_sets.word_vectors(options.packages)] if options.vectors else []
    if wheels and options.server != "local":
        parser.error("--vectors needs --server local: another server's Python has what is installed there")
    with servers.start(options.server, wheels=wheels) as server:
        servers.create_database(server, "bench_machine")
        with server.connect("bench_machine", autocommit=True) as db:
            machine = machine_text(db)
        for name in filter(None, options.sets.split(",")):
            rows = merged(rows, run_set(name, options, server))
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(rows, indent=1))
        mixed = [] if options.no_columns else run_columns(options, server)
        scoring = run_scoring(options, server) if options.rows else None
    columns, table = summary(rows)
    for line in (columns, *table):
        print(" | ".join(line))
    if scoring is not None:
        print(json.dumps(scoring))
    if options.record:
        path = ROOT / "tests/bench/results/texts.json"
        kept = json.loads(path.read_text()) if options.merge else {"tables": {}}
        tables = kept["tables"]
        tables["sets"] = {"columns": columns, "rows": table}
        # Where files lie on this machine says nothing of the figures.
        today, said = datetime.now(UTC).date().isoformat(), shlex.join(places.parse_known_args()[1])
        record = {
            "command": "make bench-text", "recorded": joined(kept.get("recorded"), today, " and "), "machine": machine,
            "source": joined(kept.get("source"), said, "; merged with "), "tables": tables,
        }  # fmt: skip
        if mixed:
            tables["columns"] = {
                "columns": ["election tweets, read", "accuracy", "standard error", "family"],
                "rows": [
                    [m["columns"], f"{m['accuracy']:.3f}", f"{m['error']:.3f}", m["family"]] for m in mixed
                ],
            }
        if scoring is not None:
            tables["scoring"] = {
                "columns": ["texts of 80 characters", "score_class", "an application with scikit-learn", "times"],
                "rows": [[f"{scoring['rows']:,}", f"{scoring['score_class']:,.0f} a second",
                          f"{scoring['application']:,.0f} a second", f"{scoring['times']:.1f}"]],
            }  # fmt: skip
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
