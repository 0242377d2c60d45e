"""README and docs: their Python runs, their commands parse, their links lead somewhere, the CLI page is fresh."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from chatgym.cli.app import app
from chatgym.cli.repeat import with_agent
from chatgym.training import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIG = json.dumps({**dict.fromkeys(run.KEYS), "format": run.FORMAT, "version": run.VERSION, "agent": "qlearning"})
SHELLS = ("bash", "console", "sh")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the fenced blocks of a page: (info string, content)."""
    return [(info.strip(), content) for info, content in FENCE.findall(page.read_text(encoding="utf-8"))]


def python_of(page: Path) -> list[str]:
    return [content for info, content in blocks(page) if info == "python"]


def commands_of(page: Path) -> list[str]:
    """Return the ``chatgym`` commands of a page's shell blocks, without prompts, comments and environment."""
    found = []
    for info, content in blocks(page):
        if info in SHELLS:
            for line in content.replace("\\\n", " ").splitlines():
                if command := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*chatgym (.*?)(?:\s+#\s.*)?$", line.strip()):
                    found.append(command[1].split(" && ")[0])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """A page's blocks run in order and share their names; a block that needs a model is marked ``python no-run``."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__example__"}
    for code in python_of(page):
        exec(compile(code, f"{page.name}:\n{code}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in commands_of(page):
        for file in re.findall(r"\S+\.(?:jsonl|json|sqlite)\b", line):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(CONFIG if file.endswith("config.json") else "")  # some options read a file
        command, (name, *arguments) = typer.main.get_command(app), ("chatgym", *shlex.split(line))
        while hasattr(command, "list_commands") and arguments[0] != "--help":
            name, *arguments = with_agent(arguments)
            command = command.get_command(typer.Context(command), name)
            assert command is not None, f"`chatgym {line}`: no command {name}"
        if "--help" not in arguments:
            command.make_context(name, arguments)  # raises where an option or a value is unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [to for to in targets if not re.match(r"[a-z]+:", to) and not (page.parent / to).exists()]
    assert not missing, f"{page.name} links to files that aren't there: {missing}"


def test_the_page_of_the_command_line_is_fresh():
    command = [sys.executable, str(ROOT / "docs" / "make_cli.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
