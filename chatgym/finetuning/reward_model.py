"""The llm kind of reward model: a language model whose head gives one number, trained on preference pairs.

The second step of DeepSpeed-Chat and of Ouyang et al. 2022, whose equation 1 is the loss: -log sigmoid(r(chosen) -
r(rejected)), r being read at a conversation's last token. It trains under DeepSpeed by `chatgym.finetuning.loop`, and
is saved as a sequence classifier, as `chatgym.rewards.classifier` and the transformers library load it.
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

from chatgym.errors import InvalidValue
from chatgym.finetuning import models, tiny
from chatgym.finetuning.loop import Loop, Optimization, load_weights, rows_of_step
from chatgym.finetuning.models import Lora
from chatgym.rewards.classifier import MOST_TOKENS, encode
from chatgym.rewards.pairs import Pair, read_pairs, write_pairs
from chatgym.rewards.training import digest_of
from chatgym.storage import atomic, interrupts

SCRATCH = "tiny"
"""Names a new, small model instead of one that is there."""
FORMAT = "chatgym-reward-training-1"
CONFIG, PAIRS, BASE, CHECKPOINT, MODEL = "config.json", "pairs.jsonl", "base", "checkpoint", "model"
"""What is in a training's folder; the tokenizer of a new model is its base."""
CHECKPOINTS = 5
"""Of a training."""


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        model: A stored model's name, a folder, or `SCRATCH`.
        epochs: How often each pair is seen.
        length: Tokens of a conversation that are read, the last ones.
        lora: Rank of LoRA's matrices, which are trained with the head; 0 trains all weights.
        seed: Of everything random.
    """

    model: str = "smollm2-135m"
    epochs: float = 1.0
    length: int = 512
    lora: int = 0
    seed: int = 0


class PairLoss(torch.nn.Module):
    """A sequence classifier with one label that returns the loss of pairs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of -log sigmoid(r(chosen) - r(rejected)), a float32 scalar.

        Args:
            rows: Of 2 N conversations, the chosen ones first: ``ids`` and ``mask`` int64[2 N, T], padded on the right,
                and ``last`` int64[2 N], the place of the last token.
        """
        chosen, rejected = self.rewards(rows).chunk(2)
        return torch.nn.functional.softplus(rejected - chosen).sum()

    def rewards(self, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return r at the last token of each conversation, float32[2 N]."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        trunk = getattr(model, model.base_model_prefix)
        hidden = trunk(rows["ids"], attention_mask=rows["mask"], use_cache=False).last_hidden_state  # (2 N, T, H)
        last = hidden[torch.arange(len(hidden), device=hidden.device), rows["last"]]
        return model.score(last).float()[:, 0]  # type: ignore[no-any-return]


def prepare(folder: Path, pairs: Sequence[Pair], settings: Settings, optimization: Optimization) -> None:
    """Begin a training in a folder, unless the same one is there already: then `train` goes on with it.

    Args:
        folder: New, or of a training; one of something else is begun anew.
        pairs: See `chatgym.rewards.pairs.split` for those to hold out.
        settings: What.
        optimization: How; a row of a batch is a pair.

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
    """Train what `prepare` began, from its last checkpoint if there is one, and write it into ``FOLDER/model``.

    Under a launcher every process calls it, and the first one writes. On one process the same training gives the same
    bytes, interrupted or not. `chatgym.rewards.classifier.ClassifierRewardModel` and ``reward_model="hf:FOLDER/model"``
    load the model.

    Args:
        folder: Where.
        progress: Called with steps done, steps in all, and the step's ``loss`` (mean of a pair).

    Raises:
        InvalidValue: The model takes no such head, or its context is shorter than ``settings.length``.
        Unavailable: DeepSpeed isn't installed.
        Corrupted: A file isn't what it was.
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
    longest = min(model.config.max_position_embeddings, MOST_TOKENS)
    if settings.length > longest:
        raise InvalidValue(f"--length {settings.length} is more than the {longest} tokens that the model reads")
    model.config.pad_token_id, tokenizer.model_max_length = tokenizer.pad_token_id, settings.length
    better, worse = (
        [encode(tokenizer, getattr(pair, side), settings.length) for pair in pairs] for side in ("better", "worse")
    )

    def batches(step: int) -> list[dict[str, torch.Tensor]]:
        """Return this process's share of a step, one batch a pass."""
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
    with interrupts.deferred() as interrupted:
        while loop.steps < total:
            done = loop.step(batches(loop.steps), optimization.batch)
            if progress is not None and loop.rank == 0:
                progress(loop.steps, total, done)
            stop = loop.sum(float(interrupted())) > 0
            if loop.steps < total and (stop or loop.steps % math.ceil(total / CHECKPOINTS) == 0):
                loop.checkpoint(checkpoint)
                if stop:
                    raise KeyboardInterrupt
    with loop.gathered():
        if loop.rank == 0:
            atomic.replace_folder(out, lambda new: _save(module.model, tokenizer, new))


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model = model.to("cpu", torch.float32)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(folder, max_shard_size="1TB")
    tokenizer.save_pretrained(folder)


def _record(folder: Path) -> dict[str, Any]:
    """Return what a training is of; nothing where there is none."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def batch_of(conversations: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return conversations as tensors, see `PairLoss.forward`."""
    lengths = torch.tensor([len(ids) for ids in conversations])
    ids = torch.full((len(conversations), int(lengths.max())), pad)
    for row, tokens in enumerate(conversations):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {name: one.to(device) for name, one in (("ids", ids), ("mask", mask), ("last", lengths - 1))}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _model(folder: Path, settings: Settings) -> Any:
    """Return the model with a new head, drawn from the seed."""
    from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

    from chatgym.engines.transformers import quiet_loading

    with quiet_loading():
        torch.manual_seed(settings.seed)  # the block gives the global state back
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
