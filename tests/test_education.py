import numpy as np
import pytest

from chatgym.dynamics import rng
from chatgym.dynamics.room import ChatRoom
from chatgym.scenarios import education as ed
from chatgym.testing.inversion import unmix

N = 10_000
ACT = {name: i for i, name in enumerate(ed.AGENT_ACTS)}
TEACHING = [ACT[name] for name in ("explain", "worked_example")]
ASKING = [ACT[name] for name in ("ask_easy", "ask_medium", "ask_hard")]
CASES = [(skill, difficulty) for skill in range(ed.N_SKILLS) for difficulty in range(3)]


def room_of(size=N, **arguments):
    room = ChatRoom(ed.SCENARIO, size, **arguments)
    room.seed(np.arange(size, dtype=np.uint64) + np.uint64(10**9))
    return room


def uniform(room, generator, masked=True):
    allowed = room.action_masks() if masked else np.ones((room.size, len(ACT)))
    return np.argmax(generator.random(allowed.shape) * allowed, axis=1)


def random_policy(masked):
    generator = np.random.default_rng(0)
    return lambda room: uniform(room, generator, masked)


def expert(room):
    return room.expert_acts()


def fixed(*names):
    acts = np.array([ACT[name] for name in names] + [ACT["end"]] * 30)
    return lambda room: acts[room.turns]


@pytest.fixture(scope="module")
def expert_play(play):
    return play(room_of(), expert)


# -- Balance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
def test_random_acts_teach_less_than_15_percent(play, masked):
    assert play(room_of(), random_policy(masked)).share("learned") < 0.15


def test_the_expert_teaches_75_to_95_percent_in_6_to_12_turns(expert_play):
    assert 0.75 < expert_play.share("learned") < 0.95
    learned = expert_play.turns[[outcome == "learned" for outcome in expert_play.outcomes]]
    assert 6 <= np.median(learned) <= 12
    assert 6 <= learned.mean() <= 12


def test_the_experts_acts_in_a_fixed_order_do_at_least_20_points_worse(play, expert_play):
    both, more = ("worked_example", "explain"), ("suggest_break", "worked_example", "explain")
    best = 0.0
    for opening in (("ask_goal",), ("ask_goal", "study_plan")):
        for basis in (
            (),
            ("review", *both),
            ("review", "ask_medium", *both),
            ("review", "review", *both, "next_skill", *both),
        ):
            for lesson in (
                both,
                (*both, "worked_example"),
                (*both, "ask_medium"),
                (*both, *more),
                (*both, "ask_hard", *more),
            ):
                order = (*opening, *basis, *(("next_skill",) if basis else ()), *lesson)
                best = max(best, play(room_of(), fixed(*order)).share("learned"))
    climbed = (  # the best that a thousand random changes of these led to
        "ask_goal", "study_plan", "review", "ask_hard", "worked_example", "ask_hard", "suggest_break", "ask_hard",
        "ask_hard", "ask_hard", "next_skill", "explain", "ask_hard", "worked_example", "ask_hard", "suggest_break",
        "ask_medium", "ask_hard",
    )  # fmt: skip
    best = max(best, play(room_of(), fixed(*climbed)).share("learned"))
    assert best < expert_play.share("learned") - 0.20


def test_more_misunderstanding_means_worse_results(play):
    shares = [play(room_of(error_rate=rate), expert).share("learned") for rate in (0.0, 0.1, 0.3)]
    assert shares[0] > shares[1] + 0.03 > shares[2] + 0.06


def test_asking_again_is_worth_its_turn_when_the_answer_was_misheard(play, expert_play):
    def trusting(room):
        """End as soon as one answer was heard right, however unsure."""
        heard = (room.belief["answered"] == ed.RIGHT) & (room.belief["skill"] == room.belief["goal"])
        return np.where(heard, ACT["end"], room.expert_acts())

    careful = play(room_of(error_rate=0.3), expert)
    assert play(room_of(error_rate=0.3), trusting).share("little_learned") > careful.share("little_learned") + 0.03
    in_time = expert_play.turns < ed.SCENARIO.max_turns  # in the last turn it ends the lesson whatever it believes
    assert (np.array(expert_play.outcomes)[in_time] == "little_learned").mean() < 0.05


def test_neglecting_how_the_student_feels_loses_it(play, expert_play):
    def heartless(room):
        belief = room.belief.copy()
        belief["feeling"] = belief["tone"] = 0
        return room.expert_acts(belief)

    played = play(room_of(), heartless)
    assert played.share("gave_up") > expert_play.share("gave_up") + 0.1
    assert played.returns.mean() < expert_play.returns.mean() - 0.1


# -- The student -------------------------------------------------------------------------------------------------


def taught(room, goal, known, act, skill, style=0):
    """Start lessons on a goal with students who know the given skills (bits); take an act at a skill."""
    room.begin()
    room.hidden["goal"], room.hidden["known"], room.hidden["style"] = goal, known, style
    room.hidden["boredom"] = room.hidden["frustration"] = 2
    room.belief["goal"], room.belief["goal_sure"], room.belief["skill"] = goal, 2, skill
    room.step(np.full(room.size, ACT[act]))
    return room


def learned(room, skill):
    return (room.hidden["known"] >> skill & 1).mean()


def test_a_skill_is_hardly_learned_without_what_it_builds_on():
    without = taught(room_of(), ed.FRACTIONS, 0, "explain", ed.FRACTIONS)
    with_ = taught(room_of(), ed.FRACTIONS, 1 << ed.ARITHMETIC, "explain", ed.FRACTIONS)
    expected = ed.LEARNS * ed.LIKED
    assert abs(learned(with_, ed.FRACTIONS) - expected) < 0.02
    assert abs(learned(without, ed.FRACTIONS) - expected * ed.WITHOUT_BASIS) < 0.02


def test_students_learn_better_their_own_way():
    for style, (better, worse) in enumerate([("explain", "worked_example"), ("worked_example", "explain")]):
        shares = [learned(taught(room_of(), ed.EQUATIONS, 1, act, ed.EQUATIONS, style), ed.EQUATIONS)
                  for act in (better, worse)]  # fmt: skip
        assert abs(shares[0] - ed.LEARNS * ed.LIKED) < 0.02
        assert abs(shares[1] - ed.LEARNS * ed.DISLIKED) < 0.02


@pytest.mark.parametrize("difficulty", range(3))
def test_answers_slip_and_are_guessed_at_their_rates(difficulty):
    for known, expected in ((3, 1 - ed.SLIPS * ed.SLIP_OF[difficulty]), (1, ed.GUESSES * ed.GUESS_OF[difficulty])):
        room = taught(room_of(), ed.FRACTIONS, known, ed.AGENT_ACTS[ASKING[difficulty]], ed.FRACTIONS)
        assert abs(room.hidden["succeeded"].mean() - expected) < 0.015


def test_a_student_says_the_worse_of_its_feelings():
    for boredom, frustration, act in ((7, 2, ed.BORED), (2, 7, ed.FRUSTRATED), (1, 1, ed.FINE)):
        room = room_of(200)
        room.begin()
        room.hidden["boredom"], room.hidden["frustration"] = boredom, frustration
        room.step(np.full(room.size, ACT["ask_feeling"]))
        assert (room.said["act"] == act).all()


def test_a_student_who_leaves_costs_the_gave_up_term():
    room = room_of(200)
    room.begin()
    room.hidden["boredom"] = 9
    room.step(np.full(room.size, ACT["suggest_break"]))
    room.hidden["boredom"] = 9
    room.hidden["breaks"] = 2
    room.step(np.full(room.size, ACT["suggest_break"]))
    assert (room.outcomes == ed.GAVE_UP).all()
    assert (room.terms[:, 0] == ed.OUTCOME_VALUES["gave_up"]).all()


def test_an_answer_heard_again_counts_once():
    room = taught(room_of(2000, error_rate=0.0), ed.FRACTIONS, 3, "ask_medium", ed.FRACTIONS)
    before = room.belief["known"].copy()
    answered = (room.said["act"] == ed.ANSWER) & (room.outcomes == 0)
    room.step(np.full(room.size, ACT["check_answer"]), answered)
    assert answered.sum() > 1000
    assert np.allclose(room.belief["known"][answered], before[answered], atol=1e-6)


def test_the_gain_is_normalised():
    everything = (1 << ed.ARITHMETIC) | (1 << ed.FRACTIONS) | (1 << ed.RATIOS)
    assert ed.score(ed.RATIOS, 0) == 0.0
    assert ed.score(ed.RATIOS, everything) == 1.0
    assert ed.score(ed.RATIOS, 1 << ed.RATIOS) == 0.5
    assert ed.score(ed.RATIOS, 1 << ed.ARITHMETIC) == 0.25
    room = room_of(100)
    room.begin()
    room.hidden["goal"], room.hidden["known_first"] = ed.RATIOS, 1 << ed.ARITHMETIC
    room.hidden["known"] = everything & ~(1 << ed.FRACTIONS)
    room.step(np.full(room.size, ACT["end"]))
    assert (room.terms[:, 0] == ed.OUTCOME_VALUES["learned"]).all()
    assert (room.outcomes == ed.LEARNED).all()
    assert {ed.gain(row) for row in room.hidden} == {(0.75 - 0.25) / (1 - 0.25)}


def test_progress_is_the_gain_as_it_is_made():
    room = room_of(500)
    room.begin()
    made = np.zeros(500)
    for _ in range(20):
        room.step(room.expert_acts(), room.outcomes == 0)
        made += room.terms[:, list(ed.REWARD_TERMS).index("progress")]
    assert np.allclose(made, [ed.gain(row) for row in room.hidden])
    assert (made > 0).mean() > 0.7


def test_no_student_knows_the_goal_and_few_know_a_thing_without_its_basis():
    room = room_of()
    room.begin()
    known, goal = room.hidden["known"], room.hidden["goal"]
    assert not (known >> goal & 1).any()
    assert set(goal) == set(range(1, ed.N_SKILLS))
    has_basis, has_fractions = known & 1 == 1, known >> ed.FRACTIONS & 1 == 1
    others = goal != ed.FRACTIONS
    assert has_fractions[others & has_basis].mean() > 3 * has_fractions[others & ~has_basis].mean()


def test_what_is_too_easy_bores_and_what_is_too_hard_frustrates():
    def felt(known, act):
        room = taught(room_of(2000), ed.FRACTIONS, known, act, ed.FRACTIONS)
        return room.hidden["boredom"].mean() - 2, room.hidden["frustration"].mean() - 2

    assert felt(3, "ask_easy")[0] > felt(3, "ask_medium")[0] > felt(3, "ask_hard")[0]
    assert felt(3, "explain")[0] > 3
    assert felt(1, "ask_easy")[1] < felt(1, "ask_medium")[1] < felt(1, "ask_hard")[1]


def test_a_student_states_its_goal_again_when_led_elsewhere():
    room = room_of(2000, error_rate=0.0)
    room.begin()
    room.hidden["goal"] = ed.RATIOS
    room.belief["goal"] = room.belief["skill"] = ed.EQUATIONS
    room.step(np.full(room.size, ACT["explain"]))
    assert (room.said["act"] == ed.STATE_GOAL).all()
    assert (room.belief["goal"] == ed.RATIOS).all()
    assert (room.belief["skill"] == ed.RATIOS).all()


def test_a_plan_makes_sure_of_the_goal():
    room = taught(room_of(2000, error_rate=0.0), ed.RATIOS, 3, "study_plan", ed.RATIOS)
    assert (room.belief["goal_sure"] == 2).all()
    assert (room.said["act"] == ed.AGREE).all()


# -- Understanding -----------------------------------------------------------------------------------------------


def test_a_checked_answer_is_the_same_answer():
    room = room_of(5000, error_rate=0.3)
    room.begin()
    room.belief["goal"] = room.hidden["goal"] = room.belief["skill"] = ed.FRACTIONS
    room.step(np.full(room.size, ACT["ask_medium"]))
    first, heard = room.said.copy(), room.belief.copy()
    answered = (heard["answered"] > 0) & (heard["den"] > 0)
    room.step(np.full(room.size, ACT["check_answer"]), answered)
    again = answered & (room.said["act"] == ed.ANSWER)
    assert again.sum() > 1500
    assert (room.said["num"][again] == first["num"][again]).all()
    right = room.belief["num"] * first["den"] == first["num"] * room.belief["den"]
    sure = again & (room.belief["sure"] == 2)
    assert right[sure].mean() > (heard["num"] == first["num"])[answered].mean() + 0.05


def test_the_error_channel_errs_at_its_rate_and_often_knows_it():
    room = room_of(50_000)
    room.begin()
    room.belief["goal"] = room.hidden["goal"] = room.belief["skill"] = ed.EQUATIONS
    room.hidden["boredom"] = room.hidden["frustration"] = 0
    room.step(np.full(room.size, ACT["ask_medium"]))
    heard = (room.said["act"] == ed.ANSWER) & (room.belief["heard"] == ed.ANSWER)
    wrong = (room.belief["num"] * room.said["den"] != room.said["num"] * room.belief["den"])[heard]
    unsure = room.belief["sure"][heard] == 1
    assert 0.09 < wrong.mean() < 0.11
    assert 0.67 < unsure[wrong].mean() < 0.73
    assert 0.13 < unsure[~wrong].mean() < 0.17


# -- Observations ------------------------------------------------------------------------------------------------


def test_the_table_numbers_every_belief_within_its_space_and_0_only_at_the_end():
    assert ed.SCENARIO.n_beliefs <= 20_000
    room = room_of(20_000)
    room.begin()
    generator = np.random.default_rng(4)
    seen = set()
    for _ in range(30):
        room.step(np.where(generator.random(room.size) < 0.5, uniform(room, generator), room.expert_acts()))
        numbers = room.discrete()
        assert ((numbers >= 0) & (numbers < ed.SCENARIO.n_beliefs)).all()
        assert np.array_equal(numbers == 0, room.terminations)
        seen |= set(numbers.tolist())
        room.begin(room.terminations | room.truncations)
    assert len(seen) > 3000


def test_the_embedding_stays_between_minus_one_and_one_and_tells_apart_what_the_table_does():
    room = room_of(5000)
    room.begin()
    generator = np.random.default_rng(5)
    by_vector: dict[bytes, int] = {}
    for _ in range(12):
        room.step(uniform(room, generator))
        vectors = room.embedding()
        assert np.abs(vectors).max() <= 1.0
        for number, vector in zip(room.discrete().tolist(), vectors, strict=True):
            assert by_vector.setdefault(vector.tobytes(), number) == number
        room.begin(room.terminations | room.truncations)


def test_knowledge_tracing_knows_more_than_chance_and_is_calibrated():
    room = room_of(20_000)
    room.begin()
    for _ in range(8):
        room.step(room.expert_acts(), room.outcomes == 0)
    going = np.flatnonzero((room.outcomes == 0) & (room.belief["goal"] == room.hidden["goal"]))
    skill = room.belief["skill"][going]
    thought = room.belief["known"][going, skill]
    truth = room.hidden["known"][going] >> skill & 1
    assert truth[thought > 0.8].mean() > 0.75
    assert truth[thought < 0.2].mean() < 0.25
    assert np.mean((thought - truth) ** 2) < 0.8 * truth.var()


@pytest.mark.parametrize("moment", [0, 2, 4])
def test_no_classifier_learns_from_observations_what_no_answer_showed(moment, above_chance):
    """Before anything is asked or taught, what the student knows and how it learns must stay at chance."""
    room = room_of(30_000)
    room.begin()
    generator = np.random.default_rng(7)
    small_talk = np.array([ACT[a] for a in ("greet", "praise", "ask_feeling", "suggest_break")])
    for _ in range(moment):
        room.step(generator.choice(small_talk, room.size), room.outcomes == 0)
    going = room.outcomes == 0
    features, hidden = room.embedding(), room.hidden
    goals = hidden["goal"]
    for what, rows, classes in (
        (hidden["style"], going, 2),
        (hidden["known"] & 1, going, 2),
        (hidden["known"] >> ed.FRACTIONS & 1, going & (goals == ed.RATIOS), 2),
        (goals - 1, going & (hidden["told"] == 0), 5),
    ):
        assert rows.sum() > 3000
        assert above_chance(features[rows], what[rows], classes) < 4


def test_the_classifier_notices_a_leak_in_one_observation_of_five(above_chance):
    room = room_of(20_000)
    room.begin()
    features, style = room.embedding(), room.hidden["style"].copy()
    shown = np.random.default_rng(8).random(room.size) < 0.2
    leaking = np.hstack([features, np.where(shown, style, 0.5)[:, None].astype(np.float32)])
    assert above_chance(leaking, style, 2) > 8


def test_the_public_seed_of_the_questions_tells_nothing_of_the_student(above_chance):
    room = room_of(20_000)
    room.begin()
    bits = (room.belief["seed"][:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert above_chance(bits.astype(np.float32), room.hidden["style"].copy(), 2) < 4
    assert above_chance(bits.astype(np.float32), room.hidden["known"] & 1, 2) < 4


def test_acts_that_make_no_sense_are_masked():
    room = room_of(2000)
    room.begin()
    masks = room.action_masks()
    led = room.belief["skill"] >= 0
    assert np.array_equal(masks[:, ACT["explain"]], led)
    assert not masks[:, ACT["check_answer"]].any()
    assert not masks[:, ACT["hint"]].any()
    assert not masks[:, ACT["next_skill"]].any()
    assert masks[:, ACT["end"]].all()


def test_beyond_its_patience_a_student_is_bored_by_a_point_more_each_turn():
    patient, impatient = room_of(300), room_of(300)
    for room, patience in ((patient, 100), (impatient, 0)):
        room.begin()
        room.hidden["patience"] = patience
        room.step(room.expert_acts())
    assert (impatient.hidden["boredom"] == np.minimum(patient.hidden["boredom"] + 1, 10)).all()


def test_no_key_follows_from_the_seed_of_the_questions():
    room = ChatRoom(ed.SCENARIO, 1000)
    room.seed(np.arange(1000, dtype=np.uint64))
    room.begin()
    seeds = room.belief["seed"].astype(np.uint64)
    assert len(np.unique(seeds)) > 900
    hashed = unmix(seeds)  # as the key was found when the seed was a draw
    counters = np.uint64(1) + np.arange(100, dtype=np.uint64)
    keys = unmix(hashed[:, None] - counters * rng._GOLDEN)
    assert not (keys == room.keys[:, None]).any()
    draws = [rng.bits(key, 0, 3) for key in room.keys]
    assert np.array_equal(unmix(unmix(np.array(draws, np.uint64)) - np.uint64(4) * rng._GOLDEN), room.keys)
