import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from chatgym_agents.dqn import DQN
from chatgym_agents.masked_dqn import MaskedDQN, MaskedReplayBuffer, bellman_targets, choose_acts
from gymnasium import spaces

from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.evaluation import evaluate
from chatgym.integrations.sb3 import ChatVecEnv
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.training import Run, resume, train

TASK = Task()
FILES = {"agent.json", "policy.safetensors", "training.safetensors", "training.npz"}
SMALL = {"num_envs": 16, "buffer_size": 800, "learning_starts": 64, "batch_size": 32, "hidden_size": 16}
CONFIG = DQN.Config(**SMALL, target_update_interval=160)
STEPS = 16 * 90  # the buffer, 50 rows, is overwritten
QUICK = DQN.Config(
    learning_rate=1e-3, learning_rate_end=1e-3, discount_factor=0.95, learning_starts=3000, batch_size=128,
    target_update_interval=1500, epsilon_fraction=0.5, hidden_size=128,
)  # fmt: skip


def make_envs(num_envs, **overrides):
    return TASK.make_envs(DQN.requires, num_envs, **overrides)


def learn(agent, steps=STEPS, callback=lambda turns, metrics: None):
    agent.learn(make_envs, steps, callback)
    return agent


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(agent, folder):
    folder.mkdir()
    agent.save(folder)
    return content(folder)


# -- The target ------------------------------------------------------------------------------------------------


TARGET = torch.tensor([[1.0, 5.0, 9.0], [2.0, 3.0, 4.0], [7.0, 7.5, 8.0]])
ONLINE = torch.tensor([[6.0, 1.0, 9.0], [0.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
MASKS = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
REWARDS = torch.tensor([0.5, -1.0, 2.0])
DISCOUNTS = torch.tensor([0.9, 0.9, 0.9])
TERMINATED = torch.tensor([False, False, True])


def test_the_target_is_reward_and_the_discounted_best_allowed_next_value():
    """The third act, the best one, isn't allowed in the first row; nothing follows in the third, nor is it allowed."""
    targets = bellman_targets(REWARDS, TERMINATED, TARGET, TARGET, MASKS, DISCOUNTS)
    assert targets.tolist() == pytest.approx([0.5 + 0.9 * 5.0, -1.0 + 0.9 * 4.0, 2.0])


def test_the_double_target_lets_one_network_choose_and_the_other_one_value():
    targets = bellman_targets(REWARDS, TERMINATED, TARGET, ONLINE, MASKS, DISCOUNTS)
    assert targets.tolist() == pytest.approx([0.5 + 0.9 * 1.0, -1.0 + 0.9 * 4.0, 2.0])


def buffer_of_one_row(rewards, dones, timeouts, greedy):
    size = len(rewards)
    buffer = MaskedReplayBuffer(size, spaces.Box(0, 99, (1,), np.float32), spaces.Discrete(2), "cpu", n_envs=1)
    for time in range(size):
        buffer.greedy[buffer.pos] = greedy[time]
        buffer.next_masks[buffer.pos] = [True, time % 2]
        buffer.add(
            np.array([[time]]), np.array([[time + 1]]), np.array([time % 2]), np.array([rewards[time]]),
            np.array([dones[time]]), [{"TimeLimit.truncated": bool(timeouts[time])}],
        )  # fmt: skip
    return buffer


def drawn(buffer, n_steps, discount):
    """What follows each time of the past: time -> (reward, discount, next observation, terminated)."""
    tensors = buffer.draw(400, np.random.default_rng(0), n_steps, discount)
    obs, actions, rewards, discounts, after, terminated, masks = (tensor.numpy() for tensor in tensors)
    assert np.array_equal(actions, obs[:, 0] % 2)
    assert np.array_equal(masks[:, 1], (after[:, 0] - 1) % 2 == 1)
    rows = zip(obs[:, 0], rewards, discounts, after[:, 0], terminated, strict=True)
    return {int(t): (pytest.approx(r), pytest.approx(d), int(n), bool(e)) for t, r, d, n, e in rows}


def test_a_truncated_turn_has_a_future_and_a_terminated_one_has_not():
    buffer = buffer_of_one_row([1, 2, 3], dones=[1, 1, 0], timeouts=[1, 0, 0], greedy=[0, 0, 0])
    assert drawn(buffer, 1, 0.5) == {0: (1, 0.5, 1, False), 1: (2, 0.5, 2, True), 2: (3, 0.5, 3, False)}


def test_rewards_over_several_turns_end_with_the_conversation_and_before_an_exploring_act():
    buffer = buffer_of_one_row(
        [1, 2, 4, 8, 16, 32], dones=[0, 0, 1, 0, 0, 0], timeouts=[0, 0, 0, 0, 0, 0], greedy=[0, 1, 1, 0, 0, 1]
    )
    assert drawn(buffer, 3, 0.5) == {
        0: (1 + 1 + 1, 0.125, 3, True),
        1: (2 + 2, 0.25, 3, True),
        2: (4, 0.5, 3, True),
        3: (8, 0.5, 4, False),  # an exploring act follows
        4: (16 + 16, 0.25, 6, False),  # the newest turn follows
        5: (32, 0.5, 6, False),
    }


def test_in_a_full_buffer_the_newest_turn_is_not_followed_by_the_oldest():
    buffer = buffer_of_one_row([1, 2, 4, 8], dones=[0] * 4, timeouts=[0] * 4, greedy=[1] * 4)
    assert buffer.full
    assert buffer.pos == 0
    assert drawn(buffer, 2, 1.0)[3] == (8, 1.0, 4, False)
    buffer.add(np.array([[4]]), np.array([[5]]), np.array([0]), np.array([16]), np.array([0]), [{}])
    buffer.next_masks[0] = [True, False]
    assert drawn(buffer, 2, 1.0) == {
        1: (6, 1, 3, False),
        2: (12, 1, 4, False),
        3: (24, 1, 5, False),
        4: (16, 1, 5, False),
    }


def test_a_gradient_step_goes_down_the_huber_loss_to_the_target():
    """Stochastic gradient descent instead of Adam, so that the step is the gradient, which finite differences know."""
    env = ChatVecEnv.make(4, llm="template")
    model = MaskedDQN(
        env, draws=5, seed=0, double=True, n_steps=1, learning_rate=0.1, gamma=0.9, buffer_size=400, max_grad_norm=1e9,
        learning_starts=0, device="cpu", policy_kwargs={"net_arch": [8], "optimizer_class": torch.optim.SGD},
    )  # fmt: skip
    model.learn(40, log_interval=2**62)
    torch.nn.init.normal_(model.q_net_target.q_net[0].weight)
    generator = np.random.Generator(np.random.Philox(key=[5, model._n_updates]))
    obs, actions, rewards, _, after, terminated, masks = model.replay_buffer.draw(64, generator, 1, 0.9)
    assert 0 < terminated.sum() < 64
    with torch.no_grad():
        online, target = model.q_net(after), model.q_net_target(after)
    expected = []
    for i in range(64):
        best = max((act for act in range(15) if masks[i, act]), key=online[i].__getitem__, default=0)
        expected.append(float(rewards[i]) + (0.0 if terminated[i] else 0.9 * float(target[i, best])))
    bias = model.q_net.q_net[2].bias

    def loss():
        errors = model.q_net(obs)[torch.arange(64), actions] - torch.tensor(expected)
        return torch.where(errors.abs() < 1, errors**2 / 2, errors.abs() - 0.5).mean()

    wanted = torch.autograd.grad(loss(), bias)[0]
    before = bias.detach().clone()
    model.train(1, 64)
    assert (before - bias.detach()) / 0.1 == pytest.approx(wanted, abs=1e-5)


# -- Acting ----------------------------------------------------------------------------------------------------


def test_acts_that_make_no_sense_are_neither_chosen_nor_explored():
    generator = np.random.default_rng(0)
    values, masks = generator.normal(size=(500, 6)).astype(np.float32), generator.random((500, 6)) < 0.5
    masks[:, 2] = True
    acts, greedy = choose_acts(values, masks, 0.0, 1, 1)
    assert np.array_equal(acts, np.where(masks, values, -np.inf).argmax(1))
    assert greedy.all()
    explored, greedy = choose_acts(values, masks, 1.0, 1, 1)
    assert masks[np.arange(500), explored].all()
    assert np.array_equal(greedy, explored == acts)
    assert 0.2 < greedy.mean() < 0.6


def test_the_trained_turns_are_remembered_as_they_were():
    """The buffer against an observer of the environment: final observations, masks, and truncation."""
    steps, kept = [], {}

    def recorded(num_envs, **overrides):
        envs = TASK.make_envs(DQN.requires, num_envs, max_turns=5, **overrides)
        step = envs.step

        def observed(acts):
            before = envs._conversations.observe()
            assert envs.room.action_masks()[np.arange(num_envs), acts].all()
            result = step(acts)
            steps.append((before, acts.copy(), *(np.copy(one) for one in result[:4]), result[4]))
            return result

        envs.step = observed
        return envs

    agent = DQN(SCENARIO, DQN.Config(**{**SMALL, "buffer_size": 16 * 100}), seed=2)
    agent.learn(recorded, 16 * 60, lambda turns, metrics: kept.update(agent._gather()[0]))
    assert len(steps) == 60
    truncations = 0
    for time, (before, acts, after, rewards, terminated, truncated, infos) in enumerate(steps):
        masks = infos["action_mask"].copy()
        for row in np.flatnonzero(terminated | truncated):
            after[row], masks[row] = infos["final_obs"][row], infos["final_info"]["action_mask"][row]
        truncations += truncated.sum()
        assert np.array_equal(kept["replay.observations"][time], before)
        assert np.array_equal(kept["replay.next_observations"][time], after)
        assert np.array_equal(kept["replay.actions"][time][:, 0], acts)
        assert np.array_equal(kept["replay.rewards"][time], rewards.astype(np.float32))
        assert np.array_equal(kept["replay.dones"][time] > 0, terminated | truncated)
        assert np.array_equal(kept["replay.timeouts"][time] > 0, truncated)
        assert np.array_equal(kept["replay.next_masks"][time], masks)
    assert truncations > 20


def test_acting_as_in_training_explores_and_acting_deterministically_does_not():
    agent = learn(DQN(SCENARIO, DQN.Config(**SMALL, epsilon_end=0.5), seed=1), 160)
    observations = make_envs(400).reset(seed=3)[0]
    best = agent.act(observations)
    assert np.array_equal(agent.act(observations), best)
    assert np.mean(agent.act(observations, deterministic=False) == best) == pytest.approx(0.5 + 0.5 / 15, abs=0.08)
    masks = np.ones((400, 15), bool)
    masks[np.arange(400), best] = False
    assert not (agent.act(observations, action_masks=masks) == best).any()


def test_before_its_training_it_explores_as_a_training_begins():
    agent, observations = DQN(SCENARIO, seed=1), make_envs(2000).reset(seed=3)[0]
    counts = np.bincount(agent.act(observations, deterministic=False), minlength=15) / 2000
    assert counts == pytest.approx([1 / 15] * 15, abs=0.03)


def test_an_embedding_of_another_scenario_is_refused():
    with pytest.raises(InvalidValue, match="act in the scenario it was trained in"):
        DQN(SCENARIO).act(np.zeros((2, 3)))


# -- Training --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    first, again, other = (
        saved(learn(DQN(SCENARIO, CONFIG, seed=seed)), tmp_path / name)
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert set(first) == FILES
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_no_global_random_state_is_read_or_changed(tmp_path):
    def states():
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    first = saved(learn(DQN(SCENARIO, CONFIG, seed=7)), tmp_path / "first")
    assert states() == before
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert saved(learn(DQN(SCENARIO, CONFIG, seed=7)), tmp_path / "again") == first


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [16 * 3, 16 * 40, 16 * 70], ids=["before learning", "half full", "overwriting"])
def test_a_loaded_agent_learns_on_as_if_it_had_never_stopped(tmp_path, at):
    expected, metrics = [], []
    undisturbed = DQN(SCENARIO, CONFIG, seed=7)
    learn(undisturbed, callback=lambda turns, m: expected.append((turns, m)))
    assert [turns for turns, _ in expected] == list(range(16, STEPS + 1, 16))
    agent = DQN(SCENARIO, CONFIG, seed=7)

    def stop(turns, m):
        metrics.append((turns, m))
        if turns == at:
            saved(agent, tmp_path / "part")
            raise Stop

    with pytest.raises(Stop):
        learn(agent, callback=stop)
    loaded = DQN.load(tmp_path / "part")
    assert (loaded.config, loaded.turns) == (CONFIG, at)
    assert saved(loaded, tmp_path / "copy") == content(tmp_path / "part")
    learn(loaded, callback=lambda turns, m: metrics.append((turns, m)))
    assert saved(loaded, tmp_path / "resumed") == saved(undisturbed, tmp_path / "undisturbed")
    assert metrics == expected


def test_learning_does_no_more_than_what_is_left(tmp_path):
    agent = learn(DQN(SCENARIO, CONFIG))
    before = saved(agent, tmp_path / "before")
    assert saved(learn(agent), tmp_path / "after") == before
    assert agent.turns == STEPS


def test_a_run_trains_it_and_goes_on_where_it_was_interrupted(tmp_path):
    arguments = {"total_steps": STEPS, "evaluate_every": 480, "conversations": 20, "settings": SMALL, "seed": 7}
    whole = train("dqn", tmp_path / "whole", **arguments)

    def interrupt(turns, metrics):
        if turns >= 700:
            raise Stop

    with pytest.raises(Stop):
        train("dqn", tmp_path / "part", **arguments, progress=interrupt)
    assert Run.open(tmp_path / "part").turns == 480
    resume(tmp_path / "part")
    assert content(whole.model) == content(tmp_path / "part" / "model")


def test_epsilon_falls_as_configured_and_the_metrics_are_of_the_conversations():
    seen = []
    learn(DQN(SCENARIO, CONFIG), callback=lambda turns, metrics: seen.append(metrics))
    epsilons = [metrics["epsilon"] for metrics in seen]
    assert epsilons[0] == 1.0
    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilons[-1] == CONFIG.epsilon_end
    assert epsilons[14] == pytest.approx(1.0 - 0.95 * 14 * 16 / (CONFIG.epsilon_fraction * STEPS))
    assert -2.1 < seen[-1]["mean_return"] < 0.0
    assert 0.0 <= seen[-1]["success_rate"] < 0.3


def test_the_learning_rate_falls_linearly_to_its_end():
    config = DQN.Config(**SMALL, learning_rate=0.5, learning_rate_end=0.1)
    agent, rates = DQN(SCENARIO, config), []
    learn(agent, 16 * 20, lambda turns, m: rates.append(agent.policy.optimizer.param_groups[0]["lr"]))
    assert rates[9] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.1)


def test_a_short_training_clearly_beats_random():
    agent = learn(DQN(SCENARIO, QUICK, seed=1), 60_000)
    result, random = (
        evaluate(one, TASK, conversations=1000, references=False, deterministic=one is agent)
        for one in (agent, DQN(SCENARIO))
    )
    assert result.mean_return.low > random.mean_return.high
    assert result.success_rate.low > 2 * random.success_rate.high


# -- Files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    learn(DQN(SCENARIO, CONFIG, seed=3), 320).save(folder)
    return folder


def test_a_loaded_agent_acts_the_same_and_nothing_in_its_folder_is_pickled(folder):
    agent, loaded = learn(DQN(SCENARIO, CONFIG, seed=3), 320), DQN.load(folder)
    assert asdict(loaded.config) == asdict(CONFIG)
    observations = make_envs(200).reset(seed=3)[0]
    assert np.array_equal(loaded.act(observations), agent.act(observations))
    assert set(content(folder)) == FILES
    assert json.loads((folder / "agent.json").read_text())["agent"] == "dqn"
    for path in folder.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert all(file[name].dtype != object for name in file.files)
    for path in folder.glob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        assert json.loads(path.read_bytes()[8 : 8 + length])


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_is_cut_off_or_missing_is_reported(folder, name):
    path = folder / name
    whole = path.read_bytes()
    try:
        for damaged in (b"", whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(Corrupted, match="train it again"):
                DQN.load(folder)
        path.unlink()
        with pytest.raises(Corrupted, match="train it again"):
            DQN.load(folder)
    finally:
        path.write_bytes(whole)


def test_a_network_of_another_size_is_reported(folder):
    path = folder / "agent.json"
    whole = path.read_text()
    try:
        path.write_text(whole.replace('"hidden_size": 16', '"hidden_size": 8'))
        with pytest.raises(Corrupted, match="train it again"):
            DQN.load(folder)
    finally:
        path.write_text(whole)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InvalidValue, match="use cpu"):
        DQN(SCENARIO, DQN.Config(device="abacus"))


def test_its_settings_are_known_without_torch():
    code = (
        "import sys\nfrom chatgym import plugins\nassert plugins.load().agents['dqn'].Config().num_envs\n"
        "assert not {'torch', 'stable_baselines3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
