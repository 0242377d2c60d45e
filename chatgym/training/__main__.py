"""``python -m chatgym.training RUN``: one of the processes that train a run, as a launcher starts it."""

from __future__ import annotations

import sys

from chatgym.errors import ChatGymError
from chatgym.training.run import Run
from chatgym.training.several import first


def main() -> int:
    """Go on with the run; the first process shows progress and says what went wrong."""
    from chatgym.cli.terminal import print_error
    from chatgym.cli.train import watched

    try:
        watched(Run.open(sys.argv[1]))
    except ChatGymError as error:
        if first():
            print_error(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
