"""The sentence encoder: texts to vectors, by all-MiniLM-L6-v2 (Reimers & Gurevych 2019, "Sentence-BERT")."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym import forks
from chatgym.storage import model_store
from chatgym.storage.utf8 import valid

Floats = npt.NDArray[np.float32]

ENCODER = "all-minilm-l6-v2"
WIDTH = 384
"""Length of a vector."""
MIDDLE = 3
"""The layer whose mean is the second third of the features: nearer to the words than the last layer is."""
REMEMBERED = 32_768
"""Texts whose features are kept in memory (150 MB)."""
MAX_TOKENS = 64
"""Tokens of a text that are encoded; the rest is cut off."""

_TOKENS: dict[str, Any] = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}

SHORT_FORMS = {
    "acct": "account", "arent": "aren't", "brb": "be right back", "btw": "by the way", "cant": "can't",
    "couldnt": "couldn't", "cya": "see you", "didnt": "didn't", "doesnt": "doesn't", "dont": "don't",
    "dunno": "don't know", "gimme": "give me", "gonna": "going to", "gotta": "have to", "hasnt": "hasn't",
    "havent": "haven't", "idk": "I don't know", "ill": "I'll", "im": "I'm", "isnt": "isn't", "its": "it's",
    "ive": "I've", "k": "okay", "kk": "okay", "lemme": "let me", "n": "and", "nah": "no", "noone": "no one",
    "nope": "no", "nr": "number", "ok": "okay", "omg": "oh my god", "pls": "please", "plz": "please",
    "pw": "password", "r": "are", "sec": "second", "shouldnt": "shouldn't", "tbh": "to be honest", "thats": "that's",
    "theres": "there's", "theyre": "they're", "thx": "thanks", "ttyl": "talk to you later", "ty": "thank you",
    "tysm": "thank you so much", "u": "you", "ur": "your", "wanna": "want to", "wasnt": "wasn't",
    "wdym": "what do you mean", "whats": "what's", "wheres": "where's", "wont": "won't", "wouldnt": "wouldn't",
    "y": "why", "yea": "yes", "yeah": "yes", "yep": "yes", "youre": "you're", "youve": "you've", "yup": "yes",
}  # fmt: skip
"""Spellings of chats to those that the encoder was trained on."""

DENIED = re.compile(
    r"\b(?:not|no|never|nothing|nobody|none|neither|nor|nowhere|cannot|without|hardly|less|longer|anything but|"
    r"\w+n't)\b.*?(?=[,.;!?]|\bbut\b|$)", re.S,
)  # fmt: skip
"""What a text denies: from a word of denial to the end of its clause (as Das & Chen 2001, "Yahoo! for Amazon")."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
SCORN = re.compile(r"\byeah?,? right\b(?=\W*$)")
"""What is said in disbelief more often than in agreement."""
_STRETCHED = re.compile(r"([a-z])\1{2,}")


class Encoder:
    """Encodes texts as vectors of length 1; the model is loaded at the first use.

    A vector is the mean of the last layer over the tokens of `written_out(text)`, normalised, as the model was trained.
    """

    def __init__(self) -> None:
        """Make an encoder without loading its model."""
        self._known: dict[str, Floats] = {}
        self._opened: tuple[Any, Any] | None = None

    def _model(self) -> tuple[Any, Any]:
        """Return the tokenizer and the model, of the transformers library; several threads load them once."""
        if self._opened is None:
            with forks.loading:
                self._opened = self._opened or self._open()
        return self._opened

    def _open(self) -> tuple[Any, Any]:
        """Load the tokenizer and the model."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from chatgym.engines.transformers import quiet_loading

        folder = model_store.path(ENCODER)
        with quiet_loading():
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer("", **_TOKENS)  # sets padding and truncation: later, in several threads, this would be refused
        return tokenizer, model

    def encode(self, texts: Sequence[str], together: int = 64) -> Floats:
        """Return texts' vectors, float32[B, 384]; arguments as of `features`."""
        return self.features(texts, together)[:, :WIDTH]

    def features(self, texts: Sequence[str], together: int = 64) -> Floats:
        """Return texts' features, float32[B, 1152]; those of the last `REMEMBERED` texts are in memory.

        A vector alone hardly tells "I'm sad" from "I'm not sad anymore". So the features are the vector, the mean of
        layer `MIDDLE`, normalised, and the share of the last layer's mean that comes from the words `DENIED`.

        Args:
            texts: B texts.
            together: How many are encoded at once, padded to the longest.
        """
        known = self._known  # which only grows; another thread may begin a new memory in its place
        new = sorted({text for text in texts if text not in known}, key=lambda text: (len(text), text))
        if len(known) + len(new) > REMEMBERED:
            known = self._known = {text: known[text] for text in texts if text in known}
        for first in range(0, len(new), together):
            batch = new[first : first + together]
            known.update(zip(batch, self._forward(batch), strict=True))
        return np.stack([known[text] for text in texts]) if texts else np.zeros((0, 3 * WIDTH), np.float32)

    def encode_alone(self, text: str) -> Floats:
        """Return a text's vector, float32[384], encoded alone: its bits depend on no other text and no threads."""
        with forks.one_thread():
            vector: Floats = self._forward([text])[0, :WIDTH]
        return vector

    def _forward(self, texts: list[str]) -> Floats:
        """Encode B texts in one batch; returns their features, float32[B, 1152]."""
        import torch

        tokenizer, model = self._model()
        texts = [written_out(text) for text in texts]
        inputs = tokenizer(texts, **_TOKENS)
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True)
        hidden, middle = output.last_hidden_state, output.hidden_states[MIDDLE]  # (B, T, 384)
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        count = mask.sum(1).clamp(min=1)
        mean = (hidden * mask).sum(1) / count
        denied = torch.zeros_like(mean)
        for row, text in enumerate(texts):
            if spans := [found.span() for found in DENIED.finditer(text)]:
                denied[row] = hidden[row, _tokens(inputs, row, spans)].sum(0) / count[row] / mean[row].norm()
        thirds = (torch.nn.functional.normalize(mean, dim=1),
                  torch.nn.functional.normalize((middle * mask).sum(1), dim=1), denied)  # fmt: skip
        features: Floats = torch.cat(thirds, 1).numpy()
        return features


def _tokens(inputs: Any, row: int, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the positions of a row's tokens in spans of characters; a cut-off end has none."""
    found = []
    for begin, end in spans:
        tokens = (inputs.char_to_token(row, at) for at in range(begin, end))
        found += sorted({token for token in tokens if token is not None})
    return found


def written_out(text: str) -> str:
    """Return a text in lower case, with `SHORT_FORMS` and stretched words ("heyyy") in their usual spelling.

    "Yeah, right" at the end is written as "as if".
    """
    text = SCORN.sub("as if", _STRETCHED.sub(r"\1", valid(text).lower().replace("’", "'")))
    return _WORD.sub(lambda word: SHORT_FORMS.get(word[0], word[0]), text)


@functools.cache
def encoder() -> Encoder:
    """Return the encoder, one a process."""
    return Encoder()
