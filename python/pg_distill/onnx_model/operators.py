"""The operators that a model may use: of each, why no value of any feature makes it dangerous, and what it gives and costs.

`RULES` is the list, and what is not in it is refused. A rule says of a node, before anything is run, the type and the
shape of what it gives, how long it takes at most and how much it holds on the way. Two laws make that possible:

- **Sizes depend on constants, on the number of rows and on the longest text, and on these linearly.** A dimension is an
  `amounts.Amount`, ``fixed`` + rows x ``a_row``; how many words a text has is known as a bound. Where an operator takes its
  output's shape from a tensor, the tensor must be a constant, or come from shapes by arithmetic that is followed
  (`rules.Tensor.values`). Nothing is guessed: what cannot be told is refused.
- **No value ends the process.** Floating-point arithmetic has no traps and integers wrap, but integers are divided: by constants
  other than 0 and -1 only. Indices that are computed from features are compared with their bounds by onnxruntime itself, which
  ``tests/unit/test_onnx_operators.py`` holds it to, with the ends of each type.

Times are for a processor core some four times slower than those of 2024, and for the worst values: subnormal numbers, angles far
from zero.
"""

from __future__ import annotations

# Each file writes its rules into the list where it is imported.
from pg_distill.onnx_model import (  # noqa: F401
    rules_cells,
    rules_indices,
    rules_ml,
    rules_products,
    rules_shapes,
    rules_texts,
)
from pg_distill.onnx_model.rules import RULES

__all__ = ["RULES"]
