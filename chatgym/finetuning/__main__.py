"""``python -m chatgym.finetuning RUN``: one of the processes that train a run, as a launcher starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from chatgym.cli.sft import watched
from chatgym.finetuning.sft import SFT
from chatgym.training.several import run_process

if __name__ == "__main__":
    sys.exit(run_process(lambda: watched(SFT.open(Path(sys.argv[1])))))
