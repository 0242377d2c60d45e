"""The partner's voice: what it is taught, how it is asked, and that its adapter is what it says."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model

import chatgym
from chatgym.engines import Completion, make_engine
from chatgym.engines.adapter import pack
from chatgym.engines.choose import ADAPTER
from chatgym.engines.transformers import TransformersEngine
from chatgym.envs import replay
from chatgym.envs.chat_env import ChatEnv
from chatgym.envs.conversations import DEFAULT_LLM
from chatgym.errors import Corrupted, InvalidValue
from chatgym.finetuning.voice import lessons, prepare
from chatgym.finetuning.voice_practice import passed, practise
from chatgym.scenarios import Meaning, fill, find_scenario
from chatgym.storage.cache import Cache
from chatgym.words.guard import Guard
from chatgym.words.nlg import TOGETHER, Speaker
from chatgym.words.nlu import nlu_of
from chatgym.words.voice import is_voice, prompts
from chatgym.words.voice.wordings import answers, banks_of, said_by_agent, wordings

NAMES = ("customer_service", "education", "social")
SCENARIO = find_scenario("customer_service")


@pytest.mark.parametrize("name", NAMES)
def test_every_wording_by_hand_is_of_a_part_a_tone_and_an_act_that_there_are(name):
    scenario = find_scenario(name)
    partner = scenario.sentences["partner"]
    banks = list(wordings(scenario))
    assert {bank.part for bank in banks} == set(partner)
    for bank in banks:
        assert bank.tone in partner[bank.part]
        assert bank.act == "" or bank.act in scenario.agent_acts
        assert len(set(bank.texts)) == len(bank.texts) > 0
        named = {slot for slot in scenario.examples if "{" + slot + "}" in partner[bank.part]["calm"][0]}
        for text in bank.texts:
            assert {slot for slot in scenario.examples if "{" + slot + "}" in text} == named, text


@pytest.mark.parametrize("name", NAMES)
def test_the_guard_lets_every_wording_by_hand_pass_where_it_belongs(name):
    scenario = find_scenario(name)
    guard = Guard(scenario, nlu_of(scenario))
    for bank in wordings(scenario):
        texts = [fill(text, scenario.examples) for text in bank.texts]
        verdicts = guard.check(texts, bank.part, bank.tone, act=bank.act)
        assert [verdict.wording for verdict in verdicts] == list(bank.texts)


def test_a_wording_that_answers_another_act_does_not_pass():
    guard = Guard(SCENARIO, nlu_of(SCENARIO))
    found = 0
    for bank in wordings(SCENARIO):
        if bank.act:
            for act in {*answers(SCENARIO)[bank.part]} - {bank.act}:
                verdicts = guard.check([fill(t, SCENARIO.examples) for t in bank.texts], bank.part, bank.tone, act=act)
                found += sum("answers another act" in verdict.reason for verdict in verdicts)
    assert found > 10


def test_a_lesson_asks_as_the_speaker_does_and_answers_by_hand():
    hand = {fill(t, SCENARIO.examples) for bank in wordings(SCENARIO) for t in bank.texts}
    hand |= {
        fill(t, SCENARIO.examples)
        for tones in SCENARIO.sentences["partner"].values()
        for ts in tones.values()
        for t in ts
    }
    taught = list(lessons(SCENARIO))
    for *_, answer in taught:
        assert set(answer["content"].split("\n")) <= hand
    speaker = Speaker(SCENARIO, Voice({}))
    asked = {prompts.prompt(lesson[:-1]) for lesson in taught}
    assert speaker.prompt("accept|calm") in asked
    part, act = sorted(speaker.answers)[0]
    assert speaker.prompt(f"{part}|calm|{act}") in asked
    assert said_by_agent(SCENARIO, act) in speaker.prompt(f"{part}|calm|{act}")
    assert list(lessons(SCENARIO, 2, seed=1)) != list(lessons(SCENARIO, 2, seed=2))


class Voice:
    """A voice that says what was written for it, else the word of its name."""

    identity = "spoken-partner@1"

    def __init__(self, said):
        self.said, self.calls = said, []

    def generate(self, given, **sampling):
        self.calls.append(list(given))
        return [Completion(self.said.get(prompt, "Xyzzy."), (1,), None, "stop") for prompt in given]

    def score(self, prompts, continuations):
        raise NotImplementedError

    def close(self):
        pass


def speaker_of(tmp_path, said):
    """A speaker whose voice says `said`: name of a bank to a list of texts."""
    voice = Voice({})
    speaker = Speaker(SCENARIO, voice, cache=Cache(tmp_path / "words.sqlite"))
    voice.said = {speaker.prompt(name): "\n".join(texts) for name, texts in said.items()}
    return speaker


def say(speaker, part, acts):
    meaning = Meaning(part.partition("/")[0], (part,))
    n = len(acts)
    return speaker.say([meaning] * n, np.arange(n, dtype=np.uint64), np.ones(n, np.int64), acts=acts)


def test_what_is_said_answers_the_agents_last_act(tmp_path):
    part, act = "accept", next(iter(answers(SCENARIO)["accept"]))
    own, usual = (
        next(b.texts for b in wordings(SCENARIO) if (b.part, b.tone, b.act) == (part, "calm", a)) for a in (act, "")
    )
    speaker = speaker_of(tmp_path, {f"{part}|calm|{act}": own[:1], f"{part}|calm": usual[:1]})
    assert say(speaker, part, [act, "greet", ""]) == [own[0], usual[0], usual[0]]
    assert set(speaker.used) == {f"{part}|calm|{act}", f"{part}|calm"}
    again = Speaker(SCENARIO, Voice({}), cache=Cache(tmp_path / "words.sqlite"))
    assert say(again, part, [act, "greet", ""]) == [own[0], usual[0], usual[0]]
    assert again.engine.calls == []  # they were kept


def test_a_voice_practises_by_what_is_right_beyond_doubt(tmp_path):
    part, act = "accept", next(iter(answers(SCENARIO)["accept"]))
    own = next(b.texts for b in wordings(SCENARIO) if (b.part, b.tone, b.act) == (part, "calm", act))
    usual = SCENARIO.sentences["partner"][part]["calm"]
    speaker, voice = Speaker(SCENARIO, Voice({})), Voice({})
    new = "Okay, that works for me, I'll take it."
    lines = [own[0], new, "I want to cancel my plan.", new, usual[0]]
    voice.said = {speaker.prompt(f"{part}|calm|{act}"): "\n".join(lines)}
    counted, file = [], tmp_path / "practice.jsonl"
    practise(file, [SCENARIO], voice, 2, progress=counted.append)
    said = passed([file], SCENARIO)
    assert list(said) == banks_of(SCENARIO)
    assert counted[-1] == len(said)
    assert said.pop((part, "calm", act)) == [own[0], new, usual[0]]
    assert not any(said.values())
    assert not passed([file], find_scenario("social"))
    again = tmp_path / "again.jsonl"
    voice.said = dict.fromkeys(voice.said, f"{usual[1]}\n{new}")
    practise(again, [SCENARIO], voice, 1)
    assert passed([file, again], SCENARIO)[part, "calm", act] == [own[0], new, usual[0], usual[1]]
    # In the lists it learns then, what was new stands beside what was written, once each.
    asked = prompts.messages(SCENARIO, part, "calm", act)
    taught = {
        line
        for lesson in lessons(SCENARIO, more={(part, "calm", act): [own[0], new, usual[0]]})
        if lesson[:-1] == asked
        for line in lesson[-1]["content"].split("\n")
    }
    assert new in taught
    assert taught - {new} <= {*own, *usual, *next(b.texts for b in wordings(SCENARIO) if b.part == part and not b.act)}


def test_the_guard_is_surer_of_what_is_learned_from():
    texts = ["That works.", "Fine, do that for me.", "All right, I accept that, thanks.", "Good, let's do that."]
    passed_by = [
        {v.wording for v in Guard(SCENARIO, nlu_of(SCENARIO), margin=margin).check(texts, "accept", "calm")} - {None}
        for margin in (0.0, 0.15, 0.3)
    ]
    assert passed_by[0] > passed_by[1] > passed_by[2] > set()


def test_a_practice_that_was_interrupted_goes_on(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    seen = []

    class Seeded(Voice):
        def generate(self, given, **sampling):
            seen.append(sampling["seeds"])
            return [Completion(f"Hello {seed}.", (1,), None, "stop") for seed in sampling["seeds"]]

    def interrupt(done):
        if done > 20:
            raise KeyboardInterrupt

    practise(whole, [SCENARIO], Seeded({}), 1)
    with pytest.raises(KeyboardInterrupt):
        practise(cut, [SCENARIO], Seeded({}), 1, progress=interrupt)
    cut.write_bytes(cut.read_bytes()[:-7])  # as a kill in the middle of writing leaves it
    practise(cut, [SCENARIO], Seeded({}), 1)
    assert cut.read_bytes() == whole.read_bytes()
    calls = -(-len(banks_of(SCENARIO)) // TOGETHER)
    assert len(seen) == 2 * calls + 1  # one was said again
    practise(cut, [SCENARIO], Seeded({}), 1)
    assert len(seen) == 2 * calls + 1


def test_a_voice_that_says_nothing_right_is_heard_in_templates(tmp_path):
    speaker = speaker_of(tmp_path, {})
    assert say(speaker, "thank", [""]) == [SCENARIO.sentences["partner"]["thank"]["calm"][0]]
    assert speaker.banks["thank|calm"].accepted == ()
    assert [len(call) for call in speaker.engine.calls] == [2, 2]  # asked once more, in one call each time


def test_a_conversation_in_a_voice_is_replayed_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr("chatgym.words.nlg.default_path", lambda: tmp_path / "words.sqlite")
    names = Speaker(SCENARIO, Voice({}))
    said = {names.prompt(f"{b.part}|{b.tone}" + (f"|{b.act}" if b.act else "")): "\n".join(
        fill(text, SCENARIO.examples) for text in b.texts) for b in wordings(SCENARIO)}  # fmt: skip
    env = ChatEnv(scenario="customer_service", llm=Voice(said))
    replay.record(env, lambda observation, info: int(env.room.expert_acts()[0]), tmp_path / "t.jsonl", keys=[1, 2, 3])
    used = set(env.speaker.used)
    assert any(name.count("|") == 2 for name in used)
    env.close()
    assert chatgym.replay(tmp_path / "t.jsonl").conversations == 3


def test_an_adapter_is_merged_as_peft_merges_it(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
                parameter.data = parameter.data.half().float()
            elif "lora_A" in name:
                parameter.data = parameter.data.half().float()
    model.save_pretrained(tmp_path / "adapter")
    pack(tmp_path / "adapter", tmp_path / "packed")
    expected = model.merge_and_unload().state_dict()
    merged = TransformersEngine(
        folder, identity="x", dtype=torch.float32, adapter=tmp_path / "packed"
    ).model.state_dict()
    plain = TransformersEngine(folder, identity="x", dtype=torch.float32).model.state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {name for name in plain if "q_proj" in name or "up_proj" in name}
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight)


@pytest.mark.parametrize("fault", ["no file", "no json", "another kind", "half a pair", "another model's"])
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, fault):
    folder = save_tiny_model(tmp_path / "base")
    bad = tmp_path / "bad"
    bad.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    matrices = {name.format("A"): torch.ones(2, 16), name.format("B"): torch.ones(16, 2)}
    if fault == "another kind":
        config["use_dora"] = True
    if fault == "half a pair":
        del matrices[name.format("B")]
    if fault == "another model's":
        matrices[name.format("B")] = torch.ones(8, 2)
    if fault != "no file":
        save_file(matrices, bad / "adapter_model.safetensors")
    (bad / "adapter_config.json").write_text("no" if fault == "no json" else json.dumps(config))
    with pytest.raises(Corrupted):
        TransformersEngine(folder, identity="x", dtype=torch.float32, adapter=bad)


def test_the_default_partner_is_a_voice_that_comes_with_the_package():
    engine = make_engine(DEFAULT_LLM)
    assert is_voice(engine.identity)
    assert not is_voice(make_engine("smollm2-135m").identity)
    weights = load_file(ADAPTER / "adapter_model.safetensors")
    assert sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) < 5_000_000
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_scenario_without_wordings_has_no_voice_to_train(tmp_path, monkeypatch):
    monkeypatch.setattr("chatgym.finetuning.voice.lessons", lambda *_: iter(()))
    with pytest.raises(InvalidValue, match=r"voice\.json"):
        prepare(tmp_path / "run", [find_scenario("education")])


def test_a_bank_says_the_same_whichever_banks_are_asked_for_beside_it(tmp_path):
    engine = make_engine(DEFAULT_LLM).opened()
    if engine.dtype is not torch.float32:
        pytest.skip("only exact in float32")
    names = ["thank|calm", "bye|angry", "accept|calm"]
    together, alone = (Speaker(SCENARIO, make_engine(DEFAULT_LLM), cache=Cache(tmp_path / f"{i}.sqlite")) for i in "ab")
    for speaker in (together, alone):
        speaker.engine._engine = engine
    together.prepare(names)
    for name in names:
        alone.prepare([name])
    assert together.banks == alone.banks
    assert all(len(bank.accepted) >= 2 for bank in together.banks.values())
