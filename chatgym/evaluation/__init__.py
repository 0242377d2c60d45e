"""Measure agents: evaluation against the references, comparison, audit of the simulated partner, plots."""

from chatgym.evaluation.comparison import Comparison, compare
from chatgym.evaluation.competitors import Competitor
from chatgym.evaluation.evaluation import Evaluation, evaluate
from chatgym.evaluation.references import References, measure, references
from chatgym.evaluation.rollouts import converse

__all__ = [
    "Comparison",
    "Competitor",
    "Evaluation",
    "References",
    "compare",
    "converse",
    "evaluate",
    "measure",
    "references",
]
