"""A Python started in the folder above a clone named ``chatgym`` imports the package, not the clone's root."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import os, sys
# Without an editable installation: neither the clone that it leads to, nor its finder.
sys.path = [one for one in sys.path if not os.path.exists(os.path.join(one, "pyproject.toml"))]
sys.meta_path = [one for one in sys.meta_path if not getattr(one, "__module__", "").startswith("__editable__")]
import chatgym, gymnasium
from chatgym.envs.task import Task
env = gymnasium.make("ChatEnv-v0", llm="template", disable_env_checker=True)
env.reset(seed=1)
print(chatgym.__file__)
"""


def clone(folder):
    """Return a clone with all that importing it needs."""
    folder.mkdir()
    shutil.copytree(ROOT / "chatgym", folder / "chatgym", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", folder)
    return folder


def run(folder, path):
    agents = folder / "agents"
    shutil.copytree(ROOT / "agents", agents / "chatgym_agents", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join(filter(None, (path, str(agents))))
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("installed", [True, False])
def test_a_python_started_above_a_clone_imports_the_package(tmp_path, installed):
    here = clone(tmp_path / "chatgym")
    elsewhere = clone(tmp_path / "site") if installed else None
    found = run(tmp_path, str(elsewhere) if installed else "")
    assert found == (elsewhere or here) / "chatgym" / "__init__.py"


def test_a_clone_of_another_name_stays_out_of_the_way(tmp_path):
    clone(tmp_path / "mine")
    program = "import sys, mine; assert 'chatgym' not in sys.modules and not hasattr(mine, '_root')"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
