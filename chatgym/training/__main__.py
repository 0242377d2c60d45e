"""``python -m chatgym.training RUN``: one of the processes that train a run, as a launcher starts it."""

from __future__ import annotations

import sys

from chatgym.cli.train import watched
from chatgym.training.run import Run
from chatgym.training.several import run_process

if __name__ == "__main__":
    sys.exit(run_process(lambda: watched(Run.open(sys.argv[1]))))
