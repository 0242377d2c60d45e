"""Stable-Baselines3's DQN with action masks.

Masks apply wherever an act is chosen: in exploring, in acting greedily, and in the maximum over the next acts of the
Bellman target. Further differences: each conversation draws its own ε (SB3 draws one for the whole batch), the target
may be that of double Q-learning, and every draw is a function of seed and position, independent of global random state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional

from chatgym.agent import Callback

from .qlearning import Recent, choose

Bools = npt.NDArray[np.bool_]


def bellman_targets(
    rewards: torch.Tensor, terminated: torch.Tensor, target_values: torch.Tensor, choosing_values: torch.Tensor,
    next_masks: torch.Tensor, discounts: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Return r + γ Q'(s', argmax over allowed a of Q(s', a)); the second term not after a terminated conversation.

    If ``choosing_values`` are the target network's this is DQN (Mnih et al. 2015), if they are the online network's it
    is double DQN (van Hasselt, Guez & Silver 2016, equation 4).

    Args:
        rewards: float32[N], r.
        terminated: bool[N]; a truncated conversation isn't terminated.
        target_values: float32[N, A], the target network's values of the next state.
        choosing_values: float32[N, A], the values by which the next act is chosen.
        next_masks: bool[N, A], the acts that are allowed there; ignored where terminated.
        discounts: float32[N], γ, or its power where r is a sum over several turns.

    Returns:
        float32[N].
    """
    best = choosing_values.masked_fill(~next_masks, -torch.inf).argmax(1, keepdim=True)
    following = target_values.gather(1, best).squeeze(1)
    return rewards + discounts * following.masked_fill(terminated, 0.0)


def choose_acts(
    values: npt.NDArray[np.float32], masks: Bools, epsilon: float, seed: int, time: int
) -> tuple[npt.NDArray[np.int64], Bools]:
    """Choose ε-greedily among the allowed acts, as `chatgym_agents.qlearning.choose` does in its table.

    Args:
        values: float32[B, A].
        masks: bool[B, A].
        epsilon: Probability of a random allowed act.
        seed: Root of the draws.
        time: Position of the draws, another one at each call.

    Returns:
        The acts int64[B], and bool[B], whether no allowed act has a higher value.
    """
    size = len(values)
    acts, greedy = np.empty(size, np.int64), np.empty(size, bool)
    choose(values[None].astype(np.float64), np.arange(size), masks, epsilon, seed, time, acts, greedy)
    return acts, greedy


class MaskedReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with masks, and with n-step returns.

    Attributes:
        next_masks: bool[N, B, A], the acts allowed next; the rows ``[:pos]`` are filled, or all if ``full``.
        greedy: bool[N, B], whether no allowed act had a higher value when the act was taken.
    """

    ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "next_masks", "greedy")

    def __init__(self, buffer_size: int, observation_space: Any, action_space: Any, *args: Any, **more: Any) -> None:
        super().__init__(buffer_size, observation_space, action_space, *args, **more)
        self.next_masks = np.zeros((self.buffer_size, self.n_envs, int(action_space.n)), bool)
        self.greedy = np.zeros((self.buffer_size, self.n_envs), bool)

    def draw(
        self, size: int, generator: np.random.Generator, n_steps: int = 1, discount: float = 1.0
    ) -> tuple[torch.Tensor, ...]:
        """Draw stored turns, each equally likely, with their returns over up to n turns.

        A return covers fewer turns where the conversation ended, where an exploring act follows (its value would not be
        the best act's, Watkins 1989) and at the newest turn.

        Returns:
            Observations float32[N, E], actions int64[N], discounted sums of rewards float32[N], the discounts of what
            follows float32[N], the observations then float32[N, E], whether the conversation terminated bool[N], and
            the masks then bool[N, A].
        """
        filled = self.buffer_size if self.full else self.pos
        newest = (self.pos - 1) % self.buffer_size
        rows, envs = generator.integers(0, filled, size), generator.integers(0, self.n_envs, size)
        last, rewards, factor = rows.copy(), self.rewards[rows, envs].copy(), np.full(size, discount, np.float32)
        going = np.ones(size, bool)
        for _ in range(n_steps - 1):
            following = (last + 1) % self.buffer_size
            going &= (last != newest) & (self.dones[last, envs] == 0) & self.greedy[following, envs]
            last[going] = following[going]
            rewards[going] += factor[going] * self.rewards[last, envs][going]
            factor[going] *= discount
        terminated = (self.dones[last, envs] > 0) & (self.timeouts[last, envs] == 0)
        arrays = (
            self.observations[rows, envs], self.actions[rows, envs, 0].astype(np.int64), rewards, factor,
            self.next_observations[last, envs], terminated, self.next_masks[last, envs],
        )  # fmt: skip
        return tuple(torch.as_tensor(array, device=self.device) for array in arrays)

    def filled(self) -> dict[str, npt.NDArray[Any]]:
        """Return the stored arrays by name, [rows, B, ...] each."""
        rows = self.buffer_size if self.full else self.pos
        return {name: getattr(self, name)[:rows] for name in self.ARRAYS}

    def fill(self, arrays: dict[str, npt.NDArray[Any]], pos: int, full: bool) -> None:
        """Set what `filled` returned."""
        for name in self.ARRAYS:
            getattr(self, name)[: len(arrays[name])] = arrays[name]
        self.pos, self.full = pos, full


class MaskedDQN(DQN):
    """DQN over a `chatgym.integrations.sb3.ChatVecEnv`, see the module."""

    replay_buffer: MaskedReplayBuffer
    env: Any

    def __init__(self, env: VecEnv, *, draws: int, double: bool, n_steps: int, **arguments: Any) -> None:
        """Make the algorithm.

        Args:
            env: Has `action_masks`, and ``terminal_action_mask`` in the infos of ended conversations.
            draws: Seed of all draws.
            double: Whether the online network chooses the act whose value the target network gives.
            n_steps: Turns whose rewards are in a target.
            arguments: Those of `stable_baselines3.DQN`.
        """
        self.draws, self.double = draws, double
        super().__init__("MlpPolicy", env, replay_buffer_class=MaskedReplayBuffer, **arguments)
        self.n_steps = n_steps  # SB3's own would need a buffer that knows no masks

    def _sample_action(self, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> tuple[Any, Any]:
        """Choose acts int64[B], ε-greedily; returned twice, since SB3 asks for the action and its scaled form."""
        assert isinstance(self._last_obs, np.ndarray)
        with torch.no_grad():
            values = self.q_net(torch.as_tensor(self._last_obs, device=self.device)).cpu().numpy()
        epsilon = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        acts, greedy = choose_acts(values, self.env.action_masks(), epsilon, self.draws, self._n_calls)
        self.replay_buffer.greedy[self.replay_buffer.pos] = greedy
        return acts, acts

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: list[dict[str, Any]]
    ) -> None:
        """Store a step: acts int64[B], observations float32[B, E], rewards float32[B], dones bool[B]."""
        next_obs, next_masks = new_obs.copy(), self.env.action_masks().copy()
        for row in np.flatnonzero(dones):
            next_obs[row] = infos[row]["terminal_observation"]
            next_masks[row] = infos[row]["terminal_action_mask"]
        replay_buffer.next_masks[replay_buffer.pos] = next_masks
        replay_buffer.add(self._last_obs, next_obs, buffer_action, reward, dones, infos)
        self._last_obs = new_obs

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps on the Huber loss between the values and their Bellman targets."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(gradient_steps):
            generator = np.random.Generator(np.random.Philox(key=[self.draws, self._n_updates]))
            obs, actions, rewards, discounts, next_obs, terminated, next_masks = self.replay_buffer.draw(
                batch_size, generator, self.n_steps, self.gamma
            )
            with torch.no_grad():
                target_values = self.q_net_target(next_obs)
                choosing = self.q_net(next_obs) if self.double else target_values
                targets = bellman_targets(rewards, terminated, target_values, choosing, next_masks, discounts)
            values = self.q_net(obs).gather(1, actions[:, None]).squeeze(1)
            loss = functional.smooth_l1_loss(values, targets)
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            self._n_updates += 1
            self.logger.record("train/loss", loss.item())


class Iterations(BaseCallback):
    """Calls a ChatGym callback between iterations, when the turns taken have been learned from."""

    def __init__(self, recent: Recent, success: str, callback: Callback) -> None:
        super().__init__()
        self.recent, self.success, self.callback = recent, success, callback
        self.reported = -1
        self.epsilon = 0.0

    def _on_training_start(self) -> None:
        self.reported = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self._report()  # of the iteration before

    def _on_training_end(self) -> None:
        self._report()

    def _on_step(self) -> bool:
        dones, infos = self.locals["dones"], self.locals["infos"]
        outcomes = [infos[row]["outcome"] for row in np.flatnonzero(dones)]
        self.recent.add(self.locals["rewards"], outcomes, self.success)
        self.epsilon = self.model.exploration_rate  # type: ignore[attr-defined]
        return True

    def _report(self) -> None:
        if self.model.num_timesteps > self.reported:
            self.reported = self.model.num_timesteps
            self.callback(self.reported, self.recent.metrics(self.epsilon))
