"""What an engine of somebody else hands over is checked where it comes in, and the error names it."""

import dataclasses
import warnings

import pytest

from chatgym import plugins
from chatgym.engines import Completion, make_engine
from chatgym.engines.chat import Reply, chat
from chatgym.engines.recorded import RecordedEngine
from chatgym.errors import InvalidValue
from chatgym.rewards.choose import make_reward_model
from chatgym.scenarios.customer_service import SCENARIO
from chatgym.storage.cache import Cache
from chatgym.words.nlg import JUDGED, Speaker


@dataclasses.dataclass
class Foreign:
    """An engine whose `generate` and `score` return what `made` makes of the prompts."""

    made: object
    identity: object = "foreign@1"

    def generate(self, prompts, **sampling):
        return self.made(prompts)

    def score(self, prompts, continuations):
        return self.made(prompts)


def completions(texts):
    return [Completion(text, (1,), None, "stop") for text in texts]


WRONG = {
    "a text": (lambda prompts: "hello", "returns 'hello' for"),
    "texts": (lambda prompts: ["hello" for _ in prompts], "of str for"),
    "nothing": (lambda prompts: None, "returns None for"),
    "too few": (lambda prompts: completions(prompts)[1:], "of Completion for"),
    "one": (lambda prompts: completions(prompts)[0], "returns Completion("),
}


def uses(engine, tmp_path):
    speaker = Speaker(SCENARIO, engine, cache=Cache(tmp_path / "words.sqlite"))
    yield lambda: speaker.prepare(["greet|calm"])
    yield lambda: chat(engine, [[{"role": "user", "content": "Hello?"}]] * 2, max_new_tokens=4)
    yield lambda: RecordedEngine(tmp_path / "record.sqlite", engine).generate(["a", "b"], max_new_tokens=4)


@pytest.mark.parametrize(("made", "told"), WRONG.values(), ids=WRONG)
def test_what_an_engine_returns_is_checked_where_it_is_used(made, told, tmp_path):
    for use in uses(Foreign(made), tmp_path):
        with pytest.raises(InvalidValue, match=r"generate\(\) of the engine foreign@1 returns") as one:
            use()
        assert told in str(one.value)
        assert (
            "let it return a list with a Completion for each, and test it with `chatgym.testing.check_engine`"
            in str(one.value)
        )


def test_replies_and_scores_are_checked_too(tmp_path):
    engine = Foreign(lambda prompts: [0.5 for _ in prompts])
    with pytest.raises(InvalidValue, match=r"score\(\) of the engine foreign@1 returns 2 of float for 2 prompts"):
        RecordedEngine(tmp_path / "record.sqlite", engine).score(["a", "b"], ["c", "d"])
    engine.chat = lambda chats, **sampling: [Reply("hello", (), "stop")]
    with pytest.raises(InvalidValue, match=r"chat\(\) of the engine foreign@1 returns 1 of Reply for 2 prompts"):
        chat(engine, [[{"role": "user", "content": "Hello?"}]] * 2, max_new_tokens=4)
    with pytest.raises(InvalidValue, match="the text of a Completion is None; write a str"):
        Completion(None, (), None, "stop")


@pytest.mark.parametrize("identity", [None, "", 3])
def test_an_engine_without_a_name_is_refused_where_it_is_given(identity):
    with pytest.raises(InvalidValue, match=f"the engine Foreign has the identity {identity!r}; give it the"):
        make_engine(Foreign(completions, identity))


def test_what_a_plugin_makes_is_checked(monkeypatch):
    known = plugins.load()
    for name, made in {"none": None, "nameless": Foreign(completions, None), "mine": Foreign(completions)}.items():
        for kind in (known.engines, known.reward_models):
            monkeypatch.setitem(kind._things, name, lambda spec, made=made: made)
            monkeypatch.setitem(kind.sources, name, "odd")
    with pytest.raises(InvalidValue, match="plugin 'odd' makes of 'none:x' is no engine but None: it has no generate"):
        make_engine("none:x")
    with pytest.raises(InvalidValue, match="plugin 'odd' makes of 'nameless:x' has the identity None"):
        make_engine("nameless:x")
    assert make_engine("mine:x").identity == "foreign@1"
    with pytest.raises(InvalidValue, match="plugin 'odd' makes of 'none:x' is no reward model but None: it has no"):
        make_reward_model("none:x", SCENARIO)
    assert isinstance(make_reward_model("mine:x", SCENARIO), Foreign)


def test_an_engine_nearly_all_of_whose_words_are_refused_is_told_once(tmp_path):
    mumbling = Foreign(lambda prompts: completions(f"{i} + {i} = {2 * i}" for i in range(len(prompts))), "mumbler@1")
    speaker = Speaker(SCENARIO, mumbling, cache=Cache(tmp_path / "words.sqlite"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name in speaker.askable()[:8]:
            speaker.prepare([name])
    (warning,) = [str(one.message) for one in told]
    assert warning.startswith(
        f"the wording guard refuses 100% of what mumbler@1 writes ({JUDGED} wordings so far, such as '0 + 0 = 0': not "
        "a plain sentence), so the partner speaks in the scenario's own sentences; take another model, such as "
    )
    assert speaker.report().accepted == 0


def test_an_engine_that_repeats_itself_is_not_said_to_be_refused(tmp_path):
    repeating = Foreign(lambda prompts: completions(["Hello, is anybody there?"] * len(prompts)))
    speaker = Speaker(SCENARIO, repeating, cache=Cache(tmp_path / "words.sqlite"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        speaker.prepare(["greet|calm"])
        speaker.banks |= dict.fromkeys(map(str, range(JUDGED)), speaker.banks["greet|calm"])
        speaker.prepare(["greet|angry"])
    assert sum(bank.candidates for bank in speaker.banks.values()) >= JUDGED
