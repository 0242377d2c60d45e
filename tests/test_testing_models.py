"""The checks of engines and reward models pass what is right; each is seen to fail on something that isn't."""
# ruff: noqa: NPY002 (global random state is what is watched)

import dataclasses
import hashlib
import time
from typing import ClassVar

import numpy as np
import pytest
from tiny import save_tiny_model, tiny_engine

from chatgym.dynamics import rng
from chatgym.engines import Completion
from chatgym.testing import NonConforming, check_engine, check_reward_model


def problems(check, *arguments, **more):
    with pytest.raises(NonConforming) as raised:
        check(*arguments, **more)
    return "\n".join(raised.value.problems)


class Letters:
    """A language model of eight letters: the next one's odds follow from a hash of the last ones."""

    identity = "letters@1"
    alphabet = "abcdefg "

    def odds(self, text):
        return np.frombuffer(hashlib.sha256(text[-20:].encode("utf-8", "replace")).digest()[:8], np.uint8) + 20.0

    def probabilities(self, text, temperature):
        odds = self.odds(text) ** (1 / max(temperature, 0.01))
        return odds / odds.sum()

    def generate(
        self, prompts, *, max_new_tokens, temperature=1.0, top_p=1.0, seeds=None, logprobs=False, stop=()
    ):  # fmt: skip
        seeds = range(len(prompts)) if seeds is None else seeds
        return [
            self.one(prompt, max_new_tokens, temperature, seed, logprobs, stop)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def draw(self, seed, position):
        return float(rng.uniform(seed, position, 0))

    def one(self, prompt, most, temperature, seed, logprobs, stop):
        text, tokens, likely, why = "", [], [], "length"
        while len(tokens) < most:
            p = self.probabilities(prompt + text, temperature)
            token = int(p.argmax() if temperature == 0 else (p.cumsum() <= self.draw(seed, len(tokens))).sum())
            text, tokens, likely = text + self.alphabet[token], [*tokens, token], [*likely, float(np.log(p[token]))]
            if any(s in text for s in stop):
                text, why = text[: min(text.find(s) for s in stop if s in text)], "stop"
                break
        return Completion(text, tuple(tokens), tuple(likely) if logprobs else None, why)

    def score(self, prompts, continuations):
        return [
            [
                float(np.log(self.probabilities(prompt + text[:i], 1.0)[self.alphabet.find(c)]))
                for i, c in enumerate(text)
            ]
            for prompt, text in zip(prompts, continuations, strict=True)
        ]

    def close(self):
        pass


def test_engines_that_keep_to_the_protocol_pass(tmp_path):
    from chatgym.engines import make_engine

    check_engine(tiny_engine(save_tiny_model(tmp_path)))
    assert make_engine(f"hf:{tmp_path}").identity.startswith(tmp_path.name)
    check_engine(Letters())


def completes(change):
    def one(self, prompt, most, temperature, seed, logprobs, stop):
        return change(Letters.one(self, prompt, most, temperature, seed, logprobs, stop))

    return type("Completes", (Letters,), {"one": one})


def generates(change):
    def generate(self, prompts, **sampling):
        return change(self, prompts, sampling)

    return type("Generates", (Letters,), {"generate": generate})


def replaced(**fields):
    return completes(lambda c: dataclasses.replace(c, **{name: value(c) for name, value in fields.items()}))


def beside(self, prompts, sampling):
    longest = max(map(len, prompts), default=0)
    return Letters.generate(self, [prompt.ljust(longest) for prompt in prompts], **sampling)


def wiping(self, prompts, sampling):
    done = Letters.generate(self, list(prompts), **sampling)
    if isinstance(prompts, list):
        prompts.clear()
    return done


def forgets(**fixed):
    return generates(lambda self, prompts, sampling: Letters.generate(self, prompts, **{**sampling, **fixed}))


def seedless(self, prompts, sampling):
    return Letters.generate(self, prompts, **{**sampling, "seeds": [1] * len(prompts)})


def warm(self, prompts, sampling):
    return Letters.generate(self, prompts, **{**sampling, "temperature": sampling.get("temperature", 1.0) or 1.0})


def padded_scores(self, prompts, continuations):
    longest = max(map(len, prompts), default=0)
    return Letters.score(self, [prompt.ljust(longest) for prompt in prompts], continuations)


def fails_at(words):
    def generate(self, prompts, sampling):
        if any(word in prompt for prompt in prompts for word in words):
            raise UnicodeError("what is this")
        return Letters.generate(self, prompts, **sampling)

    return generates(generate)


class OneClose(Letters):
    closed = False

    def close(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


def has(**members):
    return type("Has", (Letters,), members)


ENGINES = [
    (has(score=None), "It has no method `score`"),
    (has(identity=""), "identity is ''. Name the model and its revision"),
    (has(identity=property(lambda self: str(time.perf_counter_ns()))), "in a string that stays the same"),
    (has(draw=lambda self, seed, position: np.random.rand()), "changes the global random state of np.random"),
    (has(draw=lambda self, seed, position: time.perf_counter_ns() % 997 / 997), "gives other texts the second time"),
    (generates(lambda self, prompts, sampling: Letters.generate(self, prompts, **sampling)[:1]), "return a list"),
    (generates(wiping), "generate() changes the list of prompts"),
    (generates(beside), "a prompt's text depends on the prompts beside it"),
    (generates(seedless), "eight seeds give one and the same text at temperature 1"),
    (generates(warm), "at temperature 0 the text depends on the seed"),
    (forgets(logprobs=True), "generate() returns logprobs unasked"),
    (forgets(max_new_tokens=9), "generate() with max_new_tokens=8 returns 9 tokens"),
    (forgets(stop=()), "It ends before the first stop string"),
    (replaced(finish_reason=lambda c: "length"), "finish_reason is 'length' where a stop string was met"),
    (replaced(finish_reason=lambda c: "eos"), "finish_reason is ['eos']"),
    (replaced(tokens=lambda c: c.tokens[:3], logprobs=lambda c: c.logprobs and c.logprobs[:3]), "although fewer than"),
    (replaced(tokens=lambda c: list(c.tokens)), "its tokens aren't a tuple"),
    (replaced(logprobs=lambda c: c.logprobs and c.logprobs[1:]), "there aren't as many logprobs as tokens"),
    (replaced(logprobs=lambda c: c.logprobs and tuple(-x for x in c.logprobs)), "They are finite and at most 0"),
    (replaced(logprobs=lambda c: c.logprobs and tuple(x / 2 for x in c.logprobs)), "where score() says"),
    (generates(lambda self, p, sampling: Letters.generate(self, p, **sampling) or None), "don't return an empty list"),
    (fails_at(["你好"]), "generate() of a prompt in other scripts raised UnicodeError: what is this"),
    (fails_at(["\x00"]), "generate() of a prompt of control characters raised"),
    (has(score=lambda self, prompts, texts: [[]] * len(prompts)), "score() of three texts doesn't return three lists"),
    (has(score=lambda self, prompts, texts: [[1.0] * len(t) for t in texts]), "score() isn't finite and at most 0"),
    (has(score=padded_scores), "a text's score depends on the texts beside it"),
    (OneClose, "close(), twice, raised RuntimeError: closed already"),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "words"), ENGINES, ids=[words[:60] for _, words in ENGINES])
def test_what_an_engine_does_is_checked(engine, words):
    assert words in problems(check_engine, engine())


class Polite:
    """A logistic model over counts of letters: small, but a real one."""

    weights: ClassVar = np.sin(np.arange(32))

    def features(self, conversation):
        text = " ".join(message["content"] for message in conversation)
        counts = np.bincount([ord(c) % 32 for c in text], minlength=32)
        return counts / max(len(text), 1)

    def score(self, conversations):
        logits = [self.features(conversation) @ self.weights for conversation in conversations]
        return np.array(np.tanh(logits), np.float32)


def test_a_reward_model_that_keeps_to_the_protocol_passes():
    check_reward_model(Polite())


def scores(change):
    return type("Scores", (Polite,), {"score": lambda self, conversations: change(self, conversations)})


def plain(self, conversations):
    return Polite.score(self, conversations)


def noisy(self, conversations):
    return plain(self, conversations) + np.float32(time.perf_counter_ns() % 1000)


def dropout(self, conversations):
    return plain(self, conversations) * np.random.rand(len(conversations)).astype(np.float32)


def normalised(self, conversations):
    found = plain(self, conversations)
    return found - found.mean(dtype=np.float32) if len(found) else found


def ordered(self, conversations):
    return np.sort(plain(self, conversations))


def emptying(self, conversations):
    found = plain(self, conversations)
    for conversation in conversations:
        if isinstance(conversation, list) and conversation:
            conversation[-1]["content"] += "!"
    return found


def in_eights(self, conversations):
    found = plain(self, conversations)
    found[8:] = 0
    return found


def fails_on(condition):
    def score(self, conversations):
        if any(condition(conversation) for conversation in conversations):
            raise ValueError("too much for me")
        return plain(self, conversations)

    return scores(score)


def text_of(conversation):
    return "".join(message["content"] for message in conversation)


REWARDS = [
    (type("None_", (), {}), "It has no method `score`"),
    (scores(lambda self, cs: plain(self, cs).astype(np.float64)), "score() returns float64[4]"),
    (scores(lambda self, cs: plain(self, cs)[:, None]), "score() returns float32[4, 1]"),
    (scores(lambda self, cs: plain(self, cs).tolist()), "score() returns list"),
    (scores(lambda self, cs: plain(self, cs) / np.float32(0)), "isn't finite"),
    (scores(noisy), "gives the same conversations other scores the second time"),
    (scores(dropout), "changes the global random state of np.random"),
    (scores(normalised), "A score has to depend on its own conversation"),
    (scores(ordered), "with the conversations in another order the scores don't follow them"),
    (scores(emptying), "score() changes the conversations that it is given"),
    (scores(in_eights), "in a batch of 40 the conversations score otherwise"),
    (scores(lambda self, cs: plain(self, cs) if cs else None), "score([]) isn't an empty float32 array"),
    (fails_on(lambda c: not c), "score() of an empty conversation raised ValueError: too much for me"),
    (fails_on(lambda c: c and not text_of(c)), "score() of a message without text raised ValueError"),
    (fails_on(lambda c: "你" in text_of(c)), "score() of a text in other scripts raised ValueError"),
    (fails_on(lambda c: "\x00" in text_of(c)), "score() of control characters raised ValueError"),
    (fails_on(lambda c: len(text_of(c)) > 50_000), "score() of a very long text raised ValueError"),
]


@pytest.mark.parametrize(("model", "words"), REWARDS, ids=[words[:60] for _, words in REWARDS])
def test_what_a_reward_model_does_is_checked(model, words):
    with np.errstate(divide="ignore", invalid="ignore"):
        assert words in problems(check_reward_model, model())
