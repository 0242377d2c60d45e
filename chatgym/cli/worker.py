"""``python -m chatgym.cli.worker KIND FOLDER``: one of several training processes, started by DeepSpeed's launcher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from chatgym.cli import reward, sft, train
from chatgym.cli.terminal import print_failure
from chatgym.errors import ChatGymError
from chatgym.finetuning import distributed
from chatgym.finetuning.sft import SFT
from chatgym.training.run import Run

KINDS: Mapping[str, Callable[[Path], object]] = {
    "sft": lambda folder: sft.train_run(SFT.open(folder)),
    "reward": reward.train_llm,
    "train": lambda folder: train.train_run(Run.open(folder)),
}
"""Kind of run in a folder to the function that trains it."""


def main(kind: str, folder: str) -> int:
    """Train as one of the processes and return the exit code; only the first process prints an error."""
    try:
        KINDS[kind](Path(folder))
    except ChatGymError as error:
        if distributed.first():
            print_failure(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
