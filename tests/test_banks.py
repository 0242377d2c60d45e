"""The banks of wordings that ship: they are those of the code, complete, rightly heard, and need no model."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
from test_voice import NAMES, Voice

from chatgym.engines import make_engine
from chatgym.engines.recorded import RecordedEngine
from chatgym.envs.conversations import DEFAULT_LLM
from chatgym.errors import Corrupted
from chatgym.evaluation.bank_audit import misheard_wordings
from chatgym.scenarios import find_scenario
from chatgym.storage.cache import Cache
from chatgym.words import banks, nlg, shipping
from chatgym.words.banks import DROPPED, FILE, Bank
from chatgym.words.nlg import Speaker

SCENARIO = find_scenario("education")


@pytest.fixture
def copied(tmp_path):
    """The scenario in a folder of its own, without banks."""
    folder = tmp_path / "education"
    shutil.copytree(SCENARIO.folder, folder, ignore=shutil.ignore_patterns(FILE, DROPPED))
    return dataclasses.replace(SCENARIO, folder=folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_banks_are_those_that_the_code_would_make_and_all_of_them(name):
    scenario = find_scenario(name)
    speaker = Speaker(scenario, make_engine(DEFAULT_LLM))
    found = banks.shipped(scenario)
    remedy = f"something that decides the words has changed: run `chatgym scenarios {name} --fill-banks`"
    assert (found.engine, found.key) == (speaker.engine.identity, speaker.digest), remedy
    assert set(found.banks) == set(speaker.askable())
    assert speaker.prepare() == set()
    assert not speaker.engine.loaded
    assert speaker.banks == found.banks


@pytest.mark.parametrize("name", NAMES)
def test_what_a_reader_dropped_does_not_ship(name):
    scenario = find_scenario(name)
    found = banks.shipped(scenario).banks
    dropped = banks.dropped(scenario)
    assert set(dropped) <= set(found)
    for bank, wordings in dropped.items():
        assert not set(wordings) & set(found[bank].accepted)
    for bank in found.values():
        assert len(set(bank.accepted)) == len(bank.accepted) <= bank.candidates


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_wording_is_understood_as_it_is_meant(name):
    found = banks.shipped(find_scenario(name)).banks
    wrong = misheard_wordings(find_scenario(name), found)
    assert len(wrong) < 0.003 * sum(len(bank.accepted) for bank in found.values()), wrong


def test_a_wording_of_another_bank_is_misheard():
    scenario = find_scenario("customer_service")
    wrong = misheard_wordings(scenario, {"accept|calm": Bank(("Yes, please do that.", "I was charged twice."))})
    assert [(bank, wording) for bank, wording, _ in wrong] == [("accept|calm", "I was charged twice.")]


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_machine_speaks_the_models_words_without_torch_or_a_download(name, tmp_path):
    code = (
        "import sys, gymnasium as gym, chatgym, numpy as np\n"
        f"for env in (gym.make('ChatEnv-v0', scenario={name!r}),\n"
        f"            gym.make_vec('ChatEnv-v0', 4, 'vector_entry_point', scenario={name!r}, texts=True)):\n"
        "    env.reset(seed=1)\n"
        "    for _ in range(3):\n"  # no conversation of the expert is shorter
        "        acts = env.unwrapped.room.expert_acts()\n"
        "        env.step(acts if len(acts) > 1 else acts[0])\n"
        "    speaker = env.unwrapped.speaker\n"
        "    assert speaker.engine.identity.startswith('smollm2-135m-partner@') and not speaker.engine.loaded\n"
        "    report = speaker.report()\n"
        "    assert report.without_call == 1.0 and report.by_model > 0.9, report\n"
        "assert not {'torch', 'transformers', 'sentence_transformers', 'deepspeed'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "CHATGYM_CACHE": str(tmp_path / "cache"), "CHATGYM_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "models").exists()


def test_other_banks_than_those_of_the_code_are_not_used(monkeypatch):
    speaker = Speaker(SCENARIO, make_engine(DEFAULT_LLM))
    assert speaker._shipped
    monkeypatch.setattr(nlg, "GUARD_VERSION", 0)
    assert not Speaker(SCENARIO, make_engine(DEFAULT_LLM))._shipped
    monkeypatch.undo()
    assert not Speaker(SCENARIO, make_engine("smollm2-135m"))._shipped
    assert not Speaker(SCENARIO, Voice({}))._shipped


def test_a_speaker_with_a_cache_of_its_own_makes_its_own_words(tmp_path):
    voice = Voice({})
    voice.identity = make_engine(DEFAULT_LLM).identity
    assert Speaker(SCENARIO, voice).prepare(["greet|calm"]) == set()
    assert voice.calls == []
    assert Speaker(SCENARIO, voice, cache=Cache(tmp_path / "words.sqlite")).prepare(["greet|calm"]) == {"greet|calm"}
    assert voice.calls


def test_an_engine_that_records_is_asked(tmp_path):
    voice = Voice({})
    voice.identity = make_engine(DEFAULT_LLM).identity
    recorded = RecordedEngine(tmp_path / "record.sqlite", voice)
    assert Speaker(SCENARIO, recorded).prepare(["greet|calm"]) == {"greet|calm"}
    assert voice.calls


def test_the_same_words_make_the_same_file_without_what_was_dropped(copied, tmp_path):
    voice = Voice({})
    speaker = Speaker(copied, voice, cache=Cache(tmp_path / "words.sqlite"))
    voice.said = {speaker.prompt("greet|calm"): "Hello.\nHi.\nBananas."}
    path, made = shipping.write(speaker)
    assert made["greet|calm"].accepted == ("Hello.", "Hi.")
    assert banks.shipped(copied).banks == made
    first, calls = path.read_bytes(), len(voice.calls)
    (copied.folder / DROPPED).write_text('{"greet|calm": ["Hi."]}')
    again = Speaker(copied, voice, cache=Cache(tmp_path / "words.sqlite"))
    assert shipping.write(again)[1]["greet|calm"].accepted == ("Hello.",)
    assert path.read_bytes() != first
    (copied.folder / DROPPED).unlink()
    shipping.write(Speaker(copied, voice, cache=Cache(tmp_path / "words.sqlite")))
    assert path.read_bytes() == first
    assert len(voice.calls) == calls  # what was made before was kept


def test_an_interrupted_run_goes_on_where_it_stopped(copied, tmp_path):
    class Stopped(Voice):
        def generate(self, given, **sampling):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().generate(given, **sampling)

    cache = Cache(tmp_path / "words.sqlite")
    seen = []
    with pytest.raises(KeyboardInterrupt):
        shipping.write(Speaker(copied, Stopped({}), cache=cache), seen.append)
    assert seen
    assert not (copied.folder / FILE).exists()
    shipping.write(Speaker(copied, Voice({}), cache=cache), seen.append)
    assert seen == [*range(1, len(seen) + 1)]


@pytest.mark.parametrize("text", ["{", "[]", '{"engine": "x", "key": "y", "banks": {"greet|calm": {}}}'])
def test_a_file_that_is_damaged_says_how_to_mend_it(copied, text):
    (copied.folder / FILE).write_text(text)
    with pytest.raises(Corrupted, match="chatgym scenarios education --fill-banks"):
        banks.shipped(copied)


def test_a_list_of_dropped_wordings_that_is_damaged_is_named(copied):
    (copied.folder / DROPPED).write_text(json.dumps(["Hi."]))
    with pytest.raises(Corrupted, match=DROPPED):
        banks.dropped(copied)
