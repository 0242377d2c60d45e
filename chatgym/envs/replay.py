"""Record conversations as traces, and replay them to compare every observation, reward, act and word."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.identity import differences, same_simulator
from chatgym.dynamics.rng import split_of
from chatgym.dynamics.trace import ACCOUNT, TraceWriter, check_seal, encode_observation, read
from chatgym.envs.codecs import Spoken
from chatgym.envs.conversation_env import key_of
from chatgym.errors import Corrupted, InvalidValue, ReplayMismatch
from chatgym.rewards import CUSTOM, Conversation, RewardModel, RewardStep
from chatgym.rewards.function import Function
from chatgym.rewards.term import NAME
from chatgym.scenarios import find_scenario, recorded_name
from chatgym.storage.utf8 import valid


def encode_action(action: int | str) -> int | str | dict[str, Any]:
    """Return an action as JSON: numbers and valid texts unchanged, a `Spoken` one with its act."""
    if isinstance(action, Spoken):
        return {"text": valid(action), "act": action.act}
    return valid(action) if isinstance(action, str) else int(action)


def decode_action(action: Any) -> Any:
    """Return the action that `encode_action` encoded.

    Raises:
        Corrupted: It is an object other than ``{"text": STRING, "act": INTEGER}``.
    """
    if not isinstance(action, dict):
        return action
    if action.keys() != {"text", "act"} or not isinstance(action["text"], str) or type(action["act"]) is not int:
        raise Corrupted(
            f'{json.dumps(action)[:200]} is no action; one that is an object has a "text", which is a string, and an '
            '"act", which is an integer; record the trace again'
        )
    return Spoken(action["text"], action["act"])


def start_record(env: Any, observation: Any, info: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
    """Return the line of a conversation's start, after ``env.reset``; `env` is an unwrapped `ChatEnv`.

    Its fields: ``key`` (hexadecimal), ``seed`` (null if it isn't known), ``observation``, ``user_act`` and ``text``
    (what the partner said), and what the agent heard, see `chatgym.envs.account.Account.entries`.
    """
    return {
        "type": "start",
        "key": f"{env.key:016x}",
        "seed": seed,
        "observation": encode_observation(observation),
        "user_act": info["user_act"],
        "text": info["text"],
        **env.account.entries()[-1],
        **_reply(env),
    }


def turn_record(env: Any, action: int | str, observation: Any, reward: float, info: dict[str, Any]) -> dict[str, Any]:
    """Return the line of an agent turn and the partner's answer, after ``env.step``.

    Its fields: ``action``, ``agent_act``, ``agent_text`` and, of own words, ``understood`` (what the agent said),
    ``observation``, ``reward`` and ``reward_terms``, ``user_act`` and ``text`` (what the partner answered), and what
    the agent heard, see `chatgym.envs.account.Account.entries`. The last line has ``outcome`` and ``goal``, the
    partner's hidden goal.
    """
    line = {
        "type": "turn",
        "action": encode_action(action),
        "agent_act": info["agent_act"],
        "agent_text": env.agent_text,
        "observation": encode_observation(observation),
        "reward": reward,
        "reward_terms": info["reward_terms"],
        "user_act": info["user_act"],
        "text": info["text"],
        **({"understood": env.agent_turn["heard"]} if "heard" in env.agent_turn else {}),
        **(env.account.entries()[-1] if info["agent_act"] else {}),  # within a turn, as with tokens, nothing is heard
        **_reply(env),
    }
    return {**line, "outcome": info["outcome"], "goal": env.account.goal()} if "outcome" in info else line


def _reply(env: Any) -> dict[str, str]:
    """Return the reply of the language model that plays the partner, without its thoughts; empty without one."""
    player = env.llm_simulator
    return {"reply": player.replies[0]} if player is not None and player.replies else {}


def record(
    env: Any,
    policy: Callable[[Any, dict[str, Any]], int | str],
    path: str | Path,
    *,
    keys: Sequence[int],
    seeds: Sequence[int] | None = None,
) -> None:
    """Run a policy in a `ChatEnv` and write the trace.

    The trace has what the `ChatEnv` itself was given and returned, whatever wrappers make of it.

    Args:
        env: A `ChatEnv`, wrapped or not.
        policy: Called with observation and info, returns an action.
        path: File to write.
        keys: Keys of the conversations.
        seeds: The seeds that the keys belong to, in the keys' split; None: unknown.

    Raises:
        InvalidValue: A seed isn't that of its key; or an attribute of the environment, such as its error rate, was set
            on the way: a trace is of one simulator.
    """
    known = [None] * len(keys) if seeds is None else [None if seed is None else int(seed) for seed in seeds]
    for key, known_seed in zip(keys, known, strict=True):
        if known_seed is not None and not _belongs(known_seed, int(key)):
            raise InvalidValue(f"{known_seed} isn't the seed of the key {int(key):016x}; leave out seeds, or mend them")
    chat = env.unwrapped
    chat.limit_turns(_wrappers(env))
    settings = chat.settings()
    with TraceWriter(path, chat.identity()) as trace, _overheard(chat) as lines:
        for key, seed in zip(keys, known, strict=True):
            lines.clear()
            observation, info = env.reset(options={"key": key})
            for line in lines:
                line["seed"] = seed
            _write(trace, chat, lines)
            over = False
            while not over:
                action = policy(observation, info)
                lines.clear()  # of what the policy tried out
                observation, _, terminated, truncated, info = env.step(action)
                over = terminated or truncated
                _write(trace, chat, lines)
                _check_settings(path, settings, chat.settings())


def _check_settings(path: str | Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that what may be set at an environment is as it was when its trace began.

    Raises:
        InvalidValue: Something differs.
    """
    for name, value in before.items():
        if now[name] != value:
            raise InvalidValue(
                f"{path} can't be completed: {name} was {value!r} when the trace began and is {now[name]!r}; a trace "
                "is of one simulator, so record another one after setting it"
            )


def _write(trace: TraceWriter, chat: Any, lines: Iterable[dict[str, Any]]) -> None:
    """Write lines of a `ChatEnv` into a trace, after the banks of wordings that they need."""
    trace.words(chat.speaker.used)
    for line in lines:
        trace.write(line)


@contextlib.contextmanager
def _overheard(chat: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield a list to which the lines of all that a `ChatEnv` does in the block are appended."""
    lines: list[dict[str, Any]] = []
    reset, step = chat.reset, chat.step

    @functools.wraps(reset)
    def listen(**given: Any) -> Any:
        observation, info = reset(**given)
        lines.append(start_record(chat, observation, info))
        return observation, info

    @functools.wraps(step)
    def watch(action: Any) -> Any:
        observation, reward, terminated, truncated, info = step(action)
        lines.append(turn_record(chat, action, observation, float(reward), info))
        return observation, reward, terminated, truncated, info

    chat.reset, chat.step = listen, watch
    try:
        yield lines
    finally:
        del chat.reset, chat.step


def _wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers around a `ChatEnv`, the outermost first."""
    while env is not env.unwrapped:
        yield env
        env = env.env


@dataclass(frozen=True)
class Replay:
    """Result of a replay, all of which matched the trace (else `replay` raises)."""

    conversations: int
    turns: int
    sha256: str


def replay(path: str | Path, *, reward: str | Function | None = None) -> Replay:
    """Replay a trace and compare every observation, reward, act and text, and what was heard and believed.

    Needs no model: the trace holds the wordings that one made.

    Args:
        path: The trace.
        reward: The function that paid in a trace with ``reward=``, to compute its rewards again; None: they are taken
            from the trace, for a name in a file isn't imported.

    Raises:
        ReplayMismatch: At the first difference, with line, field and both values; also if this version of the simulator
            isn't the trace's.
        InvalidValue, Corrupted: See `read`.
    """
    records = read(path)
    kinds = Counter(line["type"] for line in replayed(path, records, reward))
    return Replay(kinds["start"], kinds["turn"], check_seal(path, records))


def replayed(
    path: str | Path, records: Sequence[dict[str, Any]], reward: str | Function | None = None
) -> Iterator[dict[str, Any]]:
    """Replay what `read` returned of a trace, and yield its lines of conversations with all fields of this version.

    Raises:
        ReplayMismatch, Corrupted: See `replay`.
    """
    identity, version = records[0]["identity"], records[0]["version"]
    chat, paid = _environment(path, identity, reward)
    for number, expected in enumerate(records[1:-1], 2):
        if expected["type"] == "words":
            chat.speaker.preload({expected["bank"]: expected["wordings"]})
            continue
        try:
            got = _again(chat, expected, paid)
        except Corrupted as error:
            raise Corrupted(f"{path}, line {number}: {error}") from None
        for field in sorted(set(got) | set(expected)):
            if got.get(field) != expected.get(field) and (version > 1 or field not in ACCOUNT):
                raise ReplayMismatch(
                    f"{path}, line {number}: {field} is {expected.get(field)!r}, the replay gave {got.get(field)!r}"
                )
        yield got


def _environment(path: str | Path, identity: dict[str, Any], reward: str | Function | None) -> tuple[Any, Any]:
    """Return the environment of a trace, and its reward function, if any.

    Raises:
        ReplayMismatch: It is another one here.
    """
    import gymnasium as gym

    arguments = _arguments(identity, reward)
    chat: Any = gym.make("ChatEnv-v0", **arguments, disable_env_checker=True).unwrapped
    if identity["error_model"]["version"] == 1:
        chat._conversations.garbles = False  # its words are what was said, not what the agent heard
    recorded, here, function = identity["sha256"], chat.identity(), identity["reward"].get("function")
    if not same_simulator(recorded, here, same_belief=identity["observation"] == "belief"):
        raise ReplayMismatch(
            f"{path} was recorded with another simulator ({differences(identity, here)}); "
            "install the version of ChatGym or of the plugin that recorded it"
            + (f", or give the reward function {function.get('name')} as it was" if reward is not None else "")
        )
    return chat, arguments["reward"]


def _belongs(seed: int, key: int) -> bool:
    """Tell whether a key is that of a seed, in the key's split."""
    return key_of(seed, str(split_of(np.uint64(key)))) == key


def _again(chat: Any, expected: dict[str, Any], paid: Any) -> dict[str, Any]:
    """Do what a line says in a `ChatEnv`, and return the line that this gives."""
    if chat.llm_simulator is not None:
        reply = expected.get("reply")
        chat.llm_simulator.script = [reply] if isinstance(reply, str) else []
    if isinstance(model := chat.reward_model, _Scores):
        model.script = expected.get("reward_terms")
    if isinstance(paid, _Paid):
        paid.script = expected.get("reward_terms")
    if expected["type"] == "start":
        observation, info = chat.reset(options={"key": int(expected["key"], 16)})
        seed = expected.get("seed")
        belongs = type(seed) is int and seed >= 0 and _belongs(seed, chat.key)
        return start_record(chat, observation, info, seed if belongs else None)
    action = decode_action(expected.get("action"))
    observation, reward, _, _, info = chat.step(action)
    return turn_record(chat, action, observation, float(reward), info)


def _arguments(identity: dict[str, Any], reward: str | Function | None) -> dict[str, Any]:
    """Return the arguments of the environment that an identity names; the words come from the trace.

    So do the rewards of a function, unless `reward` is it.

    Raises:
        InvalidValue: No function paid in the trace, but `reward` is one.
    """
    function = identity["reward"].get("function")
    if function is None and reward is not None:
        raise InvalidValue("no function paid in this trace; leave out reward=")
    return {
        "scenario": recorded_name(identity),
        "action": identity["action"],
        "observation": identity["observation"],
        "tokenizer": identity["tokenizer"] and identity["tokenizer"]["name"],
        "simulator": identity["simulator"]["name"],
        "llm": _Absent(identity["simulator"]["player"]["model"]) if "player" in identity["simulator"] else "template",
        "max_turns": identity["max_turns"],
        "error_rate": identity["error_model"]["rate"],
        "reward_model": _reward_model(identity),
        "reward_weights": identity["reward"]["weights"] if function is None else None,
        "reward": reward or (function and _Paid(function)),
    }


def _reward_model(identity: dict[str, Any]) -> RewardModel | None:
    """Return the reward model of an identity: the scenario's own, or one that reads scores from the trace."""
    from chatgym.rewards import default

    name = identity["reward"].get("model")
    if name is None:
        return None
    scenario = find_scenario(recorded_name(identity))
    if default.exists(scenario) and default.load(scenario).identity == name:
        return default.load(scenario)
    return _Scores(name)


@dataclass
class _Scores:
    """A reward model that isn't available, known by its identity; its scores come from the trace."""

    identity: Any
    script: Any = None

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Return the trace's score of the turn, float32[B].

        Raises:
            Corrupted: The trace has none.
        """
        return np.full(len(conversations), _scripted(self.script, NAME), np.float32)


@dataclass
class _Paid:
    """The reward function of a trace, known by its identity; its values come from the trace."""

    identity: Any
    script: Any = None

    def __call__(self, step: RewardStep) -> npt.NDArray[np.float64]:
        """Return the trace's value of the turn, float64[1].

        Raises:
            Corrupted: The trace has none.
        """
        return np.full(len(step.rows), float(_scripted(self.script, CUSTOM)))


def _scripted(terms: Any, name: str) -> float:
    """Return a reward term of a line of the trace.

    Raises:
        Corrupted: It isn't there.
    """
    value = terms.get(name) if isinstance(terms, dict) else None
    if not isinstance(value, (int, float)):
        raise Corrupted(f"the trace has no number for its reward term {name!r}; record the trace again")
    return value


@dataclass(frozen=True)
class _Absent:
    """The model that played the partner, known by its identity; its replies come from the trace."""

    identity: str

    def generate(self, prompts: Sequence[str], **sampling: Any) -> list[Any]:
        """Raise `Corrupted`: the trace has no reply."""
        raise Corrupted("the trace has no reply of the model that plays the partner; record the trace again")

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Raise `Corrupted`: the trace has no reply."""
        return [list(map(float, self.generate(prompts)))]

    def close(self) -> None:
        """Do nothing."""
