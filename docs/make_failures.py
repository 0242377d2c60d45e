"""Run the commands in ``docs/failures.md`` again and write what they print below them: ``make docs``.

``bash`` blocks run silently, ``console`` blocks are written anew. The conversation that is explained is the first short
one that failed by garbled.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from pathlib import Path

from typer.testing import CliRunner

PAGE = Path(__file__).parent / "failures.md"
BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = 8
"""Most turns of the conversation that is explained."""


def run(command: str) -> str:
    """Run a command, and return what it prints."""
    from chatgym.cli.app import app

    done = CliRunner().invoke(app, shlex.split(command.split(" #")[0])[1:], prog_name="chatgym")
    if done.exit_code:
        raise SystemExit(f"`{command}` failed: {done.output or done.exception}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.rstrip().splitlines())


def explained(command: str) -> str:
    """Return a command, with the number of the conversation to explain in the place of another one."""
    if not (found := re.fullmatch(r"(chatgym show (\S+)) \d+", command)):
        return command
    listed = json.loads(run(f"chatgym show {found[2]} --cause garbled --json"))["conversations"]
    return f"{found[1]} {next(one['number'] for one in listed if one['turns'] <= SHORT)}"


def again(block: re.Match[str]) -> str:
    """Return a block with the output of its commands."""
    commands = [explained(line.removeprefix("$ ")) for line in block[2].splitlines() if "chatgym " in line[:10]]
    printed = [run(command) for command in commands]
    if block[1] == "bash":
        return block[0]
    shown = "\n".join(f"$ {command}\n{output}" for command, output in zip(commands, printed, strict=True))
    return f"```console\n{shown}```"


if __name__ == "__main__":
    os.environ.update(NO_COLOR="1")
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        written = BLOCK.sub(again, text)
        os.chdir(PAGE.parent)  # Windows can't remove the folder that it is in
    PAGE.write_text(written, encoding="utf-8")
