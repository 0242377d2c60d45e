"""Supervised fine-tuning: what is learned from, what is learned, and that a run can be killed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from chatgym.agent import Interface
from chatgym.cli.app import app
from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.envs.task import Task
from chatgym.envs.tokens import TokenHistory
from chatgym.errors import Corrupted, InvalidValue
from chatgym.evaluation import speech
from chatgym.finetuning import dialogues, models, tiny
from chatgym.finetuning.loop import Optimization, deepspeed_config
from chatgym.finetuning.packing import encode, pack
from chatgym.finetuning.sft import SFT, Settings, batch_of
from chatgym.training.run import find_agent

TASK = Task("customer_service", {"error_rate": 0.0})
HOW = Optimization(batch=4, micro_batch=2, learning_rate=3e-3, zero=2)


@pytest.fixture(scope="module")
def said():
    return dialogues.held_by(find_agent("expert")(TASK.find_scenario()), TASK, 24, seed=3)


@pytest.fixture(scope="module")
def base(said, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.save_tokenizer((message["content"] for one in said for message in one), folder)
    return folder


def prepared(folder, said, *, how=HOW, **settings):
    return SFT.prepare(folder, Settings("", "", "", **{"epochs": 3, "evaluations": 3, **settings}), how, said=said)


@pytest.fixture(scope="module")
def trained(said, tmp_path_factory):
    run = prepared(tmp_path_factory.mktemp("runs") / "whole", said)
    run.train()
    return run


def weights(run):
    return (run.model / "model.safetensors").read_bytes()


def test_an_experts_conversations_alternate_and_end_with_the_agent(said):
    for one in said:
        assert [m["role"] for m in one] == ["user", "assistant"] * (len(one) // 2)
    again = dialogues.held_by(find_agent("expert")(TASK.find_scenario()), TASK, 3, seed=5)
    assert again == said[2:5]  # a conversation is its seed's, whatever is held beside it


def test_a_teacher_that_wanders_says_other_things(said):
    astray = dialogues.held_by(find_agent("expert")(TASK.find_scenario()), TASK, 24, seed=3, wander=0.5)
    assert sum(a != b for a, b in zip(astray, said, strict=True)) > 20


def test_the_ids_are_those_that_the_environment_shows(said, base):
    tokenizer = ChatTokenizer(str(base))
    history = TokenHistory(1, tokenizer)
    history.begin(0, said[0][0]["content"])
    for agent, partner in zip(said[0][1::2], said[0][2::2], strict=False):
        history.say(0, agent["content"])
        history.step(0, partner["content"])
    ids, learned = encode(said[0], tokenizer)
    shown = history.ids[0]
    assert ids[: len(shown)] == shown
    words = tokenizer.decode([token for token, mine in zip(ids, learned, strict=True) if mine])
    assert words == "".join(m["content"] for m in said[0] if m["role"] == "assistant")
    ends = sum(mine and token == tokenizer.end for token, mine in zip(ids, learned, strict=True))
    assert ends == len(said[0]) // 2  # to end a turn is learned, too


def test_a_tokenizer_writes_numbers_that_it_never_saw(base):
    tokenizer = ChatTokenizer(str(base))
    assert tokenizer.decode(tokenizer.encode("Is 902177 right, or £13?")) == "Is 902177 right, or £13?"


def test_packed_conversations_do_not_see_each_other(said, base):
    rows = pack(said, ChatTokenizer(str(base)), 640)
    assert len(rows) < len(said)
    assert rows.cut == 0
    loss = models.WordLoss(tiny.make_model(base, 0)).eval()
    with torch.no_grad():
        together = float(loss(batch_of(rows, range(len(rows)), torch.device("cpu"))))
        alone = 0.0
        for one in said:
            single = pack([one], ChatTokenizer(str(base)), 640)
            alone += float(loss(batch_of(single, [0], torch.device("cpu"))))
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_loss_is_that_of_the_agents_words_alone(said, base):
    """Against logits of transformers' own forward pass, position by position."""
    tokenizer, model = ChatTokenizer(str(base)), tiny.make_model(base, 0).eval()
    ids, learned = encode(said[0], tokenizer)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(logprobs[t - 1, ids[t]]) for t in range(1, len(ids)) if learned[t])
        rows = pack([said[0]], tokenizer, 512)
        assert float(models.WordLoss(model)(batch_of(rows, [0], torch.device("cpu")))) == pytest.approx(expected, 1e-5)


def test_what_is_longer_than_a_row_is_cut_and_counted(said, base):
    rows = pack(said, ChatTokenizer(str(base)), 64)
    assert rows.cut > 0
    assert rows.ids.shape[1] == 64
    with pytest.raises(InvalidValue, match="--length"):
        pack(said, ChatTokenizer(str(base)), 2)


def test_perplexity_falls_and_the_model_speaks(trained):
    found = [line["perplexity"] for line in trained.metrics() if "perplexity" in line]
    assert len(found) == 4
    assert found[-1] < found[0] / 5
    from chatgym.engines import make_engine

    engine = make_engine(f"hf:{trained.model}")
    assert engine.generate(["<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"], max_new_tokens=4)
    assert not trained.checkpoint.exists()


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_other_programs_read_the_model_its_length_and_what_is_a_reply(trained, said):
    from transformers import AutoTokenizer

    (trained.folder / "new").touch()
    usual = (trained.folder / "new").stat().st_mode
    assert {path.stat().st_mode for path in trained.model.rglob("*") if path.is_file()} == {usual}
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    assert tokenizer.model_max_length == tiny.CONTEXT
    ours, talk = ChatTokenizer(str(trained.model)), [{"role": "system", "content": "Be kind.\n"}, *said[0]]
    ids, learned = encode(talk, ours)
    marked = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    assert marked["input_ids"] == ids
    assert marked["assistant_masks"] == [int(one) for one in learned]
    for prompt in (False, True):
        rendered = {
            tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=prompt)
            for template in (CHATML, tiny.TEMPLATE, tiny.with_generation(CHATML))
        }
        assert len(rendered) == 1


def test_a_trained_smollm2_marks_replies_and_renders_as_before(tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from chatgym.storage import model_store

    source, talk = model_store.path("smollm2-135m"), [{"role": "user", "content": "Hi!"},
                                                      {"role": "assistant", "content": "Hello."}]  # fmt: skip
    before = AutoTokenizer.from_pretrained(source)
    shape = LlamaConfig(vocab_size=len(before), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1, max_position_embeddings=77)  # fmt: skip
    models.save(LlamaForCausalLM(shape), source, tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after.model_max_length == 77
    assert after.apply_chat_template(talk, tokenize=False) == before.apply_chat_template(talk, tokenize=False)
    marked = after.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    replies = [token for token, mine in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mine]
    assert after.decode(replies) == "Hello.<|im_end|>"


def test_trl_goes_on_with_the_replies_of_a_trained_folder(trained, said, tmp_path, monkeypatch):
    import trl
    from datasets import Dataset, fingerprint

    names = iter(range(10**6))  # only a cache needs the fingerprints of a dataset, and not all of it can be hashed
    monkeypatch.setattr(fingerprint.Hasher, "hash", staticmethod(lambda value: f"{next(names):016x}"))
    config = trl.SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, max_steps=2, per_device_train_batch_size=2, use_cpu=True,
        learning_rate=1e-3, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False,
        disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"messages": [dict(message) for message in one]} for one in said])
    trainer = trl.SFTTrainer(model=str(trained.model), args=config, train_dataset=data)
    tokenizer = ChatTokenizer(str(trained.model))
    learned = sum(int((batch["labels"] >= 0).sum()) for batch in trainer.get_train_dataloader())
    assert learned == sum(sum(encode(one, tokenizer)[1]) for one in said)
    before = trainer.model.lm_head.weight.detach().clone()
    assert trainer.train().training_loss > 0
    assert not torch.equal(before, trainer.model.lm_head.weight)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_every_stage_of_zero_comes_to_the_same(said, trained, tmp_path, zero):
    run = prepared(tmp_path / "run", said, how=Optimization(batch=4, micro_batch=4, learning_rate=3e-3, zero=zero))
    run.train()
    pairs = zip(run.metrics()[1:], trained.metrics()[1:], strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-4) for a, b in pairs)


def start(folder, processes=1):
    launch = f"launch('sft', Path({str(folder)!r}), 2)"
    code = f"from chatgym.finetuning.launch import launch; from pathlib import Path; {launch}"
    command = (
        [sys.executable, "-c", code] if processes == 2 else [sys.executable, "-m", "chatgym.cli.worker", "sft", folder]
    )
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_with_zero_2_have_the_curve_of_one(said, trained, tmp_path):
    run = prepared(tmp_path / "run", said)
    assert start(run.folder, 2).wait() == 0
    for a, b in zip(run.metrics(), trained.metrics(), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-4)
        assert a.get("perplexity", 0) == pytest.approx(b.get("perplexity", 0), rel=1e-3)


@pytest.mark.parametrize(("number", "zero"), [(signal.SIGKILL, 2), (signal.SIGINT, 0)])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(said, tmp_path, number, zero):
    how = Optimization(batch=4, micro_batch=2, learning_rate=3e-3, zero=zero)
    whole, run = (prepared(tmp_path / name, said, how=how, evaluations=20) for name in ("whole", "stopped"))
    assert start(whole.folder).wait() == 0
    process = start(run.folder)
    while not run.checkpoint.is_dir() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.wait() != 0
    assert not run.model.exists()
    assert 0 < len(run.metrics()) <= len(whole.metrics())
    assert start(run.folder).wait() == 0
    assert run.metrics() == whole.metrics()
    assert weights(run) == weights(whole)


def test_lora_trains_its_matrices_alone_and_is_merged(said, trained, tmp_path):
    from safetensors.numpy import load_file

    settings = Settings(str(trained.model), "", "", epochs=1, evaluations=1, lora=4)
    run = SFT.prepare(tmp_path / "run", settings, HOW, said=said)
    run.train()
    before, after = (load_file(folder / "model.safetensors") for folder in (trained.model, run.model))
    adapter = load_file(run.model / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    assert np.abs(b).max() > 0
    np.testing.assert_allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * b @ a, atol=1e-6)
    np.testing.assert_array_equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"messages": []}', '{"messages": [{"role": "bot", "content": "x"}]}',
             '{"messages": [{"role": "user", "content": "x"}]}', '{"messages": [{"role": "assistant", "content": 3}]}'],
)  # fmt: skip
def test_a_line_that_is_no_conversation_is_named(tmp_path, line):
    good = json.dumps({"messages": [{"role": "assistant", "content": "Hello."}]})
    (tmp_path / "data.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InvalidValue, match="line 2"):
        dialogues.read(tmp_path / "data.jsonl")


def test_a_deepspeed_file_adds_but_does_not_contradict():
    assert deepspeed_config(Optimization(deepspeed={"wall_clock_breakdown": True}), 1)["wall_clock_breakdown"]
    auto = {"zero_optimization": {"stage": "auto", "overlap_comm": False}}
    assert deepspeed_config(Optimization(zero=3, deepspeed=auto), 1)["zero_optimization"] == {
        "stage": 3, "overlap_comm": False,
    }  # fmt: skip
    with pytest.raises(InvalidValue, match=r"zero_optimization\.stage"):
        deepspeed_config(Optimization(zero=1, deepspeed={"zero_optimization": {"stage": 2}}), 1)
    with pytest.raises(InvalidValue, match="optimizer"):
        deepspeed_config(Optimization(deepspeed={"optimizer": {}}), 1)
    with pytest.raises(InvalidValue, match="3 processes"):
        deepspeed_config(Optimization(batch=4), 3)


def test_a_damaged_checkpoint_and_changed_data_are_refused(said, tmp_path):
    run = prepared(tmp_path / "run", said)
    run.checkpoint.mkdir()
    (run.checkpoint / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(Corrupted, match="--overwrite"):
        run.train()
    dialogues.write(run.data, said[:3])
    with pytest.raises(InvalidValue, match="began with"):
        SFT.open(run.folder)


def test_the_command_trains_and_says_what_to_do_next(tmp_path):
    folder = str(tmp_path / "run")
    line = ["sft", "--from-scratch", "tiny", "--conversations", "12", "--epochs", "1", "--run", folder]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert "Perplexity" in result.output
    assert "chatgym serve" in result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["undertrained"]
    assert "Warning: the model is undertrained: " in result.stderr
    assert f"user: {report['conversation'][0]['content']}\nmodel: " in result.stdout
    shown = CliRunner().invoke(app, ["sft", "--run", folder, "--resume", "--json"])
    assert json.loads(shown.stdout)["speech"] == report
    assert CliRunner().invoke(app, line).exit_code == 2  # there is a run already
    assert CliRunner().invoke(app, ["sft", "--run", folder, "--resume", "--epochs", "3"]).exit_code == 2
    assert CliRunner().invoke(app, ["sft", "--from-scratch", "tiny", "--lora", "4"]).exit_code == 2
    assert CliRunner().invoke(app, ["sft", "--model", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "bad"),
    [("Your your your order?", True), ("I see, I see. I see!", True), ("so is it the so is it the so is it the", True),
     (" ", True), (",,,,", True), ("Hm,,,,,,,,,,", True), ("Hm ... no!!!", False),
     ("It is 222 euros, no, no.", False), ("Your order is on its way.", False)],
)  # fmt: skip
def test_replies_that_are_no_language_are_told(text, bad):
    assert speech.degenerate(text) == bad


class Speaker:
    """An agent that answers with what it is told to."""

    requires = Interface(action="text", observation="text")

    def __init__(self, *replies):
        self.replies, self.heard = itertools.cycle(replies), []

    def begin(self, keys):
        self.rows = len(keys)

    def act(self, heard):
        assert len(heard) == self.rows
        self.heard.append(list(heard))
        return [next(self.replies) if text else "" for text in heard]


def test_shares_of_replies_are_of_what_the_partner_and_nlu_heard():
    good = TASK.find_scenario().sentences["agent"]["ask_topic"][0]
    fine = speech.speech_in(Speaker(good), TASK)
    assert (fine.understood, fine.degenerate, fine.undertrained) == (1.0, 0.0, False)
    mixed = speech.speech_in(Speaker(good, "your your your"), TASK)
    assert mixed.understood == pytest.approx(0.5, abs=0.1)
    assert mixed.degenerate == pytest.approx(0.5, abs=0.1)
    assert mixed.undertrained
    assert [m["role"] for m in mixed.conversation[:3]] == ["user", "assistant", "user"]


def test_a_model_of_ones_own_conversations_answers_these():
    first = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"},
             {"role": "assistant", "content": "Bye."}]  # fmt: skip
    speaker = Speaker("Well.", "no no no")
    found = speech.speech_about(speaker, [first, first[:3], first[:1]])
    assert speaker.heard == [["Hi", "Hi"], ["Bye", ""]]
    assert (found.replies, found.understood) == (3, None)
    assert found.degenerate == pytest.approx(1 / 3)
    assert [m["content"] for m in found.conversation] == ["Hi", "Well.", "Bye", "Well."]
