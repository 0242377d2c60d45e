"""`check_agent` passes what is right, and each of its checks is seen to fail on something that isn't."""
# ruff: noqa: NPY002 (global random state is what is watched)

import contextlib
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from chatgym_agents.dqn import DQN
from chatgym_agents.qlearning import QLearning
from chatgym_agents.scripted import Expert, Random

from chatgym.agent import Interface, Range, make_config, setting
from chatgym.dynamics import rng
from chatgym.errors import Corrupted, InvalidValue
from chatgym.testing import NonConforming, check_agent

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "restaurant"))
from chatgym_restaurant import SCENARIO as RESTAURANT

Mode = Literal["slow", "fast"]


def problems(check, *arguments, **more):
    with pytest.raises(NonConforming) as raised:
        check(*arguments, **more)
    return "\n".join(raised.value.problems)


class Mean:
    """Learns the mean reward of each act: the smallest agent that keeps to the protocol."""

    requires = Interface(action="act", observation="discrete")

    @dataclass(frozen=True)
    class Config:
        rate: float = setting(0.1, "how far a reward moves a mean", low=0.0, high=1.0)
        num_envs: int = setting(64, "conversations at once", low=1)

    def __init__(self, scenario, config=None, *, seed=0):
        self.begin(len(scenario.agent_acts), config or self.Config(), seed)

    def begin(self, n, config, seed):
        self.config, self.seed, self.turns, self.state = config, seed, 0, {}
        self.means = np.zeros(n)

    def noise(self):
        return 0.0

    def learn(self, make_envs, total_steps, callback):
        size = self.config.num_envs
        envs = make_envs(size)
        masks = envs.reset(seed=self.seed)[1]["action_mask"]
        if self.state:
            envs.restore(self.state)
            masks = envs.room.action_masks()
        while self.turns < total_steps:
            draws = rng.uniform(np.arange(size)[:, None], self.turns, np.arange(masks.shape[1]))
            acts = (draws * masks).argmax(1)
            _, rewards, _, _, infos = envs.step(acts)
            masks = infos["action_mask"]
            for act, reward in zip(acts, rewards, strict=True):
                self.means[act] += self.config.rate * (reward + self.noise() - self.means[act])
            self.turns += size
            self.state = envs.snapshot()
            self.tell(callback)

    def tell(self, callback):
        callback(self.turns, {"best": self.means.max()})

    def act(self, observations, *, deterministic=True, action_masks=None):
        values = np.tile(self.means, (len(observations), 1))
        return (values if action_masks is None else np.where(action_masks, values, -np.inf)).argmax(1)

    def save(self, folder):
        about = {"seed": self.seed, "turns": self.turns, "config": dataclasses.asdict(self.config)}
        (folder / "agent.json").write_text(json.dumps(about))
        np.savez(folder / "arrays.npz", means=self.means, **self.state)

    @classmethod
    def load(cls, folder):
        try:
            about = json.loads((folder / "agent.json").read_text())
            with np.load(folder / "arrays.npz", allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
        except Exception as error:
            raise Corrupted(f"{folder} can't be read ({error}); train again") from error
        agent = cls.__new__(cls)
        agent.begin(len(state["means"]), cls.Config(**about["config"]), about["seed"])
        agent.turns, agent.means, agent.state = about["turns"], state.pop("means"), state
        return agent


TOTAL = 512
SMALL = DQN.Config(num_envs=16, buffer_size=400, learning_starts=64, batch_size=16, hidden_size=8, gradient_steps=1)


@pytest.mark.parametrize(
    ("agent", "arguments"),
    [
        (Random, {}),
        (Expert, {}),
        (QLearning, {"config": QLearning.Config(num_envs=64)}),
        (DQN, {"config": SMALL, "total_steps": 16 * 30}),
        (Mean, {"scenario": RESTAURANT, "total_steps": TOTAL}),
    ],
)
def test_agents_that_keep_to_the_protocol_pass(agent, arguments):
    check_agent(agent, **arguments)


def declares(**members):
    return type("Declares", (Mean,), members)


def config(**fields):
    return dataclasses.make_dataclass("Config", fields.items(), frozen=True)


def settings(kind, **arguments):
    made = dataclasses.make_dataclass("Config", [("x", kind, setting(**arguments))], frozen=True)
    return declares(Config=made)


def names(*names):
    fields = [(name, bool, setting(True, "a setting")) for name in names]
    return declares(Config=dataclasses.make_dataclass("Config", fields, frozen=True))


@dataclass
class Thawed:
    x: int = 0


DECLARED = [
    (declares(act=None), "It has no method `act`"),
    (declares(load=lambda folder: None), "Decorate it with @classmethod"),
    (declares(requires="discrete"), "`requires` is 'discrete'. Set it to an `Interface`"),
    (declares(requires=Interface("act", "picture")), "an observation (embedding, discrete"),
    (declares(default_steps=-1), "`default_steps` is -1"),
    (declares(Config=None), "`Config` is no frozen dataclass"),
    (declares(Config=Thawed), "`Config` is no frozen dataclass"),
    (declares(Config=dataclasses.make_dataclass("C", [("x", int)], frozen=True)), "the setting `x` has no default"),
    (declares(Config=dataclasses.make_dataclass("C", [("x", int, 1)], frozen=True)), "says nothing for `chatgym train"),
    (settings(list, default=(), help="a list"), "An option of the command line is a bool, int, float or str"),
    (settings(int, default=5, help="a number", high=3), "Config() with its own defaults raised InvalidValue"),
    (settings(list[int], default=(), help="a list"), "write several values as one str and split it"),
    (
        settings(Literal[1, 2], default=1, help="not of strings"),
        "or str, a Literal of strings, or one of these or None",
    ),
    (settings(int | str, default=1, help="one of two"), "the setting `x` is of type int | str"),
    (
        settings("Hidden", default=1, help="nowhere"),
        "the types of `Config` can't be read (name 'Hidden' is not defined",
    ),
    (settings(Mode, default="zzz", help="a mode"), "InvalidValue: x is one of slow, fast, not 'zzz'"),
    (settings(float, default=float("inf"), help="no end"), "InvalidValue: x is inf; allowed is a finite number"),
    (settings(int, default=np.float32(1), help="a number"), "InvalidValue: x is of type int, not 1.0"),
    (
        settings(float, default=1.0, help="x", high=2, tune=Range(1, 9)),
        "for `chatgym tune` raised InvalidValue: x is 9",
    ),
    (names("seed", "agent_seed"), "the settings `seed` and `agent_seed` would both be the option --agent-seed. Rename"),
    (names("bold", "no_bold"), "the settings `bold` and `no_bold` would both be the option --no-bold. Rename"),
]


@pytest.mark.parametrize(("agent", "words"), DECLARED, ids=[words for _, words in DECLARED])
def test_what_an_agent_declares_is_checked(agent, words):
    assert words in problems(check_agent, agent, RESTAURANT)


class Settled(Mean):
    """Has every kind of setting, also under names that commands have, and speaks in numpy's numbers."""

    @dataclass(frozen=True)
    class Config(Mean.Config):
        mode: Literal["slow", "fast"] = setting("slow", "how it goes", tune=("slow", "fast"))
        limit: float | None = setting(None, "where it ends", low=1.0, tune=(None, 2.0))
        motto: Literal["slow", "fast"] | None = setting(None, "what it says")
        help: bool = setting(True, "whether it helps")
        run: int = dataclasses.field(default_factory=lambda: 3, metadata={"help": "how far"})
        wait: float = setting(1, "how long")

    def tell(self, callback):
        callback(np.int64(self.turns), {"best": np.float32(2), "loss": float("nan"), "left": np.array([3])})


def test_settings_of_all_kinds_and_numbers_of_numpy_are_fine():
    check_agent(Settled, RESTAURANT, total_steps=TOTAL)
    given = {"mode": "fast", "limit": np.float32(1.5), "num_envs": np.int64(5), "wait": 2}
    made = dataclasses.asdict(make_config(Settled.Config, given))
    assert json.loads(json.dumps(made)) == made == {
        "rate": 0.1, "num_envs": 5, "mode": "fast", "limit": 1.5, "motto": None, "help": True, "run": 3, "wait": 2.0,
    }  # fmt: skip
    for wrong in ({"mode": "zzz"}, {"mode": None}, {"limit": "far"}, {"limit": 0.5}, {"motto": "zzz"}, {"help": 1}):
        with pytest.raises(InvalidValue, match=next(iter(wrong))):
            make_config(Settled.Config, wrong)


class Silent(Mean):
    def tell(self, callback):
        pass


class Resetting(Mean):
    def tell(self, callback):
        callback(64, {})


def tells(turns, metrics):
    return type("Tells", (Mean,), {"tell": lambda self, callback: callback(turns(self.turns), metrics)})


class Early(Mean):
    def learn(self, make_envs, total_steps, callback):
        super().learn(make_envs, total_steps // 2, callback)


class Late(Mean):
    def learn(self, make_envs, total_steps, callback):
        super().learn(make_envs, 2 * total_steps, callback)


class Restless(Mean):
    def learn(self, make_envs, total_steps, callback):
        super().learn(make_envs, max(total_steps, self.turns + 1), callback)


class Deaf(Mean):
    def tell(self, callback):
        with contextlib.suppress(Exception):
            super().tell(callback)


class Unseeded(Mean):
    def noise(self):
        return time.perf_counter() % 1e-3


class Reader(Mean):
    def noise(self):
        state = np.random.get_state()
        value = np.random.rand()
        np.random.set_state(state)
        return value


class Numpy(Mean):
    def noise(self):
        return np.random.rand()


class Python(Mean):
    def noise(self):
        return random.random()


class Torch(Mean):
    def noise(self):
        import torch

        return float(torch.rand(1))


class Forgetful(Mean):
    """Goes on with new conversations instead of those that it was in."""

    @classmethod
    def load(cls, folder):
        agent = super().load(folder)
        agent.kept, agent.state = agent.state, {}
        return agent

    def save(self, folder):
        self.state = self.state or self.kept
        super().save(folder)


class Miscounting(Mean):
    @classmethod
    def load(cls, folder):
        agent = super().load(folder)
        agent.turns += 1
        return agent


class Stranger(Mean):
    @classmethod
    def load(cls, folder):
        return Mean.load(folder)


class Dated(Mean):
    def save(self, folder):
        super().save(folder)
        (folder / "when.json").write_text(str(time.perf_counter_ns()))


def saves(name, content):
    def save(self, folder):
        Mean.save(self, folder)
        content(folder / name)

    return type("Saves", (Mean,), {"save": save})


TRAINED = [
    (Silent, "learn() never calls its callback"),
    (tells(int, {"mood": "good"}), "'Tells' tells its callback the metric 'mood' = 'good'; a metric is a number"),
    (tells(int, {"loss": np.zeros(2)}), "tells its callback the metric 'loss' = array([0., 0.])"),
    (tells(int, {0: 1.0}), "tells its callback the metric 0 = 1.0; a metric is a number with a str for its name"),
    (tells(int, [1.0]), "tells its callback [1.0]; tell it a dict of metrics by name"),
    (tells(lambda turns: turns + 0.5, {}), "tells its callback 64.5 turns; tell it the whole number"),
    (Resetting, "the turns that learn() tells its callback don't grow: 64, 64, 64 ..."),
    (Early, "learn() ends after 256 of 512 turns"),
    (Late, "learn() goes on to 1024 turns where 512 were asked for"),
    (Restless, "learn() goes on although the 512 turns were done"),
    (Deaf, "learn() swallows an exception that its callback raised"),
    (Unseeded, "the same seed trains another agent the second time, in arrays.npz"),
    (Reader, "what it learns depends on the global random state, in arrays.npz"),
    (Numpy, "the training changes the global random state of np.random"),
    (Python, "the training changes the global random state of random"),
    (Torch, "the training changes the global random state of torch"),
    (Forgetful, "a training that was interrupted, saved, loaded and resumed ends otherwise, in arrays.npz"),
    (Miscounting, "an agent that was loaded is saved otherwise, in agent.json"),
    (Stranger, "load() returns Mean. Return an agent of the class that it is called on"),
    (Dated, "save() writes other bytes the second time, in when.json"),
    (saves("policy.pkl", lambda path: path.write_bytes(b"\x80\x04.")), "save() writes policy.pkl. Write .json, .npz"),
    (saves("model.zip", lambda path: path.write_bytes(b"PK")), "save() writes model.zip"),
    (saves("odd.npz", lambda path: np.savez(path, a=np.array([{}], object))), "odd.npz can't be read as what it is"),
    (saves("odd.json", lambda path: path.write_bytes(b"\x80\x04.")), "odd.json can't be read as what it is called"),
    (saves("odd.safetensors", lambda path: path.write_bytes(b"PK")), "odd.safetensors can't be read"),
    (declares(save=lambda self, folder: None), "save() writes no file"),
    (declares(learn=lambda self, *rest: 1 / 0), "the training raised ZeroDivisionError: division by zero (test"),
    (
        declares(learn=lambda self, make_envs, *rest: make_envs(4).reset(options={"split": "test"})),
        "for conversations of the split 'train' only, not test",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("agent", "words"), TRAINED, ids=[words[:60] for _, words in TRAINED])
def test_an_agents_training_is_checked(agent, words):
    assert words in problems(check_agent, agent, RESTAURANT, total_steps=TOTAL)


def test_a_training_of_one_iteration_says_that_nothing_can_be_said():
    assert "all 64 turns were one iteration" in problems(check_agent, Mean, RESTAURANT, total_steps=64)


def acts(change):
    def act(self, observations, *, deterministic=True, action_masks=None):
        return change(self, Mean.act(self, observations, action_masks=action_masks), observations, action_masks)

    return type("Acts", (Mean,), {"act": act})


def by_call(self, chosen, observations, masks):
    self.calls = getattr(self, "calls", 0) + 1
    return (chosen + self.calls) % 7


def wipe(self, chosen, observations, masks):
    observations[:] = 0
    return chosen


BORN = itertools.count()


def by_birth(self, chosen, observations, masks):
    self.born = getattr(self, "born", None) or next(BORN) + 1
    return np.full_like(chosen, self.born % 7)


def drawn(self, chosen, observations, masks):
    return np.random.default_rng(len(observations)).integers(7, size=len(observations))


ACTING = [
    (acts(lambda self, chosen, *_: chosen.astype(np.int32)), "act() returns int32[64] for 64 conversations"),
    (acts(lambda self, chosen, *_: chosen[:, None]), "act() returns int64[64, 1] for 64 conversations"),
    (acts(lambda self, chosen, *_: chosen.tolist()), "act() returns list for 64 conversations"),
    (acts(lambda self, chosen, *_: chosen + 7), "there are 0 to 6"),
    (acts(wipe), "act() writes into the observations or masks"),
    (acts(by_birth), "two agents loaded from the same folder act differently"),
    (acts(drawn), "depends on the rows beside it, or on how many there are"),
    (acts(lambda self, chosen, seen, _: (seen - seen.mean() > 0).astype(np.int64)), "depends on the rows beside it"),
    (acts(by_call), "with deterministic=True the same observations get other actions at another call"),
    (acts(lambda self, chosen, *_: np.arange(len(chosen)) % 7), "with deterministic=True a row in another place"),
    (acts(lambda self, chosen, seen, masks: masks.argmax(1)), "act() without action_masks raised AttributeError"),
    (declares(load=classmethod(lambda cls, folder: cls(RESTAURANT))), "is cut off in the middle, load() makes"),
]  # fmt: skip


@pytest.mark.parametrize(("agent", "words"), ACTING, ids=[words[:60] for _, words in ACTING])
def test_how_an_agent_acts_is_checked(agent, words):
    assert words in problems(check_agent, agent, RESTAURANT, total_steps=TOTAL)


def test_damaged_files_have_to_raise_the_error_that_says_so():
    def load(cls, folder):
        json.loads((folder / "agent.json").read_text())
        return Mean.load.__func__(cls, folder)

    found = problems(check_agent, declares(load=classmethod(load)), RESTAURANT, total_steps=TOTAL)
    assert found == (
        "where agent.json is cut off in the middle, load() raises JSONDecodeError. Raise `chatgym.errors.Corrupted`, "
        "which says what to do."
    )


class Greeter(Random):
    requires = Interface(action="text", observation="text")

    def act(self, observations, *, deterministic=True, action_masks=None):
        return ["Hello, what can I do for you?"] * len(observations)


class Mute(Greeter):
    def act(self, observations, *, deterministic=True, action_masks=None):
        return np.zeros(len(observations), np.int64)


class MyAgent(acts(lambda self, chosen, *_: chosen.astype(np.int32))):
    def tell(self, callback):
        np.random.rand()
        super().tell(callback)


def test_the_problems_that_the_documentation_shows_are_told_in_these_words():
    with pytest.raises(NonConforming) as raised:
        check_agent(MyAgent, RESTAURANT, total_steps=TOTAL)
    shown = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    assert " ".join(str(raised.value).split()) in " ".join(shown.split())


def test_an_agent_may_write_and_then_has_to_return_texts():
    check_agent(Greeter)
    assert "act() doesn't return 64 strings for 64 conversations" in problems(check_agent, Mute)


def test_an_agent_that_learns_nothing_may_draw_its_actions():
    assert "at another call" in problems(check_agent, type("R", (Random,), {"default_steps": 9}), total_steps=TOTAL)


def test_the_global_random_state_is_put_back_as_it_was():
    np.random.seed(5)
    random.seed(5)
    expected = np.random.rand(), random.random()
    np.random.seed(5)
    random.seed(5)
    with pytest.raises(NonConforming):
        check_agent(Numpy, RESTAURANT, total_steps=TOTAL)
    assert (np.random.rand(), random.random()) == expected


def test_nothing_of_it_needs_pytest():
    code = "import sys; sys.modules['pytest'] = None; import chatgym.testing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
