"""Reward models: pairs, features, the Bradley–Terry head, reports, the default ones, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from chatgym.cli.app import app
from chatgym.errors import Corrupted, InvalidValue
from chatgym.evaluation import default_reward
from chatgym.evaluation.reward_report import measure
from chatgym.finetuning import preferences
from chatgym.rewards import default, folder
from chatgym.rewards.bradley_terry import DECAYS, bootstrap_counts, choose_decay, fit, probability
from chatgym.rewards.encoder import EncoderRewardModel
from chatgym.rewards.features import SIGNALS, WINDOW, Reader, turns
from chatgym.rewards.pairs import Pair, read_pairs, split, write_pairs
from chatgym.rewards.training import train
from chatgym.scenarios import find_scenario
from chatgym.testing import check_reward_model

SCENARIO = find_scenario("customer_service")


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return preferences.pairs_of(SCENARIO, 24)


@pytest.fixture(scope="module")
def small(pairs) -> EncoderRewardModel:
    return train(split(pairs)[0], ensemble=2)


def test_pairs_are_the_same_each_time_and_more_conversations_add_to_them(pairs):
    again = preferences.pairs_of(SCENARIO, 8)
    assert pairs[: len(again)] == again


def test_there_are_pairs_of_every_kind_of_badness(pairs):
    assert {pair.kind for pair in pairs} == set(preferences.KINDS)


def test_both_sides_go_on_from_the_same_beginning_with_the_agents_turn(pairs):
    for pair in pairs:
        assert pair.prompt[-1]["role"] == "user"
        assert pair.chosen[0]["role"] == pair.rejected[0]["role"] == "assistant"
        assert pair.chosen != pair.rejected


def test_a_wrong_fact_differs_in_the_fact_alone():
    social = find_scenario("social")
    for pair in preferences.pairs_of(social, 8):
        if pair.kind == "wrong_fact":
            right, wrong = (side[0]["content"].split() for side in (pair.chosen, pair.rejected))
            assert set(right) & set(wrong)


def test_a_violation_of_policy_ends_worse():
    from chatgym.dynamics.room import ChatRoom

    room = ChatRoom(SCENARIO, 1)
    room.seed(np.array([7], np.uint64))
    room.begin()
    best, returns = int(room.expert_acts()[0]), {}
    for act in [best, *preferences._violations(room, best)]:
        fork, total, acts = room.fork(0, 1), 0.0, np.array([act])
        while not fork.outcomes[0]:
            fork.step(acts)
            total += fork.rewards[0]
            acts = fork.expert_acts()
        returns[act] = total
    assert len(returns) > 1
    assert all(value < returns[best] - preferences.WORSE for act, value in returns.items() if act != best)


def test_pairs_survive_a_file(pairs, tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


GOOD = {"prompt": said("Hello?"), "chosen": said("", "Hi!")[1:], "rejected": said("", "No.")[1:]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": None}, "chosen is a list of messages"),
        ({"chosen": [{"role": "agent", "content": "Hi"}]}, "the roles in chosen are system, user, assistant"),
        ({"chosen": [{"role": "user", "content": "Hi"}]}, "no message of the assistant"),
        ({"chosen": [{"role": "assistant", "content": 3}]}, "is a text"),
        ({"rejected": GOOD["chosen"]}, "leave out ties"),
    ],
)
def test_a_bad_pair_is_named_by_its_line(change, words, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(InvalidValue, match=f"line 2.*{words}"):
        read_pairs(path)


def test_a_group_is_held_out_whole(pairs):
    learned, tested = split(pairs)
    assert not {pair.group for pair in learned} & {pair.group for pair in tested}
    assert len(learned) + len(tested) == len(pairs)


def test_the_head_finds_the_weights_that_the_preferences_were_drawn_from():
    random = np.random.default_rng(0)
    truth = np.array([1.0, -2.0, 0.5, 0.0])
    differences = random.normal(size=(20_000, 4))
    differences *= np.where(random.random(20_000) < probability(differences @ truth), 1, -1)[:, None]
    assert np.allclose(fit(differences, decay=1e-6).weights, truth, atol=0.08)


def test_a_pair_that_counts_twice_is_a_pair_given_twice():
    differences = np.random.default_rng(1).normal(size=(30, 3)) + 0.3
    counts = np.array([2, *[1] * 29])
    doubled = np.concatenate([differences, differences[:1]])
    scale = differences.std(0) / doubled.std(0)  # what the decay is relative to
    assert np.allclose(fit(differences, counts, 1e-9).weights, fit(doubled, decay=1e-9).weights, rtol=1e-3), scale


def test_the_penalty_is_strong_where_features_say_nothing_and_weak_where_they_do():
    random = np.random.default_rng(0)
    differences, groups = random.normal(size=(400, 60)), [str(i // 4) for i in range(400)]
    assert choose_decay(differences, groups) == DECAYS[-1]
    told = differences * np.sign(differences[:, :1])  # the first feature decides
    assert choose_decay(told, groups) == DECAYS[0]
    assert choose_decay(differences, ["one", "two"] * 200) == DECAYS[0]  # too few groups to tell
    copied = np.concatenate(
        [differences] * 4
    )  # each pair four times: only by groups is it seen that nothing is learned
    assert choose_decay(copied, groups * 4) == DECAYS[-1]


def test_a_bootstrap_draws_whole_groups():
    groups = [str(i // 3) for i in range(60)]
    counts = bootstrap_counts(groups, 5).reshape(20, 3)
    assert (counts == counts[:, :1]).all()
    assert counts[:, 0].sum() == 20


def test_signals_say_what_they_are_named_for():
    reader = Reader()

    def signals(*texts: str) -> dict[str, float]:
        return dict(zip(SIGNALS, turns(said(*texts), reader)[-1].signals.tolist(), strict=True))

    assert signals("It is 482913.", "So it's 482913?")["shared_numbers"] == 1
    assert signals("It is 482913.", "So it's 482914?")["stray_numbers"] == 1
    assert signals("Hi", "When was that?", "What?", "When was that?")["repeats_exactly"] == 1
    assert signals("Hi", "When was that?", "What?", "And how much?")["repeats_exactly"] == 0
    assert signals("My parcel is late.", "My parcel is late.")["echoes"] == pytest.approx(1, abs=1e-4)
    assert signals("Hi", "")["empty"] == 1
    assert signals("Hi", "yes " * 100)["unread"] == 1
    assert signals("Hi", "yes yes yes yes")["babble"] == pytest.approx(0.75)


def test_fast_and_plain_scores_agree(small, pairs):
    """The products of a turn's features are never made when scoring; the sum is the same."""
    turn = turns(pairs[5].better, small.reader)[-1]
    assert np.allclose(small.heads @ turn.features(), small._turn(turn), atol=1e-3)


def test_a_score_depends_on_its_conversation_alone_to_the_last_bit(small, pairs):
    conversations = [pair.better for pair in pairs[:6]]
    alone = [small.score([one])[0] for one in conversations]
    assert small.score(conversations[::-1]).tolist() == alone[::-1]


def test_a_score_says_better_for_better_and_stays_within_its_bounds(small, pairs):
    tested = split(pairs)[1]
    better, worse = (small.score([getattr(pair, side) for pair in tested]) for side in ("better", "worse"))
    assert (better > worse).mean() > 0.8
    assert max(better.max(), worse.max()) <= 1
    assert min(better.min(), worse.min()) >= -1


def test_what_was_said_long_ago_does_not_count(small):
    late = said(*["Good day.", "What can I do for you?"] * (WINDOW + 3))
    assert small.score([late]) == small.score([late[4:]])


def test_the_same_pairs_give_the_same_bytes(pairs, tmp_path):
    for name in "ab":
        train(pairs[:60]).save(tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_saved_model_scores_the_same(small, pairs, tmp_path):
    small.save(tmp_path / "reward.npz")
    again = EncoderRewardModel.load(tmp_path / "reward.npz")
    conversations = [pair.worse for pair in pairs[:8]]
    assert again.score(conversations).tolist() == small.score(conversations).tolist()
    assert again.disagreement(conversations).tolist() == small.disagreement(conversations).tolist()
    assert again.identity == small.identity


def test_a_file_cut_off_is_told(small, tmp_path):
    path = tmp_path / "reward.npz"
    small.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Corrupted, match="train it again"):
        EncoderRewardModel.load(path)


def test_heads_disagree_and_one_head_does_not(small, pairs):
    conversations = [pair.better for pair in pairs[:8]]
    assert (small.disagreement(conversations) > 0).all()
    one = EncoderRewardModel(small.space, small.heads[:1], small.typical[:1])
    assert (one.disagreement(conversations) == 0).all()


def test_the_encoder_kind_keeps_to_the_protocol(small):
    check_reward_model(small)


class Lengthy:
    """Prefers what is longer, and is sure of it."""

    def margins(self, conversations):
        return np.array([sum(len(one["content"]) for one in messages) for messages in conversations], np.float64)


def test_a_report_sees_a_bias_for_length():
    short, long = said("", "Yes.")[1:], said("", "Yes, of course.")[1:]
    pairs = [Pair(said("Hi"), short, long, "a", str(i)) for i in range(3)] + [Pair(said("Hi"), long, short, "b", "4")]
    report = measure(Lengthy(), pairs)
    assert report.length_correlation == pytest.approx(1)
    assert (report.chosen_shorter.value, report.chosen_longer.value) == (0, 1)
    assert report.accuracy.value == 0.25
    assert (report.by_kind["a"].value, report.by_kind["b"].value) == (0, 1)
    assert report.calibration_error == pytest.approx(0.75, abs=1e-3)  # sure of all, right in a quarter


def test_the_default_model_keeps_to_the_protocol_and_knows_good_from_bad():
    model = default.load(SCENARIO)
    check_reward_model(model)
    start = "My invoice doesn't look right. The amount is 129 euros."
    good = model.score([said(start, "Which order or account number is it?")])[0]
    for bad in ("", "That is your own fault.", "I like pizza with extra cheese.", "You are a genius! " * 30):
        assert model.score([said(start, bad)])[0] < good


@pytest.mark.parametrize("name", ["customer_service", "education", "social"])
def test_the_default_models_are_made_from_the_scenarios_as_they_are(name):
    """A change of sentences or dynamics wants `chatgym scenarios NAME --train-reward`."""
    from chatgym.rewards.training import digest_of

    scenario = find_scenario(name)
    learned = split(preferences.pairs_of(scenario, default_reward.CONVERSATIONS))[0]
    assert default.load(scenario).made_from == digest_of(learned)


def test_the_command_makes_pairs_and_trains(tmp_path):
    def chatgym(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["reward", *map(str, arguments)])
        return result.exit_code, result.output

    file, out = tmp_path / "pairs.jsonl", tmp_path / "judge"
    make = ("pairs", "--conversations", 20, "--scenario", "social", "--out", file)
    learn = ("train", "--pairs", file, "--out", out, "--ensemble", 2)
    assert chatgym(*make)[0] == 0
    code, printed = chatgym(*learn)
    assert code == 0
    assert "rude" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy"]["value"] > 0.7
    assert len(report["disagreement"]) == 2
    good, rude = folder.load(out).score([said("Hi", "How do you feel about it?"), said("Hi", "Shut up.")])
    assert good > rude
    for again in (make, learn):  # nothing is replaced unasked
        assert chatgym(*again)[0] == 2


def test_global_randomness_is_left_alone(pairs):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(pairs[:40], ensemble=2)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name", ["customer_service", "education", "social"])
def test_a_pickled_reward_model_scores_the_same_to_the_last_bit(name):
    import pickle

    model = default.load.__wrapped__(find_scenario(name))  # one that has read nothing yet
    copied = pickle.loads(pickle.dumps(model))
    said = [[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": text}] for text in ("Hello!", "No.")]
    assert model.margins(said).tolist() == copied.margins(said).tolist()
