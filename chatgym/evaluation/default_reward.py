"""Train, measure and store the default reward model of a scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chatgym.errors import Unavailable
from chatgym.evaluation.reward_report import Report, measure
from chatgym.finetuning.preferences import pairs_of
from chatgym.rewards import training
from chatgym.rewards.encoder import FILE, EncoderRewardModel
from chatgym.rewards.pairs import split
from chatgym.scenarios import Scenario

CONVERSATIONS = 300


def train(
    scenario: Scenario, progress: Callable[[int, int], None] | None = None, conversations: int = CONVERSATIONS
) -> tuple[EncoderRewardModel, Report]:
    """Train on pairs made from the scenario with seed 0; return the model and its report on held-out pairs."""
    learned, tested = split(pairs_of(scenario, conversations))
    model = training.train(learned, progress=progress)
    return model, measure(model, tested)


def save(scenario: Scenario, model: EncoderRewardModel) -> Path:
    """Write the model into the scenario's folder and return the path.

    Raises:
        Unavailable: That folder can't be written to.
    """
    path = scenario.folder / FILE
    try:
        model.save(path)
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({error.strerror}); install the scenario editable") from error
    return path
