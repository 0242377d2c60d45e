import json

import numpy as np
import pytest

import chatgym
from chatgym.engines import Completion, make_engine
from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.task import Task
from chatgym.errors import Corrupted, ReplayMismatch
from chatgym.evaluation import evaluate
from chatgym.scenarios import TONES, Meaning
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.storage import model_store
from chatgym.storage.cache import Cache
from chatgym.words import nlg
from chatgym.words.guard import Guard
from chatgym.words.nlg import Speaker
from chatgym.words.nlu import nlu_of

KEYS, TURNS = np.arange(1, 501, dtype=np.uint64), np.arange(500) % 20
NUMBER = Meaning("inform", ("inform/reference",), {"reference": "123456"}, "calm")


class Parrot:
    """An engine that says the same lines over and over, so that a test knows what a model said."""

    identity = "parrot@1"

    def __init__(self, *lines):
        self.lines, self.calls, self.closed = lines, 0, 0

    def generate(self, prompts, **sampling):
        self.calls += 1
        texts = [" " + self.lines[i % len(self.lines)] for i in range(len(prompts))]
        return [Completion(text, (1, 2), (-0.2, -0.3), "stop") for text in texts]

    def score(self, prompts, continuations):
        return [[0.0] for _ in prompts]

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def guard():
    return Guard(SCENARIO, nlu_of(SCENARIO))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder without words, but with the models."""
    models = model_store.path("all-minilm-l6-v2").parent
    monkeypatch.setenv("CHATGYM_CACHE", str(tmp_path))
    (tmp_path / "models").symlink_to(models)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "words.sqlite")


def test_words_depend_on_key_and_turn_alone():
    speaker = Speaker(SCENARIO)
    meanings = [NUMBER] * len(KEYS)
    together = speaker.say(meanings, KEYS, TURNS)
    assert together == [speaker.say([NUMBER], KEYS[i : i + 1], TURNS[i : i + 1])[0] for i in range(len(KEYS))]
    assert len(set(together)) == len(SCENARIO.sentences["partner"]["inform/reference"]["calm"])


def test_values_are_filled_in_and_sentences_begin_with_a_capital():
    speaker = Speaker(SCENARIO)
    meaning = Meaning("inform", ("inform/date", "inform/amount"), {"date": "yesterday", "amount": "7 euros"}, "angry")
    for text in speaker.say([meaning] * len(KEYS), KEYS, TURNS):
        assert text.lower().count("yesterday") == text.count("7 euros") == 1
        assert "{" not in text
        assert text[0].isupper()


@pytest.mark.parametrize(
    ("part", "tone", "text"),
    [
        ("inform/reference", "calm", "It's 482913."),
        ("inform/date", "angry", "It was 3 days ago, and I'm waiting for a solution!"),
        ("state_problem/late_delivery", "calm", "My delivery is delayed."),
        ("affirm", "calm", "Yes, you got it right."),
        ("correct/date", "annoyed", "- No, I said it was 3 days ago."),
        ("complain", "angry", '"I\'m sick of this!"'),
    ],
)
def test_the_guard_lets_pass_what_says_the_right_thing(guard, part, tone, text):
    (verdict,) = guard.check([text], part, tone)
    assert verdict.wording, verdict.reason


@pytest.mark.parametrize(
    ("part", "tone", "text", "reason"),
    [
        ("inform/reference", "calm", "Here is the number.", "names no value"),
        ("inform/reference", "calm", "It's 482914.", "another reference"),
        ("inform/reference", "calm", "It's 482913, 482913.", "another reference"),
        ("inform/reference", "calm", "It's 482913, 3 days ago.", ""),
        ("inform/reference", "calm", "I am 482913.", ""),
        ("correct/reference", "calm", "Sorry, it's not 482913.", "denies"),
        ("inform/date", "calm", "My number is {reference}.", "not a plain sentence"),
        ("state_problem/refund", "angry", "I don't want to return this item!", "denies"),
        ("state_problem/refund", "calm", "I'd like to send you a refund.", "says"),
        ("state_problem/refund", "calm", "My parcel hasn't arrived yet, sadly.", ""),
        ("greet", "annoyed", "Hi. How can I help you?", ""),
        ("ask_repeat", "calm", "The customer asks what was meant.", "not a plain sentence"),
        ("thank", "calm", "You're welcome, thank you.", ""),
        ("affirm", "calm", "No, that's wrong.", ""),
        ("accept", "angry", "Sorry, please, I'll take it!", "says"),
        ("complain", "calm", "I've been waiting for 3 weeks.", ""),
        ("complain", "calm", "This takes", "not a plain sentence"),
        ("complain", "calm", "I hate John Smith.", "not a plain sentence"),
        ("complain", "calm", "See http://example.org", "not a plain sentence"),
        ("complain", "calm", "C'est très long.", "the word"),
        ("affirm", "annoyed", "Yes, no, go on.", "opens with"),
        ("accept", "annoyed", "No, I'll take that.", "opens with"),
        ("bye/left", "calm", "You're leaving, goodbye.", "opens with"),
    ],
)
def test_the_guard_stops_what_does_not(guard, part, tone, text, reason):
    if text == "This takes":
        text += " ..."  # as one that was cut off
    (verdict,) = guard.check([text], part, tone)
    assert verdict.wording is None
    assert reason in verdict.reason


def test_a_wording_that_the_model_finds_unlikely_is_stopped(guard):
    likely, unlikely = guard.check(["It's 482913."] * 2, "inform/reference", "calm", [-0.3, -3.0])
    assert likely.wording == "It's {reference}."
    assert unlikely.wording is None


def test_the_models_words_are_said_when_they_pass(cache):
    speaker = Speaker(SCENARIO, Parrot("It's 482913.", "No, why?", "Number 482913."), cache=cache)
    texts = speaker.say([NUMBER] * len(KEYS), KEYS, TURNS)
    assert set(texts) == {"It's 123456.", "Number 123456."}
    report = speaker.report()
    assert report.by_model == 1.0
    assert report.distinct == {"inform": 2}
    assert speaker.used == {"inform/reference|calm": ["It's {reference}.", "Number {reference}."]}


def test_the_canonical_sentence_is_said_when_nothing_passes(cache):
    speaker = Speaker(SCENARIO, Parrot("Bananas."), cache=cache)
    assert set(speaker.say([NUMBER] * 50, KEYS[:50], TURNS[:50])) == {"My number is 123456."}
    assert speaker.report().by_model == 0.0
    assert speaker.report().candidates == 2 * nlg.CANDIDATES  # it was asked once more


def test_a_bank_is_made_once_and_kept_for_other_processes(cache):
    first, second = Parrot("It's 482913."), Parrot("It's 482913.")
    said = Speaker(SCENARIO, first, cache=cache).say([NUMBER], KEYS[:1], TURNS[:1])
    speaker = Speaker(SCENARIO, second, cache=Cache(cache.path))
    assert speaker.say([NUMBER], KEYS[:1], TURNS[:1]) == said
    assert (first.calls > 0, second.calls) == (True, 0)
    assert speaker.report().without_call == 1.0


def test_another_model_has_other_banks(cache):
    Speaker(SCENARIO, Parrot("It's 482913."), cache=cache).say([NUMBER], KEYS[:1], TURNS[:1])
    other = Parrot("Number 482913.")
    other.identity = "parrot@2"
    assert Speaker(SCENARIO, other, cache=cache).say([NUMBER], KEYS[:1], TURNS[:1]) == ["Number 123456."]


def test_a_damaged_bank_is_an_error_that_names_the_remedy(cache):
    speaker = Speaker(SCENARIO, Parrot("It's 482913."), cache=cache)
    cache.put(speaker._key(speaker.prompt("inform/reference|calm"), speaker.engine), json.dumps(["no bank"]))
    with pytest.raises(Corrupted, match="delete the file"):
        speaker.say([NUMBER], KEYS[:1], TURNS[:1])


def test_a_conversation_in_a_models_words_replays_without_the_model(tmp_path, own_cache):
    env = ChatEnv(observation="text", llm=Parrot("It's 482913.", "Yes, that's it.", "It was 3 days ago, I think."))
    path = tmp_path / "t.jsonl"
    replay.record(env, lambda *_: int(env.room.expert_acts()[0]), path, keys=list(range(20)))
    assert '"It\'s {reference}."' in path.read_text()
    assert chatgym.replay(path).conversations == 20
    changed = tmp_path / "changed.jsonl"
    changed.write_text(path.read_text().replace("It's {reference}.", "It's {reference}!"))
    with pytest.raises(ReplayMismatch):
        chatgym.replay(changed)


def test_the_words_do_not_change_what_happens(own_cache):
    from chatgym_agents.scripted import Expert

    plain = evaluate(Expert(SCENARIO), Task(), conversations=60)
    worded = evaluate(Expert(SCENARIO), Task(), conversations=60, llm=Parrot("It's 482913.", "Fine, okay."))
    assert worded.wording["by_model"] > 0.0
    assert (plain.outcomes == worded.outcomes).all()
    assert (plain.returns == worded.returns).all()


def test_an_environment_closes_the_model_that_it_opened_and_no_other(monkeypatch):
    mine, opened = Parrot("Hello."), Parrot("Hello.")
    monkeypatch.setattr("chatgym.envs.conversations.make_engine", lambda llm: mine if llm is mine else opened)
    for llm in (mine, "smollm2-135m"):
        ChatEnv(observation="text", llm=llm).close()
    assert (mine.closed, opened.closed) == (0, 1)


def test_the_default_model_says_the_right_thing_and_the_same_again(tmp_path):
    model_store.path("smollm2-135m")
    engine = make_engine("smollm2-135m")
    banks = []
    for run in ("a", "b"):
        speaker = Speaker(SCENARIO, engine, cache=Cache(tmp_path / run))
        assert speaker.prepare(["inform/reference|calm"]) == {"inform/reference|calm"}
        banks.append(speaker.banks["inform/reference|calm"])
    engine.close()
    assert banks[0] == banks[1]
    assert len(banks[0].accepted) >= 2
    assert all(wording.count("{reference}") == 1 for wording in banks[0].accepted)


def test_every_part_has_sentences_a_situation_and_paraphrases():
    sentences = SCENARIO.sentences
    assert sentences["situations"].keys() == sentences["partner"].keys() == sentences["nlu"]["partner"].keys()
    for part, tones in sentences["partner"].items():
        assert set(tones) == set(TONES), part
        slots = {text.count("{") for texts in tones.values() for text in texts}
        assert len(slots) == 1, part  # all name the same number of values
