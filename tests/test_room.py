import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgym.dynamics.room import ChatRoom
from chatgym.errors import InvalidValue
from chatgym.scenarios.customer_service import SCENARIO

ACTS = len(SCENARIO.agent_acts)


def rooms_with(size, **arguments):
    room = ChatRoom(SCENARIO, size, **arguments)
    room.seed(np.arange(size, dtype=np.uint64))
    room.begin()
    return room


def stream(room, acts):
    """Everything that can be seen or earned while the acts are taken, restarting rows that end."""
    seen = []
    for act in acts:
        room.step(act)
        seen.append((room.rewards.copy(), room.outcomes.copy(), room.said.copy(), room.belief.copy()))
        over = room.terminations | room.truncations
        if over.any():
            room.begin(over)
    return seen


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.permutations(range(12)))
def test_a_conversation_depends_on_its_key_and_acts_alone_not_on_its_neighbours(seed, order):
    acts = np.random.default_rng(seed).integers(0, ACTS, (30, 12))
    together = rooms_with(12)
    shuffled = ChatRoom(SCENARIO, 12)
    shuffled.seed(np.array(order, np.uint64))
    shuffled.begin()
    expected = [tuple(array[order] for array in moment) for moment in stream(together, acts)]
    assert same(stream(shuffled, acts[:, order]), expected)


def test_another_key_gives_another_conversation():
    room = rooms_with(1000)
    assert len(np.unique(room.hidden["reference"])) > 990


def test_a_restored_room_goes_on_exactly_as_the_first_time():
    acts = np.random.default_rng(1).integers(0, ACTS, (40, 64))
    room = rooms_with(64)
    stream(room, acts[:7])
    middle = room.dump()
    first = stream(room, acts[7:])
    room.load(middle)
    assert same(stream(room, acts[7:]), first)


def test_a_snapshot_is_a_copy_that_later_steps_leave_alone():
    room = rooms_with(4)
    before = room.dump()
    kept = {name: array.copy() for name, array in before.items()}
    stream(room, np.zeros((5, 4), np.int64))
    assert all(np.array_equal(before[name], kept[name]) for name in kept)


def test_a_snapshot_of_another_room_is_refused():
    with pytest.raises(InvalidValue, match="doesn't fit this room of 3"):
        rooms_with(3).load(rooms_with(4).dump())


def test_forked_copies_go_on_identically_and_differ_only_by_acts():
    room = rooms_with(5)
    stream(room, np.full((3, 5), 2))
    forks = room.fork(3, 8)
    same_acts = stream(forks, np.full((4, 8), 4))
    for moment in same_acts:
        assert all((array == array[0]).all() for array in moment)
    acts = np.arange(8)
    forks = room.fork(3, 8)
    forks.step(acts)
    alone = room.fork(3, 1)
    for i in range(8):
        alone = room.fork(3, 1)
        alone.step(acts[i : i + 1])
        assert alone.belief[0] == forks.belief[i]
        assert alone.rewards[0] == forks.rewards[i]
    copies = stream(room.fork(3, 2), np.full((15, 2), 4))
    for copied, original in zip(copies, stream(room, np.full((15, 5), 4)), strict=True):
        assert all((a == b[3]).all() for a, b in zip(copied, original, strict=True))


def test_a_fork_of_a_row_that_isnt_there_is_refused():
    with pytest.raises(InvalidValue, match="no row 5"):
        rooms_with(5).fork(5, 2)


def test_the_reward_is_exactly_the_weighted_sum_of_its_terms():
    weights = {"time": 0.5, "outcome": 2.0}
    room = rooms_with(200, reward_weights=weights)
    w = {**SCENARIO.reward_terms, **weights}
    seen = np.zeros(len(w), bool)
    for acts in np.random.default_rng(2).integers(0, ACTS, (20, 200)):
        acts[50:] = room.expert_acts()[50:]
        room.step(acts, room.outcomes == 0)
        total = np.zeros(200)
        for i, name in enumerate(SCENARIO.reward_terms):
            total += w[name] * room.terms[:, i]
        assert np.array_equal(room.rewards, total)
        seen |= (room.terms != 0.0).any(0)
    assert seen.all()


def test_the_last_turn_truncates():
    room = rooms_with(50, max_turns=3)
    for _ in range(3):
        room.step(np.full(50, SCENARIO.agent_acts.index("ask_topic")))
    assert room.truncations.all()
    assert not room.terminations.any()
    assert (room.outcomes == len(SCENARIO.outcomes) - 1).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"error_rate": 1.5}, "error_rate is a probability"),
        ({"max_turns": 0}, "max_turns is a number of turns"),
        ({"reward_weights": {"mod": 1.0}}, "Did you mean 'mood'"),
    ],
)
def test_values_out_of_range_are_refused_with_the_remedy(arguments, words):
    with pytest.raises(InvalidValue, match=words):
        ChatRoom(SCENARIO, 1, **arguments)


def test_a_room_needs_somebody():
    with pytest.raises(InvalidValue, match="an integer of at least 1"):
        ChatRoom(SCENARIO, 0)


def test_a_conversation_fits_in_two_kilobytes():
    room = rooms_with(64)
    assert sum(array.nbytes for array in room.dump().values()) / 64 < 2048


def test_global_random_state_is_neither_read_nor_changed():
    import random

    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = stream(rooms_with(8), np.full((5, 8), 1))
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    np.random.seed(99)  # noqa: NPY002
    assert same(stream(rooms_with(8), np.full((5, 8), 1)), first)
