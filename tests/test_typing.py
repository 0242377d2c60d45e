"""A user's script and agent, and the example plugins, pass the strict modes of mypy and pyright.

The checkers find ChatGym as they do for a user: through Python's path, in the environment that runs this test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = [path.parent for path in (ROOT / "examples").glob("*/pyproject.toml")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a folder with the code, far from this repository's own settings."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "tests" / "data" / "typed.py", folder)
    for plugin in PLUGINS:
        shutil.copytree(plugin, folder, ignore=shutil.ignore_patterns("__pycache__", "build"), dirs_exist_ok=True)
    (folder / "wrong.py").write_text(
        "from chatgym.agent import Agent, MakeEnvs\n\n\n"
        "def use(make_envs: MakeEnvs) -> Agent:\n"
        '    """Misuse what is typed."""\n'
        "    make_envs(4).no_such_method()\n"
        "    return 3\n"
    )
    # What these packages hold takes minutes to check, and no type of ours is theirs.
    (folder / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*,transformers.*,stable_baselines3.*]\nfollow_imports = skip\n"
    )
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    return folder


def complaints(project, *command):
    """Run a type checker and return its lines that name an error."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr  # wrong.py is wrong
    return [line for line in done.stdout.splitlines() if "error:" in line]


def only_the_wrong_lines(lines):
    assert all("wrong.py:" in line for line in lines), "\n".join(lines)
    assert {6, 7} == {int(line.partition("wrong.py:")[2].partition(":")[0]) for line in lines}


def test_what_users_write_passes_mypy_strict(project, tmp_path):
    only_the_wrong_lines(complaints(project, "mypy", "--cache-dir", os.fspath(tmp_path), "."))


def test_what_users_write_passes_pyright_strict(project):
    pytest.importorskip("pyright")
    only_the_wrong_lines(complaints(project, "pyright", "--pythonpath", sys.executable))


def test_the_script_runs(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "data" / "typed.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.")
