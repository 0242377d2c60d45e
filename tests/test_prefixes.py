"""Beginnings of prompts that were read before aren't read again, and nothing else is different."""

import numpy as np
import pytest
import torch
from tiny import save_tiny_model

from chatgym.engines import prefixes
from chatgym.engines.batch import Batch, Request
from chatgym.engines.transformers import TransformersEngine

INSTRUCTIONS = tuple(np.random.default_rng(0).integers(3, 90, 140).tolist())
RANDOM = np.random.default_rng(1)


def words(count):
    return tuple(RANDOM.integers(3, 90, count).tolist())


class Counting(TransformersEngine):
    """Counts the tokens that it computes."""

    read = 0

    def forward(self, ids, mask, cache, **more):
        self.read += ids.numel()
        return super().forward(ids, mask, cache, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(folder):
    return Counting(folder, identity="tiny", dtype=torch.float64)


def continued(engine, prompts):
    """Continue prompts together; return tokens and what the model thought of them."""
    batch = Batch(engine)
    rows = batch.join([Request(prompt, 8, seed=i, alternatives=0) for i, prompt in enumerate(prompts)])
    while batch.rows:
        batch.step()
    return [row.tokens for row in rows], [one.logprob for row in rows for one in row.alternatives]


def assert_the_same(engine, prompts, monkeypatch):
    tokens, logprobs = continued(engine, prompts)
    with monkeypatch.context() as patch:
        patch.setattr(prefixes, "LEAST", 10**9)
        patch.setattr(prefixes, "LEAST_WHOLE", 10**9)
        plain = Counting(engine.folder, identity="tiny", dtype=torch.float64)
        expected, thought = continued(plain, prompts)
    assert tokens == expected
    assert logprobs == pytest.approx(thought, abs=1e-6)
    return plain.read


def test_a_conversation_that_grows_is_read_once(engine, folder, monkeypatch):
    engine.folder = folder
    chats = [INSTRUCTIONS + words(n) for n in (5, 9, 5)]
    for _ in range(4):
        before = engine.read
        plain = assert_the_same(engine, chats, monkeypatch)
        assert engine.read - before < plain
        chats = [chat + words(3 + i) for i, chat in enumerate(chats)]
    # The instructions once, and what was said: never more than a turn and its padding.
    assert engine.read < len(INSTRUCTIONS) + 4 * 3 * (12 + 8)


def test_rows_that_begin_otherwise_and_ones_too_short_are_read_beside(engine, folder, monkeypatch):
    engine.folder = folder
    other = words(150)
    assert_the_same(engine, [INSTRUCTIONS + words(7), other], monkeypatch)
    mixed = [words(4), other + words(20), INSTRUCTIONS + words(2), words(131), INSTRUCTIONS[:-1], other]
    assert_the_same(engine, mixed, monkeypatch)


def test_a_beginning_inside_a_longer_prompt_serves(engine, folder, monkeypatch):
    engine.folder = folder
    whole = INSTRUCTIONS + words(30)
    continued(engine, [whole])
    before = engine.read
    assert_the_same(engine, [whole[:135] + words(6)], monkeypatch)
    assert engine.read - before == 6 + 7  # the last of eight tokens is never read
    before = engine.read
    assert_the_same(engine, [whole], monkeypatch)
    assert engine.read - before == 7


def test_rows_join_others_under_way(engine, folder, monkeypatch):
    monkeypatch.setattr(prefixes, "LEAST", 10**9)
    monkeypatch.setattr(prefixes, "LEAST_WHOLE", 10**9)
    first, second = INSTRUCTIONS + words(3), INSTRUCTIONS + words(11)
    expected = [continued(Counting(folder, identity="tiny", dtype=torch.float64), [p])[0][0] for p in (first, second)]
    monkeypatch.undo()
    batch = Batch(engine)
    rows = batch.join([Request(first, 8, seed=0)])
    batch.step()
    batch.step()
    rows += batch.join([Request(second, 8, seed=0)])
    while batch.rows:
        batch.step()
    assert [row.tokens for row in rows] == expected


def test_what_was_not_used_for_long_is_forgotten(engine):
    kept = engine.prefixes
    continued(engine, [INSTRUCTIONS])
    size = kept._bytes
    read = kept._kept[INSTRUCTIONS]
    assert size == read.logits.nbytes + sum(state.nbytes for layer in read.states for state in layer)
    kept._most = 7 * size // 2
    others = [words(140) for _ in range(2)]
    for prompt in (*others, INSTRUCTIONS + words(1), words(140)):
        continued(engine, [prompt])
    assert INSTRUCTIONS in kept._kept  # used by the one before the last
    assert others[0] not in kept._kept
    assert kept._bytes <= kept._most
    assert kept._bytes == sum(read.nbytes for read in kept._kept.values())


def test_the_same_prompt_has_the_same_bits(folder):
    """In bfloat16, too, whatever stands beside it the second time."""
    engine = Counting(folder, identity="tiny", dtype=torch.bfloat16)
    prompts = [words(40), INSTRUCTIONS + words(9)]
    batch = Batch(engine)
    batch.join([Request(prompt, 8) for prompt in prompts])
    first, read = batch._last, engine.read
    batch = Batch(engine)
    batch.join([Request(prompt, 8) for prompt in (words(70), prompts[1], prompts[0])])
    assert torch.equal(batch._last[1:], first.flip(0))
    assert engine.read - read == 70


def test_a_short_prompt_is_read_again_unless_it_is_the_same(engine, folder, monkeypatch):
    engine.folder = folder
    prompt = words(50)
    assert_the_same(engine, [prompt], monkeypatch)
    before = engine.read
    assert_the_same(engine, [prompt[:40] + words(10)], monkeypatch)
    assert engine.read - before == 50 + 7
    before = engine.read
    assert_the_same(engine, [prompt], monkeypatch)
    assert engine.read - before == 7
    kept = len(engine.prefixes._kept)
    continued(engine, [words(15)])
    assert len(engine.prefixes._kept) == kept
