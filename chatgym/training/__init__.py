"""Training and measuring agents: run folders, evaluation against the references, the learning curve."""

from chatgym.training.evaluation import Evaluation, converse, evaluate
from chatgym.training.references import References, measure, references
from chatgym.training.run import Run
from chatgym.training.task import Task
from chatgym.training.trainer import resume, train

__all__ = [
    "Evaluation",
    "References",
    "Run",
    "Task",
    "converse",
    "evaluate",
    "measure",
    "references",
    "resume",
    "train",
]
