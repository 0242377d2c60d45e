"""Encode chats so that only the turn marks of the chat template become control tokens, never what somebody wrote.

A tokenizer turns the text ``<|im_end|>`` into the token that ends a turn, wherever it stands. So a message that holds
this text could end its own turn and begin another one. Here contents are ordinary text: each such text in a message is
replaced by a stand-in before the template is rendered; in the rendered prompt the template's own marks get secret
names, and the stand-ins become the texts that they stand for; and the prompt is encoded by a twin of the tokenizer,
which knows control tokens by their secret names only.

Control tokens are those that the tokenizer marks as special, and other added ones that are written like a mark
(``<|user|>``, ``[INST]``) or that the chat template mentions (``<tool_response>``). System and assistant may write
`OWN_TAGS` that aren't special tokens: a model writes its thoughts and its calls with them. A prompt in which nobody
wrote such a text is encoded as ever, to the same tokens.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CHATML = ("<|im_start|>", "<|im_end|>")
"""The marks of ChatML."""
OWN_TAGS = re.compile(r"</?(?:think|thinking|reasoning|answer|tool_calls?|function_calls?)>")
"""Tags that an assistant writes itself, and that a system message may tell it about."""
OWNERS = ("system", "developer", "assistant")
"""Roles that may write them."""

_BRACKETED = re.compile(r"[<\[{|｜].+[>\]}|｜]", re.DOTALL)
_MARK = re.compile(r"<[|｜][^<>|｜]+[|｜]>|\[/?[A-Z_]{2,}\]")


class Marks:
    """The control tokens of one tokenizer.

    Attributes:
        control: Their ids to their texts.
    """

    def __init__(self, tokenizer: Any, template: str = "", frame: Sequence[str] = ()) -> None:
        """Find them.

        Args:
            tokenizer: A tokenizer of the transformers or the tokenizers library; None for an unknown one.
            template: Source of the chat template.
            frame: Further turn marks. Where the tokenizer has no tokens for them or for the template's, a space breaks
                them in contents.
        """
        self._tokenizer, self._backend = tokenizer, getattr(tokenizer, "backend_tokenizer", tokenizer)
        control = {
            number: token for number, token in _added(tokenizer).items()
            if token.special or token.content in frame or _MARK.fullmatch(token.content)
            or (token.content in template and _BRACKETED.fullmatch(token.content))
        }  # fmt: skip
        self.control = {number: token.content for number, token in control.items()}
        own = {token.content for token in control.values() if not token.special and OWN_TAGS.fullmatch(token.content)}
        texts = sorted({*self.control.values(), *frame, *_MARK.findall(template)})
        nonce = secrets.token_hex(8)  # nobody can write these names in advance
        self._stand_ins = {text: f"s{nonce}{i:05d}z" for i, text in enumerate(texts)}
        self._meant = {stand_in: text for text, stand_in in self._stand_ins.items()}
        self._names = {text: f"n{nonce}{i:05d}z" for i, text in enumerate(self.control.values())}
        self._stand_in = re.compile(f"s{nonce}[0-9]{{5}}z")
        self._all, self._foreign = _any_of(texts), _any_of(text for text in texts if text not in own)
        self._varied = getattr(self._backend, "normalizer", None) is not None and any(
            getattr(token, "normalized", False) for token in control.values()
        )

    def shield(self, value: Any, role: str = "user") -> Any:
        """Return a message or another JSON value with stand-ins for the texts that would become control tokens.

        Args:
            value: A text, or lists and objects of texts; an object's keys count, too.
            role: Who wrote it: `OWNERS` may write `OWN_TAGS`.
        """
        if isinstance(value, str):
            pattern = self._foreign if role in OWNERS else self._all
            return pattern.sub(lambda found: self._stand_ins[found[0]], value)
        if isinstance(value, Mapping):
            return {self.shield(name, role): self.shield(one, role) for name, one in value.items()}
        return [self.shield(one, role) for one in value] if isinstance(value, list | tuple) else value

    def shield_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with stand-ins, see `shield`."""
        return [self.shield(message, str(message.get("role"))) for message in messages]

    def shields(self, text: str) -> bool:
        """Return whether a text has to be encoded here: it holds a stand-in, or spellings of a mark may be in it.

        A tokenizer may find its marks after it normalised a text: ``＜|im_end|＞`` by NFKC, ``<|IM_END|>`` by case.
        """
        return self._varied or self._stand_in.search(text) is not None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text in which marks are control tokens, but what stand-ins stand for isn't."""
        ids: list[int]
        if self.shields(text) and self._twin is not None:
            text = self._all.sub(lambda found: self._names.get(found[0], found[0]), text)
            text = self._stand_in.sub(self._plain, text)
            ids = self._twin.encode(text, add_special_tokens=add_special_tokens).ids
            return [self._ids.get(token, token) for token in ids]
        if hasattr(self._tokenizer, "encode_batch"):  # of the tokenizers library
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        else:
            text = self.broken(text)
            ids = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def broken(self, text: str) -> str:
        """Return a text whose stand-ins became their texts with a space after the first character: no marks."""
        return self._stand_in.sub(lambda found: _with_space(self._meant[found[0]]), text)

    def _plain(self, found: re.Match[str]) -> str:
        """Return the text of a stand-in; with a space in it where only the text tells the mark from other text."""
        text = self._meant[found[0]]
        return text if text in self._names else _with_space(text)

    @functools.cached_property
    def _ids(self) -> dict[int, int]:
        """Ids of the twin's control tokens to those of the tokenizer."""
        assert self._twin is not None
        return {self._twin.token_to_id(self._names[text]): token for token, text in self.control.items()}

    @functools.cached_property
    def _twin(self) -> Any:
        """The tokenizer with other names for its control tokens; None for one that is written in Python.

        The model's own vocabulary gets the names, too: a Unigram model would find the control tokens in it.
        """
        from tokenizers import Tokenizer

        if not isinstance(self._backend, Tokenizer):
            return None
        state = json.loads(self._backend.to_str())
        names, model = self._names, state["model"]
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
        else:  # of a Unigram model
            model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if names.keys().isdisjoint([*pair, "".join(pair)])]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        twin = Tokenizer.from_str(json.dumps(state))
        twin.no_truncation()
        twin.no_padding()
        return twin


def marks_of(tokenizer: Any, frame: Sequence[str] = ()) -> Marks:
    """Return a tokenizer's control tokens; see `Marks` for the arguments."""
    return _marks(tokenizer, str(getattr(tokenizer, "chat_template", None) or ""), tuple(frame))


_marks = functools.lru_cache(maxsize=16)(Marks)


def _added(tokenizer: Any) -> dict[int, Any]:
    """Return the tokens that were added to a tokenizer's vocabulary by id, with ``content`` and ``special``."""
    if hasattr(tokenizer, "get_added_tokens_decoder"):  # of the tokenizers library
        return dict(tokenizer.get_added_tokens_decoder())
    return dict(getattr(tokenizer, "added_tokens_decoder", {}))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of any of some texts, the longest one that fits; of nothing if there are none."""
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _with_space(text: str) -> str:
    return f"{text[:1]} {text[1:]}"
