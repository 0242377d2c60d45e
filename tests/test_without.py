"""What works without the heavy packages, and what is said where one is missing."""

import os
import subprocess
import sys

import pytest
from tiny import save_tiny_model

HEAVY = ("torch", "transformers", "deepspeed", "stable_baselines3")

PLAYED = """
import gymnasium as gym, chatgym
env = gym.make("ChatEnv-v0", llm="template", render_mode="ansi")
env.reset(seed=1)
env.step(0)
print(env.render())
envs = gym.make_vec("ChatEnv-v0", 8, "vector_entry_point")
infos = envs.reset(seed=1)[1]
envs.step(infos["action_mask"].argmax(1))
print("replayed", chatgym.replay("t.jsonl").conversations)
"""

MISSING = """
import sys
from chatgym.engines.deepspeed import DeepSpeedEngine
from chatgym.errors import Unavailable
from chatgym.finetuning.distributed import initialize
sys.platform = sys.argv[1]
for use in (initialize, lambda: DeepSpeedEngine(sys.argv[2], identity="tiny")):
    try:
        use()
    except Unavailable as error:
        print(error)
"""


@pytest.fixture
def without(tmp_path):
    """Return a function that runs Python in a folder of its own, in which packages can't be imported."""

    def run(hidden, *arguments, **how):
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n")
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
            text=True, **how,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_playing_recording_and_replaying_with_acts_need_nothing_heavy(without):
    chatgym = (HEAVY, "-m", "chatgym")
    assert "Outcome: abandoned" in without(*chatgym, "play", "--seed", "3", input="greet\nclose\n")
    without(*chatgym, "evaluate", "expert", "--conversations", "5", "--trace", "t.jsonl")
    assert "5 conversations" in without(*chatgym, "replay", "t.jsonl")
    assert "outcome" in without(*chatgym, "show", "t.jsonl", "1")
    assert "replayed 5" in without(HEAVY, "-c", PLAYED)
    with pytest.raises(AssertionError, match="torch"):
        without(HEAVY, "-c", "import torch")


@pytest.mark.parametrize(("platform", "remedy"), [("linux", "pip install deepspeed"), ("darwin", "on Linux only")])
def test_without_deepspeed_each_use_of_it_says_how_to_do_without(without, tmp_path, platform, remedy):
    folder = save_tiny_model(tmp_path / "tiny")
    said = without(("deepspeed",), "-c", MISSING, platform, str(folder)).splitlines()
    assert len(said) == 2
    assert all("need DeepSpeed" in line and remedy in line for line in said)
