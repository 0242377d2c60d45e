"""Train agents: run folders, the training loop with checkpoints, tuning, RLHF."""

from chatgym.training.repeat import repeat
from chatgym.training.run import Run
from chatgym.training.trainer import prepare, resume, train

__all__ = ["Run", "prepare", "repeat", "resume", "train"]
