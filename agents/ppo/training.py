"""A training of the agent `ppo`: the learner with its model, its environments and what it needs to go on."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chatgym.agent import Callback, MakeEnvs
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.errors import Corrupted, InvalidValue, Unavailable
from chatgym.finetuning import models
from chatgym.finetuning.loop import Loop, Optimization, load_weights, read_deepspeed
from chatgym.finetuning.models import Lora
from chatgym.storage import model_store

from .acting import coefficients_of, critic_of, sampling_of
from .alarm import Alarm
from .learner import Learner
from .packing import Packed
from .policy import Policy, Reference
from .rollout import Conversation
from .served import Rollouts

if TYPE_CHECKING:
    from .agent import PPO

STATE, BEST, VALUES = "state.json", "best.safetensors", "values.safetensors"
SMALL = 10_000_000
"""Weights below which a model is small enough for the highest learning rate."""
ADVICE = (
    "out of memory ({}); make passes smaller (--micro-batch, --max-length, --batch), keep less (--lora, "
    "--gradient-checkpointing, --bf16), or spread it (--zero 3, offload by --deepspeed FILE)"
)


class Training:
    """Makes a learner for an agent, and runs it.

    Attributes:
        learner: It.
        alarm: See there.
    """

    def __init__(self, agent: PPO, folder: Path | None) -> None:
        """Begin, or go on with what is in the folder of a saved agent.

        Raises:
            InvalidValue: The model isn't there, or not the one that the training began with.
            Corrupted: A file of the training isn't what it was.
        """
        self.agent, config = agent, agent.config
        self._source = models.folder_of(config.model)
        self._weights_sha = _digest(self._source)
        with _memory():
            self.learner, state = self._make(folder)
        self.alarm = Alarm.from_json(state["alarm"]) if state else Alarm()
        self._best: dict[str, torch.Tensor] = {}
        if state:
            from safetensors.torch import load_file

            assert folder is not None
            self.learner.iteration, self.learner.kl_coefficient = state["iteration"], state["kl_coefficient"]
            self._best = load_file(folder / "training" / BEST)
            values = load_file(folder / "training" / VALUES)
            self.learner.values.set(values["gram"].numpy(), values["products"].numpy())
        self._held_out = _reward_model(config.held_out, agent)

    def run(self, make_envs: MakeEnvs, total_steps: int, callback: Callback) -> None:
        """Train until so many turns are done."""
        agent, learner, config = self.agent, self.learner, self.agent.config
        share = config.batch // learner.loop.world
        envs: Any = make_envs(share, llm=config.partner, reward_model=config.reward_model or None)
        try:
            while agent.turns < total_steps:
                with _memory():
                    held = learner.hold(envs)
                    metrics = learner.learn(held)
                agent.turns += sum(len(one.ends) for one in held)
                metrics.update(self._watch(held, metrics["mean_reward"]))
                callback(agent.turns, metrics)
                if self.alarm.ringing and config.stop_on_alarm:
                    break
        finally:
            envs.close()
        if self.alarm.ringing:
            learner.loop.set_weights(self._best)
            learner.refresh_actor()

    def save(self, folder: Path) -> bool:
        """Write the model, and ``training/``; every process has to call it. Returns whether this one has written."""
        from safetensors.torch import save_file

        learner, inside = self.learner, folder / "training"
        if learner.loop.rank == 0:
            inside.mkdir()
        learner.loop.save(inside)
        with learner.loop.gathered():
            weights = {name: tensor.detach().to("cpu", torch.float32, copy=True)
                       for name, tensor in learner.policy.model.state_dict().items()}  # fmt: skip
        if learner.loop.rank:
            return False
        state = {
            "iteration": learner.iteration, "kl_coefficient": learner.kl_coefficient,
            "alarm": self.alarm.to_json(), "model_sha256": self._weights_sha,
        }  # fmt: skip
        (inside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        save_file(self._best, inside / BEST)
        values = {name: torch.from_numpy(getattr(learner.values, name)) for name in ("gram", "products")}
        save_file(values, inside / VALUES)
        model = self._model()
        model.load_state_dict(weights)
        models.save(model, self._source, folder)
        return True

    def _model(self) -> Any:
        config = self.agent.config
        lora = Lora(config.lora) if config.lora else None
        return models.make(self._source, scratch_seed=None, lora=lora, seed=self.agent.seed)

    def _make(self, folder: Path | None) -> tuple[Learner, dict[str, Any]]:
        """Make the learner, as of the last checkpoint; returns it, and the checkpoint's state."""
        agent, config = self.agent, self.agent.config
        saved = None if folder is None else folder / "training"
        state = _state(saved) if saved is not None and saved.is_dir() else {}
        if state and state["model_sha256"] != self._weights_sha:
            raise InvalidValue(
                f"{self._source} isn't the model that the training began with; restore it, or train again (--overwrite)"
            )
        model = self._model()
        if config.max_length > model.config.max_position_embeddings:
            raise InvalidValue(
                f"max_length {config.max_length} is more than the model's context of "
                f"{model.config.max_position_embeddings}"
            )
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = self._policy(model)
        reference = Reference(policy)
        actor = self._policy(self._model()).requires_grad_(False) if config.zero == 3 else policy
        if state:
            assert saved is not None
            load_weights(policy, saved)
        loop = Loop(policy, self._optimization(policy), 1)
        dtype = torch.bfloat16 if config.bf16 else torch.float32
        reference.to(loop.device, dtype)
        if actor is not policy:
            actor.to(loop.device, dtype)
        rollouts = Rollouts(config.rollout_llm, Path(config.rollout_folder)) if config.rollout_llm else None
        tokenizer = ChatTokenizer(str(self._source))
        learner = Learner(config, policy, actor, reference, loop, tokenizer, agent.seed, rollouts)
        if state:
            assert saved is not None
            loop.restore(saved, [_nothing(loop.device) for _ in range(loop.passes)])
            learner.refresh_actor()
        return learner, state

    def _policy(self, model: Any) -> Policy:
        config = self.agent.config
        separate = critic_of(config) == "separate"
        return Policy(model, sampling_of(config), coefficients_of(config), separate_critic=separate)

    def _optimization(self, policy: Policy) -> Optimization:
        config = self.agent.config
        rate = config.learning_rate
        if not rate:
            small = sum(p.numel() for p in policy.model.parameters()) < SMALL
            rate = 3e-4 if small else 2e-4 if config.lora else 1e-5
        return Optimization(
            batch=config.batch // config.minibatches, micro_batch=config.micro_batch, learning_rate=rate, warmup=0.0,
            floor=1.0, weight_decay=0.0, clip=config.max_grad_norm, zero=config.zero, bf16=config.bf16,
            deepspeed=read_deepspeed(Path(config.deepspeed) if config.deepspeed else None),
        )  # fmt: skip

    def _watch(self, held: Sequence[Conversation], trained: float) -> dict[str, float]:
        """Compare what is trained on, its mean, with what isn't, and keep the best weights by the latter."""
        success = np.array([one.outcome == self.agent.scenario.success for one in held], np.float64)
        if self._held_out is None:
            measured = success
        else:
            measured = self._held_out.score([one.messages for one in held]).astype(np.float64)
        was = self.alarm.ringing
        if self.alarm.note(trained, float(measured.mean()), float(measured.std() / math.sqrt(len(measured)))):
            self._best = self.learner.loop.weights()
        if self.alarm.ringing and not was and self.learner.loop.rank == 0:
            warnings.warn(
                f"the reward rises while the held-out measure falls (running mean {self.alarm.held_out:.3f}, best "
                f"{self.alarm.best:.3f}): it may be won without better conversations; the best weights are kept",
                stacklevel=2,
            )
        return {"success_rate": float(success.mean()), "held_out": float(measured.mean()),
                "alarm": float(self.alarm.ringing)}  # fmt: skip


def _nothing(device: torch.device) -> dict[str, Any]:
    """Return a batch from which nothing is learned."""
    place = torch.zeros(2, 1, dtype=torch.long)
    packed = Packed(torch.zeros(1, 2, dtype=torch.long), place, place).to(device)
    numbers = dict.fromkeys(("logprobs", "values", "advantages", "returns"), torch.zeros(1, device=device))
    return {"packed": packed, "tokens": torch.zeros(1, dtype=torch.long, device=device), **numbers}


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"iteration": int(found["iteration"]), "kl_coefficient": float(found["kl_coefficient"]),
                "alarm": dict(found["alarm"]), "model_sha256": str(found["model_sha256"])}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupted(f"{path} can't be read ({error}); train again (--overwrite)") from error


def _digest(folder: Path) -> str:
    """Return the SHA-256 of a model's weights, one after the other."""
    return "".join(model_store.sha256(path) for path in sorted(folder.glob("*.safetensors")))


def _reward_model(spec: str, agent: PPO) -> Any:
    from chatgym.rewards import make_reward_model

    return make_reward_model(spec or None, agent.scenario)


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Turn a lack of memory into an error that says what helps."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Unavailable(ADVICE.format("of the GPU")) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise Unavailable(ADVICE.format("of this machine")) from error
