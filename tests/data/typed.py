"""A user's script and agent, as type checkers see them in their strict modes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from chatgym_agents.dqn import DQN
from chatgym_agents.llm import LLM
from chatgym_agents.ppo import PPO
from chatgym_agents.qlearning import QLearning
from chatgym_agents.scripted import Constant, Expert, Random

import chatgym
from chatgym.agent import Agent, Callback, Interface, MakeEnvs, setting
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.task import Task
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.evaluation.evaluation import evaluate
from chatgym.hookspecs import Register, hookimpl
from chatgym.integrations.sb3 import ChatVecEnv
from chatgym.scenarios import Scenario, find_scenario

BUILT_IN: list[type[Agent]] = [QLearning, DQN, PPO, LLM, Constant, Expert, Random]


class MyAgent:
    """Takes the act that paid best."""

    requires = Interface(action="act", observation="discrete")
    default_steps = 1000

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        num_envs: int = setting(8, "conversations at once", low=1)

    def __init__(self, scenario: Scenario, config: Config | None = None, *, seed: int = 0) -> None:
        self.config, self.seed = config or self.Config(), seed
        self.paid = np.zeros(len(scenario.agent_acts))

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Try acts in turn."""
        envs = make_envs(self.config.num_envs)
        envs.reset(seed=self.seed)
        saved = envs.snapshot()
        for turn in range(0, total_steps, envs.num_envs):
            acts = np.arange(turn, turn + envs.num_envs) % len(self.paid)
            np.add.at(self.paid, acts, envs.step(acts)[1])
            callback(turn + envs.num_envs, {"best": float(self.paid.max())})
        envs.restore(saved)

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the best act, int64[B]."""
        return np.full(len(observations), self.paid.argmax())

    def save(self, folder: Path) -> None:
        """Write JSON."""
        (folder / "paid.json").write_text(json.dumps(self.paid.tolist()), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> MyAgent:
        """Read JSON."""
        agent = cls.__new__(cls)
        agent.paid = np.array(json.loads((folder / "paid.json").read_text(encoding="utf-8")))
        return agent


@hookimpl
def register_agents(register: Register) -> None:
    """Register the agent."""
    register("mine", MyAgent)


def score(task: Task) -> float:
    """Train and evaluate it."""
    agent: Agent = MyAgent(find_scenario(task.scenario), MyAgent.Config(num_envs=4))
    agent.learn(task.maker(agent.requires), 100, lambda turns, metrics: None)
    return evaluate(agent, task, conversations=10).success_rate.value


def play() -> list[str]:
    """Play one conversation, and many."""
    env = gym.make("ChatEnv-v0", llm="template")
    env.reset(seed=7)
    chat = env.unwrapped
    assert isinstance(chat, ChatEnv)
    copy = chat.fork()
    copy.restore(chat.snapshot())
    envs = ChatVectorEnv(4, llm="template", texts=True)
    _, infos = envs.reset(seed=7)
    _, rewards, terminated, truncated, infos = envs.step(np.zeros(4, np.int64), active=np.ones(4, bool))
    assert rewards.shape == (terminated | truncated).shape
    ChatVecEnv.make(4, llm="template").close()
    return [*infos["text"], chat.transcript()[0]["text"], chatgym.__version__]


if __name__ == "__main__":
    print(score(Task(scenario="education")), play())
