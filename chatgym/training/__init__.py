"""Training and measuring agents: run folders, evaluation against the references, comparison, the learning curve."""

from chatgym.training.comparison import Comparison, compare
from chatgym.training.entrants import Entrant
from chatgym.training.evaluation import Evaluation, converse, evaluate
from chatgym.training.references import References, measure, references
from chatgym.training.run import Run
from chatgym.training.task import Task
from chatgym.training.trainer import prepare, resume, train

__all__ = [
    "Comparison",
    "Entrant",
    "Evaluation",
    "References",
    "Run",
    "Task",
    "compare",
    "converse",
    "evaluate",
    "measure",
    "prepare",
    "references",
    "resume",
    "train",
]
