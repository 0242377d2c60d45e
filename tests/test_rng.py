import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chatgym.dynamics import rng
from chatgym.testing import inversion

keys = st.integers(0, 2**64 - 1)
turns = st.integers(0, 10_000)
purposes = st.integers(0, rng.PURPOSES - 1)


def splitmix64(state):
    """The generator as its paper prints it: advance by the golden gamma, then mix."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_the_mixer_gives_the_published_first_outputs_of_splitmix64():
    assert [splitmix64(1234567 + i * 0x9E3779B97F4A7C15) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(keys, turns, purposes)
def test_a_draw_is_splitmix64_of_the_mixed_key_at_the_position_of_turn_and_purpose(key, turn, purpose):
    origin = key
    origin = ((origin ^ (origin >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    origin = ((origin ^ (origin >> 27)) * 0x94D049BB133111EB) % 2**64
    origin ^= origin >> 31
    position = turn * rng.PURPOSES + purpose
    assert rng.bits(np.uint64(key), turn, purpose) == splitmix64((origin + position * 0x9E3779B97F4A7C15) % 2**64)


def test_draws_are_those_of_the_test_vectors():
    vectors = {
        (0, 0, 0): 16294208416658607535,
        (1, 0, 0): 13830413928045401970,
        (2**64 - 1, 20, 1000): 16079696216973204817,
    }
    for (key, turn, purpose), value in vectors.items():
        assert rng.bits(np.uint64(key), turn, purpose) == value
    assert rng.draw(np.uint64(0), 0, 0) == (vectors[0, 0, 0] >> 11) / 2**53


@given(st.lists(st.tuples(keys, turns, purposes), min_size=1, max_size=20))
def test_the_vectorised_draw_equals_the_scalar_one(triples):
    k, t, p = (list(column) for column in zip(*triples, strict=True))
    batch = rng.uniform(np.array(k, np.uint64), t, p)
    assert batch.tolist() == [rng.draw(np.uint64(a), b, c) for a, b, c in triples]


@given(keys, st.sampled_from(rng.SPLITS), st.integers(0, 2**40))
def test_all_keys_of_a_root_belong_to_its_split(drawn, split, episode):
    root = rng.in_split(drawn, split)[()]
    assert rng.split_of(rng.episode_key(root, episode)) == split
    assert rng.in_split(root, split) == root
    assert rng.in_split(drawn, "train") == drawn or rng.split_of(rng.episode_key(np.uint64(drawn), episode)) != "train"


def test_the_splits_for_evaluations_are_small_shares_of_all_keys():
    names, counts = np.unique(rng.split_of(np.arange(400_000, dtype=np.uint64)), return_counts=True)
    shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
    assert sorted(shares) == sorted(rng.SPLITS)
    assert all(abs(shares[name] - 1 / 4096) < 1e-4 for name in rng.SPLITS[1:])


def test_draws_are_uniform_and_independent_along_keys_turns_and_purposes():
    n = 40_000
    counting = np.arange(n, dtype=np.uint64)
    by_key, by_turn = rng.uniform(counting, 3, 5), rng.uniform(7, np.arange(n), 5)
    by_purpose = rng.uniform(counting, 3, 6)
    for sample in (by_key, by_turn, by_purpose):
        assert 0 <= sample.min() < sample.max() < 1
        counts, _ = np.histogram(sample, 50, (0, 1))
        chi_squared = ((counts - n / 50) ** 2 / (n / 50)).sum()
        assert chi_squared < 95  # 99.99 % quantile at 49 degrees of freedom
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(by_key, by_purpose)[0, 1]) < 0.02


@given(keys, turns, purposes, st.integers(1, 1_000_000))
def test_integers_stay_below_their_bound(key, turn, purpose, n):
    assert 0 <= rng.randint(np.uint64(key), turn, purpose, n) < n


def test_the_conversations_of_a_row_have_different_keys():
    roots = np.arange(100, dtype=np.uint64)
    assert len({int(rng.episode_key(root, episode)) for root in roots for episode in range(100)}) == 10_000


def test_hashed_keys_are_distinct_and_are_no_draw_of_the_keys():
    keys = np.arange(1000, dtype=np.uint64)
    hashed = rng.hashed(keys)
    assert hashed.dtype == np.uint64
    assert len(np.unique(hashed)) == 1000
    assert np.array_equal(hashed[5:7], rng.hashed(keys[5:7]))
    assert list(inversion.revealing([("drawn", np.array([rng.bits(key, 0, 9) for key in keys], np.uint64))], keys, 0))
    assert not list(inversion.revealing([("hashed", hashed)], keys, 0))


def test_a_public_seed_has_16_bits_and_is_no_draw_of_the_keys():
    keys = np.arange(1000, dtype=np.uint64)
    seeds = np.array([rng.public_seed(key, 0, 9) for key in keys], np.uint64)
    assert seeds.max() < 2**16
    assert len(np.unique(seeds)) > 950
    assert not list(inversion.revealing([("seed", seeds)], keys, 0))
