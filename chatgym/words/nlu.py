"""NLU: what an utterance means. A sentence encoder, softmax heads over a scenario's parts, patterns for slots.

The encoder is all-MiniLM-L6-v2 (Reimers & Gurevych 2019, "Sentence-BERT"), frozen; the heads are logistic
regressions over its embeddings, trained on the scenario's sentences and kept beside them in ``nlu.npz``, with the
partner's sentences as vectors, which wordings of a language model are compared with (`chatgym.words.guard`). Slot
values are read by the scenario's patterns and put out of sight (`Scenario.examples`) before the encoder looks, so what
is said and about which value are understood apart.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from chatgym.errors import Corrupted, Unavailable, unknown
from chatgym.scenarios import Scenario, fill
from chatgym.storage import model_store
from chatgym.words.voice.wordings import wordings

Floats = npt.NDArray[np.float32]
T = TypeVar("T")

ENCODER = "all-minilm-l6-v2"
UNCLEAR = "unclear"
OUT_OF_DOMAIN = "out_of_domain"
THRESHOLD = 0.5
"""Least probability of an understood act, over all its parts; below it the utterance is unclear."""
WEIGHT_DECAY = 1e-5
"""Chosen, as the threshold and the next, on development halves of the held-out utterances, see ``docs/nlu.md``."""
OUTSIDE_WEIGHT = 4.0
"""How much more the foreign sentences together weigh than those of a part: to mishear is worse than to ask again."""
REMEMBERED = 65_536
"""Sentences whose vectors are kept in memory (100 MB)."""
MAX_TOKENS = 64
"""Tokens of an utterance that the encoder looks at; the rest is cut off."""

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
"""How people write in chats, and what the encoder knows it by."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_STRETCHED = re.compile(r"([a-z])\1{2,}")


@dataclass(frozen=True)
class Understanding:
    """What was understood of an utterance.

    Attributes:
        act: The dialogue act, ``"unclear"`` when it isn't sure enough.
        part: Which of the scenario's sentences it is like (``"inform/reference"``), empty when unclear.
        slots: Name to value of the slots found in it, unclear or not.
        confidence: Probability of the act.
    """

    act: str
    part: str
    slots: Mapping[str, Any]
    confidence: float


@dataclass(frozen=True, eq=False)
class Head:
    """A softmax over labels: ``probabilities = softmax(x @ weights.T + bias)``.

    Attributes:
        labels: L names.
        weights: float32[L, 384].
        bias: float32[L].
    """

    labels: tuple[str, ...]
    weights: Floats
    bias: Floats

    def probabilities(self, embeddings: Floats) -> Floats:
        """Return float32[B, L] for embeddings float32[B, 384]."""
        logits = embeddings @ self.weights.T + self.bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        result: Floats = exponentials / exponentials.sum(1, keepdims=True)
        return result

    @functools.cached_property
    def acts(self) -> npt.NDArray[np.bool_]:
        """Tell which labels are parts of one act, bool[L, L]."""
        names = np.array([label.partition("/")[0] for label in self.labels])
        same: npt.NDArray[np.bool_] = names[:, None] == names
        return same


class Encoder:
    """Sentences to vectors of length 1. The model is loaded when it is first needed.

    Mean over the last layer's tokens, normalised, as the model was trained for. What it sees is `written_out`.
    """

    def __init__(self) -> None:
        """Note that nothing is loaded yet."""
        self._known: dict[str, Floats] = {}

    @functools.cached_property
    def _model(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from chatgym.engines.transformers import quiet_loading

        folder = model_store.path(ENCODER)
        with quiet_loading():
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
        return AutoTokenizer.from_pretrained(folder), model

    def encode(self, texts: Sequence[str], together: int = 64) -> Floats:
        """Return the texts' vectors, float32[B, 384]; those seen before (the last `REMEMBERED`) are looked up.

        Args:
            texts: B texts.
            together: How many are computed at once; the shorter ones are padded to the longest.
        """
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        if len(self._known) + len(new) > REMEMBERED:
            self._known = {text: self._known[text] for text in texts if text in self._known}
        for first in range(0, len(new), together):
            batch = new[first : first + together]
            self._known.update(zip(batch, self._forward(batch), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 384), np.float32)

    def encode_alone(self, text: str) -> Floats:
        """Return a text's vector, float32[384], computed by itself: the same bits whatever was encoded before."""
        vector: Floats = self._forward([text])[0]
        return vector

    def _forward(self, texts: list[str]) -> Floats:
        import torch

        tokenizer, model = self._model
        texts = [written_out(text) for text in texts]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state  # (B, T, 384)
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors: Floats = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors


def written_out(text: str) -> str:
    """Return a text in lower case with `SHORT_FORMS` and stretched words ("heyyy") as a dictionary has them."""
    text = _STRETCHED.sub(r"\1", text.lower().replace("’", "'"))
    return _WORD.sub(lambda word: SHORT_FORMS.get(word[0], word[0]), text)


@functools.cache
def encoder() -> Encoder:
    """Return the process's encoder."""
    return Encoder()


class NLU:
    """Understands the utterances of one scenario, of both roles.

    Attributes:
        heads: By name: ``"partner"`` and ``"agent"`` (over the parts that the role says, and out of domain),
            ``"role"`` (who says so), ``"tone"`` (how the partner says it).
    """

    def __init__(self, scenario: Scenario) -> None:
        """Read the heads that are kept with the scenario, or train them when it changed since.

        Raises:
            Corrupted: When the file of the heads can't be read.
        """
        self.scenario = scenario
        self.encoder = encoder()
        self.heads = _stored(scenario, _heads_in) or train(scenario)

    def understand(self, texts: Sequence[str], role: str = "partner") -> list[Understanding]:
        """Understand B utterances of a role, ``"partner"`` or ``"agent"``."""
        if role not in ("partner", "agent"):
            raise unknown("role", role, ("partner", "agent"))
        found = [self.scenario.find_slots(text) for text in texts]
        known = [self._by_heart.get(written_out(canonical)) if role == "agent" else None for _, canonical in found]
        head = self.heads[role]
        unknown_texts = [canonical for (_, canonical), part in zip(found, known, strict=True) if part is None]
        parts = head.probabilities(self.encoder.encode(unknown_texts))
        acts = parts @ head.acts  # (B, L): the probability of each part's act
        guesses = zip(parts, acts, strict=True)
        result = []
        for (slots, _), own in zip(found, known, strict=True):
            part, confidence = (own, 1.0) if own is not None else _likeliest(head, *next(guesses))
            if part == OUT_OF_DOMAIN or confidence < THRESHOLD:
                result.append(Understanding(UNCLEAR, "", slots, confidence))
            else:
                result.append(Understanding(part.partition("/")[0], part, slots, confidence))
        return result

    @functools.cached_property
    def _by_heart(self) -> dict[str, str]:
        """The agent's own sentences, as the encoder would see them, to their parts: an act in these words is that act.

        Else an agent that speaks would now and then take another turn than one that names its acts.
        """
        known: dict[str, str] = {}
        for part, sentences in self.scenario.sentences["agent"].items():
            for text in _filled(self.scenario, sentences):
                known.setdefault(written_out(self.scenario.find_slots(text)[1]), part)
        return known

    @functools.cached_property
    def _examples(self) -> dict[str, npt.NDArray[np.int8]]:
        """The vectors that are kept with the scenario, by sentence: none when it changed since. Only a guard asks."""

        def by_sentence(file: Any) -> dict[str, npt.NDArray[np.int8]]:
            return dict(zip(_said_by_partner(self.scenario), file["examples"], strict=True))

        return _stored(self.scenario, by_sentence) or {}

    def examples(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of B sentences of the partner's, float32[B, 384], rounded as they are stored."""
        if new := [text for text in texts if text not in self._examples]:
            self._examples.update(zip(new, _rounded(self.encoder.encode(new)), strict=True))
        rounded = np.stack([self._examples[text] for text in texts]).astype(np.float32)
        vectors: Floats = rounded / np.linalg.norm(rounded, axis=1, keepdims=True)
        return vectors

    def identity(self) -> dict[str, Any]:
        """Name the encoder and the heads by content."""
        encoder_sha256 = model_store.MODELS[ENCODER].sha256
        return {"encoder": ENCODER, "encoder_sha256": encoder_sha256, "heads_sha256": digest(self.heads),
                "threshold": THRESHOLD}  # fmt: skip


def _likeliest(head: Head, parts: Floats, acts: Floats) -> tuple[str, float]:
    """Return the likeliest part of the likeliest act, and that act's probability; of float32[L] by part, by act."""
    sure = acts >= acts.max() * (1 - 1e-6)  # whatever the rounding
    best = int(np.where(sure, parts, -1.0).argmax())
    return head.labels[best], float(acts[best])


@functools.cache
def nlu_of(scenario: Scenario) -> NLU:
    """Return the process's NLU of a scenario."""
    return NLU(scenario)


def labelled(scenario: Scenario) -> Iterator[tuple[str, str, str]]:
    """Yield (head, label, text) for everything that the heads learn; slots stand there as their examples."""
    sentences = scenario.sentences
    for role in ("partner", "agent"):
        for part, said in sentences[role].items():
            tones = said if isinstance(said, dict) else {"": said}
            for tone, templates in tones.items():
                for text in _filled(scenario, templates):
                    yield role, part, text
                    yield "role", role, text
                    if tone:
                        yield "tone", tone, text
        for part, templates in sentences["nlu"][role].items():
            for text in _filled(scenario, templates):
                yield role, part, text
        for text in sentences["nlu"]["out_of_domain"]:
            yield role, OUT_OF_DOMAIN, text
    for bank in wordings(scenario):
        for text in _filled(scenario, bank.texts):
            yield "partner", bank.part, text
            yield "role", "partner", text
            yield "tone", bank.tone, text


def _filled(scenario: Scenario, templates: Sequence[str]) -> Iterator[str]:
    """Yield sentences with examples in the place of slots, once for each word that a slot with choices may have."""
    for template in templates:
        texts = [fill(template, scenario.examples)]
        for slot, choices in scenario.choices.items():
            texts = [fill(text, {slot: c}) for text in texts for c in (choices if "{" + slot + "}" in text else ("",))]
        yield from texts


def _said_by_partner(scenario: Scenario) -> list[str]:
    """Return the N different sentences that a partner says, a person having written them."""
    return list(dict.fromkeys(text for head, _, text in labelled(scenario) if head == "tone"))


def _rounded(vectors: Floats) -> npt.NDArray[np.int8]:
    """Return vectors, but for their lengths, in eight bits a number: what they are near to stays the same."""
    rounded: npt.NDArray[np.int8] = np.rint(vectors / np.abs(vectors).max(1, keepdims=True) * 127).astype(np.int8)
    return rounded


def train(scenario: Scenario) -> dict[str, Head]:
    """Train the heads: multinomial logistic regression, parts weighted equally; the same every time."""
    data: dict[str, list[tuple[str, str]]] = {}
    for head, label, text in labelled(scenario):
        data.setdefault(head, []).append((label, text))
    return {name: _fit(pairs) for name, pairs in data.items()}


def _fit(pairs: list[tuple[str, str]]) -> Head:
    import torch

    labels = sorted({label for label, _ in pairs})
    x = torch.from_numpy(encoder().encode([text for _, text in pairs])).double()  # (N, 384)
    y = torch.tensor([labels.index(label) for label, _ in pairs])
    counts = torch.bincount(y, minlength=len(labels)).double()
    weight = counts.mean() / counts
    if OUT_OF_DOMAIN in labels:
        weight[labels.index(OUT_OF_DOMAIN)] *= OUTSIDE_WEIGHT
    weights = torch.zeros(len(labels), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights.T + bias, y, weight=weight)
        loss = loss + WEIGHT_DECAY * weights.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Head(tuple(labels), weights.detach().float().numpy(), bias.detach().float().numpy())


def digest(heads: Mapping[str, Head]) -> str:
    """SHA-256 of heads, by content."""
    total = hashlib.sha256()
    for name in sorted(heads):
        head = heads[name]
        total.update("\n".join((name, *head.labels)).encode())
        total.update(np.ascontiguousarray(head.weights).tobytes() + np.ascontiguousarray(head.bias).tobytes())
    return total.hexdigest()


@functools.cache
def data_digest(scenario: Scenario) -> str:
    """SHA-256 of all that the heads are made from."""
    rows = "\n".join("\t".join(row) for row in labelled(scenario))
    made_with = f"{model_store.MODELS[ENCODER].sha256}\n{WEIGHT_DECAY} {OUTSIDE_WEIGHT}\n{sorted(SHORT_FORMS.items())}"
    return hashlib.sha256(f"{made_with}\n{rows}".encode()).hexdigest()


def _path(scenario: Scenario) -> Path:
    return scenario.folder / "nlu.npz"


def save(scenario: Scenario, heads: Mapping[str, Head]) -> Path:
    """Write heads, and the vectors of the partner's sentences, beside the scenario's sentences.

    Raises:
        Unavailable: When that folder can't be written to.
    """
    examples = _rounded(encoder().encode(_said_by_partner(scenario)))
    arrays: dict[str, npt.NDArray[Any]] = {"data_sha256": np.array(data_digest(scenario)), "examples": examples}
    for name, head in heads.items():
        arrays |= {f"{name}.labels": np.array(head.labels), f"{name}.weights": head.weights, f"{name}.bias": head.bias}
    path = _path(scenario)
    try:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({error.strerror}); install the scenario editable") from error
    return path


def _heads_in(file: Any) -> dict[str, Head]:
    """Return the heads in a file that `save` wrote."""
    names = sorted({name.partition(".")[0] for name in file.files if "." in name})
    return {
        name: Head(tuple(file[f"{name}.labels"].tolist()), file[f"{name}.weights"], file[f"{name}.bias"])
        for name in names
    }


def _stored(scenario: Scenario, read: Callable[[Any], T]) -> T | None:
    """Return what `read` finds in the scenario's file, if it was made from the sentences as they are now."""
    path = _path(scenario)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return read(file) if str(file["data_sha256"]) == data_digest(scenario) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        remedy = f"`chatgym scenarios {scenario.name} --train-nlu` makes it anew"
        raise Corrupted(f"{path} can't be read ({error}); {remedy}") from error
