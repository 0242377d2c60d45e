"""PPO from top to bottom: hold conversations, weigh their tokens, learn from them, again and again.

Ziegler et al. 2019 and Ouyang et al. 2022 (InstructGPT) for the reward with its KL penalty, Schulman et al. 2016 and
2017 for advantages and loss; here a conversation has many turns, and its tokens are those of all of the agent's turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatgym.dynamics import rng
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.errors import ChatGymError
from chatgym.finetuning.distributed import join, largest
from chatgym.finetuning.loop import Loop

from .acting import critic_of
from .advantages import decays, gae, group_advantages, kl_estimates, token_rewards, whiten
from .packing import Packed, pack
from .policy import Policy, Reference
from .rollout import Conversation, Phases, hold
from .served import Rollouts
from .states import StateValues
from .turns import OwnTurns, Turns

GAP = {torch.float32: 5e-3, torch.bfloat16: 1.0}
"""How far a log-probability, computed again, may be from the one when it was sampled: rounding, and no more."""
SERVED_GAP = 0.2
"""How far the log-probabilities that a server states may be from the policy's own, on average: bfloat16 explains less,
another model is further off."""
ADAPTIVE_GAIN, ADAPTIVE_CLIP = 0.1, 0.2  # of the adaptive KL coefficient, Ziegler et al. 2019


class LogprobsDiffer(ChatGymError):
    """The policy that learns doesn't give the log-probabilities of the one that sampled."""


class Learner:
    """What trains a policy.

    Attributes:
        policy, loop: The network, and DeepSpeed around it.
        actor: The network that holds conversations: the policy, or, where its weights are in parts, a copy.
        kl_coefficient: β, as it is now.
        values: The value function of the simulator's state; nothing is learned there with another critic.
        rollouts: The server that holds conversations in the actor's place, if one does.
        iteration: How many iterations were made.
    """

    def __init__(
        self, config: Any, policy: Policy, actor: Policy, reference: Reference, loop: Loop, tokenizer: ChatTokenizer,
        seed: int, rollouts: Rollouts | None = None,
    ) -> None:  # fmt: skip
        self.config, self.policy, self.actor, self.reference, self.loop = config, policy, actor, reference, loop
        self.tokenizer, self.seed, self.rollouts = tokenizer, seed, rollouts
        self._served_gap = 0.0
        self.kl_coefficient: float = config.kl_coefficient
        self.values = StateValues()
        self._by_state = critic_of(config) == "state"
        self.iteration = 0
        self.phases = Phases()

    def hold(self, envs: Any) -> list[Conversation]:
        """Hold this process's share of an iteration's conversations, and ask the reference about their tokens."""
        config, loop = self.config, self.loop
        mine = np.arange(config.batch)[loop.rank :: loop.world]
        root = rng.bits(self.seed, 0, 0)
        numbers = (self.iteration * config.batch + mine) // config.group
        keys = np.array([rng.episode_key(root, number) for number in numbers.tolist()], np.uint64)
        self.actor.eval()
        turns = self._turns(len(mine))
        salt = (mine % config.group).tolist()
        held = hold(turns, envs, keys, salt, max_length=config.max_length, phases=self.phases, states=self._by_state)
        with self.phases("scoring"):
            self._score(held)
        return self._gathered(held)

    def _turns(self, size: int) -> Turns:
        """Return conversations to be held, by the policy as it is now."""
        if self.rollouts is None:
            limits = self.config.max_new_tokens
            return OwnTurns(self.actor, self.tokenizer, size, self.policy.sampling, limits, self.loop.device)
        with self.phases("publishing"), self.loop.gathered():
            if self.loop.rank == 0:
                self.rollouts.publish(self.policy.model)
            if self.loop.world > 1:
                join()
        return self.rollouts.turns(self.tokenizer, size, self.config)

    def learn(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Make the epochs of one iteration; every process has all conversations.

        Returns:
            Metrics.

        Raises:
            LogprobsDiffer: The first minibatch's ratios aren't 1, so what would be learned isn't what was done.
        """
        self.policy.warming = self.iteration < self.config.value_warmup and critic_of(self.config) != ""
        self.weigh(conversations)
        metrics = measures(conversations, self.kl_coefficient)
        if self.rollouts is not None:
            metrics["served_gap"] = self._served_gap
        with self.phases("training"):
            metrics.update(self._epochs(conversations))
            self._learn_values(conversations)
            self.refresh_actor()
        self._adapt(metrics["kl"])
        self.iteration += 1
        return {**metrics, **self._speeds(conversations)}

    def refresh_actor(self) -> None:
        """Bring the actor's weights up to date, where they are a copy."""
        if self.actor is not self.policy:
            with self.loop.gathered():
                self.actor.load_state_dict(self.policy.state_dict())

    def weigh(self, conversations: Sequence[Conversation]) -> None:
        """Fill in rewards, advantages and returns."""
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
            for one, advantage in zip(
                conversations, group_advantages(totals, config.group, config.advantage), strict=True
            ):
                one.advantages = np.full(len(one.places), advantage)
                one.returns = one.values.astype(np.float64)
        if config.whiten:
            everything = whiten(np.concatenate([one.advantages for one in conversations]))
            for one, part in zip(conversations, np.split(everything, _cuts(conversations)), strict=True):
                one.advantages = part

    def _learn_values(self, conversations: Sequence[Conversation]) -> None:
        """Bring the value function of the state up to date; the policy's own learns with the policy."""
        if self._by_state:
            starts = [np.concatenate([[0], one.ends[:-1] + 1]) for one in conversations]
            returns = [one.returns[first] for one, first in zip(conversations, starts, strict=True)]
            self.values.learn(np.concatenate([one.states[:-1] for one in conversations]), np.concatenate(returns))

    def batches(self, conversations: Sequence[Conversation]) -> list[dict[str, Any]]:
        """Return what the policy's loss takes: this process's share of a minibatch, in passes of similar lengths."""
        share = in_order(conversations)[self.loop.rank :: self.loop.world]
        size = len(share) // self.loop.passes
        return [self._batch(share[i * size : (i + 1) * size]) for i in range(self.loop.passes)]

    def _epochs(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        config, loop, policy = self.config, self.loop, self.policy
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
            "policy_kl": totals["kl"] / tokens, "clip_fraction": totals["clipped"] / tokens,
            "loss": totals["loss"] / taken, "grad_norm": totals["grad_norm"] / taken, "logprob_gap": gap,
            "steps": float(steps), "stopped_early": stopped,
        }  # fmt: skip

    def _check_gap(self, gap: float) -> float:
        """Check that the first minibatch's ratios are 1 within what rounding explains."""
        worst = largest(gap)
        bound = GAP[torch.bfloat16 if self.loop.settings.bf16 else torch.float32]
        if not worst <= bound:
            raise LogprobsDiffer(
                f"the log-probability of a token differs by {worst:.3g} from the one it was sampled with (bound "
                f"{bound:g}): what would be learned isn't what was done; train in float32, or report this"
            )
        return worst

    def _adapt(self, kl: float) -> None:
        """Steer the KL coefficient so that a conversation's divergence per token stays at the target."""
        if self.config.kl_target:
            error = max(-ADAPTIVE_CLIP, min(ADAPTIVE_CLIP, kl / self.config.kl_target - 1))
            self.kl_coefficient *= 1 + ADAPTIVE_GAIN * error

    def _batch(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        device = self.loop.device
        tokens = torch.from_numpy(np.concatenate([one.tokens for one in conversations])).to(device)
        made: dict[str, Any] = {"packed": pack(conversations).to(device), "tokens": tokens}
        if conversations[0].supports is not None:
            supports = np.concatenate([one.supports for one in conversations if one.supports is not None])
            made["supports"] = torch.from_numpy(supports).to(device)
        for name in ("logprobs", "values", "advantages", "returns"):
            if not len(getattr(conversations[0], name)):  # not known yet
                continue
            numbers = np.concatenate([getattr(one, name) for one in conversations]).astype(np.float32)
            made[name] = torch.from_numpy(numbers).to(device)
        return made

    @torch.no_grad()
    def _score(self, held: Sequence[Conversation]) -> None:
        """Fill in the reference's log-probabilities, and values but those that came with the tokens.

        The policy's own take the place of those that a server stated.
        """
        size, ordered, apart = max(1, self.config.micro_batch), in_order(held), list[float]()
        for part in (ordered[i : i + size] for i in range(0, len(ordered), size)):
            batch = self._batch(part)
            packed: Packed = batch["packed"]
            logprobs = self.reference.logprobs(packed, batch["tokens"], batch.get("supports")).cpu().numpy()
            cuts = _cuts(part)
            for one, numbers in zip(part, np.split(logprobs, cuts), strict=True):
                one.reference = numbers
            if self.rollouts is not None:
                logits = self.actor.logits(self.actor.hidden(packed))
                own = self.actor.sampling.logprobs(logits, batch["tokens"], None).cpu().numpy()
                for one, numbers in zip(part, np.split(own, cuts), strict=True):
                    apart += np.abs(one.logprobs - numbers).tolist()
                    one.logprobs = numbers
            if self._by_state:
                for one in part:
                    *values, last = self.values.predict(one.states)
                    one.values = np.repeat(values, np.diff(one.ends, prepend=-1)).astype(np.float32)
                    one.bootstrap = float(last) if one.broken else 0.0
            elif self.actor.critic is not None:
                rows, columns = torch.cat([packed.before, packed.last], 1)
                states = self.actor.states(packed, self.actor.critic)[rows, columns]
                *values, last = np.split(self.actor.values(states).cpu().numpy(), [*cuts, packed.before.shape[1]])
                for one, numbers, bootstrap in zip(part, values, last.tolist(), strict=True):
                    one.values, one.bootstrap = numbers, bootstrap if one.broken else 0.0
        if self.rollouts is not None:
            self._check_served(float(np.mean(apart)))

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

    def _gathered(self, held: list[Conversation]) -> list[Conversation]:
        """Return the conversations of all processes, in the order of their numbers."""
        if self.loop.world == 1:
            return held
        shares: list[Any] = [None] * self.loop.world
        torch.distributed.all_gather_object(shares, held)
        everything: list[Any] = [None] * self.config.batch
        for process, share in enumerate(shares):
            everything[process :: self.loop.world] = share
        return everything

    def _speeds(self, conversations: Sequence[Conversation]) -> dict[str, float]:
        """Return the agent's tokens a second, by phase and in all, and forget the seconds."""
        tokens = sum(len(one.places) for one in conversations)
        seconds, self.phases = self.phases.seconds, Phases()
        speeds = {f"tokens_per_second_{name}": tokens / spent for name, spent in seconds.items() if spent}
        return {**speeds, "tokens_per_second": tokens / max(sum(seconds.values()), 1e-9)}


def _cuts(conversations: Sequence[Conversation]) -> npt.NDArray[np.int64]:
    """Return where each but the first begins among the tokens of all."""
    return np.cumsum([len(one.places) for one in conversations])[:-1]


def in_order(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Sort conversations so that neighbours are about equally long, those that begin alike together."""
    longest: dict[int, int] = {}
    for one in conversations:
        longest[one.key] = max(longest.get(one.key, 0), len(one.ids))
    return sorted(conversations, key=lambda one: (longest[one.key], one.key, len(one.ids)))


def measures(conversations: Sequence[Conversation], kl_coefficient: float) -> dict[str, float]:
    """Return what is to be known of an iteration's conversations."""
    tokens = sum(len(one.places) for one in conversations)
    returns = np.concatenate([one.returns for one in conversations])
    values = np.concatenate([one.values for one in conversations])
    spread = returns.var()
    return {
        "mean_return": float(np.mean([one.task_return for one in conversations])),
        "mean_reward": float(np.mean([one.rewards.sum() for one in conversations])),
        "kl": float(sum(one.kl.sum() for one in conversations)) / tokens,
        "kl_coefficient": kl_coefficient,
        "entropy": -float(sum(one.logprobs.sum() for one in conversations)) / tokens,
        "explained_variance": 0.0 if spread < 1e-12 else float(1 - (returns - values).var() / spread),
        "tokens_per_turn": tokens / sum(len(one.ends) for one in conversations),
        "turns": float(np.mean([len(one.ends) for one in conversations])),
    }
