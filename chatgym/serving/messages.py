"""How the messages of a chat become a prompt: by the model's chat template, or as text where it knows no tools."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from chatgym.engines.marks import marks_of
from chatgym.serving.bodies import Message
from chatgym.serving.refusal import invalid
from chatgym.serving.tools import Calling, written
from chatgym.storage.utf8 import parsed

OWN = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"add_generation_prompt"}
"""Arguments of `apply_chat_template`, which no request sets."""


def render(
    tokenizer: Any, messages: Sequence[Message], calling: Calling, variables: Mapping[str, Any] | None = None
) -> str:
    """Return the prompt that ends where the assistant's next message begins.

    Where messages or functions hold texts of turn marks, it holds stand-ins, see `chatgym.engines.marks`.

    A template that doesn't mention ``tools`` gets the functions as text in the system message. One that doesn't mention
    ``tool_calls`` gets calls as the text of the assistant's message, and their results as messages of the user.

    `variables` are what a request sets in the template, such as ``{"enable_thinking": False}``.

    Raises:
        Refusal: 400 for messages that aren't text, or that the template refuses, and for variables that are the
            server's own.
    """
    if own := sorted(OWN.intersection(variables or {})):
        raise invalid(f"chat_template_kwargs sets {own[0]!r}, which the server sets itself; leave it out",
                      "chat_template_kwargs")  # fmt: skip
    template = str(tokenizer.chat_template)
    calls = _Calls(messages, bool(re.search(r"\btool_calls\b", template)))
    plain = [calls.plain(message) for message in messages]
    if "developer" not in template:  # OpenAI's newer name of the same role
        plain = [one | {"role": "system"} if one["role"] == "developer" else one for one in plain]
    more: dict[str, Any] = {}
    if calling.functions and re.search(r"\btools\b", template):
        more = {"tools": calling.declared()}
    elif calling.functions:
        told = plain.pop(0)["content"] + "\n\n" if plain[0]["role"] == "system" else ""
        plain.insert(0, {"role": "system", "content": told + calling.instructions()})
    marks = marks_of(tokenizer)
    plain, more = marks.shield_messages(plain), marks.shield({**(variables or {}), **more}, "system")
    more.setdefault("add_generation_prompt", True)
    try:
        text: str = tokenizer.apply_chat_template(plain, tokenize=False, **more)
    except (TemplateError, TypeError, ValueError) as error:  # what a template makes of messages it wasn't written for
        raise invalid(f"the model's chat template refuses the messages: {error}", "messages") from None
    return text


class _Calls:
    """The calls in a chat's messages.

    Args:
        messages: All of them.
        known: Whether the template writes calls and their results.
    """

    def __init__(self, messages: Sequence[Message], known: bool) -> None:
        self._known = known
        self._names = {
            call.id: call.function.name
            for message in messages for call in message.tool_calls or () if call.function is not None
        }  # fmt: skip

    def plain(self, message: Message) -> dict[str, Any]:
        """Return a message as templates take it."""
        if message.role == "function":
            raise invalid("role 'function' is OpenAI's deprecated form; send role 'tool' with tool_call_id", "messages")
        one = {"role": message.role, "content": _text(message)} | ({"name": message.name} if message.name else {})
        if message.tool_calls:
            return one | self._called(one["content"], message)
        if message.role == "tool":
            return one | self._result(one["content"], message)
        return one

    def _called(self, content: str, message: Message) -> dict[str, Any]:
        calls = [call.function for call in message.tool_calls or () if call.function is not None]
        if len(calls) < len(message.tool_calls or ()):
            raise invalid(
                "tool_calls of a message holds a call of no function; only functions are supported", "messages"
            )
        if not self._known:
            return {"content": "\n".join([content] * bool(content) + [written(c.name, c.arguments) for c in calls])}
        return {
            "tool_calls": [
                {
                    "id": call.id, "type": "function",
                    "function": {"name": one.name, "arguments": _arguments(one.arguments)},
                }
                for call, one in zip(message.tool_calls or (), calls, strict=True)
            ]
        }  # fmt: skip

    def _result(self, content: str, message: Message) -> dict[str, Any]:
        if message.tool_call_id is None:
            raise invalid("a message of role 'tool' needs tool_call_id, the id of the call that it answers", "messages")
        name = self._names.get(message.tool_call_id, "")
        if self._known:
            return {"tool_call_id": message.tool_call_id} | ({"name": name} if name else {})
        return {"role": "user", "content": f"Result of {name or message.tool_call_id}:\n{content}"}


def _text(message: Message) -> str:
    """Return a message's text.

    Raises:
        Refusal: 400 if it has none, or parts that are no text.
    """
    content = message.content
    if content is None:
        if message.role != "assistant" or not message.tool_calls:
            raise invalid("content is null; only an assistant's message with tool_calls may leave it out", "messages")
        return ""
    if isinstance(content, str):
        return content
    words = [part.refusal if part.type == "refusal" else part.text for part in content]
    for part, word in zip(content, words, strict=True):
        if part.type not in ("text", "refusal") or word is None:
            raise invalid(f"a part of type {part.type!r} is not supported: the model reads text only", "messages")
    return "".join(word for word in words if word)


def _arguments(given: str) -> Any:
    """Return a call's arguments as the object that templates expect, or as they are if they are no JSON."""
    try:
        return parsed(given)
    except ValueError:
        return given
