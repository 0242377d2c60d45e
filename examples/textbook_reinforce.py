"""Textbook REINFORCE with a baseline, in Gymnasium's loop: ``python examples/textbook_reinforce.py``.

Sutton & Barto, "Reinforcement Learning: An Introduction" (2018), section 13.4: after each episode, the policy's
log-probabilities move by the returns, less the value that a second network expects.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.distributions import Categorical

import chatgym  # noqa: F401  registers ChatEnv-v0


class Reinforce:
    """A policy and a baseline, each a network with one hidden layer."""

    def __init__(
        self, env: gym.Env[Any, Any], seed: int = 0, *, learning_rate: float = 3e-4, discount: float = 0.99
    ) -> None:
        """Make untrained networks for an environment with vectors as observations and numbered actions."""
        torch.manual_seed(seed)
        size, actions = env.observation_space.shape[0], int(env.action_space.n)  # type: ignore[index, attr-defined]
        self.env, self.discount = env, discount
        self.policy = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, actions))
        self.baseline = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, 1))
        self.optimizer = torch.optim.Adam([*self.policy.parameters(), *self.baseline.parameters()], learning_rate)
        env.reset(seed=seed)

    def act(self, observation: npt.NDArray[np.float32]) -> int:
        """Sample an action."""
        with torch.no_grad():
            return int(Categorical(logits=self.policy(torch.as_tensor(observation))).sample())

    def best(self, observations: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return the likeliest actions, int64[B], for float32[B, E]."""
        with torch.no_grad():
            found: npt.NDArray[np.int64] = self.policy(torch.as_tensor(observations)).argmax(1).numpy()
        return found

    def learn(self, turns: int, ended: Callable[[int, str], None]) -> None:
        """Learn for a number of turns; `ended` is called with the turns so far and the outcome of each episode."""
        taken = 0
        while taken < turns:
            observation, over, episode = self.env.reset()[0], False, []
            while not over:
                action = self.act(observation)
                after, reward, terminated, truncated, info = self.env.step(action)
                episode.append((observation, action, float(reward)))
                observation, over = after, terminated or truncated
            self.update(*zip(*episode, strict=True))
            taken += len(episode)
            ended(taken, info["outcome"])

    def update(self, observations: Any, actions: Any, rewards: Any) -> None:
        """Take one step of gradient ascent on an episode."""
        total, returns = 0.0, []
        for reward in reversed(rewards):
            total = reward + self.discount * total
            returns.append(total)
        seen, target = torch.as_tensor(np.stack(observations)), torch.tensor(returns[::-1], dtype=torch.float32)
        expected = self.baseline(seen)[:, 0]
        chosen = Categorical(logits=self.policy(seen)).log_prob(torch.tensor(actions))
        loss = -(chosen * (target - expected.detach())).sum() + ((target - expected) ** 2).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def main() -> None:
    """Train, and print the share of successes in each tenth of the turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="customer_service")
    parser.add_argument("--turns", type=int, default=200_000)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="education needs 1e-3")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    env = gym.make("ChatEnv-v0", scenario=options.scenario, llm="template", reward_model=None)
    success = env.unwrapped.scenario.success  # type: ignore[attr-defined]
    tenth, successes = options.turns / 10, []

    def ended(turns: int, outcome: str) -> None:
        successes.append(outcome == success)
        if turns >= tenth * (ended.printed + 1):  # type: ignore[attr-defined]
            ended.printed += 1  # type: ignore[attr-defined]
            print(f"{turns:9,} turns: {success} in {np.mean(successes):6.1%} of {len(successes):,} conversations")
            successes.clear()

    ended.printed = 0  # type: ignore[attr-defined]
    Reinforce(env, options.seed, learning_rate=options.learning_rate).learn(options.turns, ended)
    env.close()


if __name__ == "__main__":
    main()
