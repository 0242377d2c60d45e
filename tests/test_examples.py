import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_textbook_loop_learns_to_serve_customers():
    command = [sys.executable, str(EXAMPLES / "textbook_qlearning.py"), "--episodes", "3000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    early, late = (float(share) / 100 for share in re.findall(r"conversations: +([0-9.]+)%", done.stdout))
    assert early < 0.05
    assert late > early + 0.1


def test_algorithms_of_stable_baselines3_learn():
    command = [sys.executable, str(EXAMPLES / "sb3_ppo.py"), "--turns", "60000", "--conversations", "300"]
    done = subprocess.run([*command, "--scenario", "education"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = re.findall(r"^(\w+) +success rate +([0-9.]+)% before, +([0-9.]+)% after", done.stdout, re.MULTILINE)
    assert [name for name, *_ in shares] == ["PPO", "MaskablePPO"]
    for _, before, after in shares:
        assert float(before) < 10 < 20 < float(after)


def test_textbook_reinforce_learns_not_to_give_up():
    command = [sys.executable, str(EXAMPLES / "textbook_reinforce.py"), "--scenario", "education", "--turns", "60000"]
    command += ["--learning-rate", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [float(share) for share in re.findall(r"learned in +([0-9.]+)%", done.stdout)]
    assert len(shares) == 10
    assert shares[0] < 10 < 20 < shares[-1]


def test_a_scenario_needs_only_its_own_files(tmp_path):
    """The restaurant is a distribution of its own: installed with pip, it is found, trained on and talked to."""
    source = shutil.copytree(EXAMPLES / "restaurant", tmp_path / "source")
    pip = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *pip], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def chatgym(*arguments, **how):
        command = [str(Path(sys.executable).with_name("chatgym")), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True, **how)

    own_test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_restaurant.py"]
    subprocess.run(own_test, check=True, env=environment, cwd=source)
    shown = chatgym("scenarios", "restaurant", "--measure").stdout
    random, expert = (float(share) for share in re.findall(r"([0-9.]+) %", shown))
    assert random < 15 < 75 < expert
    assert chatgym("scenarios", "restaurant", "--train-nlu").stdout.startswith("Trained")
    steps = ("--steps", "200000", "--conversations", "300", "--num-envs", "200", "--evaluate-every", "100000")
    trained = chatgym("train", "qlearning", "--scenario", "restaurant", "--run", "run", *steps).stdout
    assert float(re.search(r"score +\S+ +(\S+)", trained)[1]) > 80
    chatgym("evaluate", "run", "--conversations", "20", "--trace", "t.jsonl")
    assert "20" in chatgym("replay", "t.jsonl").stdout
    said = "A table for 5 people please\nOn Sunday\nAt 18:00\nbye\n"
    talk = chatgym("play", "run", "--as-partner", input=said).stdout
    assert "understood: inform" in talk


def test_a_picture_shows_a_whole_conversation_in_two_pixels_a_unit(tmp_path):
    command = [sys.executable, str(EXAMPLES / "picture.py"), str(tmp_path / "one.png"), "--llm", "template"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == 1600
        assert image.height > 1600
