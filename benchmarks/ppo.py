"""Measure tokens per second of a training step: ``python benchmarks/ppo.py`` writes ``docs/ppo_speed.md``.

TRL is measured in an environment of its own, whose interpreter ``--trl`` names.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "ppo_speed.md"
ROWS, GROUP, READ, SAID = 32, 8, 43, 32
TURNS, CONVERSATIONS, HEARD = 4, 16, 20
SENTENCE = "The parcel that I ordered for my sister three weeks ago has still not come to the door, so I ask you what "
VOWELS = set("aeiou")
INTRODUCTION = """# Speed of a training step

SmolLM2-135M in float32, all weights trained, {threads} threads. Tokens per second are the tokens that the policy
generated in a step, divided by the seconds of the whole step; a token counts once, however often it is read. Figures
are medians of {rounds} steps in one run. Made by `python benchmarks/ppo.py`.

* **One turn**: GRPO in ChatGym and in TRL, with the same reward function: 32 prompts of 43 tokens (four prompts, eight
  times each) and 32 new tokens.
* **Four turns**: PPO with a value function: 16 conversations, 32 new tokens a turn, and 20 tokens of the partner
  between the turns. Beside it a plain loop in the manner of DeepSpeed-Chat: `generate` on the whole conversation in
  each turn, four models (policy, reference, critic, reward model), one pass of each over the whole, and one step of
  policy and critic.
"""


def reward(text: str) -> float:
    """Return the share of vowels."""
    return sum(letter in VOWELS for letter in text) / max(len(text), 1)


class Partner:
    """Conversations of some turns with a partner who always has as much to say, and rewards vowels."""

    def __init__(self, opening: list[str], answer: str, turns: int) -> None:
        self.num_envs, self._opening, self._answer, self._last = len(opening), opening, answer, turns
        self.room = self
        self.scenario = Outcomes()

    def reset(self, options: dict[str, Any]) -> None:
        self.keys, self.turns = options["keys"], np.zeros(self.num_envs, np.int64)
        self.texts, self.outcomes = [*self._opening], np.zeros(self.num_envs, np.int64)
        self.truncations = np.zeros(self.num_envs, bool)

    def step(self, texts: list[str], *, active: np.ndarray) -> tuple[Any, ...]:
        self.turns += 1
        self.rewards = np.array([reward(text) for text in texts])
        self.texts = [self._answer] * self.num_envs
        self.terminations = self.turns >= self._last
        return self.texts, self.rewards, self.terminations, self.truncations, {}


class Outcomes:
    outcomes = ("",)


def prompts(tokenizer: Any, count: int, tokens: int) -> list[str]:
    """Return texts of so many tokens, that many of them different."""
    ids = tokenizer.encode(SENTENCE * 4)
    return [tokenizer.decode(ids[i : i + tokens]) for i in range(count)]


def ours(turns: int, rows: int, group: int, **settings: Any) -> Callable[[], tuple[int, dict[str, float]]]:
    """Return a step of ours: (tokens said, seconds by phase)."""
    from chatgym_agents.ppo import PPO
    from chatgym_agents.ppo.training import Training

    from chatgym.agent import make_config
    from chatgym.scenarios import find_scenario

    chosen = {"batch": rows, "group": group, "epochs": 1, "minibatches": 1, "micro_batch": rows, "zero": 0,
              "max_new_tokens": SAID, "max_length": 1024, "target_kl": 0.0, **settings}  # fmt: skip
    learner = Training(find_scenario("customer_service"), make_config(PPO.Config, chosen), 0).learner
    tokenizer = learner.systems.tokenizer
    heads = len(tokenizer.encode("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"))
    opening = [text for text in prompts(tokenizer, rows // group, READ - heads) for _ in range(group)]
    envs = Partner(opening, prompts(tokenizer, 1, HEARD - heads)[0], turns)
    policy, end = learner.systems.policy, torch.tensor([tokenizer.end])
    logits = policy.logits  # no turn ends before it is as long as it may be
    policy.logits = lambda hidden: logits(hidden).index_fill(1, end, -1e9)

    def step() -> tuple[int, dict[str, float]]:
        seconds = learner.phases.seconds
        conversations, _ = learner.iterate(envs)
        return sum(len(one.places) for one in conversations), dict(seconds)

    return step


def plain(turns: int, rows: int) -> Callable[[], tuple[int, dict[str, float]]]:
    """Return a step of a loop that does the same the plain way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatgym.storage import model_store

    folder = model_store.path("smollm2-135m")
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(4)]
    policy, reference, critic, judge = models
    tokenizer = AutoTokenizer.from_pretrained(folder)
    heads = [torch.nn.Linear(policy.config.hidden_size, 1) for _ in range(2)]
    trained = [list(policy.parameters()), [*critic.model.parameters(), *heads[0].parameters()]]
    optimizers = [torch.optim.AdamW(parameters, lr=1e-5) for parameters in trained]
    how = {"do_sample": True, "top_k": 0, "min_new_tokens": SAID, "max_new_tokens": SAID, "pad_token_id": 0}
    opening = torch.tensor([tokenizer(SENTENCE * 4)["input_ids"][i : i + READ] for i in range(rows)])
    answer = torch.tensor(tokenizer(SENTENCE * 4)["input_ids"][:HEARD]).expand(rows, -1)

    def logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
        logits = model(ids).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    def values(model: Any, head: Any, ids: torch.Tensor) -> torch.Tensor:
        return head(model.model(ids).last_hidden_state)[:, :-1, 0]

    def step() -> tuple[int, dict[str, float]]:
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        ids, learned = opening, torch.zeros(rows, READ, dtype=torch.bool)
        with torch.no_grad():
            for turn in range(turns):
                ids = policy.generate(ids, attention_mask=torch.ones_like(ids), **how)
                learned = torch.cat([learned, torch.ones(rows, SAID, dtype=torch.bool)], 1)
                if turn < turns - 1:
                    ids = torch.cat([ids, answer], 1)
                    learned = torch.cat([learned, torch.zeros(rows, HEARD, dtype=torch.bool)], 1)
            seconds["generation"] = time.perf_counter() - began
            before, frozen = logprobs(policy, ids), logprobs(reference, ids)
            old, judged = values(critic, heads[0], ids), values(judge, heads[1], ids)
        mask = learned[:, 1:]
        seconds["scoring"] = time.perf_counter() - began - seconds["generation"]
        rewards = -0.1 * (before - frozen)
        rewards[:, -1] += judged[:, -1]
        advantages = torch.zeros_like(rewards)
        for t in reversed(range(rewards.shape[1])):
            after = (old[:, t + 1], advantages[:, t + 1]) if t + 1 < rewards.shape[1] else (0.0, 0.0)
            advantages[:, t] = rewards[:, t] + after[0] - old[:, t] + 0.95 * after[1]
        ratio = (logprobs(policy, ids) - before).exp()
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[mask].mean()
        error = ((values(critic, heads[0], ids) - advantages - old) ** 2)[mask].mean()
        for optimizer, one in zip(optimizers, (loss, error), strict=True):
            optimizer.zero_grad()
            one.backward()
            optimizer.step()
        seconds["training"] = time.perf_counter() - began - sum(seconds.values())
        return rows * turns * SAID, seconds

    return step


def trl(interpreter: str, rounds: int) -> list[float]:
    """Return the seconds of TRL's steps."""
    from chatgym.engines.tokenizer import ChatTokenizer
    from chatgym.storage import model_store

    texts = prompts(ChatTokenizer("smollm2-135m"), ROWS // GROUP, READ)
    asked = json.dumps({"model": str(model_store.path("smollm2-135m")), "prompts": texts, "rows": ROWS, "group": GROUP,
                        "said": SAID, "rounds": rounds, "threads": torch.get_num_threads()})  # fmt: skip
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}  # DeepSpeed's, here
    command = [*interpreter.split(), str(HERE / "ppo_trl.py")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=alone)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured(step: Callable[[], tuple[int, dict[str, float]]], rounds: int) -> tuple[float, dict[str, float]]:
    """Return median tokens per second, and the median seconds of each phase; the first round is left out."""
    rates, phases = [], []
    for i in range(rounds + 1):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            tokens, seconds = step()
        if i:
            rates.append(tokens / (time.perf_counter() - began))
            phases.append(seconds)
    names = dict.fromkeys(name for one in phases for name in one)
    return statistics.median(rates), {name: statistics.median(one.get(name, 0.0) for one in phases) for name in names}


def line(name: str, rate: float, base: float, phases: dict[str, float]) -> str:
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in phases.items())
    return f"| {name} | {rate:.0f} | {rate / base:.2f} | {spent} |"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default="", help="interpreter of an environment with trl; left out without one")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    head = ["| | tokens/s | ratio | seconds |", "|---|---|---|---|"]
    single, many = [*head], [*head]
    rate, phases = measured(ours(1, ROWS, GROUP, advantage="grpo"), arguments.rounds)
    single.append(line("ChatGym, GRPO", rate, rate, phases))
    print(single[-1], flush=True)
    if arguments.trl:
        seconds = statistics.median(trl(arguments.trl, arguments.rounds))
        single.append(line("TRL, GRPO", ROWS * SAID / seconds, rate, {"in all": seconds}))
        print(single[-1], flush=True)
    rate, phases = measured(ours(TURNS, CONVERSATIONS, 1, critic="shared", value_warmup=0), arguments.rounds)
    many.append(line("ChatGym, PPO", rate, rate, phases))
    print(many[-1], flush=True)
    other, phases = measured(plain(TURNS, CONVERSATIONS), arguments.rounds)
    many.append(line("a plain loop", other, rate, phases))
    print(many[-1], flush=True)
    tables = "\n".join(["## One turn", "", *single, "", "## Four turns", "", *many])
    head = INTRODUCTION.format(threads=torch.get_num_threads(), rounds=arguments.rounds)
    PAGE.write_text(f"{head}\n{tables}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
