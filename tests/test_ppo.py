"""Token-level PPO: what is sampled is what is learned from, and learning does what it should."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from chatgym_agents.ppo import PPO
from chatgym_agents.ppo.equations import log_probabilities
from chatgym_agents.ppo.iteration import Learner, LogprobsDiffer, Phases
from chatgym_agents.ppo.policy import Policy, pack
from chatgym_agents.ppo.rollout import features, hold
from chatgym_agents.ppo.training import Training
from chatgym_agents.ppo.turns import OwnTurns

from chatgym.agent import make_config
from chatgym.dynamics import rng
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import InvalidValue
from chatgym.evaluation import evaluate
from chatgym.finetuning import models, tiny
from chatgym.words.charset import clean

TASK = Task("customer_service", {"error_rate": 0.0, "max_turns": 4})
SMALL = {
    "batch": 8, "minibatches": 2, "micro_batch": 2, "max_new_tokens": 12, "max_length": 400, "learning_rate": 1e-3,
    "critic": "shared", "value_warmup": 0, "clip_value": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of random weights that knows words of customer service."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    sentences = TASK.find_scenario().sentences
    tiny.save_tokenizer([text for texts in sentences["agent"].values() for text in texts], folder)
    tokenizer = ChatTokenizer(str(folder))
    shape = LlamaConfig(
        vocab_size=tokenizer.size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.end,
        initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape)
    with torch.no_grad():  # turns that end now and then
        model.model.norm.weight.mul_(2)
    model.save_pretrained(folder)
    return folder


def config_of(base, **settings):
    return make_config(PPO.Config, {"model": str(base), **SMALL, **settings})


def agent_of(base, seed=0, **settings):
    return PPO(TASK.find_scenario(), config_of(base, **settings), seed=seed)


def policy_of(base, config):
    return Policy(models.load(base), config).eval()


def envs_of(size, **overrides):
    return TASK.make_envs(PPO.requires, size, **{"reward_model": None, **overrides})


def held(base, size=6, config=None, max_length=400):
    config = config or config_of(base)
    policy = policy_of(base, config)
    with torch.no_grad():
        policy.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    turns = OwnTurns(policy, ChatTokenizer(str(base)), size)
    keys = rng.bits(5, 0, 0) + np.arange(size, dtype=np.uint64)
    conversations = hold(turns, envs_of(size), keys, [0] * size, max_length=max_length, phases=Phases())
    return policy, conversations


def learner_of(base, **settings):
    return training_of(agent_of(base, **settings)).learner


def training_of(agent):
    return Training(agent.scenario, agent.config, agent.seed)


def scored(learner, envs):
    """Conversations as an iteration collects and scores them."""
    conversations = learner.collect(envs)
    learner.score(conversations)
    return conversations


def weighed(learner, envs):
    conversations = scored(learner, envs)
    learner.weigh(conversations)
    return conversations


def train(agent, turns, task=TASK):
    lines = []
    agent.learn(lambda n, **o: task.make_envs(agent.requires, n, **o), turns, lambda n, m: lines.append({"n": n, **m}))
    return lines


def steady(lines):
    return [{name: value for name, value in line.items() if "per_second" not in name} for line in lines]


def saved(agent, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    agent.save(folder)
    return folder


def plain_logits(policy, ids):
    """The logits after each token of one conversation, with neither cache nor padding nor batch."""
    with torch.no_grad():
        return policy.causal(torch.tensor([ids])).logits[0].float()


# -- Rewards ---------------------------------------------------------------------------------------------------------


def test_the_reward_model_has_a_weight_in_training_and_may_stand_alone(base, monkeypatch):
    held, steps, weigh = [], [], Learner.weigh
    monkeypatch.setattr(
        Learner, "weigh", lambda self, conversations: held.extend(conversations) or weigh(self, conversations)
    )

    def maker(size, **overrides):
        envs = TASK.make_envs(PPO.requires, size, **overrides)
        step = envs.step

        def recorded(*args, **kwargs):
            found = step(*args, **kwargs)
            steps.append({name: one.copy() for name, one in found[-1]["reward_terms"].items()})
            return found

        envs.step = recorded
        return envs

    own = TASK.find_scenario().reward_terms
    cases = [
        ({}, own, 0.05),
        ({"reward_model_weight": 0.5}, own, 0.5),
        ({"task_reward": False}, {}, 1.0),
        ({"task_reward": False, "reward_model_weight": 2}, {}, 2.0),
    ]
    for settings, weights, weight in cases:
        held.clear()
        steps.clear()
        lines = []
        agent = agent_of(base, reward_model="default", **settings)
        agent.learn(maker, 1, lambda turns, metrics, lines=lines: lines.append(metrics))
        assert any(terms["reward_model"].any() for terms in steps)
        task = []
        for row, one in enumerate(held):
            terms = [{name: values[row] for name, values in step.items()} for step in steps[: len(one.rewards)]]
            task.append(sum(own[name] * term[name] for term in terms for name in own))
            expected = [weight * term["reward_model"] + sum(weights.get(n, 0) * term[n] for n in own) for term in terms]
            assert one.rewards == pytest.approx(expected, abs=1e-6), settings
        assert lines[0]["mean_return"] == pytest.approx(np.mean(task))  # the task's own in any case


def test_a_weight_needs_a_reward_model(base):
    for settings in ({"task_reward": False}, {"reward_model_weight": 1.0}):
        with pytest.raises(InvalidValue, match="no reward model to learn from; name one"):
            agent_of(base, **settings)


# -- Conversations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 20}])
def test_cached_turns_have_the_logprobs_of_the_whole_conversation_read_anew(base, how):
    policy, conversations = held(base, config=config_of(base, **how))
    for one in conversations:
        logits = plain_logits(policy, one.ids)[one.places - 1]
        supports = None if one.supports is None else torch.from_numpy(one.supports)
        everything = log_probabilities(logits, policy.settings.temperature, supports)
        logprobs = everything.gather(1, torch.from_numpy(one.tokens)[:, None])[:, 0].numpy()
        assert np.abs(logprobs - one.logprobs).max() < 1e-4
    assert len({len(one.ids) for one in conversations}) > 1


def test_values_are_of_the_states_that_tokens_were_sampled_in(base):
    policy, conversations = held(base)
    for one in conversations:
        with torch.no_grad():
            states = policy.trunk(torch.tensor([one.ids])).last_hidden_state[0]
            values = policy.values(states).numpy()
        assert np.abs(values[one.places - 1] - one.values).max() < 1e-3
        if one.broken:
            assert one.bootstrap == pytest.approx(values[-1], abs=1e-3)
        else:
            assert one.bootstrap == 0


def test_conversations_that_are_broken_off_are_told_from_those_that_end(base):
    _, conversations = held(base)
    scenario = TASK.find_scenario()
    truncated = [one for one in conversations if one.broken]
    assert truncated
    assert all(one.outcome == scenario.outcomes[-1] for one in truncated)
    assert all(one.messages[-1]["role"] == "user" for one in truncated)
    _, short = held(base, max_length=110)
    assert any(one.broken and not one.outcome and len(one.ends) < 4 for one in short)


def test_a_turn_does_not_depend_on_the_rows_beside_it(base):
    _, many = held(base, 6)
    _, few = held(base, 3)
    assert [one.ids for one in few] == [one.ids for one in many[:3]]


def test_conversations_of_the_same_key_part_by_their_salt_alone(base):
    config, keys = config_of(base), np.full(2, 77, np.uint64)
    policy = policy_of(base, config)

    def said(salt):
        turns = OwnTurns(policy, ChatTokenizer(str(base)), 2)
        return [one.ids for one in hold(turns, envs_of(2), keys, salt, max_length=400, phases=Phases())]

    same, other = said([0, 0]), said([0, 1])
    assert same[0] == same[1] == other[0]
    assert other[1] != other[0]


def test_only_what_the_agent_sampled_is_learned_from(base):
    _, conversations = held(base)
    tokenizer = ChatTokenizer(str(base))
    for one in conversations:
        turns = np.split(one.tokens, one.ends[:-1] + 1)
        assert len(turns) == len(one.rewards)
        words = [clean(tokenizer.decode([t for t in turn.tolist() if t != tokenizer.end])) for turn in turns]
        assert words == [m["content"] for m in one.messages if m["role"] == "assistant"]
        others = [token for place, token in enumerate(one.ids) if place not in set(one.places.tolist())]
        left = tokenizer.decode(others)
        for message in one.messages:
            if message["role"] == "user":
                assert message["content"] in left


def test_stepping_token_by_token_gives_the_same_ids_rewards_and_advantages(base):
    """``action="token"`` and whole turns are one environment."""
    config = config_of(base, max_new_tokens=64, max_length=512)
    _, conversations = held(base, 4, config, max_length=512)
    one = next(c for c in conversations if c.outcome)
    envs = ChatVectorEnv(
        1, scenario="customer_service", action="token", observation="token", tokenizer=f"hf:{base}", llm="template",
        autoreset_mode="Disabled", reward_model=None, **TASK.arguments,
    )  # fmt: skip
    envs.reset(options={"keys": np.array([one.key], np.uint64)})
    rewards = []
    for token in one.tokens.tolist():
        _, reward, terminated, truncated, _ = envs.step(np.array([token]))
        rewards.append(float(reward[0]))
    assert terminated[0] or truncated[0]
    whole = np.zeros(len(one.places))
    whole[one.ends] = one.rewards
    assert rewards == whole.tolist()
    shown = envs.history.ids[0]
    assert shown[: len(one.ids)] == one.ids[: len(shown)]


# -- The loss --------------------------------------------------------------------------------------------------------


def slow_loss(policy, conversations, config):
    """The loss written from the equations: one token at a time, each from the whole text before it."""
    total = 0.0
    for one in conversations:
        states = policy.trunk(torch.tensor([one.ids])).last_hidden_state[0]
        for k, place in enumerate(one.places.tolist()):
            state = states[place - 1]
            everything = policy.causal.lm_head(state).float().log_softmax(0)
            ratio = (everything[one.ids[place]] - float(one.logprobs[k])).exp()
            advantage = float(one.advantages[k])
            clipped = ratio.clamp(1 - config.clip_ratio, 1 + config.clip_ratio)
            total = total - torch.minimum(ratio * advantage, clipped * advantage)
            total = total + config.entropy_coefficient * (everything.exp() * everything).sum()
            value, before, wanted = policy.value_head(state)[0], float(one.values[k]), float(one.returns[k])
            moved = before + (value - before).clamp(-config.clip_value, config.clip_value)
            worse = torch.maximum((value - wanted) ** 2, (moved - wanted) ** 2)
            total = total + config.value_coefficient * 0.5 * worse
    return total


def test_loss_and_gradient_are_those_of_the_equations(base):
    learner = learner_of(base, entropy_coefficient=0.01, zero=0, batch=6, minibatches=1)
    policy, config = learner.systems.policy, learner.config
    conversations = weighed(learner, envs_of(6))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # so that ratios aren't 1 and some are clipped
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    expected = slow_loss(policy, conversations, config)
    found = sum(policy(batch) for batch in learner.batches(conversations))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    assert policy.sums["clipped"] > 0
    parameters = list(policy.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()) + 1e-6)


def test_the_kl_penalty_is_against_the_model_that_it_began_as(base):
    agent = agent_of(base)
    train(agent, 100)
    learner = agent._training.learner
    conversations = scored(learner, envs_of(8))
    start = policy_of(base, learner.config)
    for one in conversations:
        logprobs = plain_logits(start, one.ids)[one.places - 1].log_softmax(-1)
        expected = logprobs.gather(1, torch.from_numpy(one.tokens)[:, None])[:, 0].numpy()
        assert np.allclose(one.reference, expected, atol=1e-4)
    assert max(np.abs(one.reference - one.logprobs).max() for one in conversations) > 0.05


def test_loras_reference_is_the_model_without_its_adapters(base):
    learner = learner_of(base, lora=4, learning_rate=1e-2)
    envs = envs_of(8)
    for _ in range(2):
        learner.iterate(envs)
    conversations = scored(learner, envs)
    start = policy_of(base, learner.config)
    for one in conversations[:3]:
        logprobs = plain_logits(start, one.ids)[one.places - 1].log_softmax(-1)
        expected = logprobs.gather(1, torch.from_numpy(one.tokens)[:, None])[:, 0].numpy()
        assert np.allclose(one.reference, expected, atol=1e-4)
    assert max(np.abs(one.reference - one.logprobs).max() for one in conversations) > 1e-2


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "top_p": 0.8}, {"critic": "separate"}, {"top_k": 10}])
def test_the_first_minibatchs_ratio_is_1(base, how):
    lines = train(agent_of(base, **how), 60)
    assert all(line["logprob_gap"] < 1e-4 for line in lines)


def test_a_policy_that_is_not_the_one_that_sampled_is_an_error(base):
    learner = learner_of(base)
    conversations = weighed(learner, envs_of(8))
    for one in conversations:
        one.logprobs = one.logprobs + 0.1
    with pytest.raises(LogprobsDiffer):
        learner.learn(conversations)


def test_a_separate_critic_sees_what_a_shared_one_would(base):
    learner = learner_of(base, critic="separate")
    policy = learner.systems.policy
    with torch.no_grad():
        policy.value_head.weight.fill_(0.1)
    conversations = scored(learner, envs_of(8))
    broken = [one for one in conversations if one.broken]
    assert broken
    for one in conversations:
        with torch.no_grad():
            values = policy.values(policy.critic(torch.tensor([one.ids])).last_hidden_state[0]).numpy()
        assert np.allclose(values[one.places - 1], one.values, atol=1e-4)
        assert one.bootstrap == pytest.approx(values[-1] if one.broken else 0.0, abs=1e-4)


def test_values_of_the_state_are_those_of_ridge_regression_in_which_old_iterations_fade(base):
    learner = learner_of(base, critic="state", kl_coefficient=0.0, whiten=False, turn_lambda=0.8)
    envs, seen = envs_of(8), []
    for _ in range(3):
        conversations, _ = learner.iterate(envs)
        states = np.concatenate([one.states[:-1] for one in conversations]).astype(np.float64)
        seen.append((states, np.concatenate([one.returns[[0, *(one.ends[:-1] + 1)]] for one in conversations])))
    rows = [np.column_stack([states, np.ones(len(states))]) for states, _ in seen]
    fades = [0.9**2, 0.9, 1.0]
    cost = np.diag([100.0] * (rows[0].shape[1] - 1) + [1e-3])
    gram = sum(fade * x.T @ x for fade, x in zip(fades, rows, strict=True)) + cost
    moments = sum(fade * x.T @ y for fade, x, (_, y) in zip(fades, rows, seen, strict=True))
    weights = np.linalg.solve(gram, moments)
    conversations = scored(learner, envs)
    assert any(one.broken for one in conversations)
    for one in conversations:
        *values, last = np.column_stack([one.states, np.ones(len(one.states))]) @ weights
        lengths = np.diff(one.ends, prepend=-1)
        assert np.allclose(one.values, np.repeat(values, lengths), atol=1e-5)
        assert one.bootstrap == pytest.approx(last if one.broken else 0.0, abs=1e-5)
    learner.weigh(conversations)
    for one in conversations:  # a turn's tokens share what the turn was worth
        assert len(one.states) == len(one.ends) + 1
        values = [*one.values[one.ends], one.bootstrap]
        worth = 0.0
        for turn in reversed(range(len(one.ends))):
            worth = one.rewards[turn] + values[turn + 1] - values[turn] + 0.8 * worth
            first = one.ends[turn - 1] + 1 if turn else 0
            assert one.advantages[first : one.ends[turn] + 1] == pytest.approx(worth, abs=1e-5)


def test_what_the_state_is_known_by_tells_the_partners_secrets_apart():
    envs = envs_of(64)
    envs.reset(seed=1)
    found = features(envs.room)
    assert found.shape[0] == 64
    assert np.abs(found).max() <= 2.0
    topics = envs.room.hidden["topic"]
    for one, other in zip(range(0, 64, 2), range(1, 64, 2), strict=True):
        if topics[one] != topics[other]:
            assert not np.array_equal(found[one], found[other])
    assert np.array_equal(found, features(envs.room))
    before = found.copy()
    envs.room.hidden["topic"] = (topics + 1) % 6
    assert (features(envs.room) != before).any(1).all()


def test_while_values_warm_up_the_policy_stays_as_it_is(base):
    for critic in ("state", "shared", "separate"):
        learner = learner_of(base, critic=critic, value_warmup=2, zero=0)
        envs = envs_of(8)
        before = {name: weight.clone() for name, weight in learner.systems.policy.model.state_dict().items()}
        for _ in range(2):
            learner.iterate(envs)
            after = learner.systems.policy.model.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before), critic
        values = [one.values for one in scored(learner, envs)]
        assert max(np.abs(one).max() for one in values) > 0
        learner.iterate(envs)
        assert any(not torch.equal(before[n], w) for n, w in learner.systems.policy.model.state_dict().items()), critic


def test_rewards_are_clipped_and_the_advantages_of_an_iteration_are_whitened(base):
    learner = learner_of(base, clip_reward=0.01, kl_coefficient=0.0)
    conversations = weighed(learner, envs_of(8))
    assert (
        max(np.abs(one.token_rewards).max() for one in conversations)
        <= 0.01
        < max(np.abs(one.rewards).max() for one in conversations)
    )
    everything = np.concatenate([one.advantages for one in conversations])
    assert everything.mean() == pytest.approx(0, abs=1e-9)
    assert everything.std() == pytest.approx(1, abs=1e-4)


def test_groups_begin_alike_and_share_an_advantage_by_conversation(base):
    learner = learner_of(base, advantage="rloo", group=4, whiten=False)
    conversations = scored(learner, envs_of(8))
    keys = [one.key for one in conversations]
    assert len(set(keys[:4])) == len(set(keys[4:])) == 1
    assert keys[0] != keys[4]
    learner.weigh(conversations)
    totals = [one.token_rewards.sum() for one in conversations]
    for i in range(4):
        assert np.allclose(conversations[i].advantages, totals[i] - (sum(totals[:4]) - totals[i]) / 3)


def test_a_shared_beginning_changes_neither_loss_nor_reference(base):
    learner = learner_of(base, advantage="grpo", group=8, batch=8, minibatches=1, zero=0)
    conversations = weighed(learner, envs_of(8))
    head = conversations[0].ids[: conversations[0].places[0]]
    for one in conversations:  # its first turn alone, so that the beginning is much of it
        count = int(one.ends[0]) + 1
        one.ids, one.ends = one.ids[: one.places[count - 1] + 1], one.ends[:1]
        for name in ("places", "tokens", "logprobs", "values", "advantages", "returns"):
            setattr(one, name, getattr(one, name)[:count])
    ids, places = [one.ids for one in conversations], [one.places for one in conversations]
    shared, plain = pack(ids, places), pack(ids, places, share=False)
    assert len(shared.ids) == 1
    assert len(plain.ids) == 8
    assert shared.ids[0, : len(head)].tolist() == head
    policy = learner.systems.policy
    tokens = torch.cat([torch.from_numpy(one.tokens) for one in conversations])
    for trunk in (None, learner.systems.reference._copy.model):
        with torch.no_grad():
            assert torch.allclose(policy.hidden(shared, trunk), policy.hidden(plain, trunk), atol=1e-4)
            last = [policy.states(p)[p.last[0], p.last[1]] for p in (shared, plain)]
            assert torch.allclose(*last, atol=1e-4)
    found = [learner.systems.reference.logprobs(packed, tokens, None) for packed in (shared, plain)]
    assert torch.allclose(*found, atol=1e-4)


def test_the_kl_coefficient_is_steered(base):
    learner = learner_of(base, kl_target=0.05, kl_coefficient=0.1)
    learner._adapt(0.5)
    assert learner.kl_coefficient == pytest.approx(0.1 * 1.02)
    learner._adapt(0.0)
    assert learner.kl_coefficient == pytest.approx(0.1 * 1.02 * 0.98)


def test_epochs_stop_once_the_policy_moved_too_far(base):
    far = train(agent_of(base, learning_rate=0.05, target_kl=0.01, epochs=8), 20)[0]
    near = train(agent_of(base, learning_rate=1e-5, target_kl=0.01, epochs=3), 20)[0]
    assert far["stopped_early"] == 1
    assert far["optimizer_steps"] < 16
    assert near["optimizer_steps"] == 6


# -- Learning --------------------------------------------------------------------------------------------------------


class Bandit:
    """A conversation of one turn of one token, rewarded where its words are among the good ones."""

    outcomes = np.zeros(0, np.int64)

    def __init__(self, size, good):
        self.num_envs, self._good = size, good
        self.room = self
        self.scenario = Outcomes()
        self.texts = ["Well?"] * size
        self.truncations = np.zeros(size, bool)

    def reset(self, options):
        self.keys, self.turns = options["keys"], np.zeros(self.num_envs, np.int64)

    def step(self, texts, *, active):
        self.rewards = np.array([float(text in self._good) for text in texts])
        self.terminations, self.outcomes = np.ones(self.num_envs, bool), np.ones(self.num_envs, np.int64)
        return self.texts, self.rewards, self.terminations, self.truncations, {}

    def close(self):
        pass


class Outcomes:
    outcomes = ("", "over")


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_a_bandit_comes_to_its_known_optimum(base, advantage):
    """With reward r and a nat of KL costing β the best policy is the reference times exp(r / β), normalised."""
    tokenizer, beta = ChatTokenizer(str(base)), 0.5
    texts = [clean(tokenizer.decode([token])) for token in range(tokenizer.size)]
    good = {text for token, text in enumerate(texts) if token % 5 == 0}
    learner = learner_of(
        base, batch=64, minibatches=1, micro_batch=64, max_new_tokens=1, kl_coefficient=beta, learning_rate=2e-3,
        advantage=advantage, group=2, target_kl=0.0,
    )  # fmt: skip
    envs = Bandit(64, good)
    conversations = scored(learner, envs)
    ids = conversations[0].ids[: conversations[0].places[0]]
    right = torch.tensor([text in good for text in texts])

    def chance():
        return float(plain_logits(learner.systems.policy, ids)[-1].softmax(0)[right].sum())

    before = chance()
    for _ in range(80):
        learner.iterate(envs)
    optimum = before * math.exp(1 / beta) / (before * math.exp(1 / beta) + 1 - before)
    assert optimum - before > 0.2
    assert chance() == pytest.approx(optimum, abs=0.07)


# -- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"critic": "state", "value_warmup": 3}, {"advantage": "rloo", "group": 2}])
def test_a_training_that_was_saved_and_loaded_ends_in_the_same_bytes(base, tmp_path, how):
    whole = agent_of(base, **how)
    lines = train(whole, 120)
    first = agent_of(base, **how)
    head = train(first, 60)
    again = PPO.load(saved(first, tmp_path / "half"))
    tail = train(again, 120)
    assert steady(lines) == steady(head + tail)
    a, b = saved(whole, tmp_path / "a"), saved(again, tmp_path / "b")
    for name in ("model.safetensors", "training/weights.safetensors", "training/moments.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_a_loaded_agent_says_the_same_and_can_be_saved_again(base, tmp_path):
    agent = agent_of(base)
    train(agent, 40)
    folder = saved(agent, tmp_path / "model")
    again = PPO.load(folder)
    for deterministic in (True, False):
        kept = [evaluate(one, TASK, conversations=5, references=False, deterministic=deterministic).returns.tolist()
                for one in (agent, again)]  # fmt: skip
        assert kept[0] == kept[1]
    copy = saved(again, tmp_path / "copy")
    assert (copy / "training" / "state.json").read_text() == (folder / "training" / "state.json").read_text()
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", [{"zero": 0}, {"zero": 2}, {"zero": 3}, {"gradient_checkpointing": True}])
def test_every_zero_stage_learns_the_same(base, tmp_path, how):
    def learned(**settings):
        agent = agent_of(base, **settings)
        train(agent, 40)
        return models.load(saved(agent, tmp_path / "model")).state_dict()

    one, other = learned(zero=1), learned(**how)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_a_model_that_changed_is_not_gone_on_with(base, tmp_path):
    moved = shutil.copytree(base, tmp_path / "base")
    agent = agent_of(moved)
    train(agent, 30)
    folder = saved(agent, tmp_path / "model")
    (moved / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InvalidValue, match="began with"):
        train(PPO.load(folder), 60)


def test_settings_that_do_not_go_together_are_told(base):
    for wrong, said in (
        ({"advantage": "grpo"}, "group"), ({"batch": 9, "group": 2}, "group"), ({"batch": 9}, "minibatches"),
    ):  # fmt: skip
        with pytest.raises(InvalidValue, match=said):
            agent_of(base, **wrong)


class Falling:
    """A held-out measure that is best in the second iteration."""

    def __init__(self):
        self.scores = iter([0.0, 1.0] + [0.0] * 1000)

    def score(self, conversations):
        return np.full(len(conversations), next(self.scores), np.float32)


def alarmed(agent):
    """Let the trained reward of an agent rise and its held-out measure fall; return the weights of each iteration."""
    training = agent._training = training_of(agent)
    training._held_out = Falling()
    collect, rewards, held_by = training.learner.collect, iter(np.arange(100.0)), []

    def better(envs):
        actor = training.learner.systems.actor.model
        held_by.append({name: weight.clone() for name, weight in actor.state_dict().items()})
        conversations = collect(envs)
        bonus = next(rewards)
        for one in conversations:
            one.rewards = one.rewards + bonus
        return conversations

    training.learner.collect = better
    return held_by


@pytest.mark.parametrize("how", [{"zero": 0}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"zero": 1, "lora": 4},
                                 {"zero": 2, "bf16": True}])  # fmt: skip
def test_the_alarm_brings_back_the_weights_that_were_measured_best_and_these_are_saved(base, tmp_path, how):
    agent = agent_of(base, stop_on_alarm=True, **how)
    held_by, results = alarmed(agent), []

    def measure(turns, metrics):
        result = evaluate(agent, TASK, conversations=5, references=False)
        results.append((metrics["alarm"], result.returns.tolist()))

    with pytest.warns(UserWarning, match="held-out"):
        agent.learn(lambda n, **o: TASK.make_envs(agent.requires, n, **o), 10_000, measure)
    assert 2 < len(results) < 20
    assert results[-1][0] == 1
    here = {name: weight.clone() for name, weight in agent.policy().model.state_dict().items()}
    folder = saved(agent, tmp_path / "model")
    assert all(torch.equal(here[name], weight) for name, weight in held_by[1].items())
    assert any(not torch.equal(held_by[1][name], weight) for name, weight in held_by[-1].items())
    if "lora" not in how:
        written = models.load(folder).state_dict()
        assert all(torch.equal(written[name], weight.float()) for name, weight in here.items())
    again = PPO.load(folder)
    if "bf16" not in how:  # which computes in float32 where nothing is learned and the machine has no bfloat16
        found = evaluate(again, TASK, conversations=5, references=False).returns.tolist()
        assert found == results[-1][1]
    assert train(again, 10_000) == []  # the alarm has ended it


def test_a_config_file_of_deepspeed_is_merged(base, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"gradient_clipping": 0.5}))
    with pytest.raises(InvalidValue, match="gradient_clipping"):
        learner_of(base, deepspeed=str(file))
    file.write_text(json.dumps({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}))
    learner = learner_of(base, deepspeed=str(file))
    assert isinstance(learner, Learner)
