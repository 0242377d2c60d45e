"""An engine in this process: a causal language model of the transformers library, with a decode loop of its own.

Each distinct prompt is read once and its cache copied to the rows that continue it; a row leaves the batch as soon as
it is done. Its sampling draws are functions of (seed, position), so they don't depend on the rows beside it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from chatgym import rng
from chatgym.engines import Completion
from chatgym.errors import InvalidValue

SAMPLE = 0
"""Purpose of the draw that chooses a token, see `chatgym.rng`."""


NUCLEUS = 1024
"""How many of the likeliest tokens are looked at first; they hold nearly always all that top-p keeps."""


def pick_device() -> torch.device:
    """Return the GPU, if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware computes in it, else float32 (emulated bfloat16 is slower)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Load models in it without a progress bar, and without a trace in torch's global random state."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


class TransformersEngine:
    """A model in a folder (safetensors; never pickled weights, never code of the model's own)."""

    def __init__(self, folder: str | Path, *, identity: str, dtype: torch.dtype | None = None) -> None:
        """Load the model.

        Args:
            folder: Configuration, tokenizer and weights, as `save_pretrained` writes them.
            identity: Name and revision.
            dtype: Of the weights; `pick_dtype` when None.
        """
        self.device = pick_device()
        self.dtype = dtype or pick_dtype(self.device)
        self.identity = identity
        self.model: Any = self._load_model(Path(folder), self.dtype)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        end = self.model.generation_config.eos_token_id
        ends = {*(end if isinstance(end, list) else [end]), self.tokenizer.eos_token_id} - {None}
        self._ends = frozenset(int(token) for token in ends)
        # Releases before 5.24 know the cache by another name.
        self._cache_name = (
            "cache" if "cache" in inspect.signature(type(self.model).forward).parameters else "past_key_values"
        )
        self._context: int = self.model.config.max_position_embeddings

    def _load_model(self, folder: Path, dtype: torch.dtype) -> Any:
        """Return the model in evaluation mode, on `self.device`; where another engine hands in its own."""
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        return model.to(self.device).eval()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stop: Sequence[str] = (),
    ) -> list[Completion]:
        """Continue prompts, as `chatgym.engines.Engine.generate`.

        Args:
            prompts: B texts.
            max_new_tokens: Most tokens of a continuation.
            temperature: 0 takes the likeliest token.
            top_p: Sample among the likeliest tokens that have this probability together (Holtzman et al. 2020).
            seeds: B numbers below 2**64; the row's number when None.
            logprobs: Whether to return the log-probability of each token, under the distribution sampled from.
            stop: A continuation ends before the first of these that it contains.

        Returns:
            B completions.

        Raises:
            InvalidValue: A number out of its range, or a prompt that leaves no room in the model's context.
        """
        if max_new_tokens < 1 or temperature < 0.0 or not 0.0 < top_p <= 1.0:
            raise InvalidValue(
                "generate needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not "
                f"{max_new_tokens}, {temperature}, {top_p}"
            )
        if seeds is not None and len(seeds) != len(prompts):
            raise InvalidValue(f"got {len(seeds)} seeds for {len(prompts)} prompts; give one each")
        if not prompts:
            return []
        roots = np.array(range(len(prompts)) if seeds is None else seeds, np.uint64)
        last, cache, mask = self._read(prompts, max_new_tokens)  # (B, V), B rows, (B, T)
        rows = np.arange(len(prompts))  # of the caller, for each row still in the batch
        said: list[list[int]] = [[] for _ in prompts]
        likely: list[list[float]] = [[] for _ in prompts]
        ended = ["length"] * len(prompts)
        for position in range(max_new_tokens):
            tokens, scores = self._sample(last, roots[rows], position, temperature, top_p)
            going = np.ones(len(rows), bool)
            for i, (row, token, score) in enumerate(zip(rows.tolist(), tokens.tolist(), scores.tolist(), strict=True)):
                said[row].append(token)
                likely[row].append(score)
                if token in self._ends or (stop and any(s in self.tokenizer.decode(said[row]) for s in stop)):
                    ended[row], going[i] = "stop", False
            if not going.any() or position == max_new_tokens - 1:
                break
            keep = torch.from_numpy(np.flatnonzero(going)).to(self.device)
            if len(keep) < len(rows):
                rows, tokens, mask = rows[going], tokens[keep], mask[keep]
                cache.batch_select_indices(keep)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            last = self._forward(tokens[:, None], mask, cache)
        return [
            Completion(self._text(tokens, stop), tuple(tokens), tuple(scores) if logprobs else None, why)
            for tokens, scores, why in zip(said, likely, ended, strict=True)
        ]

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Score continuations, as `chatgym.engines.Engine.score`.

        Raises:
            InvalidValue: Not as many continuations as prompts.
        """
        if len(prompts) != len(continuations):
            raise InvalidValue(f"got {len(continuations)} continuations for {len(prompts)} prompts; give one each")
        if not prompts:
            return []
        heads = [self._tokens(prompt) for prompt in prompts]
        tails = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
        ids, mask = self._pad([head + tail for head, tail in zip(heads, tails, strict=True)])
        logits = (
            self.model(ids, attention_mask=mask, position_ids=_positions(mask)).logits[:, :-1].float()
        )  # (B, T-1, V)
        logprobs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].cpu()  # (B, T-1)
        return [row[len(row) - len(tail) :].tolist() for row, tail in zip(logprobs, tails, strict=True)]

    def close(self) -> None:
        """Let go of the model's memory."""
        self.model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"] or [min(self._ends, default=0)]

    def _pad(self, sequences: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, int64[B, T], padded on the left."""
        longest = max(map(len, sequences))
        if longest > self._context:
            raise InvalidValue(
                f"{longest} tokens are more than the model's context of {self._context}; shorten the text"
            )
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, longest - len(sequence) :] = torch.tensor(sequence)
            mask[i, longest - len(sequence) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _read(self, prompts: Sequence[str], room: int) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Read each distinct prompt once; returns next-token logits, cache and mask for all rows."""
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        ids, mask = self._pad([self._tokens(prompt) for prompt in distinct])
        if ids.shape[1] + room > self._context:
            raise InvalidValue(
                f"a prompt of {ids.shape[1]} tokens leaves no room for {room} more in the model's context of "
                f"{self._context}; shorten it, or lower max_new_tokens"
            )
        cache = DynamicCache(config=self.model.config)
        last = self._forward(ids, mask, cache)
        copies = torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
        cache.batch_select_indices(copies)
        return last[copies], cache, mask[copies]

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Append ids, int64[B, T], to the cache and return the logits after the last one, float32[B, V]."""
        output = self.model(
            ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _sample(
        self, logits: torch.Tensor, seeds: Any, position: int, temperature: float, top_p: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose a token for each row; returns tokens int64[B] and their log-probabilities float32[B]."""
        if temperature == 0.0:
            tokens = logits.argmax(-1)
            return tokens, torch.zeros(len(tokens))
        everything = (logits / temperature).softmax(-1)  # (B, V)
        probabilities, order = everything.topk(min(NUCLEUS, everything.shape[-1]))
        if (probabilities.sum(-1) < top_p).any():  # seldom: then sort all of them
            probabilities, order = everything.sort(dim=-1, descending=True)
        total = probabilities.cumsum(-1)
        probabilities = probabilities.where(total - probabilities < top_p, 0.0)  # the first one always stays
        probabilities /= probabilities.sum(-1, keepdim=True)
        draws = torch.from_numpy(rng.uniform(seeds, position, SAMPLE)).to(probabilities)
        # Inversion: the first token whose cumulated probability is above the draw, and that can be drawn at all.
        chosen = (probabilities.cumsum(-1) <= draws[:, None]).sum(-1)
        chosen = torch.minimum(chosen, (probabilities > 0).sum(-1) - 1)[:, None]
        return order.gather(-1, chosen)[:, 0], probabilities.gather(-1, chosen)[:, 0].log()

    def _text(self, tokens: list[int], stop: Sequence[str]) -> str:
        text: str = self.tokenizer.decode([token for token in tokens if token not in self._ends])
        ends = [found for s in stop if (found := text.find(s)) >= 0]
        return text[: min(ends)] if ends else text


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the position of each token, int64[B, T], padding on the left not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
