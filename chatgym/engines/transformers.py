"""An engine in this process: a causal language model of the transformers library.

Its decode loop is `chatgym.engines.batch`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from chatgym import forks
from chatgym.engines.adapter import merge
from chatgym.engines.batch import Alternatives, Batch, Request, report
from chatgym.engines.columns import new_cache
from chatgym.engines.prefixes import Prefixes
from chatgym.engines.protocol import Completion, check_each, check_sampling, continues
from chatgym.engines.spelling import Spelling
from chatgym.errors import InvalidValue, unknown
from chatgym.storage.utf8 import valid

SCORED = 2048
"""Most tokens whose logits are in memory at once while scoring: 400 MB with a vocabulary of 49,152."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
"""Values of ``CHATGYM_DTYPE``. float64 is for comparing runs: there rounding never decides which token is sampled."""


def pick_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the hardware computes in it, else float32, which is faster than emulated bfloat16.

    The environment variable ``CHATGYM_DTYPE`` overrides this.

    Raises:
        InvalidValue: ``CHATGYM_DTYPE`` is none of `DTYPES`.
    """
    asked = os.environ.get("CHATGYM_DTYPE")
    if asked:
        if asked not in DTYPES:
            raise unknown("CHATGYM_DTYPE", asked, list(DTYPES))
        return DTYPES[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """While the block loads models, show no progress bar, and restore torch's global random state after it.

    One thread loads at a time: meanwhile global state of torch and transformers is changed.
    """
    from transformers.utils import logging

    forks.opening()
    with forks.loading:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            if shown:
                logging.enable_progress_bar()


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer in a folder, of the transformers library, without running code of the folder.

    Raises:
        InvalidValue: There is none, or it can't be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many types, by what is missing or damaged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidValue(
            f"{str(folder)!r} holds no tokenizer that can be read ({reason[:200]}); copy the files of the model's own "
            "tokenizer there (tokenizer.json, tokenizer_config.json), or write them by "
            "`tokenizer.save_pretrained(folder)`"
        ) from error


def check_vocabulary(tokenizer: Any, model: Any, folder: str | Path) -> None:
    """Check that a model has an embedding for every token of its tokenizer.

    Raises:
        InvalidValue: A token has none: a text that holds it would end in an IndexError.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    word, token = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if token >= rows:
        raise InvalidValue(
            f"the tokenizer in {str(folder)!r} has the token {word!r} with id {token}, but the model embeds only the "
            f"ids 0 to {rows - 1}; restore the tokenizer that the model was trained with, or give the model room by "
            "`model.resize_token_embeddings(len(tokenizer))`, train it, and save both"
        )


class TransformersEngine:
    """A causal language model loaded from a folder; it reads only safetensors, and never runs code from the folder.

    Attributes:
        identity: Name and revision of the model.
        device: Where it computes.
        dtype: Dtype of its weights.
        model: The model, of the transformers library.
        tokenizer: Its tokenizer.
        spelling: The bytes of its tokens.
        ends: Token ids that end a text.
        context: The most tokens that a prompt and its continuation have together.
        prefixes: The last prompts, with their keys and values.
        takes_tokens: Prompts can be token ids, too.
    """

    takes_tokens = True

    def __init__(
        self, folder: str | Path, *, identity: str, dtype: torch.dtype | None = None, adapter: Path | None = None
    ) -> None:
        """Load the model.

        Args:
            folder: Configuration, tokenizer and weights, as `save_pretrained` writes them.
            identity: Name and revision of the model.
            dtype: Dtype of the weights; `pick_dtype` when None.
            adapter: Folder of a LoRA adapter to merge into them (`chatgym.engines.adapter`).

        Raises:
            InvalidValue: The folder holds no tokenizer, or one with a token that the model has no embedding for.
        """
        self.tokenizer: Any = load_tokenizer(folder)
        self.device = pick_device()
        self.dtype = dtype or pick_dtype(self.device)
        self.identity, self._adapter = identity, adapter
        self.model: Any = self._load_model(Path(folder), self.dtype)
        self.spelling = Spelling(self.tokenizer)
        end = self.model.generation_config.eos_token_id
        ends = {*(end if isinstance(end, list) else [end]), self.tokenizer.eos_token_id} - {None}
        self.ends = frozenset(int(token) for token in ends)
        # Releases before 5.24 know the cache by another name.
        self._cache_name = (
            "cache" if "cache" in inspect.signature(type(self.model).forward).parameters else "past_key_values"
        )
        self.context: int = self.model.config.max_position_embeddings
        self.prefixes = Prefixes(self)
        self._plain: dict[str, torch.Tensor] = {}  # weights as they were before an adapter was exchanged

    def exchange_adapter(self, folder: Path) -> None:
        """Replace the adapter of the last call by another one. No other thread may use the model meanwhile.

        Raises:
            Corrupted: See `chatgym.engines.adapter.merge`.
        """
        merge(self.model, folder, self._plain)
        self.prefixes = Prefixes(self)

    def _load_model(self, folder: Path, dtype: torch.dtype) -> Any:
        """Return the model in evaluation mode on `self.device`; subclasses load theirs here."""
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        check_vocabulary(self.tokenizer, model, folder)
        if self._adapter is not None:
            merge(model, self._adapter)
        return model.to(self.device).eval()

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
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
            prompts: B texts, or lists of token ids.
            max_new_tokens: Most tokens of a continuation.
            temperature: 0 takes the likeliest token.
            top_p: Sample among the likeliest tokens that have this probability together (Holtzman et al. 2020).
            seeds: B numbers below 2**64; the row's number when None.
            logprobs: Whether to return each token's log-probability, under the distribution sampled from.
            stop: A continuation ends before the first of these that it contains.

        Returns:
            B completions.

        Raises:
            InvalidValue: A number is out of range, or a prompt leaves no room in the model's context.
        """
        check_sampling(prompts, max_new_tokens, temperature, top_p, seeds)
        if not prompts:
            return []
        batch = Batch(self)
        rows = batch.join(
            [
                Request(tuple(self.tokens(prompt)), max_new_tokens, temperature, top_p, seed, tuple(stop))
                for prompt, seed in zip(prompts, range(len(prompts)) if seeds is None else seeds, strict=True)
            ]
        )
        while batch.rows:
            batch.step()
        return [
            Completion(
                self.text(row.tokens, stop), tuple(row.tokens), tuple(row.logprobs) if logprobs else None,
                row.finish_reason or "length",
            )
            for row in rows
        ]  # fmt: skip

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[list[float]]:
        """Score continuations, as `chatgym.engines.Engine.score`.

        Raises:
            InvalidValue: There aren't as many continuations as prompts.
        """
        check_each("continuations", continuations, prompts)
        if not prompts:
            return []
        rows = [self._with_continuation(head, tail) for head, tail in zip(prompts, continuations, strict=True)]
        scored = self.score_tokens([ids for ids, _ in rows])
        return [[found[at - 1].logprob for at in own if at] for found, (_, own) in zip(scored, rows, strict=True)]

    def _with_continuation(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt with its continuation, and the places of those of the continuation."""
        prompt, continuation = valid(prompt), valid(continuation)
        if not prompt:
            head, tail = self.tokens(""), self.tokenizer(continuation, add_special_tokens=False)["input_ids"]
            return head + tail, list(range(len(head), len(head + tail)))
        text = prompt + continuation
        ids = self.tokens(text)
        return ids, continues(self.spelling.begins(ids, text), len(prompt), len(text))

    @torch.inference_mode()
    def score_tokens(self, sequences: Sequence[Sequence[int]], alternatives: int = 0) -> list[list[Alternatives]]:
        """Return the log-probability of each token given those before it, at temperature 1.

        Args:
            sequences: B sequences of token ids.
            alternatives: How many of the likeliest tokens to report at each position.

        Returns:
            For each sequence of n tokens, n - 1 reports, for all tokens but the first.

        Raises:
            InvalidValue: A sequence is longer than the model's context.
        """
        ids, mask = self.pad(sequences)
        cache, found = self.new_cache(), []
        columns = max(SCORED // len(ids), 1)
        for start in range(0, ids.shape[1] - 1, columns):
            stop = min(start + columns, ids.shape[1] - 1)
            logits = self.forward(ids[:, start:stop], mask[:, :stop], cache, every=True)  # (B, columns, V)
            following = ids[:, start + 1 : stop + 1].reshape(-1)
            reports = report(logits.reshape(len(following), -1), following, alternatives)
            found.append([reports[i : i + stop - start] for i in range(0, len(reports), stop - start)])
        rows = [[one for chunk in found for one in chunk[i]] for i in range(len(ids))]
        return [row[len(row) - len(sequence) + 1 :] for row, sequence in zip(rows, sequences, strict=True)]

    def close(self) -> None:
        """Free the model's memory."""
        self.model, self.prefixes = None, Prefixes(self)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """Return a prompt's token ids; of an empty prompt one end-of-text token, so that there is one to continue."""
        ids = self.tokenizer(valid(prompt))["input_ids"] if isinstance(prompt, str) else list(prompt)
        return ids or [min(self.ends, default=0)]

    def text(self, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return the text of token ids, without end-of-text tokens, up to the first stop string.

        It begins with a space if its first token does, as it follows the prompt.
        """
        text = self.spelling.text([token for token in tokens if token not in self.ends])
        found = [at for s in stop if (at := text.find(s)) >= 0]
        return text[: min(found)] if found else text

    def pad(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B sequences of token ids as ids and mask, int64[B, T], padded on the left.

        Raises:
            InvalidValue: A sequence longer than the model's context.
        """
        longest = max(map(len, sequences))
        if longest > self.context:
            raise InvalidValue(
                f"a text of {longest} tokens is longer than the model's context of {self.context}; shorten it"
            )
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            ids[i, longest - len(sequence) :] = torch.tensor(sequence)
            mask[i, longest - len(sequence) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def new_cache(self) -> DynamicCache:
        """Return an empty key-value cache."""
        return new_cache(self.model.config)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, *, every: bool = False
    ) -> torch.Tensor:
        """Return logits, float32[B, V] (float32[B, N, V] if `every`), see `LoadedModel.forward`.

        Args:
            ids: int64[B, N], the new tokens.
            mask: int64[B, T], 0 for padding, the N new columns included.
            cache: Keys and values of the T - N tokens before; those of the new ones are appended.
            every: Return the logits after each new token instead of after the last one.
        """
        output = self.model(
            ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=0 if every else 1,
            **{self._cache_name: cache},
        )
        logits: torch.Tensor = (output.logits if every else output.logits[:, -1]).float()
        return logits


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return each token's position without the padding, int64[B, T], for a mask int64[B, T]."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
