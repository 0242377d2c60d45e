"""Any language model as the agent: prompted with the scenario's instructions, it writes replies or calls tools."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.agent import Interface, setting
from chatgym.dynamics import rng
from chatgym.engines import Engine, make_engine
from chatgym.engines.chat import Message, Reply, ask
from chatgym.engines.spoken import ENOUGH, why_wordless, without_thoughts
from chatgym.envs.codecs import Spoken
from chatgym.errors import InvalidValue
from chatgym.scenarios import UNCLEAR_ACT, Scenario, fill
from chatgym.storage.utf8 import parsed
from chatgym.words.charset import MAX_CHARS, clean

from .scripted import Scripted

NOTHING = "..."
"""Replaces an empty message in the history, because some servers refuse empty messages."""


class LLM(Scripted):
    """A language model, prompted with the scenario's instructions; it learns nothing.

    It reads the partner's words, and NLU understands its own. With the setting `tools` each act is a tool that it calls
    instead. A reply that can't be used (no words, an unknown tool) is an act that the partner does not understand.

    Attributes:
        engine: The model, opened when it is first asked.
        counts: Counts of replies by how they were handled: ``replies`` is all of them, ``empty`` had no words, ``cut``
            reached `max_new_tokens`, ``tool_calls`` called an act, ``unknown_tools`` called something else.
        tokens: Tokens of all ``prompts`` and ``replies``; None if the engine doesn't state them.
        seconds: Time spent waiting for the model.
        tools: The tools that it is offered, in the form of OpenAI's API.
        progress: Called with the number of replies so far.
    """

    requires = Interface(action="text", observation="text")

    @dataclass(frozen=True)
    class Config:
        """The model and its sampling."""

        llm: str = setting("smollm2-135m", "the model: smollm2-135m, hf:ID-or-folder, openai:URL#MODEL, ...")
        tools: bool = setting(False, "offer each act as a tool, instead of understanding the model's words")
        briefing: bool = setting(
            True, "prompt it with the scenario's instructions; off for a model fine-tuned without (`chatgym sft`)"
        )
        temperature: float = setting(0.0, "sampling temperature; 0 takes the most likely tokens", low=0.0, high=2.0)
        top_p: float = setting(
            1.0, "sample among the most likely tokens that have this probability together", low=0.001, high=1.0
        )
        max_new_tokens: int = setting(64, "most tokens in a turn; more for a model that thinks first", low=1)

    def __init__(self, scenario: Scenario, config: Any = None, *, seed: int = 0) -> None:
        """See `chatgym.agent.Agent`; the model is opened when it is first asked."""
        super().__init__(scenario, config, seed=seed)
        self.counts: Counter[str] = Counter()
        self.tokens: dict[str, int | None] = {"prompts": 0, "replies": 0}
        self.seconds = 0.0
        self.progress: Callable[[int], None] | None = None
        self._engine: Engine | None = None
        self.tools = tools_of(scenario) if self.config.tools else []
        told = briefing(scenario, tools=self.config.tools)
        self._told: list[Message] = [{"role": "system", "content": told}] if self.config.briefing else []
        self._roots: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._chats: list[list[Message]] = []
        self._written: list[list[Reply]] = []
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
        """Begin B conversations with these keys, uint64[B], which decide the samples that are drawn."""
        with np.errstate(over="ignore"):
            self._roots = keys + np.uint64(self.seed)
        self._chats, self._written = [[*self._told] for _ in keys], [[] for _ in keys]
        self._called, self._turns = [""] * len(keys), [0] * len(keys)

    def act(
        self, observations: Any, *, deterministic: bool = True, action_masks: npt.NDArray[np.bool_] | None = None
    ) -> Any:
        """Reply in B conversations.

        Args:
            observations: B texts, the partner's last words; ``""`` where a conversation is over.
            deterministic: Ignored: the setting `temperature` decides, and samples are drawn by seeds.
            action_masks: None.

        Returns:
            B texts; a `Spoken`, which names its act, where a tool was called or nothing was said.
        """
        heard = list(observations)
        if len(heard) != len(self._chats):
            self.begin(np.arange(len(heard), dtype=np.uint64))
        rows = [row for row, text in enumerate(heard) if text]
        asked = [self.prompt(row, heard[row]) for row in rows]
        seeds = [int(rng.bits(self._roots[row], self._turns[row], 0)) for row in rows]
        before, done = self.counts["replies"], set[int]()

        def answered(row: int, reply: Reply) -> None:
            done.add(row)
            if self.progress is not None:
                self.progress(before + len(done))

        began = time.monotonic()
        replies = ask(
            self.engine, asked, seeds=seeds, tools=self.tools, answered=answered, temperature=self.config.temperature,
            top_p=self.config.top_p, max_new_tokens=self.config.max_new_tokens,
        )  # fmt: skip
        self.seconds += time.monotonic() - began
        said: list[str] = [""] * len(heard)
        for row, messages, reply in zip(rows, asked, replies, strict=True):
            self._written[row].append(reply)
            said[row], message = self._take(reply.said(), f"call_{self._turns[row]}")
            self._called[row] = message["tool_calls"][0]["id"] if "tool_calls" in message else ""
            self._chats[row] = [*messages, message]
            self._turns[row] += 1
        if before < ENOUGH <= self.counts["replies"] and (why := self.why_wordless()):
            warnings.warn(why, RuntimeWarning, stacklevel=2)
        return said

    def why_wordless(self) -> str:
        """Return an explanation if no reply so far could be used, else an empty text."""
        most = self.config.max_new_tokens
        remedy = f"let it write more than {most} tokens (max_new_tokens), or turn its thinking off"
        return why_wordless(self.engine.identity, self.counts, remedy)

    def report(self) -> dict[str, Any]:
        """Return the model's identity, the settings, `counts` and `tokens`, JSON-able."""
        counts = dict(sorted(self.counts.items()))
        return {"model": self.engine.identity, **asdict(self.config), "counts": counts, "tokens": dict(self.tokens)}

    def prompt(self, row: int, text: str) -> list[Message]:
        """Return the messages that the model is asked with in a conversation when the partner has said `text`."""
        return [*self._chats[row], self._heard(row, text)]

    def exchanges(self) -> list[dict[str, Any]]:
        """Return the B conversations since `begin` as the model saw them, JSON-able.

        Returns:
            Dicts with ``messages``, as in OpenAI's API; ``replies``, what the model wrote for each message of the
            assistant, thoughts included, as `chatgym.engines.chat.Reply`; and ``tools``, if it was offered any.
        """
        tools = {"tools": self.tools} if self.tools else {}
        return [
            {"messages": messages, "replies": [asdict(reply) for reply in written], **tools}
            for messages, written in zip(self._chats, self._written, strict=True)
        ]

    def _heard(self, row: int, text: str) -> Message:
        """Return the partner's message: the result of the tool call, where one was made."""
        if self._called[row]:
            return {"role": "tool", "tool_call_id": self._called[row], "content": text}
        return {"role": "user", "content": text}

    def _take(self, reply: Reply, call: str) -> tuple[str, dict[str, Any]]:
        """Return the action of a reply, and its message for the history; update `counts` and `tokens`."""
        text = clean(reply.text)[:MAX_CHARS]
        self.counts.update(["replies", *(["cut"] if reply.finish_reason == "length" else [])])
        for what, spent in (("prompts", reply.prompt_tokens), ("replies", reply.completion_tokens)):
            before = self.tokens[what]
            self.tokens[what] = None if before is None or spent is None else before + spent
        if not (self.tools and reply.calls):
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
    """Return the system prompt: the agent's role, the scenario's instructions, and the acts."""
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
    """Return the agent's acts as tools of OpenAI's API; their optional argument ``say`` is the wording."""
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
    """Return an example sentence for each act."""
    slots = {**scenario.examples, **{name: choices[0] for name, choices in scenario.choices.items()}}
    parts: dict[str, Sequence[str]] = scenario.sentences["agent"]
    found: dict[str, str] = {}
    for part, sentences in parts.items():
        found.setdefault(part.partition("/")[0], fill(sentences[0], slots))
    return {act: found[act] for act in scenario.agent_acts if act in found}


def _words(arguments: str) -> str | None:
    """Return the argument ``say`` of a tool call, empty if it is absent; None if the arguments can't be read."""
    try:
        read = parsed(arguments or "{}")
    except ValueError:
        return None
    said = read.get("say", "") if isinstance(read, dict) else None
    return clean(without_thoughts(said)[0])[:MAX_CHARS] if isinstance(said, str) else None
