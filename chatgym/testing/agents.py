"""`check_agent`: check an agent against its protocol."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatgym.agent import Interface, make_config, reported, setting_problems
from chatgym.envs.interfaces import ACTIONS, OBSERVATIONS
from chatgym.envs.vector_env import ChatVectorEnv
from chatgym.scenarios import Scenario, find_scenario
from chatgym.testing.acting import check_acting
from chatgym.testing.findings import Findings
from chatgym.testing.saving import Files, check_damaged, check_files, differ
from chatgym.training.search_space import search_space


class Interrupted(Exception):
    """Raised by the training's callback to interrupt it."""


def check_agent(
    agent_class: Any, scenario: str | Scenario = "customer_service", *, config: Any = None, total_steps: int = 4096
) -> None:
    """Check that an agent conforms to `chatgym.agent.Agent`.

    It is trained two to four times, interrupted, saved, loaded, and acts in 64 conversations. Checked are: members and
    settings; shape, dtype and range of actions, each independent of the other rows; determinism; equal results of equal
    seeds, also after an interruption; files without pickle; the global random state. An agent with ``default_steps =
    0`` doesn't learn and may draw even its deterministic actions. Agents may ignore action masks.

    Args:
        agent_class: The class.
        scenario: The scenario to check it in.
        config: Its `Config`, small enough to train within seconds; None: its defaults.
        total_steps: Turns to train for, enough for several iterations.

    Raises:
        NonConforming: With all problems found.
    """
    __tracebackhide__ = True
    findings = Findings(getattr(agent_class, "__qualname__", repr(agent_class)), "chatgym.agent.Agent")
    if _declared(findings, agent_class):
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(findings, agent_class, find_scenario(scenario), config, total_steps, Path(folder))
            with findings.trying("the training"):
                _trained(bench)
            if bench.saved.is_dir():
                with findings.trying("act()"):
                    check_acting(findings, lambda: agent_class.load(bench.saved), bench.make_envs(64), bench.learns)
                with findings.trying("load() of damaged files"):
                    check_damaged(findings, agent_class, bench.saved, bench.folder / "damaged")
    findings.conclude()


@dataclass
class Bench:
    """An agent under test, and the settings of its training."""

    findings: Findings
    agent_class: Any
    scenario: Scenario
    config: Any
    total_steps: int
    folder: Path
    sizes: list[int] = field(default_factory=list)
    counter: Any = field(default_factory=itertools.count)

    @property
    def saved(self) -> Path:
        """Folder of the trained agent."""
        return self.folder / "0"

    @property
    def learns(self) -> bool:
        """Whether the agent learns."""
        return bool(getattr(self.agent_class, "default_steps", 1))

    def make_envs(self, num_envs: int, **overrides: Any) -> ChatVectorEnv:
        """Make conversations of the agent's interface; without words, unless `overrides` name a model."""
        requires = self.agent_class.requires
        arguments = {"llm": "template", "action": requires.action, "observation": requires.observation, **overrides}
        envs = ChatVectorEnv(num_envs, scenario=self.scenario, **arguments)
        envs.only = "train"
        return envs

    def train(self, randomness: int, stop_at: int | None = None) -> tuple[Any, Files, list[int]]:
        """Train an agent with seed 0; seed the global generators with `randomness`, interrupt it after `stop_at` turns.

        Returns:
            The agent, its files, and the turns at which its callback was called.
        """
        agent, turns, half = self.agent_class(self.scenario, self.config, seed=0), [], self.folder / "half"

        def callback(done: int, metrics: Mapping[str, float]) -> None:
            """Record the turns; with `stop_at`, save the agent there and interrupt the training."""
            turns.append(reported(self.findings.subject, done, metrics)[0])
            if stop_at is not None and done >= stop_at and not half.exists():
                self.save(agent, half)
                raise Interrupted

        with self.findings.global_randomness_kept("the training", randomness):
            if stop_at is not None:
                try:
                    agent.learn(self.make_envs, self.total_steps, callback)
                except Interrupted:
                    agent = self.agent_class.load(half)
                else:
                    self.findings.expect(
                        False, "learn() swallows an exception that its callback raised. Let it pass: Ctrl-C is one."
                    )
            agent.learn(self.make_envs, self.total_steps, callback)
            files = self.save(agent)
        return agent, files, turns

    def save(self, agent: Any, folder: Path | None = None) -> Files:
        """Save the agent into a new folder and return the files."""
        folder = folder or self.folder / str(next(self.counter))
        folder.mkdir()
        agent.save(folder)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _declared(findings: Findings, agent_class: Any) -> bool:
    """Check the class without making an agent; return whether one can be made."""
    methods = [name for name in ("learn", "act", "save", "load") if not callable(getattr(agent_class, name, None))]
    findings.expect(
        not methods, f"It has no method {', '.join(f'`{name}`' for name in methods)}. Write what the protocol says."
    )
    static = inspect.getattr_static(agent_class, "load", None)
    findings.expect(
        static is None or isinstance(static, (classmethod, staticmethod)),
        "`load` needs an agent to be called on, but makes one. Decorate it with @classmethod.",
    )
    requires = getattr(agent_class, "requires", None)
    findings.expect(
        isinstance(requires, Interface) and requires.action in ACTIONS and requires.observation in OBSERVATIONS,
        f"`requires` is {requires!r}. Set it to an `Interface` of an action ({', '.join(ACTIONS)}) and an observation "
        f"({', '.join(OBSERVATIONS)}).",
    )
    steps = getattr(agent_class, "default_steps", 0)
    findings.expect(
        type(steps) is int and steps >= 0, f"`default_steps` is {steps!r}. It is a number of turns, 0 or more."
    )
    _settings(findings, getattr(agent_class, "Config", None))
    return not findings.problems


def _settings(findings: Findings, config_class: Any) -> None:
    """Check that `Config` is a frozen dataclass of settings with defaults."""
    if problems := setting_problems(config_class):
        findings.problems += problems
        return
    for each in dataclasses.fields(config_class):
        findings.expect(
            "help" in each.metadata,
            f"the setting `{each.name}` says nothing for `chatgym train --help`. Declare it with "
            "`chatgym.agent.setting`.",
        )
    if not findings.problems:
        with findings.trying("Config() with its own defaults"):
            make_config(config_class, dataclasses.asdict(config_class()))
    tuned = [each.name for each in dataclasses.fields(config_class) if each.metadata.get("tune") is not None]
    if tuned and not findings.problems:
        with findings.trying("searching the ranges that the settings declare for `chatgym tune`"):
            search_space(config_class, tuned)


def _trained(bench: Bench) -> None:
    """Train the agent, and check its iterations, its files, loading, and training again."""
    findings, total = bench.findings, bench.total_steps
    agent, files, turns = bench.train(randomness=1)
    if bench.learns:
        _iterations(findings, turns, total)
    check_files(findings, bench.saved, files)
    again = bench.save(agent)
    findings.expect(
        files == again,
        f"save() writes other bytes the second time, in {differ(files, again)}. Write no time.",
    )
    loaded = bench.agent_class.load(bench.saved)
    if findings.expect(
        isinstance(loaded, bench.agent_class),
        f"load() returns {type(loaded).__name__}. Return an agent of the class that it is called on.",
    ):
        copied = bench.save(loaded)
        findings.expect(
            files == copied,
            f"an agent that was loaded is saved otherwise, in {differ(files, copied)}: load() doesn't bring back all "
            "that save() wrote.",
        )
    if not bench.learns:
        return
    called: list[int] = []
    agent.learn(bench.make_envs, total, lambda done, metrics: called.append(done))
    findings.expect(
        bench.save(agent) == files,
        f"learn() goes on although the {total} turns were done. Train for what is left of them, those before a load() "
        "counted.",
    )
    _same_training(bench, files, turns)


def _iterations(findings: Findings, turns: list[int], total: int) -> None:
    """Check the turns at which the callback was called."""
    shown = f"{', '.join(map(str, turns[:3]))}{' ...' if len(turns) > 3 else ''}"
    if not findings.expect(turns, "learn() never calls its callback. Call callback(turns, metrics) at each iteration."):
        return
    findings.expect(
        all(a < b for a, b in itertools.pairwise(turns)),
        f"the turns that learn() tells its callback don't grow: {shown}. Tell it all turns done so far.",
    )
    findings.expect(turns[-1] >= total, f"learn() ends after {turns[-1]} of {total} turns. Go on until they are done.")
    findings.expect(
        len(turns) < 2 or turns[-2] < total,
        f"learn() goes on to {turns[-1]} turns where {total} were asked for. End with the iteration that reaches them.",
    )
    findings.expect(
        len(turns) >= 2 and turns[0] < total,
        f"all {total} turns were one iteration, so that nothing can be said of going on with a training. Call "
        "check_agent with more `total_steps`, or a `config` of fewer conversations.",
    )


def _same_training(bench: Bench, files: Files, turns: list[int]) -> None:
    """Train again with an interruption and another global random state; if the result differs, find the cause."""
    findings = bench.findings
    if len(turns) < 2:
        return
    _, resumed, more = bench.train(randomness=2, stop_at=(turns[0] + turns[-1]) // 2)
    if resumed == files:
        findings.expect(
            more == turns, f"an interrupted training calls its callback at {more}, an undisturbed one at {turns}."
        )
        return
    _, again, _ = bench.train(randomness=1)
    if not findings.expect(
        again == files,
        f"the same seed trains another agent the second time, in {differ(files, again)}. Seed the environments "
        "(envs.reset(seed=seed)) and draw from `chatgym.dynamics.rng` or a generator of your own.",
    ):
        return
    _, other, _ = bench.train(randomness=2)
    if findings.expect(
        other == files,
        f"what it learns depends on the global random state, in {differ(files, other)}. Draw from "
        "`chatgym.dynamics.rng` or a generator of your own.",
    ):
        findings.expect(
            False,
            f"a training that was interrupted, saved, loaded and resumed ends otherwise, in {differ(files, resumed)}. "
            "Save all that it needs to go on: the environments (envs.snapshot()), counters, generators, buffers.",
        )
