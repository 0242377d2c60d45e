"""Bias, penalties and grammars in a running batch: each row's own, and the distribution that is really sampled from."""

import numpy as np
import pytest
import torch
from test_serving import engine, folder  # noqa: F401

from chatgym.engines.batch import Batch, Request
from chatgym.engines.logits import LogitRules


def run(engine, *requests):  # noqa: F811
    batch = Batch(engine)
    rows = batch.join(requests)
    while batch.rows:
        batch.step()
    return rows


class Alternating:
    """Lets every other token be sampled: even ones, then odd ones; complete after six."""

    def __init__(self):
        self.tokens = []

    def allowed(self):
        return np.arange(257) % 2 == len(self.tokens) % 2

    def accept(self, token):
        self.tokens.append(token)
        return "stop" if len(self.tokens) == 6 else None


def prompt(engine):  # noqa: F811
    return tuple(engine.tokens("Once upon a time, there was a row."))


def logits_after(engine, ids):  # noqa: F811
    tokens, mask = engine.pad([ids])
    with torch.inference_mode():
        last = engine.forward(tokens, mask, engine.new_cache())[0]
    return last.clone()


def test_penalties_are_openais_formula_over_the_tokens_sampled(engine):  # noqa: F811
    rules = LogitRules(((5, 3.0), (9, -100.0)), presence_penalty=0.7, frequency_penalty=0.4)
    ids = prompt(engine)
    (row,) = run(engine, Request(ids, 25, temperature=0.8, seed=3, alternatives=2, rules=rules))
    assert len(set(row.tokens)) < len(row.tokens), "nothing was said twice, so the frequency wasn't tested"
    for at, token in enumerate(row.tokens):
        logits = logits_after(engine, [*ids, *row.tokens[:at]])
        for said in set(row.tokens[:at]):
            logits[said] -= 0.4 * row.tokens[:at].count(said) + 0.7
        logits[5] += 3.0
        logits[9] -= 100.0
        assert row.logprobs[at] == pytest.approx((logits / 0.8).log_softmax(-1)[token].item(), abs=1e-4)
        own = logits.log_softmax(-1)
        assert row.alternatives[at].logprob == pytest.approx(own[token].item(), abs=1e-4)
        assert dict(row.alternatives[at].likeliest) == pytest.approx(
            dict(zip(own.topk(2)[1].tolist(), own.topk(2)[0].tolist(), strict=True)), abs=1e-4
        )


def test_rows_without_rules_are_the_same_beside_rows_with_them(engine):  # noqa: F811
    ids = prompt(engine)
    free = [Request(ids, 20, seed=seed, alternatives=1) for seed in range(3)]
    alone = run(engine, *free)
    ruled = [
        Request(ids, 20, seed=0, rules=LogitRules(((7, 100.0),))),
        Request(ids, 20, seed=1, rules=LogitRules(presence_penalty=2.0, frequency_penalty=2.0)),
        Request(ids, 20, seed=2, rules=LogitRules(constraint=Alternating)),
    ]
    beside = run(engine, free[0], ruled[0], free[1], ruled[1], ruled[2], free[2])
    for one, other in zip(alone, (beside[0], beside[2], beside[5]), strict=True):
        assert (one.tokens, one.logprobs) == (other.tokens, pytest.approx(other.logprobs, abs=1e-5))
    for request, together in zip(ruled, (beside[1], beside[3], beside[4]), strict=True):
        assert run(engine, request)[0].tokens == together.tokens
    assert set(beside[1].tokens) == {7}
    assert beside[3].tokens != alone[1].tokens
    assert run(engine, free[0])[0].tokens == alone[0].tokens, "the logits kept for the prompt were changed"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_masks_its_row_and_ends_it(engine, temperature):  # noqa: F811
    rules = LogitRules(constraint=Alternating)
    ends, engine.ends = engine.ends, frozenset()
    try:
        rows = run(engine, *(Request(prompt(engine), 20, temperature, seed=s, alternatives=20, rules=rules)
                             for s in range(4)))  # fmt: skip
    finally:
        engine.ends = ends
    for row in rows:
        assert [token % 2 for token in row.tokens] == [0, 1] * 3
        assert row.finish_reason == "stop"
        logits = logits_after(engine, [*prompt(engine), *row.tokens[:2]])[0::2].log_softmax(-1)
        assert row.alternatives[2].logprob == pytest.approx(logits[row.tokens[2] // 2].item(), abs=1e-4)
        assert row.logprobs[2] == pytest.approx(0.0 if not temperature else row.alternatives[2].logprob, abs=1e-4)
        assert all(token % 2 == 0 for token, _ in row.alternatives[2].likeliest)
