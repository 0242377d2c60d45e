"""`check_engine`: check an engine against its protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chatgym.engines import Completion, Engine
from chatgym.testing.findings import Findings

PROMPTS = ("Ways to say hello:\n- Hello.\n- Hi there.\n-", "The capital of France is", "One, two, three, four,")
ODD = {
    "an empty prompt": "",
    "a prompt in other scripts": "مرحبا 你好 Здравствуйте e\u0301 👩\u200d👩\u200d👧 🇩🇪",
    "a prompt of control characters": "\x00\x07\x1b[31m\ufffe\r\n\t",
}
LENGTH = 8
SAMPLED: dict[str, Any] = {"max_new_tokens": LENGTH, "temperature": 1.0, "logprobs": True}


def check_engine(engine: Engine, *, tolerance: float = 0.05) -> None:
    """Check that an engine conforms to `chatgym.engines.Engine`, and close it.

    It generates a few hundred tokens. Checked are: a row's text is a function of its prompt and seed; stop strings end
    it; `max_new_tokens` holds; log-probabilities agree with `score`.

    Args:
        engine: The engine, opened on any model, preferably a small one. In bfloat16 rounding can make a text depend on
            the other rows: use float32.
        tolerance: Greatest difference between log-probabilities of the same token, in nats.

    Raises:
        NonConforming: With all problems found.
    """
    __tracebackhide__ = True
    findings = Findings(type(engine).__name__, "chatgym.engines.Engine")
    missing = [name for name in ("generate", "score", "close") if not callable(getattr(engine, name, None))]
    if findings.expect(not missing, f"It has no method {', '.join(f'`{name}`' for name in missing)}. Write it."):
        with findings.trying("identity"):
            name: Any = engine.identity
            findings.expect(
                isinstance(name, str) and name and name == engine.identity,
                f"identity is {name!r}. Name the model and its revision in a string that stays the same: completions "
                "are stored under it.",
            )
        with findings.global_randomness_kept("the engine", 1):
            with findings.trying("generate() of three prompts"):
                _sampling(findings, engine)
            with findings.trying("generate() with stop strings"):
                _stopping(findings, engine)
            with findings.trying("generate() of odd prompts"):
                _odd_prompts(findings, engine)
            with findings.trying("score()"):
                _scoring(findings, engine, tolerance)
        with findings.trying("close(), twice,"):
            engine.close()
            engine.close()
    findings.conclude()


def _sampling(findings: Findings, engine: Engine) -> None:
    """Check that prompt, seed and temperature determine a text."""
    given, seeds = list(PROMPTS), [5, 6, 7]
    together = engine.generate(given, seeds=seeds, **SAMPLED)
    if not _well_formed(findings, together, 3, LENGTH, logprobs=True):
        return
    findings.expect(given == list(PROMPTS), "generate() changes the list of prompts that it is given. Copy it.")
    findings.expect(
        _words(engine.generate(PROMPTS, seeds=seeds, **SAMPLED)) == _words(together),
        "generate() with the same prompts and seeds gives other texts the second time. Let every draw be a function of "
        "(seed, position), see `chatgym.dynamics.rng.uniform`; where a server can't seed, temperature 0 is all you can "
        "offer.",
    )
    alone = [engine.generate([p], seeds=[s], **SAMPLED)[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    turned = engine.generate([*PROMPTS[::-1], PROMPTS[0]], seeds=[*seeds[::-1], 99], **SAMPLED)
    findings.expect(
        _words(alone) == _words(together) == _words(turned[:3][::-1]),
        "a prompt's text depends on the prompts beside it, or on its place among them. Mask the padding, number "
        "positions without it, and draw from the row's own seed.",
    )
    many = engine.generate(PROMPTS[:1] * 8, seeds=range(8), **SAMPLED)
    findings.expect(
        len(set(_words(many))) > 1,
        "eight seeds give one and the same text at temperature 1. Let the seeds decide what is drawn.",
    )
    cold = [engine.generate(PROMPTS, max_new_tokens=4, temperature=0.0, seeds=s) for s in (seeds, [8, 9, 10])]
    findings.expect(
        _words(cold[0]) == _words(cold[1]), "at temperature 0 the text depends on the seed. Take the likeliest token."
    )
    findings.expect(
        all(c.logprobs is None for c in cold[0]), "generate() returns logprobs unasked. Return None without `logprobs`."
    )
    _well_formed(findings, engine.generate(PROMPTS, max_new_tokens=1), 3, 1, logprobs=False)


def _well_formed(findings: Findings, found: Any, size: int, most: int, *, logprobs: bool) -> bool:
    """Check the completions of `size` prompts; return whether they are right."""
    right = isinstance(found, list) and len(found) == size and all(isinstance(c, Completion) for c in found)
    if not findings.expect(
        right, f"generate() of {size} prompts doesn't return a list of {size} `Completion`s. Return one for each."
    ):
        return False
    before = len(findings.problems)
    findings.expect(
        all(isinstance(c.text, str) and isinstance(c.tokens, tuple) for c in found),
        "a completion's text isn't a str, or its tokens aren't a tuple of ints. Convert them.",
    )
    longest = max(len(c.tokens) for c in found)
    findings.expect(
        longest <= most, f"generate() with max_new_tokens={most} returns {longest} tokens. Stop when they are reached."
    )
    reasons = {c.finish_reason for c in found}
    findings.expect(
        reasons <= {"stop", "length"}, f"finish_reason is {sorted(reasons)}. It is 'stop' or 'length', nothing else."
    )
    findings.expect(
        all(len(c.tokens) == most for c in found if c.finish_reason == "length"),
        f"finish_reason is 'length' although fewer than max_new_tokens={most} tokens were sampled. 'length' says "
        "that they were used up; else it is 'stop'.",
    )
    if logprobs:
        counts = [(len(c.tokens), None if c.logprobs is None else len(c.logprobs)) for c in found]
        findings.expect(
            all(tokens == values for tokens, values in counts),
            f"there aren't as many logprobs as tokens: {counts}. Return one for each token, the end token included.",
        )
        values = [value for c in found for value in c.logprobs or ()]
        findings.expect(
            all(math.isfinite(value) and value <= 1e-6 for value in values),
            f"a log-probability is {max(values, default=0.0)}. They are finite and at most 0.",
        )
    return len(findings.problems) == before


def _stopping(findings: Findings, engine: Engine) -> None:
    """Check stop strings: the second half of a text that the same seed generates without them."""
    free = engine.generate(PROMPTS, max_new_tokens=LENGTH, seeds=[1, 2, 3])
    for i, completion in enumerate(free):
        text = completion.text
        stop = text[len(text) // 2 :][:3]
        if not stop or "\ufffd" in text:  # half a character at the end: another text once more is decoded
            continue
        cut = engine.generate(PROMPTS, max_new_tokens=LENGTH, seeds=[1, 2, 3], stop=("\x00never", stop))[i]
        findings.expect(
            cut.text == text[: text.find(stop)],
            f"with stop={stop!r} the text {text!r} becomes {cut.text!r}. It ends before the first stop string.",
        )
        findings.expect(
            cut.finish_reason == "stop",
            f"finish_reason is {cut.finish_reason!r} where a stop string was met. It is 'stop'.",
        )


def _odd_prompts(findings: Findings, engine: Engine) -> None:
    """Check that no prompts and unusual prompts cause no error."""
    findings.expect(
        engine.generate([], max_new_tokens=2) == [] and engine.score([], []) == [],
        "for no prompts generate() and score() don't return an empty list. Return [].",
    )
    for what, prompt in ODD.items():
        with findings.trying(f"generate() of {what}"):
            _well_formed(findings, engine.generate([prompt], max_new_tokens=2, seeds=[1]), 1, 2, logprobs=False)


def _scoring(findings: Findings, engine: Engine, tolerance: float) -> None:
    """Check that scores are log-probabilities, independent of other rows, and agree with those of `generate`."""
    texts = [" Good morning.", " Paris, of course.", " five"]
    scores = engine.score(PROMPTS, texts)
    right = isinstance(scores, list) and len(scores) == 3 and all(len(row) for row in scores)
    if not findings.expect(right, "score() of three texts doesn't return three lists. Return a number for each token."):
        return
    findings.expect(
        all(math.isfinite(value) and value <= 1e-6 for row in scores for value in row),
        "score() isn't finite and at most 0 everywhere. Return log-probabilities.",
    )
    alone = [engine.score([p], [t])[0] for p, t in zip(PROMPTS, texts, strict=True)]
    findings.expect(
        all(_close(a, b, tolerance) for a, b in zip(scores, alone, strict=True)),
        f"a text's score depends on the texts beside it: {scores} together, {alone} alone. Mask the padding.",
    )
    # One token each: what it is as a text is nearly always the same token again.
    drawn = engine.generate(PROMPTS[:1] * 16, max_new_tokens=1, temperature=1.0, seeds=range(16), logprobs=True)
    whole = [c for c in drawn if c.text and "\ufffd" not in c.text and len(c.tokens) == 1 and c.logprobs]
    scored = engine.score(PROMPTS[:1] * len(whole), [c.text for c in whole])
    pairs = [(c.logprobs, row) for c, row in zip(whole, scored, strict=True) if len(row) == 1]
    agree = sum(_close(said, row, tolerance) for said, row in pairs)
    apart = next(((said, row) for said, row in pairs if not _close(said, row, tolerance)), None)
    findings.expect(
        2 * agree >= len(pairs),
        f"at temperature 1 generate() reports the log-probabilities {apart and apart[0]} where score() says "
        f"{apart and apart[1]}. Both are the model's own, after temperature and top_p.",
    )


def _words(completions: Sequence[Completion]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the completions' texts and tokens."""
    return [(c.text, c.tokens) for c in completions]


def _close(a: Any, b: Any, tolerance: float) -> bool:
    """Tell whether two lists of numbers are equal up to `tolerance`."""
    return len(a) == len(b) and bool(np.allclose(a, b, atol=tolerance))
