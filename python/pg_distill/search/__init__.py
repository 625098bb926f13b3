"""The search: which students are trained, by which recipes, within which budget.

``stages`` is the order of things, ``recipes`` what is compared, ``rows`` what students are taught, ``training`` one training,
``problem`` what goes in and comes out.
"""

from pg_distill.search.problem import Candidate, Config, Problem, best_within
from pg_distill.search.stages import search
from pg_distill.search.training import latency_ms

__all__ = ["Candidate", "Config", "Problem", "best_within", "latency_ms", "search"]
