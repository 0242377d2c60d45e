"""DQN: Q-learning whose table is a neural network over the embedding observation (Mnih et al. 2015).

The algorithm is Stable-Baselines3's, see `chatgym_agents.masked_dqn`. This file has its settings, and saves it without
pickle. Torch and SB3 are imported when an agent is made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from chatgym.agent import Callback, Interface, MakeEnvs, Range, make_config, setting
from chatgym.errors import Corrupted, InvalidValue
from chatgym.scenarios import Scenario
from chatgym.storage import atomic
from chatgym.storage.paths import given
from chatgym.storage.utf8 import read_json

from .qlearning import Recent, prefixed, without_prefix

if TYPE_CHECKING:
    import torch

    from .masked_dqn import MaskedDQN

Arrays = dict[str, npt.NDArray[Any]]
NEVER = 2**62
COUNTERS = ("turns", "calls", "updates", "position", "full")


class DQN:
    """DQN of Stable-Baselines3 over a batch of conversations, on the embedding observation.

    Masked acts are left out in exploring, in acting and in the Bellman target.
    """

    requires = Interface(action="act", observation="embedding")
    default_steps: ClassVar[int] = 1_000_000
    packages: ClassVar[tuple[str, ...]] = ("stable-baselines3",)

    @dataclass(frozen=True)
    class Config:
        """Hyperparameters."""

        learning_rate: float = setting(
            5e-4, "step size of Adam in the beginning", low=0.0, high=1.0, tune=Range(1e-4, 2e-3, log=True)
        )
        learning_rate_end: float = setting(5e-4, "step size of Adam in the end, reached linearly", low=0.0, high=1.0)
        discount_factor: float = setting(0.98, "γ, from one turn to the next", low=0.0, high=1.0, tune=Range(0.94, 1.0))
        double: bool = setting(True, "double DQN: the network chooses the next act, the target network gives its value")
        n_steps: int = setting(
            1, "turns in an n-step return, fewer where an exploring act comes between", low=1, tune=(1, 3, 5)
        )
        buffer_size: int = setting(200_000, "turns in the replay buffer", low=1)
        learning_starts: int = setting(5_000, "random turns before learning starts", low=0)
        batch_size: int = setting(256, "turns in a gradient step", low=1)
        train_freq: int = setting(1, "steps of all conversations between trainings", low=1)
        gradient_steps: int = setting(4, "gradient steps in a training", low=1, tune=(1, 2, 4, 8))
        target_update_interval: int = setting(
            4_000, "turns between copies to the target network", low=1, tune=Range(1000, 16_000, log=True)
        )
        max_grad_norm: float = setting(10.0, "limit of the gradient's norm", low=0.0)
        epsilon_start: float = setting(1.0, "ε in the beginning: share of random acts", low=0.0, high=1.0)
        epsilon_end: float = setting(0.05, "ε in the end", low=0.0, high=1.0)
        epsilon_fraction: float = setting(
            0.4, "share of the training in which ε falls from start to end, linearly", low=0.001, high=1.0,
            tune=Range(0.1, 0.6),
        )  # fmt: skip
        hidden_size: int = setting(256, "width of the network", low=1, tune=(64, 128, 256))
        hidden_layers: int = setting(2, "depth of the network", low=0)
        num_envs: int = setting(64, "conversations in parallel", low=1, high=1_000_000)
        device: str = setting("cpu", "device of the network: cpu, cuda; the same seed gives the same bytes only on cpu")

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """Begin with a network of random weights, see `chatgym.agent.Agent`."""
        sizes = scenario.embedding_size, len(scenario.agent_acts)
        self._begin(*sizes, scenario.success, config or self.Config(), seed)

    def _begin(self, n_inputs: int, n_actions: int, success: str, config: Config, seed: int) -> None:
        import torch
        from stable_baselines3.dqn.policies import DQNPolicy

        self.config, self.seed, self.success = config, seed, success
        self.sizes = n_inputs, n_actions
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._acted = 0
        self._state: Arrays = {}  # of the environments, the replay buffer and the metrics, by name
        self._model: MaskedDQN | None = None  # while it learns
        self._recent: Recent | None = None
        inputs, actions = spaces.Box(-1.0, 1.0, (n_inputs,), np.float32), spaces.Discrete(n_actions)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.policy = DQNPolicy(inputs, actions, self._rate, self._layers(), optimizer_kwargs={"fused": True})
        try:
            self.policy.to(config.device)
        except (RuntimeError, AssertionError) as error:
            raise InvalidValue(f"the device {config.device!r} can't be used ({error}); use cpu") from error

    def _layers(self) -> list[int]:
        return [self.config.hidden_size] * self.config.hidden_layers

    def _rate(self, remaining: float) -> float:
        """Return the learning rate when this share of the training remains, as SB3 asks for it."""
        return self.config.learning_rate_end + remaining * (self.config.learning_rate - self.config.learning_rate_end)

    @property
    def turns(self) -> int:
        """Turns that it was trained for."""
        return self.counters["turns"]

    def learn(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train, see `chatgym.agent.Agent`; the metrics are those of `Recent` and ε."""
        if self.turns >= total_steps:
            return
        from chatgym.integrations.sb3 import ChatVecEnv

        from .masked_dqn import Iterations

        envs = make_envs(self.config.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        env = ChatVecEnv(envs)
        model = self._make_model(env, total_steps)
        self._recent = Recent(self._state.get("recent", np.zeros(3)).copy())
        iterations = Iterations(self._recent, self.success, callback)
        self._model = model
        try:
            model.learn(total_steps - self.turns, iterations, log_interval=NEVER, reset_num_timesteps=False)
        finally:
            self._state, self.counters = self._gather()
            self._model = None
            env.close()

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return acts int64[B] for embeddings float32[B, N], with masks bool[B, A]; unless `deterministic`, ε-greedily.

        Raises:
            InvalidValue: When the embeddings have another size: it was trained in another scenario.
        """
        import torch

        from .masked_dqn import choose_acts

        inputs = np.asarray(observations, np.float32)
        if inputs.shape[1:] != self.sizes[:1]:
            raise InvalidValue(
                f"the network takes embeddings of size {self.sizes[0]}, not of shape {inputs.shape[1:]}; act in the "
                "scenario it was trained in"
            )
        with torch.no_grad():
            values = self.policy.q_net(torch.as_tensor(inputs, device=self.policy.device)).cpu().numpy()
        masks = np.ones(values.shape, bool) if action_masks is None else action_masks
        config = self.config
        epsilon = 0.0 if deterministic else (config.epsilon_end if self._trained() else config.epsilon_start)
        self._acted += 1
        return choose_acts(values, masks, epsilon, self.seed + 1, self._acted)[0]

    def save(self, folder: Path) -> None:
        """Write ``agent.json``, ``policy.safetensors`` (the network) and ``training.*``, from which training resumes.

        ``training.safetensors`` has the target network and Adam's moments, ``training.npz`` the replay buffer and the
        state of the conversations.
        """
        folder = given(folder)
        from safetensors.torch import save_file

        state, counters = (self._state, self.counters) if self._model is None else self._gather()
        about = {
            "agent": "dqn", "version": 1, "success": self.success, "seed": self.seed, "inputs": self.sizes[0],
            "actions": self.sizes[1], **counters, "config": asdict(self.config),
        }  # fmt: skip
        (folder / "agent.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        save_file(self.policy.q_net.state_dict(), folder / "policy.safetensors")
        save_file(self._training_tensors(), folder / "training.safetensors")
        atomic.share(folder)
        np.savez(folder / "training.npz", **state)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> DQN:
        """Read back what `save` wrote."""
        folder = given(folder)
        from safetensors.torch import load_file

        try:
            about = read_json(folder / "agent.json")
            agent = cls.__new__(cls)
            config = make_config(cls.Config, about["config"])
            agent._begin(about["inputs"], about["actions"], about["success"], config, about["seed"])
            agent.counters = {name: int(about[name]) for name in COUNTERS}
            agent.policy.q_net.load_state_dict(load_file(folder / "policy.safetensors"))
            agent._restore_training(load_file(folder / "training.safetensors"))
            with np.load(folder / "training.npz", allow_pickle=False) as file:
                agent._state = {name: file[name] for name in file.files}
        except Exception as error:  # each library has its own for a damaged file
            raise Corrupted(f"the DQN agent in {folder} can't be read ({error}); train it again") from error
        return agent

    def _trained(self) -> bool:
        return (self.turns if self._model is None else self._model.num_timesteps) > 0

    def _make_model(self, env: Any, total_steps: int) -> MaskedDQN:
        """Make SB3's algorithm around our network, with the saved counters and replay buffer."""
        import torch
        from stable_baselines3.common.logger import Logger

        from .masked_dqn import MaskedDQN

        config, state, counters = self.config, self._state, self.counters
        with torch.random.fork_rng(devices=[]):  # it makes a network, which ours replaces
            model = MaskedDQN(
                env, draws=self.seed, double=config.double, n_steps=config.n_steps, learning_rate=self._rate,
                buffer_size=config.buffer_size, learning_starts=config.learning_starts, batch_size=config.batch_size,
                gamma=config.discount_factor, train_freq=config.train_freq, gradient_steps=config.gradient_steps,
                target_update_interval=max(config.target_update_interval, config.num_envs),
                exploration_initial_eps=config.epsilon_start, exploration_final_eps=config.epsilon_end,
                exploration_fraction=config.epsilon_fraction, max_grad_norm=config.max_grad_norm,
                policy_kwargs={"net_arch": self._layers()}, device=config.device,
            )  # fmt: skip
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.policy = self.policy
        model._create_aliases()
        model.num_timesteps, model._n_calls, model._n_updates = (counters[name] for name in COUNTERS[:3])
        model.exploration_rate = model.exploration_schedule(1.0 - float(self.turns) / float(total_steps))
        if state:
            env.restore(without_prefix("env", state))
            model.replay_buffer.fill(without_prefix("replay", state), counters["position"], bool(counters["full"]))
            model._last_obs = state["observations"]
        else:
            env.seed(self.seed)
        return model

    def _gather(self) -> tuple[Arrays, dict[str, int]]:
        """Return what training resumes from, except the networks: arrays and counters by name."""
        model, recent = self._model, self._recent
        assert model is not None
        assert recent is not None
        if model._last_obs is None:  # it didn't come to its first turn
            return self._state, self.counters
        buffer = model.replay_buffer
        arrays: Arrays = {"observations": np.asarray(model._last_obs), "recent": recent.totals}
        arrays.update(prefixed("env", model.env.snapshot()), **prefixed("replay", buffer.filled()))
        counts = (model.num_timesteps, model._n_calls, model._n_updates, buffer.pos, int(buffer.full))
        return arrays, dict(zip(COUNTERS, counts, strict=True))

    def _training_tensors(self) -> dict[str, torch.Tensor]:
        """Return the target network and Adam's moments by name."""
        tensors = prefixed("target", self.policy.q_net_target.state_dict())
        for number, moments in self.policy.optimizer.state_dict()["state"].items():
            tensors.update(prefixed(f"adam.{number}", moments))
        return tensors

    def _restore_training(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set what `_training_tensors` returned."""
        self.policy.q_net_target.load_state_dict(without_prefix("target", tensors))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in without_prefix("adam", tensors).items():
            number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensor
        groups = self.policy.optimizer.state_dict()["param_groups"]
        self.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
