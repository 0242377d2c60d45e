"""PPO's equations, against plain loops written from the papers."""

import math

import numpy as np
import pytest
import torch
from chatgym_agents.ppo.equations import (
    decays,
    entropies,
    gae,
    group_advantages,
    kl_estimates,
    log_probabilities,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from chatgym_agents.ppo.training import Alarm
from chatgym_agents.ppo.turns import Sampling
from hypothesis import given
from hypothesis import strategies as st

NUMBER = st.floats(-3, 3, width=32)
SHARE = st.floats(0, 1)


@st.composite
def masked_conversations(draw):
    """A conversation as all of its tokens, of which the agent sampled some, and rewards for those."""
    mask = [*draw(st.lists(st.booleans(), min_size=1, max_size=30)), True]
    numbers = st.lists(NUMBER, min_size=len(mask), max_size=len(mask))
    return np.array(mask), np.array(draw(numbers)), np.array(draw(numbers))


@given(masked_conversations(), SHARE, SHARE, NUMBER)
def test_gae_is_the_discounted_sum_of_td_errors_over_the_agents_tokens(conversation, discount, decay, bootstrap):
    mask, rewards, values = conversation
    mine = np.flatnonzero(mask).tolist()
    following = [*(values[i] for i in mine[1:]), bootstrap]
    errors = [rewards[i] + discount * after - values[i] for i, after in zip(mine, following, strict=True)]
    expected = [
        sum((discount * decay) ** later * error for later, error in enumerate(errors[k:])) for k in range(len(mine))
    ]
    found = gae(rewards[mask], values[mask], bootstrap, discount, decay)
    assert np.allclose(found, expected, atol=1e-9)


def test_gae_with_lambda_one_is_return_less_value():
    rewards, values = np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.2, 0.3])
    assert np.allclose(gae(rewards, values, 0.0, 1.0, 1.0), np.array([1.5, 1.0, 2.0]) - values)
    assert np.allclose(gae(rewards, values, 10.0, 1.0, 1.0), np.array([11.5, 11.0, 12.0]) - values)


@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=20))
def test_kl_estimates_are_those_of_the_ratio(pairs):
    policy, reference = np.array(pairs).T
    ratio = np.exp(reference) / np.exp(policy)
    assert np.allclose(kl_estimates(policy, reference, "k1"), -np.log(ratio))
    k3 = kl_estimates(policy, reference, "k3")
    assert np.allclose(k3, ratio - 1 - np.log(ratio))
    assert (k3 >= 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_are_right_on_average(estimator):
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = (policy * np.log(policy / reference)).sum()
    assert (policy * kl_estimates(np.log(policy), np.log(reference), estimator)).sum() == pytest.approx(exact)


def test_a_turns_reward_comes_with_its_last_token_and_kl_is_paid_at_each():
    rewards = token_rewards([1.0, -2.0], [1, 4], np.array([0.1, 0.2, 0.3, 0.4, 0.5]), 0.5)
    assert np.allclose(rewards, [-0.05, 1 - 0.1, -0.15, -0.2, -2 - 0.25])


@given(st.lists(NUMBER, min_size=12, max_size=12), st.sampled_from([2, 3, 4, 6]))
def test_group_advantages_compare_with_the_others(numbers, group):
    returns = np.array(numbers)
    rloo, grpo = (group_advantages(returns, group, kind) for kind in ("rloo", "grpo"))
    for i in range(12):
        members = list(range(i // group * group, i // group * group + group))
        others = [returns[j] for j in members if j != i]
        assert rloo[i] == pytest.approx(returns[i] - sum(others) / len(others), abs=1e-9)
        mean = sum(returns[members]) / group
        spread = math.sqrt(sum((returns[j] - mean) ** 2 for j in members) / (group - 1))
        assert grpo[i] == pytest.approx((returns[i] - mean) / (spread + 1e-4), abs=1e-6)


def test_whitened_numbers_keep_their_order_and_have_mean_0_and_variance_1():
    numbers = np.array([3.0, -1.0, 4.0, 1.0, 5.0])
    white = whiten(numbers)
    assert white.mean() == pytest.approx(0)
    assert white.std() == pytest.approx(1)
    assert (white.argsort() == numbers.argsort()).all()


def vectors(*size):
    return st.lists(NUMBER, min_size=math.prod(size), max_size=math.prod(size)).map(
        lambda numbers: torch.tensor(numbers, dtype=torch.float64).reshape(size)
    )


@given(vectors(8), vectors(8), vectors(8), st.floats(0.05, 0.5))
def test_policy_loss_is_the_clipped_surrogate(logprobs, before, advantages, clip):
    found = policy_loss(logprobs, before, advantages, clip)
    for new, old, advantage, loss in zip(*(t.tolist() for t in (logprobs, before, advantages, found)), strict=True):
        ratio = math.exp(new) / math.exp(old)
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        assert loss == pytest.approx(-min(ratio * advantage, clipped * advantage), abs=1e-9)


@given(vectors(8), vectors(8), vectors(8), st.floats(0.05, 0.5))
def test_value_loss_is_the_worse_of_plain_and_clipped(values, before, returns, clip):
    found = value_loss(values, before, returns, clip)
    for v, old, wanted, loss in zip(*(t.tolist() for t in (values, before, returns, found)), strict=True):
        clipped = min(max(v, old - clip), old + clip)
        assert loss == pytest.approx(0.5 * max((v - wanted) ** 2, (clipped - wanted) ** 2), abs=1e-9)


@given(vectors(8), vectors(8), vectors(8))
def test_value_loss_without_a_clip_is_half_the_squared_error(values, before, returns):
    assert torch.equal(value_loss(values, before, returns, 0.0), 0.5 * (values - returns) ** 2)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), SHARE, SHARE, st.data())
def test_lambda_changes_at_the_end_of_a_turn_alone(lengths, within, between, data):
    """The sum of TD errors, each weighted by the λs of the steps before it (Schulman et al. 2016, equation 16)."""
    ends, size = (np.cumsum(lengths) - 1).tolist(), sum(lengths)
    rewards, values = (np.array(data.draw(st.lists(NUMBER, min_size=size, max_size=size))) for _ in range(2))
    found = gae(rewards, values, 0.5, 0.9, decays(ends, within, between))
    errors = rewards + 0.9 * np.append(values[1:], 0.5) - values
    for first in range(size):
        weight, total = 1.0, 0.0
        for i in range(first, size):
            total += weight * errors[i]
            weight *= 0.9 * (between if i in ends else within)
        assert found[first] == pytest.approx(total, abs=1e-9)


def test_entropy_leaves_out_what_could_not_be_sampled():
    log_probs = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    assert entropies(log_probs).tolist() == pytest.approx([1.5 * math.log(2), 0.0])


HOWS = [Sampling(), Sampling(0.7), Sampling(1.0, 0.8), Sampling(1.3, 0.9, 20), Sampling(1.0, 1.0, 5)]


@pytest.mark.parametrize("how", HOWS)
def test_what_is_learned_from_is_the_distribution_that_was_sampled_from(how):
    """By counting: 20,000 draws of one distribution come as often as the log-probabilities say."""
    logits = torch.tensor(np.random.default_rng(0).normal(size=(1, 50)) * 2, dtype=torch.float32)
    many = logits.expand(20_000, -1)
    tokens, logprobs, supports = how.draw(many, np.arange(20_000, dtype=np.uint64), 3)
    given = None if supports is None else torch.from_numpy(supports)
    everything = log_probabilities(many, how.temperature, given)
    learned = everything.gather(1, torch.from_numpy(tokens)[:, None])[:, 0].numpy()
    assert np.allclose(learned, logprobs, atol=1e-5)
    shares = np.bincount(tokens, minlength=50) / len(tokens)
    assert np.abs(shares - everything[0].exp().numpy()).max() < 0.015
    p = (logits[0] / how.temperature).softmax(0).sort(descending=True).values
    if how.top_k:
        p = p[: how.top_k] / p[: how.top_k].sum()
    kept = min(len(p), int((p.cumsum(0) < how.top_p).sum()) + 1)
    assert int(everything[0].isfinite().sum()) == kept


def test_temperature_0_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    tokens, logprobs, supports = Sampling(0.0, 0.5).draw(logits, np.zeros(2, np.uint64), 0)
    assert tokens.tolist() == [1, 0]
    assert (logprobs == 0).all()
    assert supports is None


def test_the_alarm_rings_when_the_measures_part_and_not_before():
    alarm = Alarm()
    assert all(alarm.note(i / 10, i / 10, 0.01) for i in range(10))  # both rise: each is the best so far
    for i in range(20):  # noise alone
        alarm.note(1.0, 0.9 + 0.01 * (-1) ** i, 0.05)
    assert not alarm.ringing
    for i in range(30):
        alarm.note(1.0 + i / 10, 0.9 - i / 10, 0.05)
    assert alarm.ringing
    assert Alarm.from_json(alarm.to_json()) == alarm
    for _ in range(60):
        alarm.note(2.0, 5.0, 0.05)
    assert not alarm.ringing


def test_the_alarm_is_silent_where_both_fall():
    alarm = Alarm()
    for i in range(30):
        alarm.note(-i / 10, -i / 10, 0.01)
    assert not alarm.ringing
