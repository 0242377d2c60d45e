import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny import save_tiny_model, tiny_engine  # noqa: E402

from chatgym.engines import sampling  # noqa: E402
from chatgym.engines.batch import Batch, Request  # noqa: E402
from chatgym.engines.columns import ROOM, Columns  # noqa: E402

ROWS, WORDS = 24, 5000


def drawn(logits, top_p, temperature=1.0, seed=0):
    rows = np.arange(len(logits))
    return sampling.choose(
        logits, seeds=(rows + 1000 * seed).astype(np.uint64), positions=rows, top_ps=np.full(len(rows), top_p),
        temperatures=np.full(len(rows), temperature),
    )  # fmt: skip


def made_logits(spread):
    return spread * torch.randn(ROWS, WORDS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.9999])
def test_the_nucleus_is_the_fewest_of_the_likeliest_that_hold_top_p(spread, top_p):
    probabilities = made_logits(spread).softmax(-1)
    for row in probabilities:
        least, ties, total = sampling._nucleus(row.numpy(), row.numpy().view(np.int32), top_p)
        ordered = np.sort(row.numpy().astype(float))[::-1]
        kept = ordered[: int((ordered.cumsum() < top_p - 1e-12).sum()) + 1]
        assert least == kept[-1]
        assert ties == (kept == kept[-1]).sum()
        assert total == pytest.approx(kept.sum(), abs=1e-9)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
def test_picking_the_likeliest_on_the_device_first_draws_the_same(monkeypatch, top_p):
    logits = torch.cat([made_logits(1.0), made_logits(6.0)])  # of the flat ones top-p keeps more than are picked
    expected = drawn(logits, top_p)
    monkeypatch.setattr(sampling, "FAR", ("cpu",))
    tokens, logprobs = drawn(logits, top_p)
    assert tokens.tolist() == expected[0].tolist()
    torch.testing.assert_close(logprobs, expected[1])


def test_logprobs_are_those_of_the_nucleus_at_its_temperature():
    logits = made_logits(5.0)
    tokens, logprobs = drawn(logits, 0.8, temperature=0.7)
    probabilities = (logits.double() / 0.7).softmax(-1)
    ordered, order = probabilities.sort(-1, descending=True)
    inside = ordered.cumsum(-1) - ordered < 0.8
    shares = (ordered.where(inside, 0.0) / ordered.where(inside, 0.0).sum(-1, keepdim=True)).log()
    mine = shares[order == tokens[:, None]]
    torch.testing.assert_close(logprobs.double(), mine, atol=1e-5, rtol=0)


def test_a_layer_holds_what_was_written_whoever_left_or_joined():
    drawing = torch.Generator().manual_seed(0)

    def states(rows, columns):
        return torch.randn(rows, 2, columns, 4, generator=drawing), torch.randn(rows, 2, columns, 6, generator=drawing)

    layer, expected = Columns(), None
    for step, columns in enumerate([5, *[1] * (2 * ROOM), 3]):
        new = states(4, columns)
        held = layer.update(*new)
        expected = new if expected is None else [torch.cat(pair, 2) for pair in zip(expected, new, strict=True)]
        for mine, theirs in zip(held, expected, strict=True):
            assert torch.equal(mine, theirs), step
    layer.keep(torch.tensor([3, 1]), 2)
    expected = [part[[3, 1], :, 2:] for part in expected]
    other, joining = Columns(), states(1, 4)
    other.update(*joining)
    longest = layer.get_seq_length()
    layer.append(other, longest)
    layer.update(*(last := states(3, 1)))
    for mine, theirs, joined, end in zip((layer.keys, layer.values), expected, joining, last, strict=True):
        assert torch.equal(mine[:2], torch.cat([theirs, end[:2]], 2))
        assert torch.equal(mine[2:, :, -5:], torch.cat([joined, end[2:]], 2))
        assert not mine[2:, :, :-5].any()


def test_one_row_taken_several_times_does_not_share_what_is_written_later(tmp_path):
    engine = tiny_engine(save_tiny_model(tmp_path / "tiny"))
    prompt = tuple(engine.tokens("Once upon a time there was"))
    batch = Batch(engine)
    rows = batch.join([Request(prompt, 3 * ROOM, seed=seed) for seed in range(3)])
    while batch.rows:
        batch.step()
    for seed, row in enumerate(rows):
        alone = Batch(engine)
        (single,) = alone.join([Request(prompt, 3 * ROOM, seed=seed)])
        while alone.rows:
            alone.step()
        assert row.tokens == single.tokens


def narrowed(top_k=0, min_p=0.0, temperature=0.7, top_p=1.0, seed=0):
    logits, rows = made_logits(2.0), np.arange(ROWS)
    every = np.ones(ROWS)
    return logits, *sampling.choose(
        logits, seeds=(rows + 1000 * seed).astype(np.uint64), positions=rows, temperatures=temperature * every,
        top_ps=top_p * every, top_ks=np.full(ROWS, top_k), min_ps=min_p * every,
    )  # fmt: skip


@pytest.mark.parametrize(("top_k", "min_p", "top_p"), [(5, 0.0, 1.0), (0, 0.3, 1.0), (50, 0.1, 1.0), (40, 0.02, 0.6)])
def test_top_k_and_min_p_leave_the_tokens_of_their_definition(top_k, min_p, top_p):
    for seed in range(20):
        logits, tokens, logprobs = narrowed(top_k, min_p, top_p=top_p, seed=seed)
        p = (logits.double() / 0.7).softmax(-1)
        kept = p >= min_p * p.max(-1, keepdim=True).values
        if top_k:
            kept &= p >= p.sort(-1, descending=True).values[:, top_k - 1 : top_k]
        p = p.where(kept, 0.0)
        p /= p.sum(-1, keepdim=True)
        ordered = p.sort(-1, descending=True)
        p = p.where(
            torch.zeros_like(kept).scatter(-1, ordered.indices, ordered.values.cumsum(-1) - ordered.values < top_p), 0.0
        )
        mine = (p / p.sum(-1, keepdim=True)).gather(-1, tokens[:, None])[:, 0]
        assert (mine > 0).all()
        torch.testing.assert_close(logprobs.double(), mine.log(), atol=1e-5, rtol=0)


def test_rows_that_ask_for_neither_are_drawn_as_without_them_beside_rows_that_do():
    logits, rows = made_logits(2.0), np.arange(ROWS)
    plain, expected = drawn(logits, 0.9)
    ks = np.where(rows % 2, 1, 0)
    tokens, logprobs = sampling.choose(
        logits, seeds=rows.astype(np.uint64), positions=rows, temperatures=np.ones(ROWS), top_ps=np.full(ROWS, 0.9),
        top_ks=ks, min_ps=np.zeros(ROWS),
    )  # fmt: skip
    same = torch.from_numpy(ks == 0)
    assert torch.equal(tokens[same], plain[same])
    assert torch.equal(logprobs[same], expected[same])
    assert torch.equal(tokens[~same], logits.argmax(-1)[~same])
    assert torch.equal(logits, made_logits(2.0))
    assert torch.equal(narrowed(3, 0.5, temperature=0.0)[1], logits.argmax(-1))
