"""Measure agents: evaluation against the references, comparison, audit of the simulated partner, plots."""

from chatgym.evaluation.comparison import Comparison, compare
from chatgym.evaluation.competitors import Competitor
from chatgym.evaluation.curves import Curve, TrainedRun, curves_of
from chatgym.evaluation.evaluation import Evaluation, evaluate
from chatgym.evaluation.references import References, measure, references
from chatgym.evaluation.rollouts import converse

__all__ = [
    "Comparison",
    "Competitor",
    "Curve",
    "Evaluation",
    "References",
    "TrainedRun",
    "compare",
    "converse",
    "curves_of",
    "evaluate",
    "measure",
    "references",
]
