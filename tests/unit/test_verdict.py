"""Which student a run comes to, on made-up figures: the select rows give the order, the test rows say yes or no."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pg_distill.child.messages import Trial
from pg_distill.child.wire import Message
from pg_distill.child.workshop import Workshop
from pg_distill.frame import Feature, Frame
from pg_distill.measure import latency, metrics
from pg_distill.onnx_model.signature import Signature
from pg_distill.registry.model import Model
from pg_distill.runs import choice, columns, summary, verdict
from pg_distill.runs.options import Options
from pg_distill.search.problem import Candidate, Problem
from pg_distill.serving.timing import Timing
from pg_distill.students.soft_labels import softmax
from pg_distill.students.transfer_set import TransferSet

SIGNATURE = Signature((), (), None, "binary", ("0", "1"))  # type: ignore[arg-type]
OPTIONS = Options("t", target_latency_ms=1.0, min_accuracy=0.8)


def trial(number: int, select: float, latency: float = 0.1, **fields: Any) -> Trial:
    """Return a candidate that was trained, and whose metric has no noise unless ``jackknife_select`` says so."""
    known: dict[str, Any] = {
        "on_frontier": True,
        "reason": "on the frontier",
        "select_classes": 2,
        "tie_break_select": 0.0,
    }
    return Trial(
        number=number,
        family="mlp",
        configuration={},
        artifact=f"file {number}".encode(),
        signature=SIGNATURE,
        select_accuracy=select,
        trainer_latency_ms=latency,
        **(known | fields),
    )


def timing(mean: float) -> Timing:
    none = dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "p50_high_ms", "p95_high_ms", "p99_high_ms"))
    return Timing(latency.Latency(mean, mean, mean, **none, n_calls=1, n_blocks=1), 0.0, "predict")


def timings(latencies: dict[int, float], **members: float) -> dict[str, Timing]:
    return {choice.offer_name(n): timing(ms) for n, ms in latencies.items()} | {
        key: timing(ms) for key, ms in members.items()
    }


def model(key: str, artifact: bytes = b"", **fields: Any) -> Model:
    known: dict[str, Any] = dict.fromkeys(Model.__dataclass_fields__)
    known |= {"id": key, "name": key, "version": "1", "task": "binary", "kind": "onnx", "form": "predict"}
    known |= {
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "signature": SIGNATURE,
        "latency_declared": False,
    }
    return Model(**(known | fields))


def scores(value: float, classes: int = 2) -> dict[str, Any]:
    return {
        "score": value, "score_low": value - 0.01, "score_high": value + 0.01, "distinct_classes": classes,
        "metrics": {"accuracy": value},
    }  # fmt: skip


def figures(teacher: float, candidates: dict[int, Any], members: dict[str, float] | None = None) -> Any:
    return {
        "teacher": scores(teacher),
        "majority": 0.5,
        "candidates": {str(n): v if isinstance(v, dict) else scores(v) for n, v in candidates.items()},
        "members": {key: scores(v) for key, v in (members or {}).items()},
    }


TEACHER = model("t", b"teacher")


# -- the order


def test_within_noise_log_loss_decides_and_then_latency() -> None:
    rng = np.random.default_rng(0)
    noise, apart = rng.normal(scale=0.001, size=(2, 20))
    top = trial(0, 0.900, 0.5, tie_break_select=-0.4, jackknife_select=list(0.9 + noise))
    near = trial(1, 0.897, 0.5, tie_break_select=-0.3, jackknife_select=list(0.897 + apart))
    fast = trial(2, 0.897, 0.1, tie_break_select=-0.3, jackknife_select=list(0.897 + apart))
    # As far from the top, but on the same rows always worse by as much: that is no noise.
    worse = trial(3, 0.897, 0.5, tie_break_select=-0.2, jackknife_select=list(0.897 + noise))
    assert [t.number for t in choice.preferred([worse, top, near, fast])] == [2, 1, 0, 3]
    # Nobody asked for SQL: it is the answer where it is more accurate, not where it is as good.
    as_sql = replace(fast, number=4, twin=2)
    assert [t.number for t in choice.preferred([worse, top, as_sql], sql_wanted=False)] == [0, 4, 3]
    as_sql = replace(as_sql, tie_break_select=-0.5)
    assert [t.number for t in choice.preferred([worse, top, as_sql], sql_wanted=True)] == [4, 0, 3]


def test_sql_forms_are_told_apart_by_what_a_row_takes_where_that_is_measured() -> None:
    """A deep tree's expression is long, and a row takes one path of it; a network's is short, and a row takes all of it."""
    small = trial(0, 0.80, expression="1" * 100)
    network = trial(1, 0.88, expression="1" * 200)
    tree = replace(trial(2, 0.87, expression="1" * 900), family="tree")
    longer = replace(trial(3, 0.87, expression="1" * 950), family="tree")
    nothing = trial(4, 0.99)
    forms = choice.sql_forms([small, network, tree, longer, nothing], pgvector=False)
    assert [t.twin for t in forms] == [0, 1]
    took = {0: 0.002, 1: 0.005, 2: 0.001}
    forms = choice.sql_forms(
        [small, network, tree, longer, nothing], pgvector=False, row_ms=lambda t: took[t.number]
    )
    assert [t.twin for t in forms] == [0, 1, 2]  # and what its own family beats is not measured


def test_the_best_within_the_target_are_always_timed() -> None:
    frontier = [trial(i, 0.5 + i / 100, i / 10) for i in range(1, 31)]
    for target in (0.5, 1.25, 2.0, 3.5):
        found = choice.finalists(frontier, target, 0.05)
        assert len(found) == choice.MAX_TIMED
        assert found == sorted(found, key=lambda t: t.number)
        numbers = [t.number for t in found]
        best = max(t.number for t in frontier if t.number / 10 + 0.05 <= target)
        assert {best, best - 1, best - 2} <= set(numbers)
        assert {1, 30} <= set(numbers)


def test_a_frontier_that_is_not_timed_keeps_its_files_and_says_so() -> None:
    trials = [trial(i, 0.5 + i / 100, i / 10) for i in range(1, 31)]
    timed = {t.number for t in choice.finalists(trials, 1.0, 0.0)}
    assert {t.number for t in choice.kept_by_search(trials)} == set(range(1, 31))
    decision = verdict.Verdict(False, trials[0], "late", None, {1: "late"})
    for t in trials[1:]:
        reason = columns._reason(t, decision, 1.0, timed=t.number in timed, beaten=False)
        assert ("to be timed" in reason) == (t.number not in timed)


def test_controls_are_compared_with_within_the_target() -> None:
    controls = [trial(i, 0.5 + i / 100, i / 10, is_control=True) for i in range(1, 10)]
    other = trial(20, 0.99, 0.1)
    for target, number in ((0.55, 5), (5.0, 9), (0.01, 1)):
        found = choice.best_control([*controls, other], target, 0.0)
        assert found is not None
        assert found.number == number
    assert choice.best_control([other], 1.0, 0.0) is None


def test_one_class_for_every_row_comes_last() -> None:
    idle, useful = trial(0, 0.980, select_classes=1), trial(1, 0.979)
    known = timings({0: 0.1, 1: 0.1}, t=5.0)
    order = choice.ranked([idle, useful], known, 1.0, TEACHER, (0.99, 2))
    assert [t.number for t in order] == [1, 0]
    assert [t.number for t in choice.ranked([idle], known, 1.0, TEACHER, (0.99, 2))] == [0]
    # A teacher that names one class itself is no reason.
    assert [t.number for t in choice.ranked([idle, useful], known, 1.0, TEACHER, (0.99, 1))] == [0, 1]


def test_where_none_meets_the_target_the_fastest_is_the_nearest() -> None:
    order = choice.ranked(
        [trial(0, 0.9), trial(1, 0.8)], timings({0: 3.0, 1: 2.0}, t=5.0), 1.0, TEACHER, (0.99, 2)
    )
    assert [t.number for t in order] == [1]


def test_a_sql_form_as_good_as_the_answer_is_the_answer_where_it_is_wanted() -> None:
    noise = 0.001 * np.random.default_rng(0).normal(size=(2, 20))
    top = trial(0, 0.806, tie_break_select=-0.43, jackknife_select=list(0.806 + noise[0]))
    answer = trial(1, 0.803, tie_break_select=-0.42, jackknife_select=list(0.803 + noise[1]))
    as_sql = replace(
        trial(2, 0.803, statement_latency_ms=0.1, jackknife_select=list(0.803 + noise[0])), twin=3
    )
    as_sql = replace(as_sql, tie_break_select=-0.44)
    known = timings({0: 0.1, 1: 0.1, 2: 0.01}, t=5.0)
    for wanted, numbers in ((True, [2, 1, 0]), (False, [1, 0, 2])):
        found = choice.ranked([top, answer, as_sql], known, 1.0, TEACHER, (0.99, 2), sql_wanted=wanted)
        assert [t.number for t in found] == numbers


# -- the verdict


def decide(order: list[Trial], known: Any, found: Any, *members: Model) -> verdict.Verdict:
    return verdict.decide(OPTIONS, "accuracy", TEACHER, {m.id: m for m in members}, order, known, found)


def test_the_first_that_is_acceptable_is_accepted() -> None:
    order = [trial(0, 0.95), trial(1, 0.94), trial(2, 0.93)]
    known = timings({0: 0.3, 1: 0.2, 2: 0.1}, t=5.0, m=0.25)
    decision = decide(order, known, figures(0.9, {0: 0.86, 1: 0.85, 2: 0.89}, {"m": 0.87}), model("m", b"m"))
    assert decision.accepted
    assert decision.chosen is order[1]  # not the best on the test rows
    assert list(decision.refused) == [0]


def test_where_none_is_accepted_the_first_is_the_nearest() -> None:
    order = [trial(0, 0.95), trial(1, 0.94)]
    known = timings({0: 0.3, 1: 0.2}, t=5.0)
    decision = decide(order, known, figures(0.9, {0: 0.7, 1: scores(0.9, classes=1)}))
    assert not decision.accepted
    assert decision.chosen is order[0]
    assert list(decision.refused) == [0, 1]
    assert decide([], {}, figures(0.9, {})).chosen is None


def test_a_file_that_the_family_has_does_not_improve_it() -> None:
    """Not even where it was timed as the faster one of the two."""
    order = [trial(0, 0.95)]
    known = timings({0: 0.1}, t=5.0, m=0.2)
    found = figures(0.9, {0: 0.88}, {"m": 0.88})
    assert decide(order, known, found, model("m", b"another")).accepted
    decision = decide(order, known, found, model("m", b"file 0"))
    assert not decision.accepted
    assert "m:1" in decision.reason
    # It is the answer that the family has: a second run does not put the next best in its place.
    found = figures(0.9, {0: 0.88, 1: 0.85}, {"m": 0.88})
    known |= timings({1: 0.01})
    assert not decide([*order, trial(1, 0.9)], known, found, model("m", b"file 0")).accepted
    # A cascade of the same student is another model.
    assert decide(order, known, found, model("m", b"file 0", form="cascade", threshold=0.7)).accepted


def test_a_member_is_held_against_the_same_rows() -> None:
    """What only some rows may judge is no better for these being easy; what none may judge stands in nobody's way."""
    order, known = [trial(0, 0.95)], timings({0: 0.3}, t=5.0, m=0.2)
    member = model("m", b"m")
    easy = {"score": 0.95, "difference_error": 0.01}
    found = figures(0.9, {0: 0.86})
    found["members"]["m"] = scores(0.93) | {"against": {"candidates": {"0": easy}}}
    assert decide(order, known, found, member).accepted  # 0.95 to 0.93 where both were judged
    found["members"]["m"] = scores(0.85) | {"against": {"candidates": {"0": easy | {"score": 0.84}}}}
    decision = decide(order, known, found, member)
    assert not decision.accepted
    assert "m:1" in decision.reason
    found["members"]["m"] = scores(0.99) | {"against": {"candidates": {"0": easy | {"score": None}}}}
    assert decide(order, known, found, member).accepted
    del found["members"]["m"]
    assert decide(order, known, found, member).accepted
    assert verdict.not_compared({"m": member}, found) == ["m:1"]
    assert "m:1" in verdict.family_caveat({"m": member}, found)


@pytest.mark.parametrize(
    ("metric", "teacher", "majority", "expected"),
    [
        ("accuracy", 0.95, 0.6, (0.80, False)),
        ("agreement", 1.0, 0.5, (0.80, False)),
        ("accuracy", 0.77, 0.75, (0.76, True)),  # 0.80 cannot be reached
        ("accuracy", 0.995, 0.99, (0.9925, True)),  # 0.80 is what anybody reaches
        ("accuracy", 0.6, 0.7, (0.7, True)),  # a teacher that adds nothing
        ("roc_auc", 0.7, 0.5, (0.6, True)),
        ("average_precision", 0.2, 0.01, (0.105, True)),
        ("neg_log_loss", -0.3, -0.7, (-0.5, True)),
        ("r2", 0.5, 0.0, (0.25, True)),
        ("neg_root_mean_squared_error", -10.0, -30.0, (-20.0, True)),
    ],
)
def test_a_floor_that_nobody_asks_for_can_be_reached(
    metric: str, teacher: float, majority: float, expected: tuple[float, bool]
) -> None:
    task = "regression" if metric in ("r2", "neg_root_mean_squared_error") else "binary"
    found = verdict.floor(Options("t"), metric, task, teacher, majority)  # type: ignore[arg-type]
    assert found is not None
    assert found.metric == metric
    assert (pytest.approx(found.value), found.is_relative) == expected
    assert found.value <= max(teacher, majority)
    # What is asked for is asked for, of what lies between 0 and 1.
    asked = verdict.floor(Options("t", min_accuracy=0.9), metric, task, teacher, majority)  # type: ignore[arg-type]
    assert asked is not None
    assert (asked.value, asked.is_relative) == (0.9, False)
    assert metrics.is_unit_metric(asked.metric)


def test_a_floor_is_out_of_reach_only_far_beyond_the_teacher() -> None:
    assert verdict.is_out_of_reach(0.95, 0.75)
    assert verdict.is_out_of_reach(1.0, 0.97)
    assert not verdict.is_out_of_reach(
        0.78, 0.777
    )  # who learns from labels too may do better than the teacher
    assert not verdict.is_out_of_reach(0.9, 0.95)
    assert not verdict.is_out_of_reach(0.9, None)


def test_one_class_for_every_row_is_no_fault_where_rows_are_ranked() -> None:
    """Of a rare class no probability passes one half: ranked they can be as good as the teacher's."""
    chosen, known = trial(0, 0.80), timings({0: 0.1}, t=5.0)
    found = figures(0.81, {0: scores(0.805, classes=1)})
    for metric, accepted in (("roc_auc", True), ("average_precision", True), ("neg_log_loss", True), ("accuracy", False), ("f1", False)):  # fmt: skip
        options = replace(OPTIONS, min_accuracy=None if metric == "neg_log_loss" else 0.8)
        decision = verdict.decide(options, metric, TEACHER, {}, [chosen], known, found)
        assert decision.accepted is accepted, metric
    idle, useful = trial(0, 0.80, select_classes=1), trial(1, 0.79)
    for metric, first in (("roc_auc", 0), ("accuracy", 1)):
        order = choice.ranked(
            [idle, useful], known | timings({1: 0.1}), 1.0, TEACHER, (0.9, 2), metric=metric
        )
        assert order[0].number == first


def test_the_fast_end_and_the_knee_can_be_preferred() -> None:
    slow, knee, fast, poor = trial(0, 0.900), trial(1, 0.896), trial(2, 0.84), trial(3, 0.6)
    as_sql = replace(trial(4, 0.896, statement_latency_ms=0.1), twin=1)
    known = timings({0: 0.097, 1: 0.021, 2: 0.012, 3: 0.009, 4: 0.001}, t=5.0)

    def order(prefer: str, **given: Any) -> list[int]:
        found = choice.ranked(
            [slow, knee, fast, poor, as_sql],
            known,
            1.0,
            TEACHER,
            (0.91, 2),
            prefer=prefer,
            majority=0.5,
            floor=0.8,
            **given,
        )
        return [t.number for t in found]

    assert order("accurate")[0] == 0
    assert order("knee")[:2] == [1, 0]
    assert order("fast")[:3] == [2, 1, 0]
    assert order("fast")[-2] == 3 or order("fast")[-1] == 3
    assert order("fast", sql_wanted=True)[0] == order("knee", sql_wanted=True)[0] == 4
    found = figures(0.91, {0: 0.900, 1: 0.8992})
    said = verdict.faster_alternative(slow, knee, OPTIONS, "accuracy", TEACHER, known, found)
    assert "candidate 1" in said and "-0.0008" in said
    assert not verdict.faster_alternative(slow, slow, OPTIONS, "accuracy", TEACHER, known, found)
    below = figures(0.91, {0: 0.900, 1: 0.79})
    assert not verdict.faster_alternative(slow, knee, OPTIONS, "accuracy", TEACHER, known, below)


def test_a_file_that_the_family_has_may_be_asked_for_under_another_name() -> None:
    order, known = [trial(0, 0.95)], timings({0: 0.1}, t=5.0, m=0.1, n=0.1)
    found = figures(0.9, {0: 0.88}, {"m": 0.88, "n": 0.88})
    member, namesake = model("m", b"file 0"), model("n", b"file 0")

    def named(name: str | None, *members: Model, floor: float = 0.8) -> verdict.Verdict:
        options = replace(OPTIONS, min_accuracy=floor)
        return verdict.decide(
            options, "accuracy", TEACHER, {m.id: m for m in members}, order, known, found, name
        )

    assert named("other", member).accepted
    assert "m:1" in named("other", member).reason
    assert not named("m", member).accepted
    assert not named("n", member, namesake).accepted  # it has it already
    assert not named("other", member, floor=0.89).accepted


def test_the_floor_warns_also_where_it_is_held_against_another_metric() -> None:
    """A floor cannot bound a log loss: the accuracy beside it, with an interval of its own."""
    ours = scores(-0.4) | {"metrics": {"accuracy": 0.81}}
    found = figures(-0.3, {0: ours})
    chosen = trial(0, -0.4)
    known = timings({0: 0.1}, t=5.0)
    decision = verdict.decide(OPTIONS, "neg_log_loss", TEACHER, {}, [chosen], known, found)
    assert decision.accepted
    for low, straddles in ((0.79, True), (0.805, False)):
        compared = {"intervals": {"student": {"accuracy": [low, 0.83]}}, "versus": {}}
        text = summary.summarise(OPTIONS, "neg_log_loss", TEACHER, decision, None, known, found, compared)
        assert ("straddles" in text) == straddles


# -- cascades


def test_cascades_are_planned_on_rows_that_their_student_has_not_learned() -> None:
    """The file of a student that was trained again with the select rows knows them; its logits before do not."""
    frame = Frame((Feature("x", "float"),), {"x": np.arange(200.0)})
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    labelled = 4.0 * np.eye(2)[y]
    rows = TransferSet(frame, labelled, y, None, np.zeros(200, np.uint8))
    before = rng.normal(size=(200, 2))
    workshop = Workshop()
    workshop.problem, workshop.judging = Problem("binary", ("0", "1"), "accuracy", rows, rows), rows
    workshop.candidates = {
        7: Candidate(
            7, "mlp", {}, b"a file", None, 6, 0.5, 0.5, 0.1, True, "", False, 1.0, select_logits=before
        )
    }
    request = Message("cascade", {"shares": [[7, 0.25]], "first": 30, "most": 2}, {}, {})
    [found] = workshop.cascade(request, None).fields["cascades"]  # type: ignore[arg-type]
    own = softmax(before).max(axis=1)
    asked = own < found["threshold"]
    assert found["share"] == asked.mean() == 0.25
    right = np.where(asked, True, before.argmax(axis=1) == y)
    assert found["select_accuracy"] == right.mean() < 0.8
    assert workshop.cascades == {30: (7, found["threshold"])}


def test_what_need_not_be_monotone_takes_no_place_of_what_is() -> None:
    known, found = timings({0: 0.3}, t=0.1, m=0.1), figures(0.9, {0: 0.85}, {"m": 0.88})
    held = replace(OPTIONS, monotone={"income": 1, "age": 0})

    def accepted(options: Options, monotone: dict[str, int]) -> bool:
        member = model("m", b"m", monotone=monotone)
        order = [trial(0, 0.85)]
        return verdict.decide(options, "accuracy", TEACHER, {"m": member}, order, known, found).accepted

    assert not accepted(OPTIONS, {})
    assert not accepted(OPTIONS, {"income": 1})
    assert accepted(held, {})
    assert accepted(held, {"income": -1})
    assert accepted(held, {"age": 1})
    assert not accepted(held, {"income": 1})
    assert not accepted(held, {"income": 1, "age": -1})


def test_a_search_without_a_student_says_why() -> None:
    """Shapes that were measured and never trained speak of the target; what had its turn planned speaks of time."""
    refused = [
        replace(trial(n, 0.0, ms, reason="not trained"), artifact=None, select_accuracy=None, signature=None)
        for n, ms in ((0, 0.0437), (1, 0.0191))
    ]
    unmeasured = replace(refused[0], trainer_latency_ms=None)
    planned = replace(unmeasured, configuration={"stage": "screen"})
    late = verdict.why_none([*refused, planned], 0.0123, 0.0031)
    slow = verdict.why_none([*refused, unmeasured], 0.0123, 0.0031)
    assert all(figure in slow for figure in ("0.0191", "0.0031", "0.0123"))
    assert "0.0191" not in late
    assert (
        verdict.why_none([replace(unmeasured, reason="no such library")], 0.0123, 0.0031) == "no such library"
    )
    assert verdict.why_none([], 0.0123, 0.0031) == late
