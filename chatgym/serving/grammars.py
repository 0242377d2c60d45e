"""Grammars that an answer must follow (JSON, a JSON schema, calls of functions), by llguidance."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from chatgym.engines.logits import Constraint
from chatgym.serving.bodies import JSONSchema, ResponseFormat
from chatgym.serving.refusal import invalid
from chatgym.serving.tools import CLOSE, MARK, MIDDLE, OPEN, Calling

WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is spaced: as `json.dumps` does, which models know well; free white space is where small ones get stuck."""

NO_PARAMETERS = {"type": "object", "additionalProperties": False}
TEXT = f"""
answer: TEXT
TEXT: /(.|\\n)*/ & ~/(.|\\n)*{MARK}(.|\\n)*/
opening[lazy]: /(.|\\n)*{MARK}/
"""
"""Words, which go over into calls at the mark."""


class Grammars:
    """Compiles grammars for one tokenizer; used by one thread at a time."""

    def __init__(self, tokenizer: Any, ends: Collection[int], vocabulary: int) -> None:
        """Remember the tokenizer; what llguidance makes of it takes a second, and is made when first needed.

        Args:
            tokenizer: The transformers library's.
            ends: Tokens that end a text.
            vocabulary: How many logits the model has, V.
        """
        self._tokenizer, self._ends, self._vocabulary = tokenizer, sorted(ends), vocabulary

    def constraint(self, form: ResponseFormat | None, calling: Calling) -> Callable[[], Constraint] | None:
        """Return what makes the state of a request's grammar for each of its rows; None when it needs no grammar.

        Raises:
            Refusal: 400 for a schema that can't be followed, or a tokenizer that llguidance can't read.
        """
        schema = None if form is None or form.type == "text" else _schema(form)
        if schema is None and not calling.functions:
            return None
        param = "tools" if calling.functions else "response_format"
        # Strings that are refused one by one tell a client which of its schemas is meant.
        for part, name in [(schema, "response_format"), *((_parameters(one), "tools") for one in calling.functions)]:
            if part is not None and (error := LLMatcher.validate_grammar(f"start: {part}", self._tokens)):
                why = error.splitlines()[0].rpartition("JSON schema: ")[2]
                raise invalid(f"{name} holds a schema that can't be followed: {why}", name, "unsupported_value")
        matcher = LLMatcher(self._tokens, _lark(schema, calling), log_level=0)
        if matcher.is_error():
            raise invalid(f"{param} can't be followed: {matcher.get_error()}", param, "unsupported_value")
        return lambda: Matcher(matcher.deep_copy(), self._vocabulary)

    @functools.cached_property
    def _tokens(self) -> LLTokenizer:
        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends)
        except ValueError as error:
            raise invalid(
                f"response_format and tools need a tokenizer that llguidance can read, and this model's is none "
                f"({error}); leave them out", code="unsupported_parameter",
            ) from None  # fmt: skip


class Matcher:
    """The state of a grammar in one row."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may come next, bool[V]; only those that end the text after an error."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> str | None:
        """Advance by a token, see `Constraint.accept`."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # a limit on the grammar's size: what was written isn't complete
            return "length"
        return "stop" if self._matcher.is_stopped() else None


def _schema(form: ResponseFormat) -> str:
    if form.type == "json_object":
        return _json({"type": "object"}, strict=True)
    if form.json_schema is None:
        raise invalid("response_format of type json_schema needs json_schema", "response_format")
    given: JSONSchema = form.json_schema
    return _json(given.definition or {}, strict=bool(given.strict))


def _parameters(function: Any) -> str:
    return _json(function.parameters or NO_PARAMETERS, strict=bool(function.strict))


def _json(schema: dict[str, Any], *, strict: bool) -> str:
    """Return a schema as a term of a grammar; unless `strict`, unknown keywords are passed over."""
    return "%json " + json.dumps(schema | {"x-guidance": WRITTEN | {"lenient": not strict}})


def _lark(schema: str | None, calling: Calling) -> str:
    """Return the grammar, in llguidance's form of Lark.

    Args:
        schema: That of the answer's words, a term; None for any words.
        calling: What may be called.
    """
    words = TEXT if schema is None else f"\nanswer: {schema}\n"
    if not calling.functions:
        return f"start: answer{words}"
    more = ' ("\\n" MARK call)*' if calling.several else ""
    rules = [
        f"call_{i}: {json.dumps(OPEN + one.name + MIDDLE)} {_parameters(one)} {json.dumps(CLOSE)}"
        for i, one in enumerate(calling.functions)
    ]
    called = [f'MARK: "{MARK}"', "call: " + " | ".join(f"call_{i}" for i in range(len(rules))), *rules]
    if calling.required:
        return "\n".join([f"start: MARK call{more}", *called])
    opening = "opening" if schema is None else "MARK"
    return "\n".join([f"start: answer | {opening} call{more}{words}", *called])
