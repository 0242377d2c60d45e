"""Chats: messages in, a reply out, whatever engine answers: through its chat endpoint, or its chat template.

An engine that has `chat` is asked itself (`chatgym.engines.openai`, `chatgym.engines.recorded`). Of any other one the
messages become a prompt: by the chat template of its tokenizer, or as ChatML where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatgym.engines.protocol import Engine, LazyEngine, check_sampling
from chatgym.engines.tokenizer import END
from chatgym.errors import InvalidValue

Message = Mapping[str, Any]
"""As in OpenAI's API: ``role`` and ``content``, perhaps ``tool_calls``, or the ``tool_call_id`` that it answers."""

Answered = Callable[[int, "Reply"], None]
"""Called with a row and its reply as soon as it is there, from whatever thread it came to."""

TOGETHER = 16
"""Chats that a model of this process holds at once: their keys and values need its memory."""


@dataclass(frozen=True)
class ToolCall:
    """A tool that a model calls; `arguments` is JSON as the model wrote it, which needn't be well formed."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Reply:
    """What a model answers in a chat.

    Attributes:
        text: Its words; empty when it has none, or refuses.
        calls: The tools that it calls.
        finish_reason: ``"stop"``, ``"length"``, or whatever else a server says.
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
    """Let a model answer B chats, each with a seed of its own, see `chatgym.engines.Engine.generate`.

    Args:
        engine: Any.
        chats: B lists of messages.
        max_new_tokens: Most tokens of a reply.
        temperature: 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that have this probability together.
        seeds: B numbers; the row's number when None.
        tools: What it may call (it has to call one), as in OpenAI's API.
        answered: Called with each reply as it comes.

    Returns:
        B replies.

    Raises:
        InvalidValue: A number out of its range, or tools for a model that takes none.
        Unfinished: A server left chats without an answer; the engine keeps the others'.
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
            f"the model {engine.identity} takes no tools here; use one of a server that does (openai:URL#MODEL), or "
            "leave tools out"
        )
    opened = engine.opened() if isinstance(engine, LazyEngine) else engine
    prompts = [_prompt(getattr(opened, "tokenizer", None), messages) for messages in chats]
    made: list[Reply] = []
    for first in range(0, len(prompts), TOGETHER):
        part = slice(first, first + TOGETHER)
        for completion in opened.generate(prompts[part], seeds=seeds[part], stop=(END,), **sampling):
            made.append(Reply(completion.text, (), completion.finish_reason))
            if answered is not None:
                answered(len(made) - 1, made[-1])
    return made


def _prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Write messages as the prompt that a model continues with its reply."""
    if not getattr(tokenizer, "chat_template", None):
        said = "".join(f"<|im_start|>{message['role']}\n{message['content']}{END}\n" for message in messages)
        return f"{said}<|im_start|>assistant\n"
    from jinja2.exceptions import TemplateError

    try:
        prompt: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InvalidValue(f"the model's chat template refuses the messages ({error}); use another model") from None
    begins = tokenizer.bos_token
    if begins and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # which the tokenizer adds itself
        prompt = prompt.removeprefix(begins)
    return prompt
