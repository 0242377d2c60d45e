"""``python -m chatgym.finetuning RUN``: one of the processes that train a run, as a launcher starts it."""

from __future__ import annotations

import sys
from pathlib import Path

from chatgym.errors import ChatGymError
from chatgym.finetuning.loop import rank
from chatgym.finetuning.sft import SFT


def main() -> int:
    """Train; the first process shows progress and says what went wrong."""
    from chatgym.cli.sft import watched
    from chatgym.cli.terminal import print_error

    try:
        watched(SFT.open(Path(sys.argv[1])))
    except ChatGymError as error:
        if rank() == 0:
            print_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
