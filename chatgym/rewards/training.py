"""Train the encoder kind of reward model: compute the pairs' features, then fit Bradley–Terry heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from chatgym.forks import one_thread
from chatgym.rewards.bradley_terry import bootstrap_counts, choose_decay, fit
from chatgym.rewards.encoder import EncoderRewardModel
from chatgym.rewards.features import SIZE, Doubles, Reader, Space, texts, turns, weights
from chatgym.rewards.pairs import Pair
from chatgym.rewards.protocol import Conversation


def train(
    pairs: Sequence[Pair],
    *,
    ensemble: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EncoderRewardModel:
    """Train a reward model; the same pairs give the same bytes.

    Args:
        pairs: Training pairs; hold some out by `chatgym.rewards.pairs.split`.
        ensemble: K, the number of heads. One head is fitted to all pairs; several, each to a bootstrap sample of the
            groups (Efron 1979), so that the heads differ where the pairs don't decide.
        seed: Seed of the samples.
        progress: Called with the number of texts encoded, and of all texts.
    """
    better, worse = [pair.better for pair in pairs], [pair.worse for pair in pairs]
    with one_thread():
        plain = Reader()
        good, every = texts(better), texts([*better, *worse])
        vectors = {}
        for done, text in enumerate(every, 1):
            vectors[text] = plain.vector(text)
            if progress is not None:
                progress(done, len(every))
    space = Space.fit(np.stack([vectors[text] for text in good]).astype(np.float64))
    reader = Reader(space)
    reader.preload(vectors)
    chosen = features_of(better, reader)
    differences = chosen - features_of(worse, reader)
    groups = [pair.group for pair in pairs]
    samples = [None] if ensemble == 1 else [bootstrap_counts(groups, seed + k) for k in range(ensemble)]
    decay = choose_decay(differences, groups)
    fitted = np.stack([fit(differences, counts, decay).weights for counts in samples]).astype(np.float32)  # (K, F)
    typical = (fitted.astype(np.float64) @ chosen.mean(0)).astype(np.float32)
    model = EncoderRewardModel(space, fitted, typical, digest_of(pairs))
    model.reader.preload(vectors)
    return model


def features_of(conversations: Sequence[Conversation], reader: Reader) -> Doubles:
    """Return the features of N conversations, float64[N, `SIZE`]."""
    result = np.zeros((len(conversations), SIZE))
    for row, conversation in enumerate(conversations):
        if found := turns(conversation, reader):
            result[row] = weights(len(found)) @ np.stack([turn.features() for turn in found])
    return result


def digest_of(pairs: Sequence[Pair]) -> str:
    """Return the SHA-256 of pairs, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(asdict(pair), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
