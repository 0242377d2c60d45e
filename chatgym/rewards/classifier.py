"""Sequence classifiers as reward models: ``reward_model="hf:ID-or-folder"``, and those of ``--kind llm``.

A conversation is written by the model's chat template, or as lines if it has none. Each one is computed alone, without
padding, so its score doesn't depend on other conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatgym.engines.marks import marks_of
from chatgym.errors import InvalidValue
from chatgym.forks import one_thread
from chatgym.rewards.protocol import Conversation

MOST_TOKENS = 2048
"""The most tokens of a conversation that are read, its last ones; fewer if the model's context is shorter."""
REMEMBERED = 65_536
"""Conversations whose scores are kept in memory."""


class ClassifierRewardModel:
    """Scores conversations by a model with a classification head.

    With one label, the logit r is log-odds: the score is ``2 sigmoid(r) - 1``. Several labels are grades from the worst
    to the best: the score is the expected grade, scaled to -1 to 1.

    Attributes:
        identity: What identifies the model: its name, with a digest of the weights.
        labels: Number of labels.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Load a model from a folder; it reads only safetensors, and never runs code from the folder.

        Args:
            folder: The model's folder.
            name: Its name and revision.

        Raises:
            InvalidValue: The folder holds no tokenizer, or no model with a classification head.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        from chatgym.engines.transformers import (
            check_vocabulary,
            load_tokenizer,
            pick_device,
            pick_dtype,
            quiet_loading,
        )  # fmt: skip

        self._device = pick_device()
        dtype = torch.float32 if self._device.type == "cpu" else pick_dtype(self._device)
        try:
            with quiet_loading():
                model, found = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
                )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidValue(f"{folder} can't be read as a sequence classifier ({reason})") from error
        if found["missing_keys"]:
            raise InvalidValue(
                f"{folder} holds a model without a trained classification head (it lacks "
                f"{sorted(found['missing_keys'])[0]}); `chatgym reward train --kind llm` trains one"
            )
        self._tokenizer: Any = load_tokenizer(folder)
        check_vocabulary(self._tokenizer, model, folder)
        self._model: Any = model.to(self._device).eval()
        self.labels = int(model.config.num_labels)
        self.identity = {"name": "classifier", "version": 1, "model": name}
        context = int(getattr(model.config, "max_position_embeddings", MOST_TOKENS))
        self._most = min(MOST_TOKENS, context, self._tokenizer.model_max_length)
        self._known: dict[tuple[int, ...], float] = {}

    def score(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float32]:
        """Score B conversations: float32[B] from -1 to 1; 0 if the agent has said nothing."""
        return np.tanh(self.margins(conversations) / 2).astype(np.float32)

    def margins(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float64]:
        """Return B unbounded scores, float64[B]; the difference of two is the log-odds that one is preferred."""
        return np.array([self._margin(one) for one in conversations], np.float64)

    def _margin(self, conversation: Conversation) -> float:
        """Return a conversation's unbounded score."""
        if not any(message["role"] == "assistant" for message in conversation):
            return 0.0
        ids = tuple(encode(self._tokenizer, conversation, self._most))
        known = self._known.get(ids)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            known = self._known[ids] = self._judge(ids)
        return known

    def _judge(self, ids: Sequence[int]) -> float:
        """Compute the unbounded score of token ids."""
        import torch

        rows = torch.tensor([ids], device=self._device)
        with torch.inference_mode(), one_thread():
            logits = self._model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[0].double().cpu()
        if self.labels == 1:
            return float(logits[0])
        grades = torch.linspace(-1, 1, self.labels, dtype=torch.float64)
        return float(2 * torch.atanh((torch.softmax(logits, 0) @ grades).clamp(-1 + 1e-12, 1 - 1e-12)))


def encode(tokenizer: Any, conversation: Conversation, most: int) -> list[int]:
    """Return the last `most` token ids of a conversation; no message's text becomes a turn mark.

    Args:
        tokenizer: A tokenizer of the transformers library.
        conversation: ChatML messages.
        most: The most tokens.
    """
    marks, lines = marks_of(tokenizer), not tokenizer.chat_template
    text = _written(tokenizer, marks.shield_messages(conversation))
    if not marks.shields(text):  # a stand-in must not be cut
        text = text[-20 * most :]
    return marks.encode(text, add_special_tokens=lines)[-most:]


def _written(tokenizer: Any, conversation: Conversation) -> str:
    """Return a conversation as text, by the chat template or as lines."""
    if tokenizer.chat_template:
        from jinja2.exceptions import TemplateError

        try:
            return str(tokenizer.apply_chat_template(conversation, tokenize=False))
        except TemplateError:
            pass  # such as one that requires alternating roles
    # A message's own lines are indented, so that none looks like another message.
    said = [(message["role"].capitalize(), "\n ".join(message["content"].splitlines())) for message in conversation]
    return "".join(f"{role}: {text}\n" for role, text in said)
