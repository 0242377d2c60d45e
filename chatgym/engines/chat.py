"""Get a model's replies to chats, given as lists of messages.

An engine with a `chat` method (`chatgym.engines.openai`, `chatgym.engines.recorded`) gets the messages as they are. For
any other engine they are written as a prompt by the tokenizer's chat template, or as ChatML if it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatgym.engines.marks import CHATML, Marks, marks_of
from chatgym.engines.protocol import Engine, LazyEngine, check_sampling
from chatgym.engines.tokenizer import END
from chatgym.errors import InvalidValue

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


@dataclass(frozen=True)
class Reply:
    """A model's reply in a chat.

    Attributes:
        text: The reply's words; empty if there are none, or the model refuses.
        calls: The tool calls.
        finish_reason: ``"stop"``, ``"length"``, or another reason that a server states.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"


def chat(
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
    """Return a model's replies to B chats, each sampled with its own seed.

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
    ask = getattr(engine, "chat", None)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    seeds = list(range(len(chats)) if seeds is None else seeds)
    if callable(ask):
        replies: list[Reply] = ask(chats, seeds=seeds, tools=tools, answered=answered, **sampling)
        return replies
    if tools:
        raise InvalidValue(
            f"the engine of {engine.identity} supports no tools; use a server that does (openai:URL#MODEL), or leave "
            "tools out"
        )
    opened = engine.opened() if isinstance(engine, LazyEngine) else engine
    prompts = [_prompt(getattr(opened, "tokenizer", None), messages) for messages in chats]
    made: list[Reply] = []
    for first in range(0, len(prompts), TOGETHER):
        part = slice(first, first + TOGETHER)
        given = [_given(opened, prompt) for prompt in prompts[part]]
        for completion in opened.generate(given, seeds=seeds[part], stop=(END,), **sampling):
            made.append(Reply(completion.text, (), completion.finish_reason))
            if answered is not None:
                answered(len(made) - 1, made[-1])
    return made


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
