"""What one row costs: InferenceSession.run, and what each step of `onnx_model.Model` saves.

Run: PYTHONPATH=python:tests python tests/bench/onnx_calls.py. Prints microseconds a call, the least of many
rounds in which all variants take turns: what the call costs when nothing else runs. One thread.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from pg_distill.onnx_model.check import check
from pg_distill.onnx_model.derive import derive_signature
from pg_distill.onnx_model.session import Model

FEATURES = 20
ROUNDS = 200
CALLS = 200  # a round and variant: about 1 ms, long against the clock, short against a scheduler's slice


def mlp() -> bytes:
    """Return an MLP 20-64-32-2 with random weights: its cost depends on its shape alone."""
    rng = np.random.default_rng(0)
    sizes = (FEATURES, 64, 32, 2)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,{FEATURES}] x) => (float[N,2] p) {{
            a = Gemm(x, w0)
            b = Relu(a)
            c = Gemm(b, w1)
            d = Relu(c)
            e = Gemm(d, w2)
            p = Softmax(e)
        }}"""
    )
    for i, shape in enumerate(pairwise(sizes)):
        weights = (rng.normal(size=shape) / 10).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, f"w{i}"))
    return bytes(model.SerializeToString())


def trees() -> bytes:
    """Return a LightGBM classifier of 100 trees of 31 leaves, with label and ZipMap as it is exported."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    values = models.numbers(rows=5000, columns=FEATURES)
    with models.quiet():
        fitted = LGBMClassifier(n_estimators=100, num_leaves=31, verbose=-1, n_jobs=1)
        fitted.fit(values, models.targets(values, "binary"))
        types = [("x", FloatTensorType([None, FEATURES]))]
        return bytes(convert_lightgbm(fitted, initial_types=types, target_opset=15).SerializeToString())


def variants(artifact: bytes) -> dict[str, Callable[[list[float], dict[str, float]], Any]]:
    """Return the ways to predict a row, from what an application does to what predict does."""
    signature = derive_signature(check(artifact))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bare = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
    model = Model(artifact, signature)
    name = signature.inputs[0].name
    all_outputs = [o.name for o in bare.get_outputs()]
    outputs = [signature.output.name]
    fixed = {name: np.zeros((1, FEATURES), np.float32)}
    buffer: Any = np.zeros((1, FEATURES), np.float32)
    pack = struct.Struct(f"{FEATURES}f").pack_into
    feed = {name: buffer}
    public, private, run_options = model.session, model.session._sess, ort.RunOptions()

    def filled(run: Callable[[], Any]) -> Callable[[list[float], dict[str, float]], Any]:
        def call(values: list[float], _: dict[str, float]) -> Any:
            pack(buffer, 0, *values)
            return run()

        return call

    return {
        "session.run, array ready": lambda v, r: bare.run(all_outputs, fixed),
        "session.run, array from list": lambda v, r: bare.run(all_outputs, {name: np.array([v], np.float32)}),
        "pruned, array from list": lambda v, r: public.run(outputs, {name: np.array([v], np.float32)}),
        "pruned, buffer packed": filled(lambda: public.run(outputs, feed)),
        "private run": filled(lambda: private.run(outputs, feed, None)),
        "private run, options kept": filled(lambda: private.run(outputs, feed, run_options)),
        "Model.predict_number": lambda v, r: model.predict_number(v),
        "Model.run_numbers": lambda v, r: model.run_numbers(v),
        "Model.run_row": lambda v, r: model.run_row(r),
    }


def main() -> None:
    """Print one table a model, then all as JSON."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(CALLS, FEATURES)).astype(np.float32).astype(float).tolist()
    named = [{f"f{i}": x for i, x in enumerate(row)} for row in rows]
    results: dict[str, dict[str, float]] = {}
    for title, artifact in (("MLP 20-64-32-2", mlp()), ("LightGBM 100 x 31", trees())):
        calls = variants(artifact)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                started = time.perf_counter()
                for row, record in zip(rows, named, strict=True):
                    call(row, record)
                times[name].append((time.perf_counter() - started) / CALLS * 1e6)
        results[title] = {name: round(min(t), 2) for name, t in times.items()}
        print(title)
        for name, microseconds in results[title].items():
            print(f"  {name:32}{microseconds:8.2f} us")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
