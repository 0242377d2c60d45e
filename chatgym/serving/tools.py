"""Functions that a model may call: how a prompt declares them, how calls are written, and how they are read back.

A call is written as many open models' chat templates ask for it (Hermes, Qwen, SmolLM3):
``<tool_call>``, a line ``{"name": NAME, "arguments": {...}}`` and ``</tool_call>``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatgym.serving.bodies import ChatBody, Function, Tool, ToolChoice
from chatgym.serving.refusal import Refusal, invalid

MARK = "<tool_call>"
OPEN, MIDDLE, CLOSE = '\n{"name": "', '", "arguments": ', "}\n</tool_call>"
INSTRUCTIONS = (
    "You may call these functions, each described by one line of JSON:\n{functions}\nTo call one, write:\n{form}"
)
FORM = f"{MARK}{OPEN}NAME{MIDDLE}{{ARGUMENTS}}{CLOSE}"

_CALL = re.compile(
    re.escape(MARK + OPEN) + r"([\w-]+)" + re.escape(MIDDLE) + r"(.*?)(?:" + re.escape(CLOSE) + r"|\Z)", re.DOTALL
)


@dataclass(frozen=True)
class Calling:
    """What a request lets the model call.

    Attributes:
        functions: Those it may call; none for an answer in words.
        required: Whether it must call one.
        several: Whether it may call more than one.
        finish_reason: Of a choice that calls: OpenAI's is ``"stop"`` where the request names the function.
    """

    functions: tuple[Function, ...] = ()
    required: bool = False
    several: bool = True
    finish_reason: str = "tool_calls"

    def declared(self) -> list[dict[str, Any]]:
        """Return the functions as chat templates take them."""
        return [{"type": "function", "function": one.model_dump(exclude_none=True)} for one in self.functions]

    def instructions(self) -> str:
        """Return the text that declares the functions to a model whose template can't."""
        return INSTRUCTIONS.format(functions="\n".join(map(json.dumps, self.declared())), form=FORM)


WORDS_ONLY = Calling()


def calling(body: ChatBody) -> Calling:
    """Return what a request lets the model call.

    Raises:
        Refusal: 400 for tools that aren't functions, and for a choice that doesn't fit them.
    """
    choice, tools = body.tool_choice, body.tools or []
    functions = [_function(tool, i) for i, tool in enumerate(tools)]
    if len({one.name for one in functions}) < len(functions):
        raise invalid("tools holds two functions of one name; give each its own", "tools")
    if choice is not None and not tools and choice != "none":
        raise invalid("tool_choice needs tools; send both", "tool_choice")
    several = body.parallel_tool_calls is not False
    if isinstance(choice, ToolChoice):
        if choice.type == "function" and choice.function is not None:
            return Calling(_named(functions, [choice.function.name]), True, False, "stop")
        if choice.type == "allowed_tools" and choice.allowed_tools is not None:
            names = [_name(tool.type, tool.function, "tool_choice") for tool in choice.allowed_tools.tools]
            return Calling(_named(functions, names), choice.allowed_tools.mode == "required", several)
        raise _only_functions(f"tool_choice of type {choice.type!r}", "tool_choice")
    return WORDS_ONLY if choice == "none" else Calling(tuple(functions), choice == "required", several)


def written(name: str, arguments: str) -> str:
    """Return a call as the model writes it."""
    return f"{MARK}{OPEN}{name}{MIDDLE}{arguments}{CLOSE}"


def split(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Split what the model wrote into its words and its calls, the last one perhaps cut short."""
    words, mark, rest = text.partition(MARK)
    return words, [
        {
            "id": "call_" + secrets.token_hex(12),
            "type": "function",
            "function": {"name": found[1], "arguments": found[2]},
        }
        for found in _CALL.finditer(mark + rest)
    ]


def _function(tool: Tool, index: int) -> Function:
    if tool.type != "function" or tool.function is None:
        raise _only_functions(f"tools[{index}] of type {tool.type!r}", "tools")
    return tool.function


def _name(kind: str, function: Any, param: str) -> str:
    if kind != "function" or function is None:
        raise _only_functions(f"a tool of type {kind!r}", param)
    return str(function.name)


def _named(functions: Sequence[Function], names: Sequence[str]) -> tuple[Function, ...]:
    known = {one.name: one for one in functions}
    for name in names:
        if name not in known:
            raise invalid(f"tool_choice names {name!r}, which is none of the tools {sorted(known)}", "tool_choice")
    return tuple(known[name] for name in dict.fromkeys(names))


def _only_functions(what: str, param: str) -> Refusal:
    return invalid(
        f"{what} is not supported: the model can only call functions, "
        '{"type": "function", "function": {"name": ..., "parameters": ...}}', param, "unsupported_value",
    )  # fmt: skip
