"""The bodies of requests, as OpenAI's API has them.

A field of OpenAI's is implemented, ignored (`Ignored`) or refused with a reason (`Unsupported`, `UnsupportedInChat`,
`UnsupportedInCompletions`); docs/serving.md lists which. A field that is none of OpenAI's is refused.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatgym.serving.refusal import Refusal, invalid
from chatgym.storage.utf8 import parsed

HARMLESS: dict[str, Any] = {"modalities": ["text"], "best_of": 1, "suffix": "", "function_call": "none"}
"""Values of unsupported fields that ask for what the server does anyway."""

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


class AdapterBody(_Checked):
    """Body of ``/v1/load_lora_adapter``, vLLM's."""

    lora_name: str
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None


def unsupported(kind: type[Body]) -> dict[str, str]:
    """Return the fields of a body that are refused, each with the reason."""
    bases = [base for base in kind.__mro__ if issubclass(base, Unsupported) and not issubclass(base, Body)]
    return {name: field.description or "" for base in bases for name, field in base.model_fields.items()}


def read(kind: type[Any], raw: bytes) -> Any:
    """Read and check a body; lone surrogates in it are replaced.

    Raises:
        Refusal: 400 for what is no JSON and for unsupported fields, 422 for values that are wrong.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        if _SURROGATE.search(raw):  # not JSON for pydantic
            with contextlib.suppress(ValueError):  # then it isn't JSON at all
                raw = json.dumps(parsed(raw)).encode()
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise invalid(f"the body is no JSON: {first['msg']}", code="invalid_json") from None
        where = ".".join(map(str, first["loc"]))
        param = str(first["loc"][0]) if first["loc"] else None
        raise Refusal(422, f"{where or 'body'}: {first['msg']}", param=param, code="invalid_value") from None
    for name, reason in unsupported(kind).items() if issubclass(kind, Body) else ():
        if getattr(body, name) not in (None, HARMLESS.get(name)):
            raise invalid(f"{name} is not supported: {reason}", name, "unsupported_parameter")
    return body
