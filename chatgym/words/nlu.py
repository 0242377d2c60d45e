"""NLU: from an utterance's words to its dialogue act and slots.

A frozen sentence encoder (`chatgym.words.encoder`) gives a vector, and softmax heads over it the part of the scenario
(``"inform/reference"``), the role and the tone. The heads are logistic regressions, trained on the scenario's sentences
and stored beside these in ``nlu.npz``, with vectors of the partner's sentences, which the wording guard compares with
(`chatgym.words.guard`). The scenario's patterns read the slots; each value is replaced by an example
(`Scenario.examples`) before encoding, so the part doesn't depend on the value.
"""

from __future__ import annotations

import functools
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from chatgym.dynamics.content import source_digest
from chatgym.errors import Corrupted, Unavailable, unknown
from chatgym.scenarios import Scenario, fill
from chatgym.storage import model_store
from chatgym.words.encoder import DENIED, ENCODER, MIDDLE, SCORN, SHORT_FORMS, WIDTH, Floats, encoder, written_out
from chatgym.words.voice.wordings import wordings

T = TypeVar("T")

DOUBT = " (?)"
"""Mark of what was heard with low confidence, at the end of a sentence; no word of its speaker."""
UNCLEAR = "unclear"
OUT_OF_DOMAIN = "out_of_domain"
THRESHOLD = 0.5
"""Least probability of an act, summed over its parts; below it the utterance is unclear."""
WEIGHT_DECAY = 1e-5
"""Strength of the L2 penalty; chosen on development data, as `THRESHOLD` and `WEIGHTS`, see ``docs/nlu.md``."""
WEIGHTS = {OUT_OF_DOMAIN: 6.0, UNCLEAR: 2.0}
"""Weights of all sentences of a label, where a part's weigh 1: mishearing is worse than asking again."""


@dataclass(frozen=True)
class Understanding:
    """The meaning of an utterance.

    Attributes:
        act: The dialogue act; ``"unclear"`` if its probability is below `THRESHOLD`.
        part: Part of the scenario's sentences (``"inform/reference"``); empty if unclear.
        slots: Name to value of the slots found in it, even if the act is unclear.
        confidence: Probability of the act.
    """

    act: str
    part: str
    slots: Mapping[str, Any]
    confidence: float


@dataclass(frozen=True, eq=False)
class Head:
    """A linear softmax classifier: ``probabilities = softmax(x @ weights.T + bias)``.

    Attributes:
        labels: L names.
        weights: float32[L, W], for the first W of `Encoder.features`.
        bias: float32[L].
    """

    labels: tuple[str, ...]
    weights: Floats
    bias: Floats

    def probabilities(self, features: Floats) -> Floats:
        """Return probabilities, float32[B, L], for features float32[B, 1152]."""
        logits = features[:, : self.weights.shape[1]] @ self.weights.T + self.bias
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        result: Floats = exponentials / exponentials.sum(1, keepdims=True)
        return result

    @functools.cached_property
    def acts(self) -> npt.NDArray[np.bool_]:
        """Which pairs of labels are parts of the same act, bool[L, L]."""
        names = np.array([label.partition("/")[0] for label in self.labels])
        same: npt.NDArray[np.bool_] = names[:, None] == names
        return same


class NLU:
    """Understands the utterances of both roles in one scenario.

    Attributes:
        heads: Classifiers by name: ``"partner"`` and ``"agent"`` (the part, among those of the role and out of domain),
            ``"role"`` (the speaker's), ``"tone"`` (the partner's).
    """

    def __init__(self, scenario: Scenario) -> None:
        """Load the scenario's heads; train them if its sentences changed.

        Raises:
            Corrupted: The file of the heads can't be read.
        """
        self.scenario = scenario
        self.encoder = encoder()
        self.heads = _stored(scenario, _heads_in) or train(scenario)

    def understand(self, texts: Sequence[str], role: str = "partner") -> list[Understanding]:
        """Return the meanings of B utterances of a role, ``"partner"`` or ``"agent"``."""
        if role not in ("partner", "agent"):
            raise unknown("role", role, ("partner", "agent"))
        found = [self.scenario.find_slots(text.replace(DOUBT, "")) for text in texts]
        known = [self._by_heart.get(written_out(canonical)) if role == "agent" else None for _, canonical in found]
        head = self.heads[role]
        unknown_texts = [canonical for (_, canonical), part in zip(found, known, strict=True) if part is None]
        parts = head.probabilities(self.encoder.features(unknown_texts))
        acts = parts @ head.acts  # (B, L): probability of each part's act
        guesses = zip(parts, acts, strict=True)
        result = []
        for (slots, _), own in zip(found, known, strict=True):
            part, confidence = (own, 1.0) if own is not None else _likeliest(head, *next(guesses))
            if part in (OUT_OF_DOMAIN, UNCLEAR) or confidence < THRESHOLD:
                result.append(Understanding(UNCLEAR, "", slots, confidence))
            else:
                result.append(Understanding(part.partition("/")[0], part, slots, confidence))
        return result

    @functools.cached_property
    def _by_heart(self) -> dict[str, str]:
        """The agent's own sentences, as they are encoded, to their parts: these are recognised exactly.

        Otherwise an agent that says an act's own sentence would sometimes take another act.
        """
        known: dict[str, str] = {}
        for part, sentences in self.scenario.sentences["agent"].items():
            for text in _filled(self.scenario, sentences):
                known.setdefault(written_out(self.scenario.find_slots(text)[1]), part)
        return known

    @functools.cached_property
    def _examples(self) -> dict[str, npt.NDArray[np.int8]]:
        """Stored vectors of the partner's sentences, int8[384] each; none if the scenario changed. For the guard."""

        def by_sentence(file: Any) -> dict[str, npt.NDArray[np.int8]]:
            """Return the vectors in a file, int8[384] each, by sentence."""
            return dict(zip(_said_by_partner(self.scenario), file["examples"], strict=True))

        return _stored(self.scenario, by_sentence) or {}

    def examples(self, texts: Sequence[str]) -> Floats:
        """Return the vectors of B sentences of the partner, float32[B, 384], rounded as if they were stored."""
        known = self._examples  # the property may give another thread another dictionary
        if new := [text for text in texts if text not in known]:
            known.update(zip(new, _rounded(self.encoder.encode(new)), strict=True))
        rounded = np.stack([known[text] for text in texts]).astype(np.float32)
        vectors: Floats = rounded / np.linalg.norm(rounded, axis=1, keepdims=True)
        return vectors

    def identity(self) -> dict[str, Any]:
        """Return what identifies the encoder, the heads and what reads the slots: their digests, and the threshold."""
        encoder_sha256 = model_store.MODELS[ENCODER].sha256
        return {"encoder": ENCODER, "encoder_sha256": encoder_sha256, "heads_sha256": digest(self.heads),
                "slots_sha256": source_digest(self.scenario.find_slots), "threshold": THRESHOLD}  # fmt: skip


def _likeliest(head: Head, parts: Floats, acts: Floats) -> tuple[str, float]:
    """Return the likeliest part of the likeliest act, and that act's probability.

    Args:
        head: The classifier.
        parts: float32[L], probability of each part.
        acts: float32[L], probability of each part's act.
    """
    sure = acts >= acts.max() * (1 - 1e-6)  # equal but for rounding
    best = int(np.where(sure, parts, -1.0).argmax())
    return head.labels[best], float(acts[best])


@functools.cache
def nlu_of(scenario: Scenario) -> NLU:
    """Return a scenario's NLU, one a process."""
    return NLU(scenario)


def labelled(scenario: Scenario, *, contrasts: bool = True) -> Iterator[tuple[str, str, str]]:
    """Yield the training data: (head, label, text), slots replaced by their examples.

    Args:
        scenario: The scenario.
        contrasts: Whether to yield sentences with denials, irony and conditions, too, as ``nlu/contrasts`` labels them.
            Nobody should take their words for a part's own: most of them are about what isn't so.
    """
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
        for part, templates in sentences["nlu"].get("contrasts", {}).get(role, {}).items() if contrasts else ():
            for text in _filled(scenario, templates):
                yield role, part, scenario.find_slots(text)[1]
        for text in sentences["nlu"]["out_of_domain"]:
            yield role, OUT_OF_DOMAIN, text
    for bank in wordings(scenario):
        for text in _filled(scenario, bank.texts):
            yield "partner", bank.part, text
            yield "role", "partner", text
            yield "tone", bank.tone, text


def _filled(scenario: Scenario, templates: Sequence[str]) -> Iterator[str]:
    """Yield sentences with slots replaced by their examples, or once by each choice of a slot that has choices."""
    for template in templates:
        texts = [fill(template, scenario.examples)]
        for slot, choices in scenario.choices.items():
            texts = [fill(text, {slot: c}) for text in texts for c in (choices if "{" + slot + "}" in text else ("",))]
        yield from texts


def _said_by_partner(scenario: Scenario) -> list[str]:
    """Return the partner's N different sentences that people wrote."""
    return list(dict.fromkeys(text for head, _, text in labelled(scenario) if head == "tone"))


def _rounded(vectors: Floats) -> npt.NDArray[np.int8]:
    """Return vectors float32[N, 384] as int8[N, 384], each scaled to its largest entry; their directions stay."""
    rounded: npt.NDArray[np.int8] = np.rint(vectors / np.abs(vectors).max(1, keepdims=True) * 127).astype(np.int8)
    return rounded


def train(scenario: Scenario) -> dict[str, Head]:
    """Train the heads by multinomial logistic regression, with equal weight for each part; deterministic."""
    data: dict[str, list[tuple[str, str]]] = {}
    for head, label, text in labelled(scenario):
        data.setdefault(head, []).append((label, text))
    return {name: _fit(pairs, 3 * WIDTH if name in ("partner", "agent") else WIDTH) for name, pairs in data.items()}


def _fit(pairs: list[tuple[str, str]], width: int) -> Head:
    """Fit a head to pairs of label and text, by the first `width` features."""
    import torch

    labels = sorted({label for label, _ in pairs})
    x = torch.from_numpy(encoder().features([text for _, text in pairs])[:, :width]).double()  # (N, W)
    y = torch.tensor([labels.index(label) for label, _ in pairs])
    counts = torch.bincount(y, minlength=len(labels)).double()
    weight = counts.mean() / counts
    weight *= torch.tensor([WEIGHTS.get(label, 1.0) for label in labels])
    weights = torch.zeros(len(labels), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(labels), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        """Return the loss, a float64 scalar, and compute its gradient."""
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weights.T + bias, y, weight=weight)
        loss = loss + WEIGHT_DECAY * weights.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Head(tuple(labels), weights.detach().float().numpy(), bias.detach().float().numpy())


def digest(heads: Mapping[str, Head]) -> str:
    """Return the SHA-256 of heads' content."""
    total = hashlib.sha256()
    for name in sorted(heads):
        head = heads[name]
        total.update("\n".join((name, *head.labels)).encode())
        total.update(np.ascontiguousarray(head.weights).tobytes() + np.ascontiguousarray(head.bias).tobytes())
    return total.hexdigest()


@functools.cache
def data_digest(scenario: Scenario) -> str:
    """Return the SHA-256 of everything that the heads are trained from."""
    rows = "\n".join("\t".join(row) for row in labelled(scenario))
    made_with = (
        f"{model_store.MODELS[ENCODER].sha256}\n{WEIGHT_DECAY} {WEIGHTS}\n{MIDDLE} {DENIED.pattern} {SCORN.pattern}\n"
        f"{sorted(SHORT_FORMS.items())}"
    )
    return hashlib.sha256(f"{made_with}\n{rows}".encode()).hexdigest()


def _path(scenario: Scenario) -> Path:
    return scenario.folder / "nlu.npz"


def save(scenario: Scenario, heads: Mapping[str, Head]) -> Path:
    """Write heads, and the vectors of the partner's sentences, into the scenario's folder; returns the file.

    Raises:
        Unavailable: The folder can't be written to.
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
    """Return the heads in an npz file that `save` wrote."""
    names = sorted({name.partition(".")[0] for name in file.files if "." in name})
    return {
        name: Head(tuple(file[f"{name}.labels"].tolist()), file[f"{name}.weights"], file[f"{name}.bias"])
        for name in names
    }


def _stored(scenario: Scenario, read: Callable[[Any], T]) -> T | None:
    """Return `read(file)` of the scenario's npz file, or None if there is none for its present sentences."""
    path = _path(scenario)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return read(file) if str(file["data_sha256"]) == data_digest(scenario) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        remedy = f"`chatgym scenarios {scenario.name} --train-nlu` makes it anew"
        raise Corrupted(f"{path} can't be read ({error}); {remedy}") from error
