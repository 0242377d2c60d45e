"""Any language model as the agent: told what an agent has to know, it speaks for itself, or calls acts as tools."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.agent import Interface, make_config, setting
from chatgym.dynamics import rng
from chatgym.engines import Engine, make_engine
from chatgym.engines.chat import Message, Reply, chat
from chatgym.envs.codecs import Spoken
from chatgym.errors import Corrupted, InvalidValue
from chatgym.scenarios import UNCLEAR_ACT, Scenario, fill
from chatgym.words.charset import MAX_CHARS, clean

from .scripted import Scripted

NOTHING = "..."
"""Stands in the history for a turn without words: some servers refuse an empty message."""

_THOUGHT = re.compile(r"^.*</think>", re.S)


class LLM(Scripted):
    """A language model, prompted with the scenario's instructions; it learns nothing.

    It sees what the partner says, and what it says is understood by NLU. With `tools` it calls an act instead, each
    being a tool. What can't be used (no words, a tool that isn't there) is a turn in which nobody understood it.

    Attributes:
        engine: The model, opened when it is first asked.
        counts: What became of its replies: ``replies``, and of them ``empty``, ``cut`` (as long as they may be),
            ``tool_calls``, ``unknown_tools``.
        progress: Called with the number of replies so far.
    """

    requires = Interface(action="text", observation="text")

    @dataclass(frozen=True)
    class Config:
        """Which model, and how it is asked."""

        llm: str = setting("smollm2-135m", "the model: smollm2-135m, hf:ID-or-folder, openai:URL#MODEL, ...")
        tools: bool = setting(False, "each act is a tool that it calls, in place of words that have to be understood")
        briefing: bool = setting(True, "it is told what an agent has to know; not one that learned it (`chatgym sft`)")
        temperature: float = setting(0.0, "of its words; 0 takes the likeliest", low=0.0, high=2.0)
        top_p: float = setting(1.0, "sample among the likeliest that have this share together", low=0.001, high=1.0)
        max_new_tokens: int = setting(64, "most tokens of a turn; more for a model that thinks first", low=1)

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """See `chatgym.agent.Agent`; the model isn't opened before it is asked."""
        super().__init__(scenario, config, seed=seed)
        self.config: LLM.Config = config or self.Config()
        self.counts: Counter[str] = Counter()
        self.progress: Callable[[int], None] | None = None
        self._engine: Engine | None = None
        self._tools = tools_of(scenario) if self.config.tools else []
        told = briefing(scenario, tools=self.config.tools)
        self._told: list[Message] = [{"role": "system", "content": told}] if self.config.briefing else []
        self._roots: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._chats: list[list[Message]] = []
        self._called: list[str] = []  # the id of the tool call that the partner's next words answer, or ""
        self._turns: list[int] = []

    @property
    def engine(self) -> Engine:
        """The model.

        Raises:
            InvalidValue: There is no such model.
        """
        if self._engine is None:
            self._engine = make_engine(self.config.llm)
        if self._engine is None:
            raise InvalidValue(f"llm {self.config.llm!r} is no model that could be the agent; name one, --llm MODEL")
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, keys: npt.NDArray[np.uint64]) -> None:
        """Begin B conversations of these keys, uint64[B]: what the model says in one follows from its key."""
        with np.errstate(over="ignore"):
            self._roots = keys + np.uint64(self.seed)
        self._chats = [[*self._told] for _ in keys]
        self._called, self._turns = [""] * len(keys), [0] * len(keys)

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> Any:
        """Answer in B conversations.

        Args:
            observations: B texts, the partner's last words; ``""`` where nothing is to be answered.
            deterministic: Makes no difference: a temperature above 0 is sampled by seeds.
            action_masks: None.

        Returns:
            B texts, `Spoken` ones where a tool was called or nothing said.
        """
        heard = list(observations)
        if len(heard) != len(self._chats):
            self.begin(np.arange(len(heard), dtype=np.uint64))
        rows = [row for row, text in enumerate(heard) if text]
        asked = [[*self._chats[row], self._heard(row, heard[row])] for row in rows]
        seeds = [int(rng.bits(self._roots[row], self._turns[row], 0)) for row in rows]
        before, done = self.counts["replies"], set[int]()

        def answered(row: int, reply: Reply) -> None:
            done.add(row)
            if self.progress is not None:
                self.progress(before + len(done))

        replies = chat(
            self.engine, asked, seeds=seeds, tools=self._tools, answered=answered, temperature=self.config.temperature,
            top_p=self.config.top_p, max_new_tokens=self.config.max_new_tokens,
        )  # fmt: skip
        said: list[str] = [""] * len(heard)
        for row, messages, reply in zip(rows, asked, replies, strict=True):
            said[row], message = self._take(reply, f"call_{self._turns[row]}")
            self._called[row] = message["tool_calls"][0]["id"] if "tool_calls" in message else ""
            self._chats[row] = [*messages, message]
            self._turns[row] += 1
        return said

    def report(self) -> dict[str, Any]:
        """Say which model it was, and what became of its replies, JSON-able."""
        return {"model": self.engine.identity, **asdict(self.config), "counts": dict(sorted(self.counts.items()))}

    def save(self, folder: Path) -> None:
        """Write scenario, seed and configuration as JSON."""
        about = {"scenario": self.scenario.name, "seed": self.seed, "config": asdict(self.config)}
        (folder / "agent.json").write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LLM:
        """Read back what `save` wrote."""
        agent: LLM = super().load(folder)
        try:
            config = json.loads((folder / "agent.json").read_text(encoding="utf-8"))["config"]
            return cls(agent.scenario, make_config(cls.Config, config), seed=agent.seed)
        except (KeyError, TypeError, AttributeError, InvalidValue) as error:
            raise Corrupted(f"{folder / 'agent.json'} can't be read ({error}); save the agent again") from error

    def _heard(self, row: int, text: str) -> Message:
        """Return the message in which the partner speaks: what a tool gave, where one was called."""
        if self._called[row]:
            return {"role": "tool", "tool_call_id": self._called[row], "content": text}
        return {"role": "user", "content": text}

    def _take(self, reply: Reply, call: str) -> tuple[str, dict[str, Any]]:
        """Return what a reply says, and the message that stands for it in the history."""
        text = clean(_THOUGHT.sub("", reply.text))[:MAX_CHARS]
        self.counts.update(["replies", *(["cut"] if reply.finish_reason == "length" else [])])
        if not (self._tools and reply.calls):
            if not text:
                self.counts["empty"] += 1
                return Spoken("", UNCLEAR_ACT), {"role": "assistant", "content": NOTHING}
            return text, {"role": "assistant", "content": text}
        name = reply.calls[0].name
        words = _words(reply.calls[0].arguments)
        if name not in self.scenario.agent_acts or words is None:
            self.counts["unknown_tools"] += 1
            return Spoken(text, UNCLEAR_ACT), {"role": "assistant", "content": text or NOTHING}
        self.counts["tool_calls"] += 1
        function = {"name": name, "arguments": json.dumps({"say": words} if words else {})}
        made = {"id": call, "type": "function", "function": function}
        message = {"role": "assistant", "content": text or None, "tool_calls": [made]}
        return Spoken(words or text, self.scenario.agent_acts.index(name)), message


def briefing(scenario: Scenario, *, tools: bool = False) -> str:
    """Return the system prompt: who the agent is, what it has to know, and what it can do."""
    partner = scenario.partner_role
    lines = [
        f"You are the {scenario.agent_role} in a chat with a {partner}. {scenario.description}",
        scenario.instructions(),
    ]
    if tools:
        lines.append(f"In each turn call one tool: it says that to the {partner}, whose answer is what it returns.")
    else:
        lines.append("What you can do, one thing in each message, and how it may sound:")
        lines += [f"- {act}: {example}" for act, example in _examples(scenario).items()]
        lines.append(
            f"Write only your next message to the {partner}: one or two short sentences of plain English that do one "
            "of these things, without its name."
        )
    return "\n".join(lines)


def tools_of(scenario: Scenario) -> list[dict[str, Any]]:
    """Return the agent's acts as tools of OpenAI's API; ``say`` are the words for it, if the model wants to choose."""
    say = {"type": "string", "description": f"What you say to the {scenario.partner_role}, in your own words."}
    return [
        {
            "type": "function",
            "function": {
                "name": act,
                "description": f"Say something like: {example}",
                "parameters": {"type": "object", "properties": {"say": say}, "required": []},
            },
        }
        for act, example in _examples(scenario).items()
    ]


def _examples(scenario: Scenario) -> dict[str, str]:
    """Return each act with a sentence that does it."""
    slots = {**scenario.examples, **{name: choices[0] for name, choices in scenario.choices.items()}}
    parts: dict[str, Sequence[str]] = scenario.sentences["agent"]
    found: dict[str, str] = {}
    for part, sentences in parts.items():
        found.setdefault(part.partition("/")[0], fill(sentences[0], slots))
    return {act: found[act] for act in scenario.agent_acts if act in found}


def _words(arguments: str) -> str | None:
    """Return the words in a tool call's arguments, empty if there are none; None where they aren't what was asked."""
    try:
        read = json.loads(arguments or "{}")
    except ValueError:
        return None
    said = read.get("say", "") if isinstance(read, dict) else None
    return clean(said)[:MAX_CHARS] if isinstance(said, str) else None
