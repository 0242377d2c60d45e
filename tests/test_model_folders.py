"""Folders of trained models, as other programs read them: access, lengths, chat templates, TRL."""

import json
import stat

import pytest

from chatgym.engines.tokenizer import ChatTokenizer
from chatgym.engines.transformers import load_tokenizer
from chatgym.envs.task import Task
from chatgym.finetuning import dialogues, models, tiny
from chatgym.finetuning.loop import Optimization
from chatgym.finetuning.packing import encode
from chatgym.finetuning.sft import SFT, Settings
from chatgym.training.run import find_agent

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHi."
    "\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "How can I help?"},
    {"role": "user", "content": "My {{ parcel }} is late."}, {"role": "assistant", "content": "I'm sorry."},
]  # fmt: skip


@pytest.fixture(scope="module")
def said():
    task = Task(arguments={"error_rate": 0.0})
    return dialogues.held_by(find_agent("expert")(task.find_scenario()), task, 8, seed=3)


@pytest.fixture(scope="module")
def model(said, tmp_path_factory):
    """The folder of a trained model; not to be changed."""
    how = Optimization(batch=4, micro_batch=2, learning_rate=3e-3)
    run = SFT.prepare(tmp_path_factory.mktemp("runs") / "sft", Settings("", "", "", epochs=1), how, said=said)
    run.train()
    return run.model


def test_who_may_read_the_folder_may_read_its_files(model):
    wanted = stat.S_IMODE(model.stat().st_mode) & 0o666
    for path in model.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path.name


def test_the_tokenizer_knows_the_models_context(model):
    context = json.loads((model / "config.json").read_text("utf-8"))["max_position_embeddings"]
    assert load_tokenizer(model).model_max_length == context


def test_the_template_marks_what_is_learned_from(said, model):
    tokenizer = load_tokenizer(model)
    for messages in said:
        ids, learned = encode(messages, ChatTokenizer(str(model)))
        found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert found["input_ids"][: len(ids)] == ids
        assert [bool(mine) for mine in found["assistant_masks"][: len(ids)]] == [bool(mine) for mine in learned]
        assert not any(found["assistant_masks"][len(ids) :])


@pytest.mark.parametrize("template", [SMOLLM, SMOLLM.replace("\n", "\\n"), "{% for message in messages %}" + tiny.TURN])
def test_a_marked_template_renders_as_before(template):
    template += "" if "endfor" in template else "{% endfor %}"
    marked = models.marked(template)
    assert "{% generation %}" in marked
    assert models.marked(marked) == marked
    from transformers.utils.chat_template_utils import render_jinja_template

    for talk in (TALK, TALK[:1], [{"role": "system", "content": "Hm."}, *TALK]):
        for prompt in (False, True):
            before, after = (
                render_jinja_template([talk], chat_template=one, add_generation_prompt=prompt)[0]
                for one in (template, marked)
            )
            assert before == after


def test_another_template_is_left_alone():
    assert models.marked(None) is None
    assert models.marked("{{ messages[0].content }}") == "{{ messages[0].content }}"


def test_trl_learns_from_the_assistants_words_alone(said, model, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    settings = trl.SFTConfig(
        str(tmp_path), assistant_only_loss=True, max_steps=2, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        str(model), args=settings, train_dataset=Dataset.from_list([{"messages": m} for m in said])
    )
    assert trainer.train().training_loss > 0
    batch = next(iter(trainer.get_train_dataloader()))
    learned = batch["labels"] != -100
    assert learned.any()
    assert not learned.all()
