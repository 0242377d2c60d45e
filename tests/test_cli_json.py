"""``--json``: stdout of every command that prints a table is then one JSON document and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from test_cli import COMMAND, SMALL, Chatgym, _put_model, cache, chatgym

from chatgym.cli.app import app
from chatgym.errors import Unavailable
from chatgym.storage import model_store
from chatgym.training import Run

__all__ = ["cache", "chatgym"]  # fixtures

TALK = {"play", "serve"}
"""Commands without a result: they talk, or serve until they are stopped."""
ELSEWHERE = {
    "rlhf": "test_ppo_runs.py",
    "voice": "test_cli_voice.py",
    "sft": "below",
    "reward train": "below",
    "pull": "below",
}
"""Commands whose JSON other tests read: they train for minutes, or need a model."""
TUNE = ("tune", "qlearning", "--method", "random", "--trials", 1, "--steps", 2000, "--conversations", 20)
RUNS: dict[str, list[tuple[object, ...]]] = {
    "scenarios": [("scenarios",), ("scenarios", "social")],
    "plugins": [("plugins",)],
    "train": [("train", "qlearning", *SMALL), ("train", "qlearning", "--resume", "--steps", 21000)],
    "tune": [TUNE],
    "evaluate": [
        ("evaluate", "expert", "--conversations", 20, "--trace", "t.jsonl", "--out", "there"),
        ("evaluate", "--compare", "expert", "random", "--conversations", 20),
        ("evaluate", "expert", "--max-turns", 1, "--conversations", 20),
    ],
    "curve": [("train", "qlearning", *SMALL), ("curve", "runs/qlearning", "--csv", "curve.csv")],
    "audit": [("audit", "social", "--conversations", 5, "--worded", 0)],
    "show": [
        ("evaluate", "expert", "--conversations", 5, "--trace", "t.jsonl"),
        ("show", "t.jsonl"),
        ("show", "t.jsonl", 2),
    ],
    "replay": [("evaluate", "expert", "--conversations", 5, "--trace", "t.jsonl"), ("replay", "t.jsonl")],
    "reward pairs": [("reward", "pairs", "--conversations", 20, "--out", "pairs.jsonl")],
}


def _leaves(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Return name and command of everything that can be called; agents stand for `train`."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if hasattr(command, "list_commands"):
            yield from _leaves(command, (*prefix, name))
        else:
            yield " ".join(prefix if prefix == ("train",) else (*prefix, name)), command


def test_every_command_with_a_result_has_the_option_and_a_test() -> None:
    with_option, without = set(), set()
    for name, command in _leaves(typer.main.get_command(app)):
        flags = [flag for parameter in command.params for flag in parameter.opts]
        (with_option if "--json" in flags else without).add(name)
    assert without == TALK
    assert with_option == RUNS.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", RUNS)
def test_stdout_is_one_json_document_and_nothing_else(chatgym: Chatgym, name: str) -> None:
    for call in RUNS[name]:
        said = chatgym(*call, "--json")
        assert said.code == 0
        assert re.fullmatch(r"(Resumed at turn [\d,]+ of [\d,]+\n)?", said.err)
        assert json.loads(said.out)


def test_the_json_says_what_the_table_says(chatgym: Chatgym, cache: Path) -> None:
    weights = _put_model(cache, "all-minilm-l6-v2", 3_000_000)
    (model,) = json.loads(chatgym("pull", "all-minilm-l6-v2", "--json").out)
    assert model["bytes"] == sum(path.stat().st_size for path in weights.parent.iterdir())
    made = json.loads(chatgym("train", "qlearning", *SMALL, "--json").out)
    last = Run.open(made["run"]).metrics()[-1]
    assert made["trained"] == {key: last[key] for key in ("success_rate", "mean_return", "score")}
    scenarios = json.loads(chatgym("scenarios", "--json").out)
    assert all(one["description"] in chatgym("scenarios").out for one in scenarios)
    best = json.loads(chatgym(*TUNE, "--json").out)["trials"][0]
    assert f"{best['mean_return']:.3f}" in chatgym(*TUNE).out


def test_a_failure_has_the_exit_code_of_the_table_and_leaves_stdout_to_scripts(chatgym: Chatgym, cache: Path) -> None:
    _put_model(cache, "all-minilm-l6-v2", 1000).write_bytes(bytes(999) + b"x")
    said = chatgym("pull", "all-minilm-l6-v2", "--check", "--json")
    assert (said.code, json.loads(said.out)) == (1, [])
    assert "chatgym pull --force" in said.err
    refused = chatgym("scenarios", "chess", "--json")
    assert (refused.code, refused.out) == (2, "")


def test_a_score_that_is_undefined_is_null_and_n_a_with_the_reason(chatgym: Chatgym) -> None:
    call = ("evaluate", "random", "--max-turns", 1, "--conversations", 20)
    assert json.loads(chatgym(*call, "--json").out)["score"] is None
    out = " ".join(chatgym(*call).out.split())
    assert "score n/a" in out
    assert "the expert is not clearly better than " in out
    run = ("train", "qlearning", "--max-turns", 1, *SMALL)
    assert "score: n/a, the expert is not clearly better" in " ".join(chatgym(*run).out.split())
    refused = chatgym("evaluate", "--compare", "random", "expert", "--max-turns", 1, "--conversations", 20)
    assert refused.code == 2
    assert "customer_service has no score" in refused.err


def test_the_programs_that_train_write_nothing_else_on_the_real_stdout(tmp_path: Path) -> None:
    def document(*call: object) -> Any:
        done = subprocess.run(
            [*COMMAND, *map(str, call), "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    made = document("sft", "--from-scratch", "tiny", "--conversations", 8, "--epochs", 1)
    assert made["perplexity"]["before"] > made["perplexity"]["after"]
    again = document("sft", "--resume")
    assert again == made
    document("reward", "pairs", "--conversations", 20, "--out", "pairs.jsonl")
    try:
        model_store.path("all-minilm-l6-v2")
    except Unavailable as error:
        pytest.skip(str(error))
    judged = document("reward", "train", "--pairs", "pairs.jsonl", "--out", "judge")
    assert judged["report"]["accuracy"]["pairs"] > 0
