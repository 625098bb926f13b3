"""Limits of what a file may be and take."""

from __future__ import annotations

from dataclasses import dataclass

from pg_distill.onnx_model.session import (
    RUN_BYTES,
)

__all__ = ["DEFAULT_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What an artifact may cost. The defaults are for a database server, not for a GPU farm."""

    artifact_bytes: int = 256 << 20  # a bytea takes 1 GB, but every backend that predicts holds the model
    nodes: int = 10_000  # of the graph: an unrolled network of a thousand layers
    initializers: int = 10_000  # onnxruntime looks for each among all: 100,000 take it 24 s
    parts: int = 500_000  # messages and names in the file: each is an object that is made and kept
    table_entries: int = 1_000_000  # keys of all dictionaries, which a backend reads into its own
    name_characters: int = 1_000  # of a feature, class, input or output
    tree_nodes: int = 10_000_000  # 1,000 trees of 10,000 nodes
    tree_depth: int = 512  # onnxruntime builds trees by recursion; real ones are below 100
    initializer_bytes: int = 256 << 20  # as declared by dims and type, and of what is computed from them
    features: int = 10_000  # a relation has 1,600 columns, an array may have more
    classes: int = 10_000
    readers: int = 64  # of texts, a millisecond each for the longest text; a blend has a dozen
    tensor_elements: int = 1 << 26  # of one tensor, for one row: 256 MB of float32
    run_bytes: int = RUN_BYTES  # for one run, by the rules and as measured; the setting predict_memory_mb
    run_seconds: float = 10.0  # for one run; the trial's batches stop growing before they would take as long
    node_seconds: float = 0.2  # of one node, by the rules: what an interrupt waits for
    text_node_seconds: float = 1.0  # the same of a transformer, whose every run is guarded
    text_seconds: float = (
        60.0  # of a run of a transformer, by the rules, which are for a slow core and the worst values
    )
    text_steps: int = (
        1_000_000  # nodes x tokens of a transformer: each length is walked, which takes some 30 s
    )
    open_seconds: float = 0.2  # by the rules, of what is computed of constants where a session is opened


DEFAULT_LIMITS = Limits()
