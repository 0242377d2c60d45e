"""``python -m chatgym.rewards FOLDER``: one of the processes that train a reward model, as a launcher starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from chatgym.cli.reward import watched_training
from chatgym.training.several import run_process

if __name__ == "__main__":
    sys.exit(run_process(lambda: watched_training(Path(sys.argv[1]))))
