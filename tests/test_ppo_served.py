"""PPO whose conversations a server holds: its tokens, its adapters, and what it refuses."""

import threading

import httpx
import numpy as np
import pytest
import torch
from chatgym_agents.ppo import rollout
from chatgym_agents.ppo.iteration import LogprobsDiffer, Phases
from chatgym_agents.ppo.rollout import hold
from chatgym_agents.ppo.systems import Server
from chatgym_agents.ppo.turns import ServedTurns
from test_ppo import agent_of, base, config_of, envs_of, held, train  # noqa: F401 (base is a fixture)
from test_serving import WAIT, Served, until

from chatgym.dynamics import rng
from chatgym.engines.openai import OpenAIEngine, Settings
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.engines.transformers import TransformersEngine
from chatgym.errors import InvalidValue, Unfinished
from chatgym.finetuning import models
from chatgym.finetuning.models import Lora
from chatgym.serving.limits import Limits
from chatgym.serving.metrics import Metrics
from chatgym.serving.refusal import Refusal
from chatgym.serving.scheduler import Scheduler

QUICK = Settings(retries=0)


def opened(folder, **more):
    return TransformersEngine(folder, identity="policy", dtype=torch.float32, **more)


@pytest.fixture
def server(base, tmp_path):  # noqa: F811
    engine = opened(base)
    made = Served(engine, limits=Limits(adapters=tmp_path))
    made.engine = engine
    yield made
    made.close()


def spec(server):
    return f"openai:{server.root}/v1#policy"


def adapter_of(base, folder, seed):  # noqa: F811
    """Write an adapter that changes much, as peft writes it."""
    model = models.make(base, scratch_seed=None, lora=Lora(2), seed=seed)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3, generator=draws)
    model.save_pretrained(folder)
    return folder


def weights_of(engine):
    return {name: weight.clone() for name, weight in engine.model.state_dict().items()}


def test_an_adapter_takes_the_place_of_the_one_before(base, tmp_path):  # noqa: F811
    first, second = (adapter_of(base, tmp_path / str(seed), seed) for seed in (1, 2))
    engine, fresh = opened(base), opened(base, adapter=second)
    plain = weights_of(engine)
    engine.exchange_adapter(first)
    between = weights_of(engine)
    engine.exchange_adapter(second)
    for name, weight in weights_of(fresh).items():
        assert torch.equal(engine.model.state_dict()[name], weight)
    assert any(not torch.equal(between[name], plain[name]) for name in plain)
    # What the next one leaves out is as it was without any.
    from safetensors.torch import load_file, save_file

    few = {name: t for name, t in load_file(first / "adapter_model.safetensors").items() if "q_proj" in name}
    save_file(few, first / "adapter_model.safetensors")
    engine.exchange_adapter(first)
    changed = {name for name, weight in plain.items() if not torch.equal(engine.model.state_dict()[name], weight)}
    assert changed == {name for name in plain if "q_proj" in name}


def test_a_server_samples_what_the_policy_samples(base, server, monkeypatch):  # noqa: F811
    seeds = rollout.speech_seeds
    monkeypatch.setattr(rollout, "speech_seeds", lambda *a: seeds(*a) % 2**63)  # as they are sent
    config = config_of(base)
    _, here = held(base, size=4, config=config)
    engine = OpenAIEngine(f"{server.root}/v1", "policy", settings=QUICK)
    turns = ServedTurns(engine, ChatTokenizer(str(base)), 4, config.temperature, config.max_new_tokens)
    keys = rng.bits(5, 0, 0) + np.arange(4, dtype=np.uint64)
    there = hold(turns, envs_of(4), keys, [0] * 4, max_length=400, phases=Phases())
    for one, other in zip(here, there, strict=True):
        assert one.ids == other.ids
        assert one.messages == other.messages
        assert one.places.tolist() == other.places.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
    engine.close()


def test_a_policy_learns_from_what_a_server_said(base, server, tmp_path):  # noqa: F811
    settings = {
        "critic": "separate",
        "lora": 4,
        "learning_rate": 3e-3,
        "rollout_llm": spec(server),
        "rollout_folder": str(tmp_path / "r"),
    }
    agent = agent_of(base, **settings)
    lines = train(agent, 150)
    assert len(lines) > 2
    assert lines[-1]["update_kl"] > 0
    # The server always had the policy as it was then, but for the adapter's being merged.
    assert all(0 < line["served_gap"] < 1e-3 for line in lines)
    assert all(line["logprob_gap"] < 1e-3 for line in lines)
    assert all(line["tokens_per_second_publishing"] > 0 for line in lines)
    agent._training.learner.systems.publish()
    (adapter,) = (tmp_path / "r").iterdir()  # those before were put away
    merged = opened(base, adapter=adapter).generate(["Hello"], max_new_tokens=8, seeds=[1])
    asked = OpenAIEngine(f"{server.root}/v1", "policy", settings=QUICK).generate(["Hello"], max_new_tokens=8, seeds=[1])
    assert [one.text for one in asked] == [one.text for one in merged]


def test_it_is_noticed_when_the_server_has_another_model(base, server, tmp_path, monkeypatch):  # noqa: F811
    settings = {"critic": "state", "lora": 2, "rollout_llm": spec(server), "rollout_folder": str(tmp_path)}
    other = adapter_of(base, tmp_path / "other", 3)
    monkeypatch.setattr(Server, "publish", lambda self, model: self.engine.take_adapter(other))
    with pytest.raises(LogprobsDiffer, match="samples from another model"):
        train(agent_of(base, **settings), 10)


def test_who_is_in_the_batch_is_not_disturbed_by_another_adapter(base, server, tmp_path):  # noqa: F811
    adapter, client, first = adapter_of(base, tmp_path / "adapter", 1), server.client(), threading.Event()
    said = []

    def listen():
        stream = client.completions.create(
            model="policy", prompt="Hello", max_tokens=200, seed=3, temperature=2.0, stream=True
        )
        for piece in stream:
            said.append(piece.choices[0].text)
            first.set()

    listening = threading.Thread(target=listen)
    listening.start()
    assert first.wait(WAIT)
    OpenAIEngine(f"{server.root}/v1", "policy", settings=QUICK).take_adapter(adapter)
    listening.join(WAIT)
    asked = {"max_new_tokens": 200, "seeds": [3], "temperature": 2.0}
    assert "".join(said) == opened(base).generate(["Hello"], **asked)[0].text
    after = client.completions.create(model="policy", prompt="Hello", max_tokens=200, seed=3, temperature=2.0)
    assert after.choices[0].text == opened(base, adapter=adapter).generate(["Hello"], **asked)[0].text


def test_a_server_that_drains_exchanges_the_adapter_that_it_was_given_first(base):  # noqa: F811
    scheduler, seen = Scheduler(opened(base), Limits(), Metrics()), []
    done = scheduler.change(lambda: seen.append(scheduler.idle))
    scheduler.drain()
    assert not scheduler.idle
    with pytest.raises(Refusal, match="shutting down"):
        scheduler.change(lambda: None)
    scheduler.start()
    done.result(WAIT)
    until(lambda: scheduler.idle)
    assert seen == [False]
    scheduler.close()


def test_an_adapter_that_can_not_be_taken_is_refused(base, server, tmp_path):  # noqa: F811
    engine = OpenAIEngine(f"{server.root}/v1", "policy", settings=QUICK)
    plain = weights_of(server.engine)
    (tmp_path / "empty").mkdir()
    outside = adapter_of(base, tmp_path.parent / f"{tmp_path.name}-outside", 1)
    for folder, status in ((tmp_path / "empty", 400), (tmp_path / "none", 400), (outside, 403)):
        with pytest.raises(Unfinished, match=f"{status}.*--adapters FOLDER"):
            engine.take_adapter(folder)
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(Unfinished, match="403"):
        engine.take_adapter(tmp_path / "link")
    url, known = f"{server.root}/v1/load_lora_adapter", {"lora_name": "policy", "lora_path": "none"}
    for body, status in (
        ({**known, "lora_name": "other"}, 404),
        ({"lora_name": "policy"}, 400),
        ({**known, "more": 1}, 400),
        ({**known, "lora_path": ""}, 400),
    ):
        assert httpx.post(url, json=body).status_code == status
    assert all(torch.equal(plain[name], weight) for name, weight in weights_of(server.engine).items())


def test_a_server_takes_no_adapters_unless_told_to(base, tmp_path):  # noqa: F811
    made = Served(opened(base))
    try:
        with pytest.raises(Unfinished, match=r"403.*--adapters FOLDER"):
            OpenAIEngine(f"{made.root}/v1", "policy", settings=QUICK).take_adapter(adapter_of(base, tmp_path / "a", 1))
    finally:
        made.close()


def test_what_a_server_can_not_do_is_said_at_the_beginning(base):  # noqa: F811
    llm = "openai:http://127.0.0.1:1/v1#policy"
    for settings, said in (
        ({}, "needs lora"),
        ({"lora": 2, "critic": "state", "top_k": 5}, "top_k"),
        ({"lora": 2, "critic": "shared"}, "critic shared"),
    ):
        with pytest.raises(InvalidValue, match=said):
            agent_of(base, rollout_llm=llm, **settings)
    with pytest.raises(InvalidValue, match="is no server"):
        train(agent_of(base, critic="state", lora=2, rollout_llm="smollm2-135m"), 10)
    with pytest.raises(Unfinished, match="can't be reached"):
        train(agent_of(base, critic="state", lora=2, rollout_llm=llm), 10)
