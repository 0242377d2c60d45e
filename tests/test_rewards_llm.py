"""The llm kind of reward model: its loss, its training under DeepSpeed, and what it leaves in its folder."""

from __future__ import annotations

import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from tiny import save_tiny_model
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.errors import Corrupted, InvalidValue
from chatgym.finetuning import models, reward_model
from chatgym.finetuning.epochs import rows_of_step
from chatgym.finetuning.launch import launch
from chatgym.finetuning.loop import Optimization, read_metrics
from chatgym.rewards import folder, make_reward_model
from chatgym.rewards.classifier import ClassifierRewardModel, encode
from chatgym.rewards.pairs import Pair, write_pairs
from chatgym.scenarios import find_scenario
from chatgym.testing import check_reward_model

HOW = Optimization(batch=8, micro_batch=4, learning_rate=3e-3)
SCRATCH = reward_model.Settings(reward_model.SCRATCH, epochs=3, length=64)


def pairs_of(count: int) -> list[Pair]:
    """Return pairs whose better side is polite."""
    things = ("a refund", "my parcel", "an invoice", "a password", "a broken lamp")
    return [
        Pair(
            [{"role": "user", "content": f"I write about {things[i % 5]}, number {i}."}],
            [{"role": "assistant", "content": ("Of course, I will look.", "Thank you for telling me.")[i % 2]}],
            [{"role": "assistant", "content": ("Go away.", "That is your problem.")[i // 2 % 2]}],
            "rude", str(i),
        )
        for i in range(count)
    ]  # fmt: skip


TESTED = pairs_of(48)[32:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "training"
    losses = []
    reward_model.prepare(out, pairs_of(32), SCRATCH, HOW, TESTED)
    reward_model.train(out, lambda done, total, figures: losses.append(figures["loss"]))
    return out / "model", losses


def test_training_begins_undecided_and_learns(trained):
    out, losses = trained
    assert len(losses) == 12
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.1
    model = ClassifierRewardModel(out, "tiny")
    better, worse = (model.score([getattr(pair, side) for pair in TESTED]) for side in ("better", "worse"))
    assert (better > worse).all()


def test_every_step_has_a_line_and_held_out_pairs_are_measured_from_the_start_to_the_end(trained):
    out, losses = trained
    lines = read_metrics(out.parent)
    assert [line["step"] for line in lines] == list(range(13))
    assert [line["loss"] for line in lines[1:]] == losses
    assert all(line["learning_rate"] > 0 and line["grad_norm"] > 0 for line in lines[1:])
    measured = {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
    assert list(measured) == [0, 3, 6, 9, 12]
    assert measured[0] == pytest.approx(math.log(2), abs=0.1)
    model = ClassifierRewardModel(out, "tiny")
    odds = model.margins([pair.better for pair in TESTED]) - model.margins([pair.worse for pair in TESTED])
    assert measured[12] == pytest.approx(np.log1p(np.exp(-odds)).mean(), rel=1e-3)
    assert lines[12]["held_out_accuracy"] == (odds > 0).mean() == 1.0


def test_a_tie_of_held_out_pairs_is_half_right(tmp_path):
    later = [{"role": "user", "content": "Well. " * 100}, {"role": "assistant", "content": "Bye."}]
    ties = [Pair(pair.prompt, [*pair.chosen, *later], [*pair.rejected, *later]) for pair in TESTED]
    reward_model.prepare(tmp_path / "training", pairs_of(8), SCRATCH, HOW, [*TESTED, *ties])
    reward_model.train(tmp_path / "training")
    model = ClassifierRewardModel(tmp_path / "training" / "model", "tiny")
    odds = model.margins([pair.better for pair in TESTED]) - model.margins([pair.worse for pair in TESTED])
    last = read_metrics(tmp_path / "training")[-1]
    assert last["held_out_accuracy"] == ((odds > 0).sum() + 16 / 2) / 32


def test_the_default_learning_rate_depends_on_the_size_of_the_model(tmp_path):
    assert models.is_small(save_tiny_model(tmp_path))
    assert reward_model.default_rate(str(tmp_path), lora=0) == reward_model.default_rate("tiny", lora=0) == 1e-3
    assert reward_model.default_rate("smollm2-135m", lora=0) == 3e-5
    assert reward_model.default_rate("smollm2-135m", lora=8) == 3e-4
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(Corrupted, match="can't be read"):
        reward_model.default_rate(str(tmp_path), lora=0)


def test_it_keeps_to_the_protocol_and_loads_as_a_classifier(trained):
    check_reward_model(make_reward_model(f"hf:{trained[0]}", find_scenario("social")))


def test_the_same_pairs_give_the_same_bytes_though_it_was_interrupted(trained, tmp_path):
    out, steps = tmp_path / "training", []

    def progress(done, total, figures):
        steps.append(done)
        if steps in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        reward_model.prepare(out, pairs_of(32), SCRATCH, HOW, TESTED)
        with pytest.raises(KeyboardInterrupt):
            reward_model.train(out, progress)
    reward_model.prepare(out, pairs_of(32), SCRATCH, HOW, TESTED)
    reward_model.train(out, progress)
    assert steps == list(range(1, 13))  # none was taken twice
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (trained[0].parent / name).read_bytes()


def test_another_training_begins_anew_and_nothing_else_is_replaced(tmp_path):
    out = tmp_path / "training"
    reward_model.prepare(out, pairs_of(8), SCRATCH, HOW)
    (out / "model").mkdir()
    reward_model.prepare(out, pairs_of(8), SCRATCH, HOW)
    assert (out / "model").is_dir()
    reward_model.prepare(out, pairs_of(9), SCRATCH, HOW)
    assert not (out / "model").exists()
    (out / "config.json").write_text("{}")
    with pytest.raises(InvalidValue, match="in the way"):
        reward_model.prepare(out, pairs_of(9), SCRATCH, HOW)


def test_two_processes_train_as_one(trained, tmp_path):
    from safetensors.numpy import load_file

    reward_model.prepare(tmp_path / "two", pairs_of(32), SCRATCH, dataclasses.replace(HOW, zero=2), TESTED)
    launch("reward", tmp_path / "two", 2)
    (alone, together) = (read_metrics(path)[-1]["held_out_loss"] for path in (trained[0].parent, tmp_path / "two"))
    assert together == pytest.approx(alone, rel=0.05)
    one, two = (load_file(path / "model.safetensors") for path in (trained[0], tmp_path / "two" / "model"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert two[name] == pytest.approx(weights, abs=2e-3), name


def test_lora_trains_the_head_and_leaves_a_whole_model(tmp_path):
    base = save_tiny_model(tmp_path)
    reward_model.prepare(
        tmp_path / "training", pairs_of(32), reward_model.Settings(str(base), epochs=8, length=64, lora=4), HOW
    )
    losses = []
    reward_model.train(tmp_path / "training", lambda done, total, figures: losses.append(figures["loss"]))
    assert losses[-1] < losses[0] - 0.2
    model = ClassifierRewardModel(tmp_path / "training" / "model", "tiny")
    better, worse = (model.score([getattr(pair, side) for pair in pairs_of(32)]) for side in ("better", "worse"))
    assert (better > worse).mean() > 0.9
    fresh = reward_model._model(base, reward_model.Settings(str(base)))
    assert not torch.equal(fresh.score.weight, model._model.score.weight)
    assert torch.equal(fresh.model.embed_tokens.weight, model._model.model.embed_tokens.weight)


def test_the_loss_is_that_of_the_paper_and_knows_no_padding(trained):
    """Ouyang et al. 2022, eq. 1, by hand: each conversation read alone, r at its last token."""
    model = ClassifierRewardModel(trained[0], "tiny")
    pairs = [*pairs_of(3), Pair([], [{"role": "assistant", "content": "Hello. " * 40}], pairs_of(1)[0].rejected)]
    odds = model.margins([pair.better for pair in pairs]) - model.margins([pair.worse for pair in pairs])
    rows = reward_model.batch_of(
        [encode(model._tokenizer, getattr(pair, side), 64) for side in ("better", "worse") for pair in pairs],
        model._tokenizer.pad_token_id, torch.device("cpu"),
    )  # fmt: skip
    module = reward_model.PairLoss(model._model)
    with torch.inference_mode():
        assert float(module(rows)) == pytest.approx(-np.log(1 / (1 + np.exp(-odds))).sum(), rel=1e-4)
        rewards = module.rewards(rows).chunk(2)
    assert (rewards[0] - rewards[1]).numpy() == pytest.approx(odds, rel=1e-4)


def test_r_is_read_where_a_classifier_reads_it_if_conversations_end_with_the_padding(trained):
    model = ClassifierRewardModel(trained[0], "tiny")
    pad = model._tokenizer.pad_token_id
    conversations = [[5, 6, 7, pad], [5, 6, pad], [5, 6, 7, 8, 9]]
    rows = reward_model.batch_of(conversations, pad, torch.device("cpu"))
    assert rows["last"].tolist() == [2, 1, 4]
    with torch.inference_mode():
        found = reward_model.PairLoss(model._model).rewards(rows).tolist()
    assert found == pytest.approx([model._judge(ids) for ids in conversations], rel=1e-4)


def test_every_file_of_the_model_may_be_read_by_others(trained):
    modes = {path.name: path.stat().st_mode for path in trained[0].iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


def test_each_epoch_sees_each_pair_once():
    seen = np.concatenate([rows_of_step(10, step, 4, 0) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_language_model_gets_a_new_head_from_the_seed(tmp_path):
    base = save_tiny_model(tmp_path)
    one, other, again = (reward_model._model(base, reward_model.Settings(str(base), seed=seed)) for seed in (0, 1, 0))
    assert torch.equal(one.score.weight, again.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_a_context_that_is_too_short_is_told(tmp_path):
    base = save_tiny_model(tmp_path)
    reward_model.prepare(tmp_path / "training", pairs_of(8), reward_model.Settings(str(base)), HOW)
    with pytest.raises(InvalidValue, match="--length 512 is more than the 256 tokens"):
        reward_model.train(tmp_path / "training")


def test_the_command_trains_one(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", pairs_of(40))
    out = tmp_path / "judge"
    command = ["reward", "train", "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(out), "--kind", "llm"]
    result = CliRunner().invoke(app, [*command, "--model", "tiny", "--length", "64", "--batch", "8", "--epochs", "4"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "report.json").read_text())["accuracy"]["value"] > 0.9
    assert isinstance(folder.load(out), ClassifierRewardModel)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert read_metrics(out)[-1]["held_out_accuracy"] > 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge", "pairs.jsonl"]
    assert CliRunner().invoke(app, [*command, "--overwrite", "--kind", "lm"]).exit_code == 2
