import numpy as np
import pytest

from chatgym.dynamics.room import ChatRoom
from chatgym.errors import InvalidValue
from chatgym.scenarios import ABOUT, TONES, UNCLEAR_ACT, fill
from chatgym.scenarios import social as so
from chatgym.scenarios.social import pictures, words
from chatgym.words import nlu

N = 4_000
ACT = {name: i for i, name in enumerate(so.AGENT_ACTS)}


def room_of(size=N, **arguments):
    room = ChatRoom(so.SCENARIO, size, **arguments)
    room.seed(np.arange(size, dtype=np.uint64) + np.uint64(10**9))
    return room


def uniform(room, generator=None, masked=True):
    generator = generator or np.random.default_rng(0)
    allowed = room.action_masks() if masked else np.ones((room.size, len(ACT)))
    return np.argmax(generator.random(allowed.shape) * allowed, axis=1)


def expert(room):
    return room.expert_acts()


def fixed(*names):
    acts = np.array([ACT[name] for name in names] + [ACT["close"]] * 30)
    return lambda room: acts[room.turns]


def understood(size=N, **arguments):
    """A room in which the supporter has asked for all three facts, and where it knows them."""
    room = room_of(size, error_rate=0.0, **arguments)
    room.begin()
    for _ in range(8):
        unknown = room.belief["sure"] == 0
        room.step(ACT["ask_problem"] + unknown.argmax(1), unknown.any(1) & (room.outcomes == 0))
    ready = (room.belief["sure"] > 0).all(1) & (room.hidden["told"] == so.UNDERSTOOD) & (room.outcomes == 0)
    assert ready.mean() > 0.8
    return room, ready


@pytest.fixture(scope="module")
def expert_play(play):
    return play(room_of(), expert)


@pytest.mark.parametrize("masked", [True, False])
def test_random_acts_comfort_less_than_15_percent(play, masked):
    generator = np.random.default_rng(0)
    assert play(room_of(), lambda room: uniform(room, generator, masked)).share("comforted") < 0.15


def test_the_expert_comforts_75_to_95_percent_in_6_to_11_turns(expert_play):
    assert 0.75 < expert_play.share("comforted") < 0.95
    comforted = expert_play.turns[[outcome == "comforted" for outcome in expert_play.outcomes]]
    assert 6 <= np.median(comforted) <= 10
    assert 6 <= comforted.mean() <= 11


def test_the_experts_acts_in_a_fixed_order_do_at_least_20_points_worse(play, expert_play):
    ask = ("ask_problem", "ask_feeling", "ask_cause")
    everything = ("self_disclose", "inform", "self_disclose", "affirm", "share_picture")
    endings = (everything, (*everything, "inform", "affirm"), ("self_disclose", "affirm", "inform", "share_picture"),
               ("suggest_rest", *everything), ("suggest_talk", "suggest_plan"))  # fmt: skip
    best = 0.0
    for begin in (("greet", *ask), ("greet", *ask, *ask), ask):
        for middle in (("reflect_feeling", "restate"), ("reflect_feeling", "restate", "ask_advice")):
            for ending in endings:
                best = max(best, play(room_of(1500), fixed(*begin, *middle, *ending)).share("comforted"))
    assert 0.3 < best < expert_play.share("comforted") - 0.25  # the search is a real one


def test_more_misunderstanding_means_worse_results(play):
    shares = [play(room_of(error_rate=rate), expert).share("comforted") for rate in (0.0, 0.1, 0.3)]
    assert shares[0] > shares[1] + 0.03 > shares[2] + 0.06


def test_advice_before_all_is_understood_backfires():
    room = room_of(error_rate=0.0)
    room.begin()
    for suggestion in ("suggest_talk", "suggest_rest", "suggest_plan"):
        trial = room_of(error_rate=0.0)
        trial.begin()
        trial.step(np.full(N, ACT[suggestion]))
        assert (trial.said["act"] == so.REJECT_ADVICE).all()
        assert (trial.hidden["intensity"] == room.hidden["intensity"] + 1).all()
        assert (trial.hidden["rapport"] == room.hidden["rapport"] - 2).all()


def test_advice_is_taken_where_it_fits_the_cause_and_is_wanted():
    room, ready = understood()
    room.step(np.full(N, ACT["reflect_feeling"]))
    before = room.hidden.copy()
    room.step(ACT["suggest_talk"] + room.hidden["cause"].astype(np.int64))
    took, wants = room.said["act"] == so.TAKE_ADVICE, before["wants_advice"] == 1
    assert not took[ready & ~wants].any()
    assert took[ready & wants].mean() == pytest.approx(so.P_TAKES, abs=0.03)
    assert (before["intensity"] - room.hidden["intensity"])[took & (before["intensity"] >= 3)].min() == 3
    other = ChatRoom(so.SCENARIO, N, error_rate=0.0)
    other.load(room.dump())
    other.hidden[:] = before
    other.step(ACT["suggest_talk"] + (before["cause"].astype(np.int64) + 1) % 3)
    assert not (other.said["act"] == so.TAKE_ADVICE).any()


def test_to_be_heard_relieves_and_to_be_misheard_hurts():
    for mistake, act, change in ((0, so.AFFIRM, 2), (1, so.CORRECT, -2)):
        room, ready = understood()
        room.belief["feeling"] = (room.hidden["feeling"] + mistake) % 4
        before = room.hidden.copy()
        room.step(np.full(N, ACT["reflect_feeling"]))
        ready &= room.outcomes == 0
        assert (room.said["act"][ready] == act).all()
        kept = ready & (before["rapport"] <= 8) & (before["rapport"] >= 2) & (room.turns <= before["patience"])
        assert (room.hidden["rapport"] - before["rapport"])[kept].tolist() == [change] * kept.sum()
        assert (before["intensity"] - room.hidden["intensity"])[ready].tolist() == [1 - mistake] * ready.sum()


def test_the_same_strategy_again_and_again_wears_off():
    room, ready = understood()
    room.hidden["rapport"] = 10
    ready &= (room.hidden["feeling"] == so.ANGER) & (room.hidden["uses"][:, ACT["affirm"]] == 0)
    helped = []
    for act in ("affirm", "check_feeling", "affirm", "check_feeling", "affirm"):
        room.step(np.full(N, ACT[act]))
        if act == "affirm":
            helped.append((room.said["act"] == so.AFFIRM)[ready].mean())
    assert helped == pytest.approx([so.P_HELPS * so.WEARS_OFF**n for n in range(3)], abs=0.06)
    assert (room.hidden["rapport"][ready] < 10).mean() > 0.9


def test_the_person_only_says_what_is_so():
    room = room_of()
    room.begin()
    generator = np.random.default_rng(3)
    for _ in range(12):
        room.step(uniform(room, generator), room.outcomes == 0)
        for fact, name in enumerate(so.FACTS):
            named = room.said["slots"] & (1 << fact) > 0
            assert (room.said[name] == room.hidden[name])[named].all()
            assert (room.hidden["told"][named] & (1 << fact)).all()


def test_without_errors_the_supporter_believes_what_was_said():
    room = room_of(error_rate=0.0)
    room.begin()
    for _ in range(6):
        room.step(room.expert_acts(), room.outcomes == 0)
        for fact, name in enumerate(so.FACTS):
            named = (room.said["slots"] & (1 << fact) > 0) & (room.belief["ended"] == 0)
            assert np.array_equal(room.belief[name][named], room.said[name][named])


def test_the_error_channel_errs_at_its_rate_and_knows_it_half_of_the_time():
    room = room_of(100_000)
    room.begin()
    first = room.belief["sure"][:, so.PROBLEM] > 0
    wrong = room.belief["problem"][first] != room.hidden["problem"][first]
    unsure = room.belief["sure"][first, so.PROBLEM] == 1
    assert wrong.mean() == pytest.approx(0.1, abs=0.01)
    assert unsure[wrong].mean() > 2.5 * unsure[~wrong].mean()


def test_words_that_were_not_understood_cost_rapport_and_are_asked_about():
    room = room_of(500)
    room.begin()
    before = room.hidden["rapport"].copy()
    room.step(np.full(500, UNCLEAR_ACT))
    assert (room.said["act"] == so.ASK_REPEAT).all()
    assert (room.hidden["rapport"] == before - 1).all()


def test_a_restatement_in_words_is_about_the_fact_that_it_names():
    room, _ = understood(500)
    for fact in (so.PROBLEM, so.CAUSE):
        room.step(np.full(500, ACT["restate"] + ABOUT * (fact + 1)))
        going = (room.outcomes == 0) & (room.belief["sure"][:, fact] > 0)
        assert (room.belief["repeating"][going] == fact).all()


def test_the_terms_of_the_reward_are_what_they_are_called():
    room = room_of()
    room.begin()
    for _ in range(20):
        before, going = room.hidden.copy(), room.outcomes == 0
        room.step(room.expert_acts(), going)
        after = room.hidden
        outcome, relief, rapport, time, progress = room.terms[going].T
        assert outcome.tolist() == [so.OUTCOME_VALUES.get(so.OUTCOMES[one], 0.0) for one in room.outcomes[going]]
        told = (after["told"] & ~before["told"])[going]
        assert np.allclose(progress, [row.bit_count() / 3 for row in told.tolist()])
        fall = before["intensity"].astype(float) - after["intensity"]
        assert np.allclose(relief, (fall / before["at_first"])[going])
        assert np.allclose(rapport, ((after["rapport"].astype(float) - before["rapport"]) / so.RAPPORT_MAX)[going])
        assert (time == -1).all()
    comforted = room.outcomes == so.COMFORTED
    assert (room.hidden["intensity"] <= room.hidden["at_first"] / 2)[comforted].all()
    assert (room.hidden["rapport"] >= so.COMES_BACK)[comforted].all()


def test_the_table_numbers_every_belief_within_its_space_and_0_only_at_the_end():
    room = room_of()
    room.begin()
    generator = np.random.default_rng(4)
    seen = set()
    for _ in range(60):
        mixed = np.where(generator.random(N) < 0.3, uniform(room, generator), room.expert_acts())
        room.step(mixed)
        numbers = room.discrete()
        assert ((numbers >= 0) & (numbers < so.SCENARIO.n_beliefs)).all()
        assert np.array_equal(numbers == 0, room.terminations)
        seen |= set(numbers.tolist())
        room.begin(room.terminations | room.truncations)
    assert so.SCENARIO.n_beliefs <= 20_000
    assert len(seen) > 2000


def test_the_embedding_tells_apart_all_beliefs_that_the_table_tells_apart_within_its_bounds():
    room = room_of()
    room.begin()
    generator = np.random.default_rng(5)
    by_vector: dict[bytes, int] = {}
    for _ in range(12):
        room.step(np.where(generator.random(N) < 0.3, uniform(room, generator), room.expert_acts()))
        embedding = room.embedding()
        assert np.abs(embedding).max() <= 1.0
        for number, vector in zip(room.discrete().tolist(), embedding, strict=True):
            assert by_vector.setdefault(vector.tobytes(), number) == number
        room.begin(room.terminations | room.truncations)


def test_an_utterance_survives_being_worded_understood_and_parsed():
    room = room_of(500, error_rate=0.0)
    room.begin()
    for _ in range(10):
        for said in room.said:
            meaning = so.words.partner_meaning(said)
            parsed = np.zeros(1, so.SAID)[0]
            heard = {name: words.NAMES[i][said[name]] for i, name in enumerate(so.FACTS) if said["slots"] & (1 << i)}
            so.words.parse(meaning.act, meaning.parts[0], heard, parsed)
            assert parsed["act"] == said["act"]
            assert parsed["slots"] == said["slots"]
            assert all(parsed[name] == said[name] for name in heard)
            assert meaning.tone == TONES[said["tone"]]
        room.step(room.expert_acts(), room.outcomes == 0)


def test_every_part_that_is_ever_said_has_six_sentences_in_every_tone():
    sentences = so.SCENARIO.sentences
    room = room_of(600)
    room.begin()
    generator = np.random.default_rng(6)
    for _ in range(15):
        acts = np.where(generator.random(room.size) < 0.5, uniform(room, generator, False), room.expert_acts())
        for act, belief in zip(acts, room.belief, strict=True):
            meaning = so.words.agent_meaning(int(act), belief)
            for part in meaning.parts:
                assert all("{" not in fill(text, meaning.slots) for text in sentences["agent"][part])
        room.step(acts)
        for said in room.said:
            for part in so.words.partner_meaning(said).parts:
                assert [len(sentences["partner"][part][tone]) >= 6 for tone in TONES] == [True] * 3
        room.begin(room.terminations | room.truncations)
    assert all(len(texts) >= 10 for texts in sentences["nlu"]["partner"].values())
    assert len(sentences["nlu"]["out_of_domain"]) >= 40
    assert sentences["situations"].keys() == sentences["partner"].keys() == sentences["nlu"]["partner"].keys()


def hidden_parts(room):
    """What is hidden, whether nothing about it was said yet, and how many classes it has."""
    told, hidden = room.hidden["told"], room.hidden
    yet = np.ones(room.size, bool)
    facts = {name: (hidden[name].copy(), told & (1 << i) == 0, int(so.SIZES[i])) for i, name in enumerate(so.FACTS)}
    likes = {name: (hidden[name].copy(), yet, 2) for name in ("wants_advice", "likes_disclosure", "likes_pictures")}
    return facts | likes


@pytest.mark.parametrize("moment", [0, 3])
def test_no_classifier_learns_what_is_unsaid_from_observations(moment, above_chance):
    """Reactions to comfort and advice tell (they are said); before any of them the unsaid must stay at chance."""
    room = room_of(20_000)
    room.begin()
    generator = np.random.default_rng(7)
    asking = np.array([ACT[a] for a in ("greet", "ask_problem", "ask_feeling", "ask_cause")])
    for _ in range(moment):
        room.step(generator.choice(asking, room.size), room.outcomes == 0)
    features, tested = room.embedding(), 0
    for goal, unsaid, classes in hidden_parts(room).values():
        rows = np.flatnonzero(unsaid & (room.outcomes == 0))
        if len(rows) > 3000:
            assert above_chance(features[rows], goal[rows], classes) < 4
            tested += 1
    assert tested >= 5


def test_the_classifier_notices_a_leak_in_one_observation_of_five(above_chance):
    room = room_of(20_000)
    room.begin()
    wish = room.hidden["wants_advice"].copy()
    shown = np.random.default_rng(8).random(room.size) < 0.2
    leaking = np.hstack([room.embedding(), np.where(shown, wish, 0.5)[:, None].astype(np.float32)])
    assert above_chance(leaking, wish, 2) > 8


def test_the_instructions_say_what_fits_each_cause_and_feeling():
    lines = so.SCENARIO.instructions().splitlines()
    for i, cause in enumerate(words.CAUSE_NAMES):
        assert f"- {cause}: {so.AGENT_ACTS[so.SUGGEST_TALK + i]}" in lines
    for feeling, name in enumerate(words.FEELING_NAMES):
        best = so.AGENT_ACTS[so.STRATEGIES[so.SOOTHES[feeling].argmax()]]
        (line,) = [line for line in lines if line.startswith(f"- {name}: ")]
        assert line.startswith(f"- {name}: {best}")


def test_belief_and_goal_are_described_in_words():
    belief = np.zeros(1, so.BELIEF)[0]
    assert so.SCENARIO.describe_belief(belief) == "nothing yet"
    belief["problem"], belief["feeling"], belief["sure"], belief["wants"], belief["better"] = 2, 3, [1, 3, 0], 2, 1
    assert so.SCENARIO.describe_belief(belief) == (
        "your exams (unsure), ashamed (confirmed), wants to be heard, feels better"
    )
    hidden = np.zeros(1, so.HIDDEN)[0]
    hidden["intensity"], hidden["at_first"], hidden["likes_pictures"], hidden["rapport"] = 3, 7, 1, 5
    assert so.SCENARIO.describe_goal(hidden) == (
        "job, anxiety (3 of 10, at first 7), conflict; wants to be heard; likes pictures; rapport 5 of 10"
    )


def test_the_heads_that_are_shipped_were_trained_on_the_sentences_as_they_are():
    assert nlu._stored(so.SCENARIO, nlu._heads_in) is not None, "run `chatgym scenarios social --train-nlu`"


HEARD = (
    ("partner", "my manager keeps yelling at me at the office", "state_problem/job"),
    ("partner", "my fiance called it off last week", "state_problem/breakup"),
    ("partner", "nan passed away in march", "state_problem/loss"),
    ("partner", "im so scared right now", "state_feeling/anxiety"),
    ("partner", "honestly i just want someone to listen", "want_listening"),
    ("partner", "thanks for hearing me out", "thank"),
    ("agent", "What did you feel when she told you?", "ask_feeling"),
    ("agent", "Maybe you could sleep in and take a day off.", "suggest_rest"),
    ("agent", "I'm sending you a picture. [picture: a small boat on a quiet lake]", "share_picture"),
    ("agent", "So it's about your exams, right?", "restate/problem"),
)


def test_everyday_words_of_both_are_understood():
    understand = nlu.nlu_of(so.SCENARIO).understand
    assert [understand([text], role)[0].part for role, text, _ in HEARD] == [part for *_, part in HEARD]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_drawn_the_same_every_time(name, tmp_path):
    from matplotlib.image import imread

    path = pictures.draw(name, tmp_path / "one.png")
    image = imread(path)
    assert image.shape == (480, 640, 4)
    assert len(np.unique((image[::4, ::4, :3] * 31).astype(int).reshape(-1, 3), axis=0)) > 8  # something is on it
    assert pictures.draw(name, tmp_path / "two.png").read_bytes() == path.read_bytes()
    assert pictures.draw(name, tmp_path / "three.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InvalidValue, match=r"end its name with"):
        pictures.draw(name, tmp_path / "four")


def test_an_unknown_picture_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InvalidValue, match="'boat'"):
        pictures.draw("boot", tmp_path / "boot.png")


def test_a_picture_is_chosen_by_the_believed_feeling_and_the_turn_and_its_caption_is_said():
    assert len(pictures.PICTURES) >= 8
    for feeling, name in enumerate(so.FEELINGS):
        seen = set()
        for turn in range(8):
            belief = np.zeros(1, so.BELIEF)[0]
            belief["feeling"], belief["turn"], belief["sure"] = feeling, turn, [0, 2, 0]
            caption = so.words.agent_meaning(ACT["share_picture"], belief).slots["picture"]
            (picture,) = [picture for picture in pictures.PICTURES.values() if picture.caption == caption]
            assert picture.mood == pictures.MOODS[name]
            seen.add(caption)
        assert len(seen) >= 2
    said = so.SCENARIO.sentences["agent"]["share_picture"]
    assert all("[picture: {picture}]" in text for text in said)


def test_beyond_its_patience_a_person_loses_a_point_of_rapport_each_turn():
    patient, impatient = room_of(300), room_of(300)
    for room, patience in ((patient, 100), (impatient, 0)):
        room.begin()
        room.hidden["patience"] = patience
        room.step(room.expert_acts())
    assert (impatient.hidden["rapport"] == np.maximum(patient.hidden["rapport"] - 1, 0)).all()
