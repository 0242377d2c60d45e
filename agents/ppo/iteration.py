"""One iteration of PPO, top to bottom: collect conversations, score their tokens, weigh them, learn from them.

The reward with its KL penalty is that of Ziegler et al. 2019 and Ouyang et al. 2022 (InstructGPT); advantages and loss
are those of Schulman et al. 2016 and 2017. Here a conversation has many turns, and its tokens are the N tokens that the
agent sampled in all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatgym.dynamics import rng
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.errors import ChatGymError
from chatgym.finetuning.distributed import largest

from .config import Config
from .equations import (
    StateValues,
    decays,
    gae,
    group_advantages,
    kl_estimates,
    token_rewards,
    whiten,
)
from .policy import Packed, pack
from .rollout import Conversation, hold
from .systems import Systems

GAP = {torch.float32: 5e-3, torch.bfloat16: 1.0}
"""How far a log-probability may be from the one when it was sampled: rounding explains no more."""
SERVED_GAP = 0.2
"""How far a server's log-probabilities may be from the policy's, on average: bfloat16 explains less, another model is
further off."""
ADAPTIVE_GAIN, ADAPTIVE_CLIP = 0.1, 0.2  # of the adaptive KL coefficient, Ziegler et al. 2019


class LogprobsDiffer(ChatGymError):
    """The policy that learns doesn't give the log-probabilities of the one that sampled."""


class Phases:
    """Seconds spent, by phase."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began  # type: ignore[assignment]


class Learner:
    """The PPO algorithm.

    Attributes:
        systems: The networks and what they run on.
        kl_coefficient: β at present.
        values: The value function of the simulator's state; unused with another critic.
        iteration: Number of iterations done.
        phases: Seconds spent in the present iteration.
    """

    def __init__(self, config: Config, systems: Systems, seed: int) -> None:
        self.config, self.systems, self.seed = config, systems, seed
        self.kl_coefficient = config.kl_coefficient
        self.values = StateValues()
        self.iteration = 0
        self.phases = Phases()
        self._by_state = config.values_from == "state"
        self._warmup = config.value_warmup if config.values_from else 0
        self._served_gap = 0.0

    def iterate(
        self, envs: ChatVectorEnv, watch: Callable[[Sequence[Conversation]], dict[str, float]] | None = None
    ) -> tuple[list[Conversation], dict[str, float]]:
        """Run one iteration; returns the conversations of all processes, and metrics.

        Args:
            envs: This process's share of the conversations, one in each row.
            watch: Called with the conversations of all processes before anything is learned from them, while the
                policy still is the one that held them; returns further metrics.

        Raises:
            LogprobsDiffer: See `learn` and `score`.
        """
        conversations = self.collect(envs)
        with self.phases("scoring"):
            self.score(conversations)
        conversations = self.systems.gather(conversations)
        watched = {} if watch is None else watch(conversations)
        self.weigh(conversations)
        with self.phases("training"):
            metrics = self.learn(conversations)
            self.systems.refresh_actor()
        if not metrics["optimizer_steps"]:
            del self.phases.seconds["training"]  # nothing was trained
        return conversations, {**metrics, **watched, **self._speeds(conversations)}

    def collect(self, envs: ChatVectorEnv) -> list[Conversation]:
        """Hold this process's share of the iteration's conversations."""
        config, systems = self.config, self.systems
        mine = np.arange(config.batch)[systems.loop.rank :: systems.loop.world]
        root = rng.in_split(rng.bits(self.seed, 0, 0), "train")[()]
        numbers = (self.iteration * config.batch + mine) // config.group
        keys = np.array([rng.episode_key(root, number) for number in numbers.tolist()], np.uint64)
        salt = (mine % config.group).tolist()
        if systems.server is not None:
            with self.phases("publishing"):
                systems.publish()
        systems.actor.eval()
        turns, length = systems.turns(len(mine)), config.max_length
        return hold(turns, envs, keys, salt, max_length=length, phases=self.phases, states=self._by_state,
                    judged_only=not config.task_reward)  # fmt: skip

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation]) -> None:
        """Fill in the reference's log-probabilities, and the values that didn't come with the tokens.

        The policy's own log-probabilities replace those that a server stated.

        Raises:
            LogprobsDiffer: A server's differ from them by more than rounding.
        """
        size, ordered, apart = max(1, self.config.micro_batch), in_order(conversations), list[float]()
        actor, reference = self.systems.actor, self.systems.reference
        for part in (ordered[i : i + size] for i in range(0, len(ordered), size)):
            batch, cuts = self._batch(part), _cuts(part)
            asked = packed, _, _ = batch["packed"], batch["tokens"], batch.get("supports")
            for one, numbers in zip(part, np.split(reference.logprobs(*asked).cpu().numpy(), cuts), strict=True):
                one.reference = numbers
            if self.systems.server is not None:
                for one, numbers in zip(part, np.split(actor.logprobs(*asked).cpu().numpy(), cuts), strict=True):
                    apart += np.abs(one.logprobs - numbers).tolist()
                    one.logprobs = numbers
            if self._by_state:
                for one in part:
                    *values, last = self.values.predict(one.states)
                    one.values = np.repeat(values, np.diff(one.ends, prepend=-1)).astype(np.float32)
                    one.bootstrap = float(last) if one.broken else 0.0
            elif actor.critic is not None:
                self._score_by_critic(part, packed)
        if self.systems.server is not None:
            self._check_served(float(np.mean(apart)))

    def weigh(self, conversations: Sequence[Conversation]) -> None:
        """Fill in token rewards, advantages and returns."""
        config = self.config
        for one in conversations:
            one.kl = kl_estimates(one.logprobs, one.reference, config.kl_estimator)
            rewards = np.clip(one.rewards, -config.clip_reward, config.clip_reward)
            one.token_rewards = token_rewards(rewards, one.ends.tolist(), one.kl, self.kl_coefficient)
        if config.advantage == "gae":
            for one in conversations:
                decay = decays(one.ends.tolist(), config.gae_lambda, config.turn_lambda)
                known = one.token_rewards, one.values, one.bootstrap, config.discount_factor
                one.advantages = gae(*known, decay)
                one.returns = gae(*known, 1.0) + one.values
        else:
            totals = np.array([one.token_rewards.sum() for one in conversations])
            by_conversation = group_advantages(totals, config.group, config.advantage)
            for one, advantage in zip(conversations, by_conversation, strict=True):
                one.advantages = np.full(len(one.places), advantage)
                one.returns = one.values.astype(np.float64)
        if config.whiten:
            everything = whiten(np.concatenate([one.advantages for one in conversations]))
            for one, part in zip(conversations, np.split(everything, _cuts(conversations)), strict=True):
                one.advantages = part

    def learn(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Make the epochs of the iteration; every process needs all conversations.

        Returns:
            Metrics by name, see `measures` and `_epochs`.

        Raises:
            LogprobsDiffer: The ratios of the first minibatch aren't 1: what would be learned isn't what was done.
        """
        self.systems.policy.warming = self.iteration < self._warmup
        loop = self.systems.loop
        metrics = {
            "iteration": float(self.iteration + 1), "learning_rate": loop.learning_rate(loop.steps),
            **measures(conversations, self.kl_coefficient),
        }  # fmt: skip
        if self.systems.server is not None:
            metrics["served_gap"] = self._served_gap
        metrics.update(self._epochs(conversations))
        if self._by_state:
            starts = [np.concatenate([[0], one.ends[:-1] + 1]) for one in conversations]
            returns = [one.returns[first] for one, first in zip(conversations, starts, strict=True)]
            self.values.learn(np.concatenate([one.states[:-1] for one in conversations]), np.concatenate(returns))
        self._adapt(metrics["reference_kl"])
        self.iteration += 1
        return metrics

    def _epochs(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Take the optimizer's steps, minibatch by minibatch, until the epochs are over or the policy moved too far."""
        config, loop, policy = self.config, self.systems.loop, self.systems.policy
        size = config.batch // config.minibatches
        totals = dict.fromkeys((*policy.sums, "loss", "grad_norm"), 0.0)
        gap, steps, stopped = 0.0, 0, 0.0
        for epoch in range(0 if policy.warming and self._by_state else config.epochs):
            key = np.array([self.seed, self.iteration * config.epochs + epoch], np.uint64)
            order = np.random.Generator(np.random.Philox(key=key)).permutation(config.batch)
            for minibatch in range(config.minibatches):
                picked = [conversations[i] for i in order[minibatch * size : (minibatch + 1) * size]]
                policy.forget()
                done = loop.step(self.batches(picked), sum(len(one.places) for one in picked))
                sums = {name: loop.sum(value) for name, value in policy.sums.items() if name != "gap"}
                if steps == 0:
                    gap = self._check_gap(policy.sums["gap"])
                for name, value in sums.items():
                    totals[name] += value
                totals["loss"] += done["loss"]
                totals["grad_norm"] += done.get("grad_norm", 0.0)
                steps += 1
                if config.target_kl and sums["kl"] / sums["tokens"] > config.target_kl:
                    stopped = 1.0
                    break
            if stopped:
                break
        tokens, taken = max(totals["tokens"], 1.0), max(steps, 1)
        return {
            "ratio": totals["ratio"] / tokens if steps else 1.0, "update_kl": totals["kl"] / tokens,
            "clip_fraction": totals["clipped"] / tokens, "loss": totals["loss"] / taken,
            "grad_norm": totals["grad_norm"] / taken, "logprob_gap": gap, "optimizer_steps": float(steps),
            "stopped_early": stopped,
        }  # fmt: skip

    def batches(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Return this process's share of a minibatch as batches of `Policy.forward`, each of similar lengths."""
        loop = self.systems.loop
        share = in_order(conversations)[loop.rank :: loop.world]
        size = len(share) // loop.passes
        return [self._batch(share[i * size : (i + 1) * size]) for i in range(loop.passes)]

    def _batch(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Return conversations as a batch of `Policy.forward`, without what isn't filled in yet."""
        device = self.systems.loop.device
        tokens = torch.from_numpy(np.concatenate([one.tokens for one in conversations])).to(device)  # int64[N]
        packed = pack([one.ids for one in conversations], [one.places for one in conversations])
        made: dict[str, Any] = {"packed": packed.to(device), "tokens": tokens}
        if conversations[0].supports is not None:
            supports = np.concatenate([one.supports for one in conversations if one.supports is not None])
            made["supports"] = torch.from_numpy(supports).to(device)
        for name in ("logprobs", "values", "advantages", "returns"):
            if len(getattr(conversations[0], name)):
                numbers = np.concatenate([getattr(one, name) for one in conversations]).astype(np.float32)
                made[name] = torch.from_numpy(numbers).to(device)
        return made

    def _score_by_critic(self, conversations: Sequence[Conversation], packed: Packed) -> None:
        """Fill in the values of a separate critic; `packed` are the same conversations."""
        actor = self.systems.actor
        rows, columns = torch.cat([packed.before, packed.last], 1)  # int64[N + B] each
        states = actor.states(packed, actor.critic)[rows, columns]  # float[N + B, H]
        cuts = [*_cuts(conversations), packed.before.shape[1]]
        *values, last = np.split(actor.values(states).cpu().numpy(), cuts)
        for one, numbers, bootstrap in zip(conversations, values, last.tolist(), strict=True):
            one.values, one.bootstrap = numbers, bootstrap if one.broken else 0.0

    def _check_gap(self, gap: float) -> float:
        """Check that the first minibatch's ratios are 1 within what rounding explains; returns the largest gap."""
        worst = largest(gap)
        bound = GAP[torch.bfloat16 if self.config.bf16 else torch.float32]
        if not worst <= bound:
            raise LogprobsDiffer(
                f"the log-probability of a token differs by {worst:.3g} from the one it was sampled with (bound "
                f"{bound:g}): what would be learned isn't what was done; train in float32, or report this"
            )
        return worst

    def _check_served(self, gap: float) -> None:
        """Check that a server's log-probabilities were the policy's, but for its precision."""
        self._served_gap = largest(gap)
        # Some servers state log-probabilities before the temperature.
        if self.config.temperature == 1.0 and self._served_gap > SERVED_GAP:
            raise LogprobsDiffer(
                f"the server's log-probabilities differ from the policy's by {self._served_gap:.3g} on average: it "
                "samples from another model; check that it was started with the model that the training began with, "
                "and takes adapters"
            )

    def _adapt(self, kl: float) -> None:
        """Steer the KL coefficient so that a conversation's divergence per token stays at the target."""
        if self.config.kl_target:
            error = max(-ADAPTIVE_CLIP, min(ADAPTIVE_CLIP, kl / self.config.kl_target - 1))
            self.kl_coefficient *= 1 + ADAPTIVE_GAIN * error

    def _speeds(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Return the agent's tokens a second, by phase and in all, and set the phases back to 0."""
        tokens = sum(len(one.places) for one in conversations)
        seconds, self.phases = self.phases.seconds, Phases()
        speeds = {f"tokens_per_second_{name}": tokens / spent for name, spent in seconds.items() if spent}
        return {**speeds, "tokens_per_second": tokens / max(sum(seconds.values()), 1e-9)}


def _cuts(conversations: Sequence[Conversation]) -> npt.NDArray[np.int64]:
    """Return where the tokens of each of B conversations but the first begin among all tokens, int64[B - 1]."""
    return np.cumsum([len(one.places) for one in conversations])[:-1]


def in_order(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Sort conversations so that neighbours have similar lengths, and those with the same beginning are neighbours."""
    longest: dict[int, int] = {}
    for one in conversations:
        longest[one.key] = max(longest.get(one.key, 0), len(one.ids))
    return sorted(conversations, key=lambda one: (longest[one.key], one.key, len(one.ids)))


def mean_reward(conversations: Sequence[Conversation]) -> float:
    """Return the mean reward of a conversation, without the KL penalty."""
    return float(np.mean([one.rewards.sum() for one in conversations]))


def measures(conversations: Sequence[Conversation], kl_coefficient: float) -> dict[str, float]:
    """Return metrics of an iteration's conversations, before anything is learned from them; see docs/ppo.md."""
    tokens = sum(len(one.places) for one in conversations)
    returns = np.concatenate([one.returns for one in conversations])  # float64[N]
    values = np.concatenate([one.values for one in conversations])  # float32[N]
    spread = returns.var()
    return {
        "mean_return": float(np.mean([one.task_return for one in conversations])),
        "mean_reward": mean_reward(conversations),
        "reward_std": float(np.std([one.rewards.sum() for one in conversations])),
        "penalised_reward": float(np.mean([one.token_rewards.sum() for one in conversations])),
        "reference_kl": float(sum(one.kl.sum() for one in conversations)) / tokens,
        "kl_coefficient": kl_coefficient,
        "entropy": -float(sum(one.logprobs.sum() for one in conversations)) / tokens,
        "explained_variance": 0.0 if spread < 1e-12 else float(1 - (returns - values).var() / spread),
        "tokens_per_turn": tokens / sum(len(one.ends) for one in conversations),
        "turns_per_conversation": float(np.mean([len(one.ends) for one in conversations])),
    }
