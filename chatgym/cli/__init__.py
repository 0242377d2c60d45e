"""The command ``chatgym``: one module per group of commands, each importing what it needs when it runs."""

import os

SPINS = "3000"
"""How often a thread of torch looks for work before it sleeps. OpenMP's own number keeps a core busy for milliseconds:
beside one other busy process a model on two threads says a word in the time of thirty. Fewer cost a machine of its own
more (this: 7 %, none at all: 20 %)."""


def main() -> None:
    """Run the command line."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when torch loads OpenMP

    from chatgym.cli.app import app
    from chatgym.cli.terminal import replace_what_cannot_be_shown

    replace_what_cannot_be_shown()
    app()
