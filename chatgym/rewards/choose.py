"""Make the reward model that a user names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from chatgym import plugins
from chatgym.engines import find_model, make_engine
from chatgym.errors import InvalidValue, unknown
from chatgym.rewards import default, folder
from chatgym.rewards.protocol import RewardModel
from chatgym.scenarios import Scenario
from chatgym.storage.paths import given


def make_reward_model(reward_model: str | RewardModel | None, scenario: Scenario) -> RewardModel | None:
    """Make the reward model that a user names.

    Args:
        reward_model: ``"default"`` (the scenario's own, or None if it has none), a folder of `chatgym reward train`,
            ``"hf:ID-or-folder"`` (a sequence classifier, safetensors only), ``"judge:LLM"`` (a language model, named
            as for ``llm=``, with a rubric), ``"name:spec"`` of a plugin's reward model, a `RewardModel`, which is
            returned as it is, or None.
        scenario: The scenario of the conversations.

    Raises:
        InvalidValue: `reward_model` is unknown, or a folder that holds none.
        Corrupted: A file is damaged.
        Unavailable: A model can't be fetched.
    """
    if reward_model is None:
        return None
    if not isinstance(reward_model, str):
        if callable(getattr(reward_model, "score", None)):
            return reward_model
        raise unknown("reward model", reward_model, _FORMS, "A RewardModel has `score`.")
    if reward_model == "default":
        return default.load(scenario) if default.exists(scenario) else None
    kind, colon, spec = reward_model.partition(":")
    if spec and kind in _MAKERS:
        return _MAKERS[kind](spec, scenario)
    plugged = plugins.load().reward_models
    if colon and kind in plugged:
        made: RewardModel = plugged[kind](spec)
        if not callable(getattr(made, "score", None)):
            whose = f"what plugin {plugged.sources[kind]!r} makes of {reward_model!r}"
            raise InvalidValue(f"{whose} is no reward model but {made!r}: it has no score")
        return made
    path = given(reward_model)
    if path.is_dir() or os.sep in reward_model:
        found: RewardModel = folder.load(path)
        return found
    forms = [*_FORMS, *(f"{name}:..." for name in plugged)]
    raise unknown("reward model", reward_model, forms, "A folder has to exist; `chatgym reward train` makes one.")


def _classifier(spec: str, scenario: Scenario) -> RewardModel:
    """Make a sequence classifier from ``ID-or-folder``."""
    from chatgym.rewards.classifier import ClassifierRewardModel

    return ClassifierRewardModel(*find_model(spec))


def _judge(spec: str, scenario: Scenario) -> RewardModel:
    """Make a judge from the name of a language model."""
    from chatgym.rewards.judge import JudgeRewardModel

    engine = make_engine(spec)
    if engine is None:
        raise unknown("judge", spec, ("smollm2-135m", "hf:ID-or-folder", "openai:URL#MODEL"), "It has to be a model.")
    return JudgeRewardModel(engine, scenario.instructions())


_MAKERS: Mapping[str, Callable[[str, Scenario], RewardModel]] = {"hf": _classifier, "judge": _judge}
_FORMS = ("default", "hf:ID-or-folder", "judge:LLM", "FOLDER")
