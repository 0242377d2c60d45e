"""Train the llm kind of reward model: a language model with a scalar head, on preference pairs.

This is the second step of Ouyang et al. 2022 and of DeepSpeed-Chat. The loss is their equation 1, -log
sigmoid(r(chosen) - r(rejected)), with r at a conversation's last token. The model trains by `chatgym.finetuning.loop`,
and is saved as a sequence classifier, which `chatgym.rewards.classifier` and the transformers library load.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatgym.engines.transformers import check_vocabulary, load_tokenizer
from chatgym.errors import InvalidValue
from chatgym.finetuning import models, tiny
from chatgym.finetuning.epochs import rows_of_step
from chatgym.finetuning.loop import Loop, Optimization, load_weights
from chatgym.finetuning.models import Lora
from chatgym.rewards.classifier import MOST_TOKENS, encode
from chatgym.rewards.pairs import Pair, read_pairs, write_pairs
from chatgym.rewards.training import digest_of
from chatgym.storage import atomic
from chatgym.storage.utf8 import read_json

SCRATCH = "tiny"
"""Name of a new, small model."""
FORMAT = "chatgym-reward-training-1"
CONFIG, PAIRS, BASE, CHECKPOINT, MODEL = "config.json", "pairs.jsonl", "base", "checkpoint", "model"
"""Files and folders of a training; ``base`` holds the tokenizer of a new model."""
CHECKPOINTS = 5
"""Checkpoints in a training."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training, beside those of the optimizer.

    Attributes:
        model: A stored model's name, a folder, or `SCRATCH`.
        epochs: How often each pair is seen.
        length: The most tokens of a conversation that are read, its last ones.
        lora: Rank of LoRA's matrices, which are trained with the head; 0 trains all weights.
        seed: Seed of everything random.
    """

    model: str = "smollm2-135m"
    epochs: float = 1.0
    length: int = 512
    lora: int = 0
    seed: int = 0


class PairLoss(torch.nn.Module):
    """A sequence classifier with one label that returns the summed loss of pairs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of -log sigmoid(r(chosen) - r(rejected)), a float32 scalar.

        Args:
            rows: 2 N conversations, the chosen ones first: ``ids`` and ``mask`` int64[2 N, T], padded on the right, and
                ``last`` int64[2 N], the position of the last token.
        """
        chosen, rejected = self.rewards(rows).chunk(2)
        return torch.nn.functional.softplus(rejected - chosen).sum()

    def rewards(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return r at the last token of each of 2 N conversations, float32[2 N]; `rows` as of `forward`."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        trunk = getattr(model, model.base_model_prefix)
        hidden = trunk(rows["ids"], attention_mask=rows["mask"], use_cache=False).last_hidden_state  # (2 N, T, H)
        last = hidden[torch.arange(len(hidden), device=hidden.device), rows["last"]]
        return model.score(last).float()[:, 0]  # type: ignore[no-any-return]


def prepare(folder: Path, pairs: Sequence[Pair], settings: Settings, optimization: Optimization) -> None:
    """Begin a training in a folder, unless it holds the same one, which `train` then continues.

    Args:
        folder: A new folder, or that of a training, which another training replaces.
        pairs: Training pairs; hold some out by `chatgym.rewards.pairs.split`.
        settings: Settings of the training.
        optimization: Settings of the optimizer; a row of a batch is a pair.

    Raises:
        InvalidValue: The folder holds something else, or there is no such model.
    """
    record = {"format": FORMAT, "settings": asdict(settings), "optimization": asdict(optimization),
              "sha256": digest_of(pairs)}  # fmt: skip
    atomic.recover_folder(folder)
    if folder.exists():
        found = _record(folder)
        if found == record:
            return
        if found.get("format") != FORMAT:
            raise InvalidValue(f"{folder} is in the way, where the training goes; move it, or name another --out")
    if settings.model != SCRATCH:
        models.folder_of(settings.model)

    def fill(new: Path) -> None:
        write_pairs(new / PAIRS, pairs)
        if settings.model == SCRATCH:
            (new / BASE).mkdir()
            texts = (one["content"] for pair in pairs for one in (*pair.better, *pair.worse))
            tiny.save_tokenizer(texts, new / BASE)
        (new / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    atomic.replace_folder(folder, fill)


def train(folder: Path, progress: Callable[[int, int, Mapping[str, float]], None] | None = None) -> None:
    """Run the training that `prepare` began, from its last checkpoint, and write the model into ``FOLDER/model``.

    Under a launcher all processes call it, and the first one writes. On one process the same training gives the same
    bytes, interrupted or not. Load the model by ``reward_model="hf:FOLDER/model"``.

    Args:
        folder: Folder of the training.
        progress: Called with the steps done, all steps, and the step's ``loss`` (mean over its pairs).

    Raises:
        InvalidValue: The model can't have such a head, or its context is shorter than ``settings.length``.
        Unavailable: DeepSpeed isn't installed.
        Corrupted: A file is damaged.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
    """
    out, checkpoint = folder / MODEL, folder / CHECKPOINT
    if out.is_dir():
        return
    atomic.recover_folder(checkpoint)
    record = _record(folder)
    settings, optimization = Settings(**record["settings"]), Optimization(**record["optimization"])
    pairs = read_pairs(folder / PAIRS)
    base = folder / BASE if settings.model == SCRATCH else models.folder_of(settings.model)
    tokenizer, model = _tokenizer(base), _model(base, settings)
    check_vocabulary(tokenizer, model, base)
    longest = min(model.config.max_position_embeddings, MOST_TOKENS)
    if settings.length > longest:
        raise InvalidValue(f"--length {settings.length} is more than the {longest} tokens that the model reads")
    model.config.pad_token_id, tokenizer.model_max_length = tokenizer.pad_token_id, settings.length
    better, worse = (
        [encode(tokenizer, getattr(pair, side), settings.length) for pair in pairs] for side in ("better", "worse")
    )

    def batches(step: int) -> list[dict[str, torch.Tensor]]:
        """Return this process's share of a step: a batch a pass, of int64[2 N, T] and int64[2 N], see `batch_of`."""
        picked = rows_of_step(len(pairs), step, optimization.batch, settings.seed)
        return [
            batch_of([*(better[i] for i in part), *(worse[i] for i in part)], tokenizer.pad_token_id, loop.device)
            for part in (one.tolist() for one in np.split(picked[loop.rank :: loop.world], loop.passes))
        ]

    total = max(1, int(settings.epochs * len(pairs) / optimization.batch))
    module = PairLoss(model)
    resumed = checkpoint.is_dir()
    if resumed:
        load_weights(module, checkpoint)
    loop = Loop(module, optimization, total)
    if resumed:
        loop.restore(checkpoint, batches(0))

    def step() -> None:
        done = loop.step(batches(loop.steps), optimization.batch)
        if progress is not None and loop.rank == 0:
            progress(loop.steps, total, done)

    loop.run(step, lambda: loop.checkpoint(checkpoint), math.ceil(total / CHECKPOINTS))
    with loop.gathered():
        if loop.rank == 0:
            atomic.replace_folder(out, lambda new: _save(module.model, tokenizer, new))


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer into a folder, with an adapter of peft merged."""
    model = model.to("cpu", torch.float32)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder, max_shard_size="1TB")
    models.save_tokenizer(tokenizer, model, folder)


def _record(folder: Path) -> dict[str, Any]:
    """Return a training's record; empty if there is none."""
    try:
        found = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def batch_of(conversations: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return a batch of N conversations, given as token ids.

    Returns:
        ``ids`` and ``mask`` int64[N, T], padded on the right by `pad`, and ``last`` int64[N], the last token's
        position.
    """
    lengths = torch.tensor([len(ids) for ids in conversations])
    ids = torch.full((len(conversations), int(lengths.max())), pad)
    for row, tokens in enumerate(conversations):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {name: one.to(device) for name, one in (("ids", ids), ("mask", mask), ("last", lengths - 1))}


def _tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder, with a token for padding."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _model(folder: Path, settings: Settings) -> Any:
    """Return the model with a new head; the seed determines the head's weights."""
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

    from chatgym.engines.transformers import quiet_loading

    with quiet_loading():
        torch.manual_seed(settings.seed)  # `quiet_loading` restores the global state
        if settings.model == SCRATCH:
            shape = tiny.make_model(folder, settings.seed).config
            shape.num_labels = 1
            return LlamaForSequenceClassification(shape)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except ValueError as error:  # an architecture without one
            raise InvalidValue(
                f"--model {settings.model}: it can't be given a head ({error}); choose another"
            ) from error
    if not hasattr(model, "score"):
        raise InvalidValue(
            f"--model {settings.model}: it is no causal language model; choose one, such as smollm2-135m"
        )
    return models.with_lora(model, Lora(settings.lora), settings.seed, task="SEQ_CLS") if settings.lora else model
