"""PPO's runs: several processes are as one, and `chatgym rlhf` can be killed at any moment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chatgym_agents.ppo import PPO
from safetensors.numpy import load_file
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.envs.task import Task
from chatgym.errors import InvalidValue
from chatgym.finetuning import tiny
from chatgym.finetuning.dialogues import held_by
from chatgym.training import Run, rlhf, train
from chatgym.training.run import find_agent

SETTINGS = ("--batch", 8, "--minibatches", 2, "--micro-batch", 2, "--max-new-tokens", 12, "--learning-rate", 1e-3)
SMALL = (
    "--from-scratch", "tiny", "--conversations", 16, "--epochs", 1, "--pairs", 20, "--turns", 60, "--evaluation", 3,
)  # fmt: skip
SETTING = [part for one in ("batch=8", "minibatches=2", "max-new-tokens=12") for part in ("--setting", one)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    task = Task("customer_service", {"error_rate": 0.0})
    said = held_by(find_agent("expert")(task.find_scenario()), task, 4)
    tiny.save_tokenizer([message["content"] for one in said for message in one], folder)
    tiny.make_model(folder, 0).save_pretrained(folder)
    return folder


def chatgym(*arguments, stdout=subprocess.DEVNULL, **how):
    command = [sys.executable, "-c", "from chatgym.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=stdout, text=True, **how
    )


def steady(run):
    kept = []
    for line in Run.open(run).lines():
        training = {k: v for k, v in line["training"].items() if "per_second" not in k and k != "logprob_gap"}
        kept.append({**line, "seconds": 0, "training": training})
    return kept


def test_two_processes_learn_what_one_learns(base, tmp_path):
    def trained(name, processes):
        more = ("--max-turns", 4, "--conversations", 3, "--steps", 80, "--zero", 2, "--processes", processes)
        run = tmp_path / name
        assert chatgym("train", "ppo", "--run", run, "--model", base, *SETTINGS, *more).wait() == 0
        return run

    one, two = trained("one", 1), trained("two", 2)
    for a, b in zip(steady(one), steady(two), strict=True):
        assert a["turns"] == b["turns"]
        assert a.get("score") == b.get("score")
        assert a["training"] == pytest.approx(b["training"], rel=1e-3, abs=1e-4)
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    assert all(np.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def begun(folder):
    """What is there of each step, in the order in which it comes."""
    lines = [path.read_text().count("\n") if path.is_file() else 0
             for path in (folder / "sft" / "metrics.jsonl", folder / "ppo" / "metrics.jsonl")]  # fmt: skip
    return [lines[0] > 1, (folder / "reward").is_dir(), lines[1] > 1]


def test_rlhf_killed_at_three_moments_ends_as_undisturbed(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = chatgym("rlhf", "--run", whole, *SMALL, *SETTING, "--json", stdout=subprocess.PIPE)
    for moment in range(3):
        how = ("--resume",) if moment else (*SMALL, *SETTING)
        process = chatgym("rlhf", "--run", broken, *how)
        while not begun(broken)[moment]:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (broken / "ppo" / "curve.png").exists()
    assert chatgym("rlhf", "--run", broken, "--resume").wait() == 0
    said, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0
    assert json.loads(said)["trained"]["mean_return"] == Run.open(whole / "ppo").metrics()[-1]["mean_return"]
    for name in ("sft/model/model.safetensors", "reward/reward.npz", "held-out/reward.npz",
                 "ppo/model/model.safetensors", "ppo/model/training/moments.safetensors"):  # fmt: skip
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    assert steady(broken / "ppo") == steady(whole / "ppo")
    agent = Run.open(whole / "ppo").agent()
    assert isinstance(agent, PPO)
    assert agent.config.reward_model == str(whole / "reward")
    samples = [json.loads(line)["trained_for"] for line in (whole / "ppo" / "transcripts.jsonl").open()]
    assert len(set(samples)) > 2
    longer = chatgym("rlhf", "--run", broken, "--resume", "--turns", 150, stderr=subprocess.PIPE)
    _, progress = longer.communicate()
    run, before = Run.open(broken / "ppo"), Run.open(whole / "ppo").turns
    assert f"Resumed at turn {before} of 150" in progress
    assert rlhf.read(broken).turns == run.config["total_steps"] == 150
    assert run.turns >= 150
    done = [line["training"]["iteration"] for line in run.lines() if line["training"]]
    assert done == list(range(1, len(done) + 1))
    with pytest.raises(InvalidValue, match="longer"):
        rlhf.lengthen(broken, 60)


def test_every_iteration_is_a_line_of_metrics_with_figures_that_the_page_explains(base, tmp_path):
    task = Task("customer_service", {"error_rate": 0.0, "max_turns": 3})
    settings = {"model": str(base), "batch": 4, "minibatches": 2, "max_new_tokens": 6, "value_warmup": 2}
    seen = []
    how = {"task": task, "settings": settings, "conversations": 2, "log": "csv"}
    run = train("ppo", tmp_path / "run", total_steps=60, evaluate_every=50, progress=lambda n, m: seen.append(n), **how)
    lines = [line for line in run.lines() if line["training"]]
    assert [line["turns"] for line in lines] == seen
    assert [line["training"]["iteration"] for line in lines] == list(range(1, len(seen) + 1))
    assert 0 < sum("score" in line for line in lines) < len(lines)
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + len(run.lines())
    page = (Path(__file__).parent.parent / "docs" / "ppo.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \| ", page.partition("## Metrics")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(named) == len(set(named))
    for line in lines:
        training = line["training"]
        assert {name for name in training if "per_second_" not in name} == set(named) - {"served_gap"}
        warming = training["iteration"] <= 2
        assert warming == (training["optimizer_steps"] == 0) == ("tokens_per_second_training" not in training)
        assert (training["ratio"] == 1.0) == warming
        assert training["learning_rate"] == 3e-4
        assert training["reward_std"] >= 0
        paid = training["kl_coefficient"] * training["reference_kl"]
        tokens = training["tokens_per_turn"] * training["turns_per_conversation"]
        assert training["penalised_reward"] == pytest.approx(training["mean_reward"] - paid * tokens, abs=1e-6)


def test_rlhf_says_what_does_not_fit(tmp_path):
    def said(*arguments):
        result = CliRunner().invoke(app, ["rlhf", *map(str, arguments)])
        assert result.exit_code == 2
        return result.output

    assert "chatgym" not in said("--run", tmp_path, "--setting", "nothing")
    assert "kl_coefficient" in said("--run", tmp_path, "--from-scratch", "tiny", "--setting", "kl_coeficient=1")
    assert "--lora" in said("--run", tmp_path, "--from-scratch", "tiny", "--lora", 4)
    assert "--resume" in said("--run", tmp_path / "none", "--resume")
    rlhf.begin(tmp_path / "begun", rlhf.Plan())
    (tmp_path / "begun" / "sft").mkdir()
    assert "--overwrite" in said("--run", tmp_path / "begun", "--from-scratch", "tiny")
    rlhf.begin(tmp_path / "begun", rlhf.Plan(seed=1), overwrite=True)
    assert not (tmp_path / "begun" / "sft").exists()
    assert rlhf.read(tmp_path / "begun") == rlhf.Plan(seed=1)
    (tmp_path / "other").write_text("")
    with pytest.raises(InvalidValue, match="isn't empty"):
        rlhf.begin(tmp_path, rlhf.Plan())
