"""Get a model's replies to chats, given as lists of messages.

An engine with a `chat` method (`chatgym.engines.openai`, `chatgym.engines.recorded`) gets the messages as they are. For
any other engine they are written as a prompt by the tokenizer's chat template, or as ChatML if it has none.

`chat` returns what a model says; `ask` returns what it writes, thoughts included (`chatgym.engines.spoken`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatgym.engines.marks import CHATML, Marks, marks_of
from chatgym.engines.protocol import Engine, LazyEngine, check_sampling, checked_rows, generated
from chatgym.engines.spoken import opened_thought, text_of, without_thoughts
from chatgym.engines.tokenizer import END
from chatgym.errors import InvalidValue
from chatgym.storage.utf8 import valid

Message = Mapping[str, Any]
"""As in OpenAI's API: ``role`` and ``content``, perhaps ``tool_calls``, or the ``tool_call_id`` that it answers."""

Answered = Callable[[int, "Reply"], None]
"""Called with a row's number and its reply as soon as that is known, from the thread that received it."""

TOGETHER = 16
"""Most chats that a model in this process answers at once: their keys and values need memory."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by a model. `arguments` is JSON as the model wrote it, and may be malformed."""

    name: str
    arguments: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", valid(self.name))
        object.__setattr__(self, "arguments", valid(self.arguments))


@dataclass(frozen=True)
class Reply:
    """A model's reply in a chat.

    Attributes:
        text: The reply's words; empty if there are none, or the model refuses. Lone surrogates are replaced.
        calls: The tool calls.
        finish_reason: ``"stop"``, ``"length"``, or another reason that a server states.
        prompt_tokens, completion_tokens: Tokens of the prompt and of what the model wrote; None if nobody states them.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", valid(self.text))

    def said(self) -> Reply:
        """Return the reply without the model's thoughts; one that ends within a thought was cut: ``"length"``."""
        text, cut = without_thoughts(self.text)
        return replace(self, text=text, finish_reason="length" if cut else self.finish_reason)

    def only_thought(self, written: Reply) -> bool:
        """Return whether a reply, of which this is what is said, was cut before the model said anything."""
        return bool(written.text.strip()) and not self.text and not self.calls and self.finish_reason == "length"


def chat(
    engine: Engine,
    chats: Sequence[Sequence[Message]],
    *,
    thoughts: int = 0,
    answered: Answered | None = None,
    seeds: Sequence[int] | None = None,
    **sampling: Any,
) -> list[Reply]:
    """Return what a model says in B chats, without its thoughts.

    Args:
        engine: The engine.
        chats: B lists of messages.
        thoughts: Tokens that a model gets beyond `max_new_tokens` when that many end within its thoughts: it is asked
            once more. 0: its reply is empty then.
        answered: Called with each reply as it comes, the first one where there are two.
        seeds: B numbers below 2**64; the rows' numbers when None.
        **sampling: `max_new_tokens`, `temperature`, `top_p` and `tools`, see `ask`.

    Returns:
        B replies.

    Raises:
        InvalidValue, Unfinished: See `ask`.
    """
    seeds = list(range(len(chats)) if seeds is None else seeds)
    told = answered and (lambda row, reply: answered(row, reply.said()))
    written = ask(engine, chats, seeds=seeds, answered=told, **sampling)
    replies = {row: reply.said() for row, reply in enumerate(written)}
    again = [row for row, reply in replies.items() if reply.only_thought(written[row])] if thoughts else []
    if again:
        sampling["max_new_tokens"] += thoughts
        with contextlib.suppress(InvalidValue):  # the context of a model of this process has no room for so many
            asked = ask(engine, [chats[row] for row in again], seeds=[seeds[row] for row in again], **sampling)
            replies |= {row: reply.said() for row, reply in zip(again, asked, strict=True)}
    return list(replies.values())


def ask(
    engine: Engine,
    chats: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    answered: Answered | None = None,
) -> list[Reply]:
    """Return a model's replies to B chats as it writes them, each sampled with its own seed.

    Args:
        engine: The engine.
        chats: B lists of messages.
        max_new_tokens: Most tokens of a reply.
        temperature: 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that have this probability together.
        seeds: B numbers below 2**64; the rows' numbers when None.
        tools: Tools in the form of OpenAI's API; if there are any, the model has to call one.
        answered: Called with each reply as it comes.

    Returns:
        B replies.

    Raises:
        InvalidValue: A number is out of range, or the engine supports no tools.
        Unfinished: A server didn't answer all chats; the engine keeps the replies that came.
    """
    check_sampling([""] * len(chats), max_new_tokens, temperature, top_p, seeds)
    own = getattr(engine, "chat", None)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    seeds = list(range(len(chats)) if seeds is None else seeds)
    if callable(own):
        replies = own(chats, seeds=seeds, tools=tools, answered=answered, **sampling)
        return checked_rows(engine, "chat", replies, len(chats), Reply)
    if tools:
        raise InvalidValue(
            f"the engine of {engine.identity} supports no tools; use a server that does (openai:URL#MODEL), or leave "
            "tools out"
        )
    opened = engine.opened() if isinstance(engine, LazyEngine) else engine
    prompts = [written_prompt(opened, messages) for messages in chats]
    made: list[Reply] = []
    for first in range(0, len(prompts), TOGETHER):
        part = slice(first, first + TOGETHER)
        given = [_given(opened, prompt) for prompt in prompts[part]]
        completions = generated(opened, given, seeds=seeds[part], stop=(END,), **sampling)
        for prompt, completion in zip(given, completions, strict=True):
            text, why = opened_thought(prompts[len(made)]) + completion.text, completion.finish_reason
            made.append(Reply(text, (), why, count_tokens(opened, prompt), len(completion.tokens)))
            if answered is not None:
                answered(len(made) - 1, made[-1])
    return made


def written_prompt(engine: Any, messages: Sequence[Message]) -> str:
    """Return the text that a model of this process continues with its reply to `messages`, by its chat template.

    It may hold stand-ins for turn marks that somebody wrote (`Marks.shield`).

    Raises:
        InvalidValue: The template refuses the messages.
    """
    tokenizer = getattr(engine, "tokenizer", None)
    return _prompt(tokenizer, _plain(tokenizer, messages))


def count_tokens(engine: Any, prompt: str | Sequence[int]) -> int | None:
    """Return the number of a prompt's tokens; None if the engine has no tokenizer."""
    if not isinstance(prompt, str):
        return len(prompt)
    tokenizer = getattr(engine, "tokenizer", None)
    return None if tokenizer is None else len(tokenizer(prompt)["input_ids"])


def _plain(tokenizer: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages with texts as contents, and OpenAI's role ``developer`` as ``system`` unless it is known."""
    known = "developer" in str(getattr(tokenizer, "chat_template", None) or "")
    return [
        {
            **message,
            "role": "system" if message["role"] == "developer" and not known else message["role"],
            "content": text_of(message.get("content")),
        }
        for message in messages
    ]


def _given(engine: Any, prompt: str) -> Any:
    """Return a prompt of `_prompt` as an engine takes it: as tokens if it can, where somebody wrote a turn mark."""
    marks = _marks(getattr(engine, "tokenizer", None))
    if not marks.shields(prompt):
        return prompt
    takes_tokens = getattr(engine, "takes_tokens", False)
    return marks.encode(prompt, add_special_tokens=True) if takes_tokens else marks.broken(prompt)


def _marks(tokenizer: Any) -> Marks:
    """Return the marks of the prompts that `_prompt` writes."""
    return marks_of(tokenizer, () if getattr(tokenizer, "chat_template", None) else CHATML)


def _prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return messages as a prompt that the model continues with its reply; it may hold stand-ins (`Marks.shield`)."""
    messages = _marks(tokenizer).shield_messages(messages)
    if not getattr(tokenizer, "chat_template", None):
        said = "".join(f"<|im_start|>{message['role']}\n{message['content']}{END}\n" for message in messages)
        return f"{said}<|im_start|>assistant\n"
    from jinja2.exceptions import TemplateError

    try:
        prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InvalidValue(f"the model's chat template refuses the messages ({error}); use another model") from None
    begins = tokenizer.bos_token
    if begins and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # which the tokenizer adds itself
        prompt = prompt.removeprefix(begins)
    return prompt
