"""A reward model of kind llm is a reward model for TRL: it loads there, and scores as here."""

import pytest
from tiny import save_tiny_model

from chatgym.finetuning import reward_model
from chatgym.finetuning.loop import Optimization
from chatgym.rewards.classifier import ClassifierRewardModel
from chatgym.rewards.pairs import Pair


def said(role, content):
    return [{"role": role, "content": content}]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The model of a reward model, trained on a few pairs."""
    training = tmp_path_factory.mktemp("judge") / "training"
    pairs = [Pair(said("user", f"Hi, {i}"), said("assistant", "Welcome."), said("assistant", "Go.")) for i in range(8)]
    settings = reward_model.Settings(reward_model.SCRATCH, length=512)
    reward_model.prepare(training, pairs, settings, Optimization(batch=8, learning_rate=1e-3))
    reward_model.train(training)
    return training / "model"


def test_trl_scores_a_conversation_as_it_is_scored_here(judge, tmp_path):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    ours = ClassifierRewardModel(judge, "judge")
    scores = []

    def here(prompts, completions, **columns):
        scores.extend(ours.margins([[*asked, *said] for asked, said in zip(prompts, completions, strict=True)]))
        return scores[-len(prompts) :]

    how = RLOOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=8, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=str(save_tiny_model(tmp_path)), reward_funcs=[str(judge), here], args=how,
        train_dataset=Dataset.from_list([{"prompt": said("user", f"Hi, {i}")} for i in range(4)]),
    )  # fmt: skip
    tokenizer = trainer.reward_processing_classes[0]
    assert tokenizer.pad_token_id == trainer.reward_funcs[0].config.pad_token_id is not None
    assert tokenizer.model_max_length == 512
    assert tokenizer.chat_template
    trainer.train()
    logged = trainer.state.log_history[-1]
    assert len(set(scores)) > 1
    assert logged["rewards/model/mean"] == pytest.approx(logged["rewards/here/mean"], abs=1e-4)
    assert logged["rewards/model/std"] == pytest.approx(logged["rewards/here/std"], abs=1e-4)
