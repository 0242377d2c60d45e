from dataclasses import asdict

import numpy as np
import pytest
from chatgym_agents.qlearning import QLearning, QLearningAgent, Recent, choose, learn_batch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgym.dynamics import rng
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, InvalidValue
from chatgym.evaluation import evaluate
from chatgym.scenarios.customer_service import SCENARIO

# -- The textbook class ----------------------------------------------------------------------------------------


def test_an_update_moves_the_value_towards_reward_and_best_next_value():
    agent = QLearningAgent(3, 2, learning_rate=0.1, discount_factor=0.9)
    agent.learn(0, 1, 2.0, 1)
    assert agent.q_table.tolist() == [[0.0, 0.1 * 2.0], [0.0, 0.0], [0.0, 0.0]]
    agent.q_table[1] = [3.0, 5.0]
    agent.learn(0, 1, 1.0, 1)  # 0.2 + 0.1 * (1 + 0.9 * 5 - 0.2)
    assert agent.q_table[0].tolist() == pytest.approx([0.0, 0.73])
    agent.learn(1, 0, -1.0, 2)  # 3 + 0.1 * (-1 + 0.9 * 0 - 3)
    assert agent.q_table[1].tolist() == pytest.approx([2.6, 5.0])


def test_without_exploring_the_best_known_action_is_chosen():
    agent = QLearningAgent(2, 3, learning_rate=0.1, discount_factor=0.9)
    agent.q_table[:] = [[1.0, 3.0, 2.0], [4.0, 4.0, 0.0]]
    assert [agent.choose_action(state, 0.0) for state in (0, 1) for _ in range(20)] == [1] * 20 + [0] * 20
    assert type(agent.choose_action(0)) is int


def test_epsilon_is_the_share_of_actions_that_are_drawn_from_all():
    agent = QLearningAgent(1, 4, learning_rate=0.1, discount_factor=0.9, seed=3)
    agent.q_table[0, 2] = 1.0
    counts = np.bincount([agent.choose_action(0, 0.4) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.01)
    counts = np.bincount([agent.choose_action(0, 1.0) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.25] * 4, abs=0.015)


def test_the_textbook_class_draws_from_its_seed_alone():
    def drawn(seed):
        agent = QLearningAgent(1, 10, learning_rate=0.1, discount_factor=0.9, seed=seed)
        return [agent.choose_action(0, 0.5) for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 2, 0.1, 0.9), "needs states and actions, not 0 x 2"),
        ((3, 2, 1.5, 0.9), "learning_rate is 1.5; allowed is 0 to 1"),
        ((3, 2, 0.1, -1.0), r"discount_factor is -1.0; allowed is 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(InvalidValue, match=words):
        QLearningAgent(*arguments)


# -- Choosing over a batch -------------------------------------------------------------------------------------


def chosen(tables, states, masks, epsilon, time=0, seed=0):
    actions, greedy = np.empty(len(states), np.int64), np.empty(len(states), bool)
    choose(tables, states, masks, epsilon, seed, time, actions, greedy)
    return actions, greedy


def test_only_allowed_actions_are_chosen_and_each_of_them_when_exploring():
    generator = np.random.default_rng(0)
    masks = generator.random((200, 6)) < 0.5
    masks[np.arange(200), generator.integers(0, 6, 200)] = True
    tables, states = generator.normal(size=(1, 10, 6)), generator.integers(0, 10, 200)
    seen = np.zeros((200, 6), bool)
    for time in range(200):
        actions, _ = chosen(tables, states, masks, 1.0, time)
        seen[np.arange(200), actions] = True
    assert np.array_equal(seen, masks)
    values = np.where(masks, tables[0, states], -np.inf)
    assert np.array_equal(chosen(tables, states, masks, 0.0)[0], values.argmax(1))


def test_a_batch_explores_with_probability_epsilon():
    tables, masks = np.zeros((1, 1, 5)), np.ones((5000, 5), bool)
    tables[0, 0, 3] = 1.0
    actions = np.concatenate([chosen(tables, np.zeros(5000, np.int64), masks, 0.3, time)[0] for time in range(10)])
    assert np.bincount(actions) / 50_000 == pytest.approx([0.06, 0.06, 0.06, 0.76, 0.06], abs=0.005)


def test_exploring_takes_each_allowed_action_equally_often():
    tables, masks = np.zeros((1, 1, 6)), np.tile([False, True, False, False, True, True], (20_000, 1))
    actions, _ = chosen(tables, np.zeros(20_000, np.int64), masks, 1.0)
    assert np.bincount(actions, minlength=6) / 20_000 == pytest.approx([0, 1 / 3, 0, 0, 1 / 3, 1 / 3], abs=0.015)


def test_two_tables_choose_together():
    tables = np.array([[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.6]]])
    actions, greedy = chosen(tables, np.zeros(3, np.int64), np.ones((3, 3), bool), 0.0)
    assert actions.tolist() == [2, 2, 2]
    assert greedy.all()


def test_an_action_counts_as_greedy_unless_a_better_one_is_known():
    tables = np.array([[[1.0, 1.0, 0.0]]])
    for time in range(30):
        actions, greedy = chosen(tables, np.zeros(50, np.int64), np.ones((50, 3), bool), 1.0, time)
        assert np.array_equal(greedy, actions < 2)


# -- Learning over a batch -------------------------------------------------------------------------------------


class Batch:
    """Tables and traces, and random steps to learn from."""

    def __init__(self, seed, rows, states=5, actions=3, tables=1, discount=0.9, decay=0.0, steps=12):
        self.generator = np.random.default_rng(seed)
        self.tables = self.generator.normal(size=(tables, states, actions))
        self.visits = np.zeros((states, actions), np.int64)
        self.trace = np.zeros((rows, steps + 1 if decay else 1, 2), np.int64)
        self.traced = np.zeros(rows, np.int64)
        self.rates = np.array([0.5, 0.3, 0.2, 0.1])
        self.discount, self.decay, self.seed, self.rows = discount, decay, seed % 1000, rows

    def random_step(self):
        """Return states, actions, rewards, next states and masks, terminated, ended, fresh, greedy."""
        g, (_, states, actions) = self.generator, self.tables.shape
        masks = g.random((self.rows, actions)) < 0.6
        masks[np.arange(self.rows), g.integers(0, actions, self.rows)] = True
        terminated = g.random(self.rows) < 0.15
        return [
            g.integers(0, states, self.rows), g.integers(0, actions, self.rows), g.normal(size=self.rows),
            g.integers(0, states, self.rows), masks, terminated, terminated | (g.random(self.rows) < 0.1),
            g.random(self.rows) < 0.2, g.random(self.rows) < 0.7,
        ]  # fmt: skip

    def learn(self, step, time=0):
        learn_batch(
            self.tables, self.visits, *step, self.trace, self.traced, self.rates, self.discount, self.decay,
            self.seed, time,
        )  # fmt: skip


class Plain:
    """Watkins's Q(λ) (Sutton & Barto 1998, figure 7.14) and double Q-learning (van Hasselt 2010, algorithm 1) as they
    are written there, a step of one conversation at a time, in dictionaries."""

    def __init__(self, batch):
        self.q = [dict(np.ndenumerate(table)) for table in batch.tables]
        self.n = dict.fromkeys(self.q[0], 0)
        self.e = [{} for _ in range(batch.rows)]
        self.batch = batch

    def learn(self, row, state, action, reward, next_state, next_mask, terminated, ended, greedy, time):
        batch, e = self.batch, self.e[row]
        which = 0
        if len(self.q) == 2:
            key = rng.bits(np.uint64(batch.seed), row, 0)
            which = 1 if rng.draw(np.uint64(key), time, 2) < 0.5 else 0
        learns, judges = self.q[which], self.q[len(self.q) - 1 - which]
        following = 0.0
        if not terminated:
            allowed = [a for a in range(len(next_mask)) if next_mask[a]]
            best = max(allowed, key=lambda a: learns[next_state, a])
            following = judges[next_state, best]
        delta = reward + batch.discount * following - learns[state, action]
        self.n[state, action] += 1
        if not greedy:
            e.clear()
        e[state, action] = e.get((state, action), 0.0) + 1.0
        for pair, eligibility in e.items():
            rate = batch.rates[min(self.n[pair], len(batch.rates)) - 1]
            learns[pair] += rate * eligibility * delta
        for pair in e:
            e[pair] *= batch.discount * batch.decay
        if ended:
            e.clear()

    def tables(self):
        shape = self.batch.tables.shape[1:]
        return np.array([[[q[s, a] for a in range(shape[1])] for s in range(shape[0])] for q in self.q])


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), states=st.integers(2, 6), actions=st.integers(2, 4),
    tables=st.integers(1, 2), discount=st.sampled_from([1.0, 0.9, 0.3]), decay=st.sampled_from([0.0, 0.7, 1.0]),
)  # fmt: skip
def test_a_batch_learns_row_after_row_what_the_plain_equations_say(
    seed, rows, states, actions, tables, discount, decay
):
    """With few states many rows share a (state, action), so this also says what happens then."""
    batch = Batch(seed, rows, states, actions, tables, discount, decay)
    plain, learnt = Plain(batch), 0
    for time in range(12):
        step = batch.random_step()
        *rest, fresh, greedy = step
        for row in np.flatnonzero(~fresh):
            plain.learn(row, *(column[row] for column in rest), greedy[row], time)
        learnt += int((~fresh).sum())
        batch.learn(step, time)
        assert batch.tables == pytest.approx(plain.tables(), abs=1e-9)
    assert batch.visits.sum() == learnt


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_where_no_two_rows_meet_all_rows_may_learn_at_once(seed):
    batch = Batch(seed, rows=6, states=12)
    step = batch.random_step()
    step[7][:] = False
    step[0], step[3] = np.arange(6), np.arange(6, 12)  # neither is a row's state another one's, nor its next state
    values, (states, actions, rewards, after, masks, terminated, *_) = batch.tables[0].copy(), step
    following = np.where(terminated, 0.0, np.where(masks, values[after], -np.inf).max(1))
    values[states, actions] += 0.5 * (rewards + 0.9 * following - values[states, actions])
    batch.learn(step)
    assert batch.tables[0] == pytest.approx(values)


def test_two_rows_that_share_a_state_and_action_learn_one_after_the_other():
    batch = Batch(0, rows=2, states=2, actions=1, discount=1.0)
    batch.tables[:] = 0.0
    yes, no = np.ones(2, bool), np.zeros(2, bool)
    zeros, mask = np.zeros(2, np.int64), np.ones((2, 1), bool)
    batch.learn([zeros, zeros, np.array([1.0, 3.0]), zeros + 1, mask, yes, yes, no, no])
    assert batch.tables[0, 0, 0] == 0.5 + 0.3 * (3.0 - 0.5)  # the second visit's rate is 0.3
    assert batch.visits[0, 0] == 2


def one_step(terminated, ended):
    batch = Batch(0, rows=1, states=2, actions=2, discount=0.5)
    batch.tables[:] = [[[0.0, 0.0], [8.0, 9.0]]]
    masks = np.array([[True, False]])  # the better one isn't allowed
    zero, yes = np.zeros(1, np.int64), np.ones(1, bool)
    batch.learn([zero, zero, np.array([1.0]), zero + 1, masks, np.array([terminated]), np.array([ended]), ~yes, yes])
    return batch.tables[0, 0, 0]


def test_what_comes_after_a_truncation_counts_and_after_a_termination_does_not():
    assert one_step(terminated=True, ended=True) == 0.5 * 1.0
    assert one_step(terminated=False, ended=True) == one_step(terminated=False, ended=False) == 0.5 * (1.0 + 0.5 * 8.0)


def test_the_learning_rate_falls_with_the_visits_of_a_pair_and_no_lower_than_its_end():
    agent = QLearning(SCENARIO, QLearning.Config(learning_rate=0.8, learning_rate_power=0.5, learning_rate_end=0.2))
    rates = agent._rates()
    assert rates[[0, 1, 3, 15, 99]] == pytest.approx([0.8, 0.8 / 2**0.5, 0.4, 0.2, 0.2])
    constant = QLearning(SCENARIO, QLearning.Config(learning_rate=0.3, learning_rate_power=0.0))._rates()
    assert (constant == 0.3).all()


def test_epsilon_falls_linearly_and_stays():
    agent = QLearning(SCENARIO, QLearning.Config(epsilon_start=0.9, epsilon_end=0.1, epsilon_fraction=0.5))
    schedule = []
    for agent.turns in (0, 250, 500, 900):
        schedule.append(agent.epsilon(1000))
    assert schedule == pytest.approx([0.9, 0.5, 0.1, 0.1])
    agent = QLearning(SCENARIO, QLearning.Config(epsilon_fraction=0.0))
    assert agent.epsilon(1000) == pytest.approx(0.05)


# -- The trainer -----------------------------------------------------------------------------------------------

TASK = Task()


def make_envs(num_envs, **overrides):
    return TASK.make_envs(QLearning.requires, num_envs, **overrides)


def learn(agent, steps, callback=lambda turns, metrics: None):
    agent.learn(make_envs, steps, callback)
    return agent


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def saved(agent, folder):
    folder.mkdir()
    agent.save(folder)
    return content(folder)


class Recorder:
    """Makes environments, and keeps what is done in them as an observer with the single environment's view has it."""

    def __init__(self, max_turns):
        self.max_turns, self.steps = max_turns, []

    def __call__(self, num_envs, **overrides):
        assert overrides == {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.envs = TASK.make_envs(QLearning.requires, num_envs, max_turns=self.max_turns, **overrides)
        step, reset = self.envs.step, self.envs.reset

        def recorded_reset(**arguments):
            states, infos = reset(**arguments)
            self.states, self.masks, self.fresh = states.copy(), infos["action_mask"].copy(), np.zeros(num_envs, bool)
            return states, infos

        def recorded_step(actions):
            actions = actions.copy()
            states, rewards, terminated, truncated, infos = step(actions)
            ended, after, masks = terminated | truncated, states.copy(), infos["action_mask"].copy()
            self.steps.append(
                (self.states, self.masks, actions, rewards.copy(), after, masks, terminated, ended, self.fresh)
            )
            self.states, self.masks, self.fresh = after, masks, ended
            return states, rewards, terminated, truncated, infos

        self.envs.step, self.envs.reset = recorded_step, recorded_reset
        return self.envs


@pytest.mark.parametrize("tables", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_trainer_learns_what_the_equations_say_of_the_conversations_it_held(tables, decay):
    """Short conversations, so that many are truncated: what follows then is their own next state."""
    recorder = Recorder(max_turns=6)
    config = QLearning.Config(
        num_envs=16, trace_decay=decay, double=tables == 2, discount_factor=0.9, epsilon_start=0.5
    )
    agent = QLearning(SCENARIO, config, seed=5)
    agent.learn(recorder, 16 * 100, lambda turns, metrics: None)
    taken = sum(16 - fresh.sum() for *_, fresh in recorder.steps)
    assert agent.turns == taken
    assert 16 * 100 <= taken < 16 * 101

    batch = Batch(5, 16, SCENARIO.n_beliefs, len(SCENARIO.agent_acts), tables, 0.9, decay)
    batch.tables[:], batch.rates = 0.0, agent._rates()
    plain = Plain(batch)
    truncations = 0
    for time, (states, before, actions, rewards, after, masks, terminated, ended, fresh) in enumerate(recorder.steps):
        assert before[np.arange(16), actions].all()
        truncations += int((ended & ~terminated).sum())
        greedy = []
        for row in range(16):
            worth = [sum(q[states[row], a] for q in plain.q) for a in range(batch.tables.shape[2])]
            greedy.append(
                worth[actions[row]] >= max(w for w, allowed in zip(worth, before[row], strict=True) if allowed)
            )
        for row in np.flatnonzero(~fresh):
            plain.learn(
                row, states[row], actions[row], rewards[row], after[row], masks[row], terminated[row], ended[row],
                greedy[row], time,
            )  # fmt: skip
    assert truncations > 50
    assert agent.tables == pytest.approx(plain.tables(), abs=1e-9)
    assert not agent.tables[:, 0].any()  # the end has no value


def test_a_short_training_clearly_beats_random():
    agent = learn(QLearning(SCENARIO, seed=1), 1_000_000)
    trained, untrained = (
        evaluate(one, TASK, conversations=500, references=False, deterministic=one is agent).success_rate
        for one in (agent, QLearning(SCENARIO))
    )
    assert untrained.high < 0.15
    assert trained.low > 0.65


@pytest.mark.parametrize("config", [{}, {"double": True, "trace_decay": 0.7}], ids=["plain", "double Q(λ)"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path, config):
    config = QLearning.Config(num_envs=64, **config)
    first, again, other = (
        saved(learn(QLearning(SCENARIO, config, seed=seed), 20_000), tmp_path / name)
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert set(first) == {"agent.json", "tables.npz", "training.npz"}
    assert first == again
    assert all(first[name] != other[name] for name in first)


class Stop(Exception):
    pass


@pytest.mark.parametrize("config", [{}, {"double": True, "trace_decay": 0.7}], ids=["plain", "double Q(λ)"])
def test_a_loaded_agent_learns_on_as_if_it_had_never_stopped(tmp_path, config):
    config = QLearning.Config(num_envs=64, **config)
    undisturbed_metrics, metrics = [], []
    undisturbed = QLearning(SCENARIO, config, seed=7)
    learn(undisturbed, 20_000, lambda turns, m: undisturbed_metrics.append((turns, m)))
    agent = QLearning(SCENARIO, config, seed=7)

    def stop(turns, m):
        metrics.append((turns, m))
        if turns >= 9_000:
            (tmp_path / "half").mkdir()
            agent.save(tmp_path / "half")
            raise Stop

    with pytest.raises(Stop):
        learn(agent, 20_000, stop)
    loaded = QLearning.load(tmp_path / "half")
    assert loaded.config == config
    assert saved(loaded, tmp_path / "copy") == content(tmp_path / "half")
    learn(loaded, 20_000, lambda turns, m: metrics.append((turns, m)))
    assert saved(loaded, tmp_path / "resumed") == saved(undisturbed, tmp_path / "undisturbed")
    assert metrics == undisturbed_metrics


def test_learning_does_no_more_than_what_is_left(tmp_path):
    agent = learn(QLearning(SCENARIO, QLearning.Config(num_envs=64)), 10_000)
    before = saved(agent, tmp_path / "before")
    assert saved(learn(agent, 10_000), tmp_path / "after") == before


def test_the_metrics_are_mean_return_and_success_rate_of_the_conversations_that_ended():
    recorder, seen = Recorder(max_turns=6), []
    agent = QLearning(SCENARIO, QLearning.Config(num_envs=16), seed=5)
    agent.learn(recorder, 16 * 100, lambda turns, metrics: seen.append(metrics))
    rewards = sum(step[3].sum() for step in recorder.steps)
    ended = sum(step[7].sum() for step in recorder.steps)
    assert seen[-1]["mean_return"] == pytest.approx(rewards / ended)
    assert 0.0 <= seen[-1]["success_rate"] < 0.5
    agent.turns -= 16 - int(recorder.steps[-1][8].sum())  # ε is that of the last step's beginning
    assert seen[-1]["epsilon"] == agent.epsilon(1600) < seen[0]["epsilon"]


def test_what_was_long_ago_counts_less_in_the_metrics():
    recent = Recent(np.zeros(3))
    for reward, outcome, at_least, at_most in (
        (0.0, "hung_up", 0.0, 0.0), (1.0, "resolved", 0.6, 0.8), (1.0, "resolved", 0.8, 0.95),
    ):  # fmt: skip
        for _ in range(20):
            recent.add(np.full(1000, reward), [outcome] * 1000, "resolved")
        metrics = recent.metrics(0.1)
        assert at_least <= metrics["success_rate"] == metrics["mean_return"] <= at_most


def test_acting_as_in_training_explores_and_acting_deterministically_does_not():
    agent = QLearning(SCENARIO, QLearning.Config(epsilon_end=0.5))
    agent.tables[0, :, 3] = 1.0
    agent.turns = 1
    states = np.arange(1, 2001)
    assert (agent.act(states) == 3).all()
    share = np.mean(agent.act(states, deterministic=False) == 3)
    assert share == pytest.approx(0.5 + 0.5 / 15, abs=0.04)
    mask = np.ones((2000, 15), bool)
    mask[:, 3] = False
    assert (agent.act(states, action_masks=mask) != 3).all()


def test_a_state_that_is_not_in_the_table_is_refused():
    with pytest.raises(InvalidValue, match="act in the scenario it was trained in"):
        QLearning(SCENARIO).act([1, SCENARIO.n_beliefs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    learn(QLearning(SCENARIO, QLearning.Config(num_envs=8), seed=3), 800).save(folder)
    return folder


@pytest.mark.parametrize("name", ["agent.json", "tables.npz", "training.npz"])
def test_a_damaged_file_is_reported_or_does_no_harm(folder, name):
    path = folder / name
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    kinds = []
    try:
        expected = QLearning.load(folder)
        damaged = [b"", whole[: len(whole) // 2], whole[:-1] if name != "agent.json" else whole[:-3]]
        for place in generator.integers(0, len(whole), 150):
            damaged.append(whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :])
        for number, content in enumerate(damaged):
            path.write_bytes(content)
            try:
                loaded = QLearning.load(folder)
            except Corrupted as error:
                kinds.append("reported" if "train it again" in str(error) else "without the remedy")
            else:
                assert number > 2, "a truncated file was read"
                if name == "tables.npz":  # what isn't reported is a byte of the archive that holds no data
                    assert np.array_equal(loaded.tables, expected.tables)
                kinds.append("harmless")
    finally:
        path.write_bytes(whole)
    assert kinds.count("reported") > 60
    assert "without the remedy" not in kinds


def test_a_missing_file_is_reported(folder, tmp_path):
    with pytest.raises(Corrupted, match="train it again"):
        QLearning.load(tmp_path)


def test_the_configuration_is_saved_and_read_back(tmp_path):
    config = QLearning.Config(learning_rate=0.25, double=True, trace_decay=0.5, num_envs=3)
    saved(QLearning(SCENARIO, config, seed=11), tmp_path / "agent")
    loaded = QLearning.load(tmp_path / "agent")
    assert asdict(loaded.config) == asdict(config)
    assert (loaded.seed, loaded.turns) == (11, 0)
