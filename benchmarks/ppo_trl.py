"""TRL's part of ``benchmarks/ppo.py``, run by an interpreter that has it: seconds of GRPO's steps, as JSON."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time

import datasets.fingerprint
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

VOWELS = set("aeiou")
# Only a cache needs the fingerprints of what the trainer makes of a dataset, and not all of it can be hashed.
datasets.fingerprint.Hasher.hash = classmethod(lambda cls, value: f"{random.getrandbits(64):016x}")


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: object, **more: object) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *args: object, **more: object) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def vowels(completions: list[str], **more: object) -> list[float]:
    return [sum(letter in VOWELS for letter in text) / max(len(text), 1) for text in completions]


def main() -> None:
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=asked["rows"], num_generations=asked["group"],
            max_completion_length=asked["said"], max_steps=asked["rounds"] + 1, beta=0.1, num_iterations=1,
            use_cpu=True, report_to=[], logging_strategy="no", save_strategy="no", bf16=False,
            gradient_checkpointing=False, generation_kwargs={"min_new_tokens": asked["said"]}, disable_tqdm=True,
            learning_rate=1e-5,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": asked["prompts"] * (asked["rounds"] + 2)})
        trainer = GRPOTrainer(
            model=model, args=config, reward_funcs=vowels, train_dataset=data, processing_class=tokenizer,
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    print(json.dumps(clock.seconds[1:]))


if __name__ == "__main__":
    main()
