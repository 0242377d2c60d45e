"""Q-learning: the textbook class for a plain loop, and the trainer over thousands of conversations.

Watkins (1989), "Learning from delayed rewards". The trainer applies a batch row after row, so it computes what the
plain loop would compute from the same transitions in that order, also where two rows share a (state, action).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from chatgym.agent import Callback, Interface, MakeEnvs, Range, make_config, setting
from chatgym.dynamics import nb
from chatgym.dynamics.rng import bits, draw
from chatgym.errors import Corrupted, InvalidValue
from chatgym.scenarios import Scenario
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

EXPLORE, WHICH_ACT, WHICH_TABLE = range(3)  # purposes of the draws, see chatgym.dynamics.rng


class QLearningAgent:
    """Tabular Q-learning as in a textbook, for any environment with numbered states and actions.

    Attributes:
        q_table: float64[state_space, action_space]; states that are never left, such as the end, stay 0.
    """

    def __init__(
        self, state_space: int, action_space: int, learning_rate: float, discount_factor: float, seed: int = 0
    ) -> None:
        """Begin with a table of zeros.

        Raises:
            InvalidValue: When a number is out of its range.
        """
        if state_space < 1 or action_space < 1:
            raise InvalidValue(f"a table needs states and actions, not {state_space} x {action_space}")
        for name, value in (("learning_rate", learning_rate), ("discount_factor", discount_factor)):
            if not 0.0 <= value <= 1.0:
                raise InvalidValue(f"{name} is {value}; allowed is 0 to 1")
        self.learning_rate = learning_rate
        self.discount_factor = discount_factor
        self.q_table = np.zeros((state_space, action_space))
        self._generator = np.random.default_rng(seed)

    def choose_action(self, state: int, epsilon: float = 0.0) -> int:
        """Return a random action with probability `epsilon`, else the best known one (the lowest of several)."""
        if self._generator.random() < epsilon:
            return int(self._generator.integers(self.q_table.shape[1]))
        return int(self.q_table[state].argmax())

    def learn(self, state: int, action: int, reward: float, next_state: int) -> None:
        """Move the value of (state, action) towards the target of one step."""
        target = reward + self.discount_factor * self.q_table[next_state].max()
        self.q_table[state, action] += self.learning_rate * (target - self.q_table[state, action])


@nb.njit(cache=True)
def worth(tables: Floats, state: int, action: int) -> float:
    """Return the value of an action, summed over `tables`, float64[T, S, A] with T 1 or 2."""
    return tables[0, state, action] + (tables[1, state, action] if tables.shape[0] == 2 else 0.0)


@nb.njit(cache=True)
def best_action(tables: Floats, state: int, mask: Bools) -> int:
    """Return the best action in `tables`, float64[T, S, A], that `mask`, bool[A], allows; the lowest of several."""
    best, highest = -1, -np.inf
    for action in range(tables.shape[2]):
        if mask[action]:
            value = worth(tables, state, action)
            if value > highest:
                best, highest = action, value
    return best


@nb.njit(cache=True)
def choose(
    tables: Floats, states: Ints, masks: Bools, epsilon: float, seed: int, time: int, actions: Ints, greedy: Bools
) -> None:
    """Choose ε-greedily for each row; row i's draws are a function of (seed, i, time).

    Args:
        tables: float64[T, S, A].
        states: int64[B].
        masks: bool[B, A].
        epsilon: Probability of a random allowed action.
        seed: Root of the draws.
        time: Position of the draws, another one at each call.
        actions: int64[B], filled with the choices.
        greedy: bool[B], filled with whether no allowed action has a higher value than the choice.
    """
    for i in range(states.shape[0]):
        best = best_action(tables, states[i], masks[i])
        actions[i] = best
        if epsilon > 0.0:
            key = bits(np.uint64(seed), i, EXPLORE)
            if draw(key, time, EXPLORE) < epsilon:
                chosen = int(draw(key, time, WHICH_ACT) * masks[i].sum())
                for action in range(masks.shape[1]):
                    chosen -= masks[i, action]
                    if chosen < 0:
                        actions[i] = action
                        break
        greedy[i] = worth(tables, states[i], actions[i]) == worth(tables, states[i], best)


@nb.njit(cache=True)
def learn_batch(
    tables: Floats, visits: Ints, states: Ints, actions: Ints, rewards: Floats, next_states: Ints, next_masks: Bools,
    terminated: Bools, ended: Bools, fresh: Bools, greedy: Bools, trace: Ints, traced: Ints, rates: Floats,
    discount: float, decay: float, seed: int, time: int,
) -> None:  # fmt: skip
    """Learn from one step of each row, row after row: Watkins's Q(λ), with λ = 0 plain Q-learning.

    A row's trace is the list of (state, action) of its conversation since the last exploring act, newest first;
    the k-th has eligibility (γλ)^k. With two tables it is double Q-learning (van Hasselt 2010): a draw says
    which one learns, and the other one values the action that this one finds best.

    Args:
        tables: float64[T, S, A], changed. T is 1 or 2.
        visits: int64[S, A], changed: how often each was taken.
        states: int64[B].
        actions: int64[B].
        rewards: float64[B].
        next_states: int64[B].
        next_masks: bool[B, A], the actions allowed in the next states.
        terminated: bool[B], where the next state has no value; a truncated conversation's has one.
        ended: bool[B], where the conversation terminated or was truncated.
        fresh: bool[B], where the step only began a conversation: it is skipped.
        greedy: bool[B], see `choose`.
        trace: int64[B, L, 2], changed. L is 1 when λ = 0.
        traced: int64[B], changed: length of each trace.
        rates: float64[N], the learning rate by number of visits; the last one also for more than N.
        discount: γ.
        decay: λ.
        seed: Root of the draws.
        time: Position of the draws, another one at each call.
    """
    double = tables.shape[0] == 2
    for i in range(states.shape[0]):
        if fresh[i]:
            continue
        state, action = states[i], actions[i]
        which = 0
        if double:
            which = int(draw(bits(np.uint64(seed), i, EXPLORE), time, WHICH_TABLE) < 0.5)
        target = rewards[i]
        if not terminated[i]:
            best = best_action(tables[which : which + 1], next_states[i], next_masks[i])
            target += discount * tables[1 - which if double else 0, next_states[i], best]
        error = target - tables[which, state, action]
        visits[state, action] += 1
        length = min(traced[i], trace.shape[1] - 1) if greedy[i] else 0
        for k in range(length, 0, -1):
            trace[i, k] = trace[i, k - 1]
        trace[i, 0, 0], trace[i, 0, 1] = state, action
        eligibility = 1.0
        for k in range(length + 1):
            s, a = trace[i, k, 0], trace[i, k, 1]
            rate = rates[min(visits[s, a], rates.shape[0]) - 1]
            tables[which, s, a] += rate * eligibility * error
            eligibility *= discount * decay
        traced[i] = 0 if ended[i] else length + 1


class QLearning:
    """Q-learning over a batch of conversations: ε-greedy among the acts that the masks allow, one table for all."""

    requires = Interface(action="act", observation="discrete")
    default_steps: ClassVar[int] = 20_000_000

    @dataclass(frozen=True)
    class Config:
        """Hyperparameters."""

        learning_rate: float = setting(0.5, "learning rate of the first visit", low=0.0, high=1.0, tune=Range(0.1, 1.0))
        learning_rate_power: float = setting(
            0.7, "ω: the n-th visit's rate is the first one's times n^-ω (Even-Dar & Mansour 2003); 0: constant",
            low=0.0, high=1.0, tune=Range(0.4, 1.0),
        )  # fmt: skip
        learning_rate_end: float = setting(0.001, "lowest learning rate", low=0.0, high=1.0)
        discount_factor: float = setting(1.0, "γ, from one turn to the next", low=0.0, high=1.0, tune=Range(0.91, 1.0))
        epsilon_start: float = setting(1.0, "ε in the beginning: share of random acts", low=0.0, high=1.0)
        epsilon_end: float = setting(0.05, "ε in the end", low=0.0, high=1.0)
        epsilon_fraction: float = setting(
            0.5, "share of the training in which ε falls from start to end, linearly", low=0.0, high=1.0,
            tune=Range(0.2, 0.8),
        )  # fmt: skip
        double: bool = setting(False, "double Q-learning with two tables (van Hasselt 2010)", tune=(False, True))
        trace_decay: float = setting(
            0.0, "λ of Watkins's Q(λ); 0: one-step Q-learning", low=0.0, high=1.0, tune=Range(0.0, 0.9)
        )
        num_envs: int = setting(1024, "conversations in parallel", low=1, high=1_000_000)

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Begin with tables of zeros, see `chatgym.agent.Agent`."""
        self._begin(scenario.n_beliefs, len(scenario.agent_acts), scenario.success, config or self.Config(), seed)

    def _begin(self, n_states: int, n_actions: int, success: str, config: Config, seed: int) -> None:
        self.config, self.seed, self.success = config, seed, success
        self.tables = np.zeros((2 if config.double else 1, n_states, n_actions))  # (T, S, A)
        self.visits = np.zeros((n_states, n_actions), np.int64)  # (S, A)
        self.turns = 0
        self.iteration = 0
        self._acted = 0
        self._state: dict[str, npt.NDArray[Any]] = {}  # of the environments and the loop, by name
        self._envs: Any = None

    @property
    def q_table(self) -> Floats:
        """The values of acts, float64[S, A]: the mean over the tables."""
        return self.tables.mean(0)

    def epsilon(self, total_steps: int) -> float:
        """Return the share of random acts at this point of a training of `total_steps`."""
        config, falls_for = self.config, self.config.epsilon_fraction * total_steps
        done = min(self.turns / falls_for, 1.0) if falls_for > 0 else 1.0
        return config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train, see `chatgym.agent.Agent`; the metrics are those of `Recent` and ε."""
        config, size = self.config, self.config.num_envs
        envs = make_envs(size, autoreset_mode=AutoresetMode.NEXT_STEP)
        self._prepare(envs)
        state, rates, recent = self._state, self._rates(), Recent(self._state["recent"])
        actions, greedy = np.empty(size, np.int64), np.empty(size, bool)
        try:
            while self.turns < total_steps:
                epsilon = self.epsilon(total_steps)
                choose(
                    self.tables, state["states"], state["masks"], epsilon, self.seed, self.iteration, actions, greedy
                )
                states, rewards, terminated, truncated, infos = envs.step(actions)
                masks, fresh, ended = infos["action_mask"], state["fresh"], terminated | truncated
                learn_batch(
                    self.tables, self.visits, state["states"], actions, rewards, states, masks, terminated, ended,
                    fresh, greedy, state["trace"], state["traced"], rates, config.discount_factor, config.trace_decay,
                    self.seed, self.iteration,
                )  # fmt: skip
                state["states"], state["masks"], state["fresh"] = states, masks, ended
                self.turns += size - int(np.count_nonzero(fresh))
                self.iteration += 1
                recent.add(rewards, infos["outcome"][ended] if ended.any() else (), self.success)
                callback(self.turns, recent.metrics(epsilon))
        finally:
            self._state.update(prefixed("env", envs.snapshot()))
            self._envs = None
            envs.close()

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: Bools | None = None
    ) -> npt.NDArray[np.int64]:
        """Return acts int64[B] for states int64[B], with masks bool[B, A]; unless `deterministic`, ε-greedily.

        Raises:
            InvalidValue: When a state isn't in the table: it was trained in another scenario.
        """
        states = np.asarray(observations, np.int64)
        if states.size and not 0 <= states.min() <= states.max() < len(self.visits):
            raise InvalidValue(
                f"the table has states 0 to {len(self.visits) - 1}, not {states.max()}; act in the scenario it was "
                "trained in"
            )
        masks = np.ones((len(states), self.visits.shape[1]), bool) if action_masks is None else action_masks
        actions, greedy = np.empty(len(states), np.int64), np.empty(len(states), bool)
        epsilon = 0.0 if deterministic else (self.config.epsilon_end if self.turns else self.config.epsilon_start)
        self._acted += 1
        choose(self.tables, states, masks, epsilon, self.seed + 1, self._acted, actions, greedy)
        return actions

    def save(self, folder: Path) -> None:
        """Write ``agent.json``, ``tables.npz`` and ``training.npz``, from which training resumes."""
        folder = given(folder)
        about = {
            "agent": "qlearning", "version": 1, "success": self.success, "seed": self.seed, "turns": self.turns,
            "iteration": self.iteration, "config": asdict(self.config),
        }  # fmt: skip
        (folder / "agent.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        np.savez(folder / "tables.npz", tables=self.tables, visits=self.visits)
        state = self._state if self._envs is None else {**self._state, **prefixed("env", self._envs.snapshot())}
        np.savez(folder / "training.npz", **state)

    @classmethod
    def load(cls, folder: Path) -> QLearning:
        """Read back what `save` wrote."""
        folder = given(folder)
        try:
            about = read_json(folder / "agent.json")
            with np.load(folder / "tables.npz", allow_pickle=False) as file:
                tables, visits = file["tables"], file["visits"]
            agent = cls.__new__(cls)
            config = make_config(cls.Config, about["config"])
            agent._begin(tables.shape[1], tables.shape[2], about["success"], config, about["seed"])
            with np.load(folder / "training.npz", allow_pickle=False) as file:
                agent._state = {name: file[name] for name in file.files}
            agent.turns, agent.iteration = about["turns"], about["iteration"]
            if tables.shape != agent.tables.shape or visits.shape != agent.visits.shape:
                raise ValueError(f"tables of shape {tables.shape} don't fit the configuration")
        except Exception as error:  # a damaged archive makes numpy raise almost anything
            raise Corrupted(f"the Q-learning agent in {folder} can't be read ({error}); train it again") from error
        agent.tables, agent.visits = tables, visits
        return agent

    def _prepare(self, envs: Any) -> None:
        """Begin conversations, or resume the saved ones."""
        config, state = self.config, self._state
        if state:
            envs.restore(without_prefix("env", state))
        else:
            states, infos = envs.reset(seed=self.seed)
            depth = 1  # of a trace: as far as its eligibility is over 1 %
            if (fading := config.discount_factor * config.trace_decay) > 0.0:
                depth = 32 if fading == 1.0 else min(32, 1 + int(np.log(0.01) / np.log(fading)))
            size = config.num_envs
            state.update(states=states, masks=infos["action_mask"], fresh=np.zeros(size, bool), recent=np.zeros(3),
                         traced=np.zeros(size, np.int64), trace=np.zeros((size, depth, 2), np.int64))  # fmt: skip
        self._envs = envs

    def _rates(self) -> Floats:
        """Return the learning rate of the n-th visit, float64[1,000,000]."""
        config = self.config
        visits = np.arange(1, 1_000_001)
        return np.maximum(config.learning_rate * visits**-config.learning_rate_power, config.learning_rate_end)


class Recent:
    """Mean return and success rate over about the last 10,000 conversations.

    Attributes:
        totals: float64[3], changed: conversations, successes, and the sum of rewards.
    """

    def __init__(self, totals: Floats) -> None:
        """Continue from earlier totals, float64[3]."""
        self.totals = totals

    def add(self, rewards: Floats, outcomes: Sequence[str] | npt.NDArray[np.object_], success: str) -> None:
        """Add the rewards of a step, float64[B], and the outcomes of the conversations that ended with it."""
        self.totals[2] += rewards.sum()
        if len(outcomes):
            self.totals[:2] += len(outcomes), sum(outcome == success for outcome in outcomes)
        if self.totals[0] > 20_000:
            self.totals /= 2

    def metrics(self, epsilon: float) -> dict[str, float]:
        """Return the metrics by name, ε among them."""
        conversations, successes, rewards = self.totals.tolist()
        count = max(conversations, 1.0)
        return {"mean_return": rewards / count, "success_rate": successes / count, "epsilon": epsilon}


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays under names that begin with a prefix and a dot."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def without_prefix(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arrays that `prefixed` named with this prefix, by their own names."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
