"""A new, small language model: a tokenizer trained on conversations, and random weights from a seed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOCABULARY = 2048
END, BEGIN, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CONTEXT = 2048

_MESSAGE = re.compile(
    r"{{ *'<\|im_start\|>' \+ message\['role'\] \+ '(?:\n|\\n)' \+ message\['content'\] \+ '<\|im_end\|>' \+ "
    r"'(?:\n|\\n)' *}}"
)
_MARKED = (
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
)
TEMPLATE = (
    "{% for message in messages %}"
    + _MARKED
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML as a chat template, for programs that give messages; it marks what an assistant generates."""


def with_generation(template: str) -> str:
    """Mark what an assistant generates in a ChatML template, for losses on it alone; other templates stay as they are.

    What the template renders stays the same.
    """
    return _MESSAGE.sub(lambda _: _MARKED, template)


def save_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016) of at most `VOCABULARY` tokens on texts, and save it.

    Each digit is a token, so that a model can repeat numbers that it has never seen.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, BEGIN, END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, bos_token=None,
                                   model_max_length=CONTEXT)  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    # `chatgym.engines.tokenizer` and engines read the token that ends a turn from this file.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": fast.eos_token_id}), encoding="utf-8")


def make_model(folder: Path, seed: int) -> Any:
    """Return an untrained Llama of about 1.7 million weights for the tokenizer in a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=432, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)
