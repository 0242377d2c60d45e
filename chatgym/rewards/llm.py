"""The llm kind of reward model: a language model whose head gives one number, trained on preference pairs.

The second step of DeepSpeed-Chat and of Ouyang et al. 2022, whose equation 1 is the loss: -log sigmoid(r(chosen) -
r(rejected)), r being read at a conversation's last token. It trains under DeepSpeed by `chatgym.finetuning.loop`, and
is saved as a sequence classifier, as `chatgym.rewards.classifier` and the transformers library load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chatgym.errors import InvalidValue
from chatgym.finetuning import models, tiny
from chatgym.finetuning.loop import Loop, Optimization
from chatgym.rewards.classifier import MOST_TOKENS, encode
from chatgym.rewards.pairs import Pair

SCRATCH = "tiny"
"""Names a new, small model instead of one that is there."""


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        model: A stored model's name, a folder, or `SCRATCH`.
        epochs: How often each pair is seen.
        length: Tokens of a conversation that are read, the last ones.
        seed: Of everything random.
    """

    model: str = "smollm2-135m"
    epochs: float = 1.0
    length: int = 512
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
        trunk = getattr(self.model, self.model.base_model_prefix)
        hidden = trunk(rows["ids"], attention_mask=rows["mask"], use_cache=False).last_hidden_state  # (2 N, T, H)
        last = hidden[torch.arange(len(hidden), device=hidden.device), rows["last"]]
        return self.model.score(last).float()[:, 0]  # type: ignore[no-any-return]


def train(
    pairs: Sequence[Pair],
    out: Path,
    settings: Settings,
    optimization: Optimization,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> None:
    """Train a model on pairs, all of them, and write it into an existing folder.

    Under a launcher every process calls it, and the first one writes. On one process the same arguments give the same
    bytes.

    Args:
        pairs: See `chatgym.rewards.pairs.split` for those to hold out.
        out: Where; `chatgym.rewards.classifier.ClassifierRewardModel` and ``reward_model="hf:OUT"`` load it.
        settings: What.
        optimization: How; a row of a batch is a pair.
        progress: Called with steps done, steps in all, and the step's ``loss`` (mean of a pair).

    Raises:
        InvalidValue: There is no such model, it has no such head, or its context is shorter than `settings.length`.
        Unavailable: DeepSpeed isn't installed.
    """
    base = out if settings.model == SCRATCH else models.folder_of(settings.model)
    if settings.model == SCRATCH:
        tiny.save_tokenizer((one["content"] for pair in pairs for one in (*pair.better, *pair.worse)), out)
    tokenizer, model = _tokenizer(base), _model(base, settings)
    if settings.length > min(model.config.max_position_embeddings, MOST_TOKENS):
        longest = min(model.config.max_position_embeddings, MOST_TOKENS)
        raise InvalidValue(f"--length {settings.length} is more than the {longest} tokens that the model reads")
    model.config.pad_token_id, tokenizer.model_max_length = tokenizer.pad_token_id, settings.length
    better, worse = (
        [encode(tokenizer, getattr(pair, side), settings.length) for pair in pairs] for side in ("better", "worse")
    )
    total = max(1, int(settings.epochs * len(pairs) / optimization.batch))
    module = PairLoss(model)
    loop = Loop(module, optimization, total)
    while loop.steps < total:
        picked = _order(len(pairs), loop.steps, optimization.batch, settings.seed)
        share = np.split(picked[loop.rank :: loop.world], loop.passes)
        batches = [
            batch_of([*(better[i] for i in part), *(worse[i] for i in part)], tokenizer.pad_token_id, loop.device)
            for part in (one.tolist() for one in share)
        ]
        done = loop.step(batches, optimization.batch)
        if progress is not None and loop.rank == 0:
            progress(loop.steps, total, done)
    with loop.gathered():
        if loop.rank == 0:
            module.model.to("cpu", torch.float32).save_pretrained(out, max_shard_size="1TB")
            tokenizer.save_pretrained(out)


def batch_of(conversations: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return conversations as tensors, see `PairLoss.forward`."""
    lengths = torch.tensor([len(ids) for ids in conversations])
    ids = torch.full((len(conversations), int(lengths.max())), pad)
    for row, tokens in enumerate(conversations):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {name: one.to(device) for name, one in (("ids", ids), ("mask", mask), ("last", lengths - 1))}


def _order(count: int, step: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the pairs of a step: each epoch is a permutation of all, and a step may reach into the next."""
    places = np.arange(step * batch, (step + 1) * batch)
    picked = np.empty(batch, np.int64)
    for epoch in np.unique(places // count).tolist():
        here = places // count == epoch
        picked[here] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)[places[here] % count]
    return picked


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
    return model
