"""The command ``chatgym``: one module for each command, which imports what it needs when it runs."""

import os

SPINS = "3000"
"""GOMP_SPINCOUNT: how often a waiting thread of torch polls for work before it sleeps. OpenMP's default keeps a core
busy for milliseconds, which makes a model on two threads thirty times slower beside one other busy process. Lower
values slow a model down that has the machine for itself (this one by 7 %, 0 by 20 %)."""


def main() -> None:
    """Run the command line."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when torch loads OpenMP

    from chatgym.cli.app import app
    from chatgym.cli.terminal import replace_what_cannot_be_shown

    replace_what_cannot_be_shown()
    app(prog_name="chatgym")
