"""The bodies of requests, as OpenAI's API has them.

A field of OpenAI's is implemented, ignored (`Ignored`) or refused with a reason (`Unsupported`, `UnsupportedInChat`,
`UnsupportedInCompletions`); docs/serving.md lists which. Of vLLM's own fields some are implemented. Others are refused.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatgym.serving.refusal import Refusal, invalid
from chatgym.storage.utf8 import parsed

HARMLESS: dict[str, Any] = {"modalities": ["text"], "best_of": 1, "suffix": "", "function_call": "none"}
"""Values of unsupported fields that ask for what the server does anyway."""

TYPES = {
    "int_type": "an integer", "int_from_float": "an integer", "float_type": "a number", "bool_type": "true or false",
    "string_type": "a string", "list_type": "an array", "dict_type": "an object", "model_type": "an object",
    "finite_number": "a finite number",
}  # fmt: skip
"""Pydantic's errors of types to what is expected, in words."""
TRIED = ("str", "int", "float", "bool")
BOUNDS = {
    "ge": ("a value >=", "below_min_value"), "gt": ("a value >", "below_min_value"),
    "le": ("a value <=", "above_max_value"), "lt": ("a value <", "above_max_value"),
    "min_length": ("at least", "too_short"), "max_length": ("at most", "too_long"),
    "pattern": ("a text that matches", "invalid_value"),
}  # fmt: skip
"""Bound in pydantic's errors to its words and a code."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Stop = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Ignored(_Checked):
    """Fields that are accepted and change nothing here."""

    metadata: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None
    verbosity: Any = None


class Unsupported(_Checked):
    """Fields that are refused; the description says why."""


class UnsupportedInChat(Unsupported):
    """Fields of a chat that are refused."""

    audio: Any = Field(None, description="the model writes text only")
    function_call: Any = Field(None, description="it is OpenAI's deprecated form; send tool_choice")
    functions: Any = Field(None, description="it is OpenAI's deprecated form; send tools")
    modalities: Any = Field(None, description='the model writes text only, ["text"]')
    moderation: Any = Field(None, description="the server has no moderation model; leave it out")
    web_search_options: Any = Field(None, description="the server does not search the web; leave it out")


class UnsupportedInCompletions(Unsupported):
    """Fields of a completion that are refused."""

    best_of: Any = Field(None, description="every continuation is returned; send n and choose by logprobs")
    suffix: Any = Field(None, description="the model continues text, it does not fill gaps; leave it out")


class StreamOptions(_Checked):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Body(Ignored):
    """Fields that both endpoints implement."""

    model: str
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None  # vLLM's, and so is min_p
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None


class CompletionBody(Body, UnsupportedInCompletions):
    """Body of ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None  # vLLM's; they are always stated


class _Lenient(BaseModel):
    """An object of which the other fields are passed over."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)


class Part(_Lenient):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(_Lenient):
    """A function that an assistant's message called, its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(_Lenient):
    """A call in an assistant's message."""

    id: str
    type: str = "function"
    function: CalledFunction | None = None


class Message(_Lenient):
    """A message of a chat; other fields that an answer had may be sent back with it."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class JSONSchema(_Checked):
    """A schema that the answer must match."""

    name: Name
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Checked):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class Function(_Checked):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Lenient):
    """A tool; only functions are supported."""

    type: str
    function: Function | None = None


class Named(_Lenient):
    """A function's name."""

    name: str


class AllowedTool(_Lenient):
    """A tool that may be called."""

    type: str
    function: Named | None = None


class AllowedTools(_Checked):
    """The tools that may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Field(min_length=1)]


class ToolChoice(_Lenient):
    """A function that must be called, or those that may be."""

    type: str
    function: Named | None = None
    allowed_tools: AllowedTools | None = None


class ChatBody(Body, UnsupportedInChat):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's


class AdapterBody(_Checked):
    """Body of ``/v1/load_lora_adapter``, vLLM's."""

    lora_name: str
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


def unsupported(kind: type[Body]) -> dict[str, str]:
    """Return the fields of a body that are refused, each with the reason."""
    bases = [base for base in kind.__mro__ if issubclass(base, Unsupported) and not issubclass(base, Body)]
    return {name: field.description or "" for base in bases for name, field in base.model_fields.items()}


def _explained(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """Return the refusal of a wrong value, by pydantic's errors: words, ``param`` and codes are like OpenAI's."""
    if not errors[0]["loc"]:
        return invalid("the body is no JSON object; send {...}", code="invalid_type")
    of = [one for one in errors if one["loc"][0] == errors[0]["loc"][0]]  # a field of several types has one of each
    deep = max(len(one["loc"]) for one in of)
    of = [one for one in of if len(one["loc"]) == deep]
    kind, context = of[0]["type"], of[0].get("ctx", {})
    field = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in of[0]["loc"] if _names(one))[1:]
    if kind == "extra_forbidden":
        return invalid(f"Unrecognized request argument supplied: {field}", field, "unknown_parameter")
    if kind == "missing":
        return invalid(f"Missing required parameter: '{field}'.", field, "missing_required_parameter")
    for name, (words, code) in BOUNDS.items():
        if name in context:
            unit = " characters" if kind.startswith("string_too") else " items" if "length" in name else ""
            return invalid(f"Invalid '{field}': expected {words} {context[name]}{unit}.", field, code)
    wanted = list(dict.fromkeys(TYPES[one["type"]] for one in of if one["type"] in TYPES))
    wanted += [f"one of {one['ctx']['expected']}" for one in of if one["type"] == "literal_error"]
    if not wanted:
        return invalid(f"Invalid '{field}': {of[0]['msg']}.", field, "invalid_value")
    code = "invalid_value" if kind == "literal_error" else "invalid_type"
    return invalid(f"Invalid '{field}': expected {' or '.join(wanted)}.", field, code)


def _names(part: str | int) -> bool:
    """Return whether a part of an error's place is an item or a field, not a type that was tried, as ``list[str]``."""
    return isinstance(part, int) or (re.fullmatch(r"[a-z_]+", part) is not None and part not in TRIED)


def read(kind: type[Any], raw: bytes) -> Any:
    """Read and check a body; lone surrogates in it are replaced.

    Raises:
        Refusal: 400 for what is no JSON, for unsupported fields and for values that are wrong.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        if _SURROGATE.search(raw):  # not JSON for pydantic
            with contextlib.suppress(ValueError):  # then it isn't JSON at all
                raw = json.dumps(parsed(raw)).encode()
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise invalid(f"the body is no JSON: {errors[0]['msg']}", code="invalid_json") from None
        raise _explained(errors) from None
    for name, reason in unsupported(kind).items() if issubclass(kind, Body) else ():
        if getattr(body, name) not in (None, HARMLESS.get(name)):
            raise invalid(f"{name} is not supported: {reason}", name, "unsupported_parameter")
    return body
