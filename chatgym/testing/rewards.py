"""`check_reward_model`: check a reward model against its protocol."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from chatgym.rewards import Conversation, RewardModel
from chatgym.testing.findings import Findings

TOLERANCE = 1e-3
"""How far scores of the same conversation may be apart, beside others: sums in another order round differently."""


def _messages(*texts: str) -> list[dict[str, str]]:
    """Return texts as chat messages, alternately of user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS: tuple[Conversation, ...] = (
    [{"role": "system", "content": "You serve customers."}, *_messages("Hello?", "Good day, what can I do for you?")],
    _messages("My parcel never came.", "I am sorry. What is your order number?", "482913", "Here is your refund."),
    _messages("My parcel never came.", "And?", "You are no help at all!", "Bye."),
    _messages("Thank you so much, that was all."),
)
ODD: dict[str, Conversation] = {
    "an empty conversation": [],
    "a message without text": _messages("", ""),
    "a text in other scripts": _messages("مرحبا 你好 Здравствуйте", "e\u0301 👩\u200d👩\u200d👧 🇩🇪 \u202ereversed"),
    "control characters": _messages("\x00\x07\x1b[31m\ufffe\r\n\t", "�"),
    "a very long text": _messages("again and again " * 5_000, "yes " * 5_000),
}


def check_reward_model(reward_model: RewardModel) -> None:
    """Check that a reward model conforms to `chatgym.rewards.RewardModel`.

    It scores a few dozen conversations: ordinary, empty, in many scripts, and of 100,000 characters. Scores must be
    float32[B], finite, the same at each call, and independent of the other conversations and their order, up to
    `TOLERANCE` of their size.

    Raises:
        NonConforming: With all problems found.
    """
    __tracebackhide__ = True
    findings = Findings(type(reward_model).__name__, "chatgym.rewards.RewardModel")
    if findings.expect(
        callable(getattr(reward_model, "score", None)),
        "It has no method `score`. Write score(conversations) -> float32[B].",
    ):
        with findings.global_randomness_kept("score()", 1):
            with findings.trying("score() of a few ordinary conversations"):
                _check(findings, reward_model)
            for what, conversation in ODD.items():
                with findings.trying(f"score() of {what}"):
                    _scores(findings, reward_model, [conversation], f"of {what}")
                with findings.trying(f"score() of {what} beside an ordinary conversation"):
                    _scores(findings, reward_model, [CONVERSATIONS[0], conversation], f"of {what} beside another")
    findings.conclude()


def _check(findings: Findings, model: RewardModel) -> None:
    """Check that scores repeat, follow their conversations, and don't depend on the batch."""
    first = _scores(findings, model, CONVERSATIONS, "")
    if first is None:
        return
    again = _scores(findings, model, CONVERSATIONS, "")
    findings.expect(
        again is not None and np.array_equal(first, again),
        "score() gives the same conversations other scores the second time. Switch off what is random in it (dropout: "
        "model.eval()), and keep no state from one call to the next.",
    )
    alone = [_scores(findings, model, [conversation], "of one conversation") for conversation in CONVERSATIONS]
    findings.expect(
        all(score is not None and _close(score[0], value) for score, value in zip(alone, first, strict=True)),
        f"a conversation scores {[_shown(score) for score in alone]} alone and {first.tolist()} beside others. A score "
        "has to depend on its own conversation: mask the padding, and normalise by no batch.",
    )
    turned = _scores(findings, model, CONVERSATIONS[::-1], "in another order")
    findings.expect(
        turned is not None and _close(turned[::-1], first),
        "with the conversations in another order the scores don't follow them. Return the i-th conversation's score "
        "at place i.",
    )
    many = _scores(findings, model, list(CONVERSATIONS) * 10, "of 40 conversations")
    findings.expect(
        many is None or _close(many, np.tile(first, 10)),
        "in a batch of 40 the conversations score otherwise than in one of 4. Batches of any size have to do.",
    )
    none = model.score([])
    findings.expect(
        isinstance(none, np.ndarray) and none.shape == (0,) and none.dtype == np.float32,
        "score([]) isn't an empty float32 array. Return np.zeros(0, np.float32) for no conversations.",
    )


def _scores(findings: Findings, model: RewardModel, conversations: Any, what: str) -> Any:
    """Return the scores, float32[B], or None if they are malformed; the model gets a copy of the conversations."""
    given = copy.deepcopy(list(conversations))
    scores: Any = model.score(given)
    findings.expect(
        given == list(conversations), "score() changes the conversations that it is given. Work on a copy of them."
    )
    size, which = len(conversations), f"score() {what}".rstrip()
    right = isinstance(scores, np.ndarray) and scores.shape == (size,) and scores.dtype == np.float32
    got = f"{scores.dtype}{list(scores.shape)}" if isinstance(scores, np.ndarray) else type(scores).__name__
    if not findings.expect(right, f"{which} returns {got}. Return a numpy array float32[{size}], a score for each."):
        return None
    finite = np.isfinite(scores).all()
    return scores if findings.expect(finite, f"{which} isn't finite: {scores}. Return ordinary numbers only.") else None


def _close(a: Any, b: Any) -> bool:
    """Tell whether scores, float32[B], are equal up to `TOLERANCE`."""
    return bool(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE))


def _shown(score: Any) -> Any:
    """Return the first of the scores, float32[B], for a message."""
    return None if score is None else score.tolist()[0]
