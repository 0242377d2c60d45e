"""The scenarios, one package each; `chatgym.dynamics.scenario` defines the type."""

from __future__ import annotations

from typing import Any

from chatgym import plugins
from chatgym.dynamics.scenario import (
    ABOUT,
    NO_ACT,
    TONES,
    UNCLEAR_ACT,
    LLMPartner,
    Meaning,
    Scenario,
    fill,
)
from chatgym.errors import unknown

__all__ = [
    "ABOUT",
    "NO_ACT",
    "TONES",
    "UNCLEAR_ACT",
    "LLMPartner",
    "Meaning",
    "Scenario",
    "ScenarioName",
    "fill",
    "find_scenario",
]


class ScenarioName(str):
    """The name of a `Scenario` object, for JSON; within this process it also leads to the object."""

    scenario: Scenario

    def __new__(cls, scenario: Scenario) -> ScenarioName:
        """Name a scenario: by its registered name, or by name and digest if it isn't registered."""
        registered = plugins.load().scenarios
        known = scenario.name in registered and registered[scenario.name] is scenario
        made = super().__new__(cls, scenario.name if known else f"{scenario.name}@{scenario.digest[:12]}")
        made.scenario = scenario
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioName:
        return self

    def __reduce__(self) -> tuple[type[ScenarioName], tuple[Scenario]]:
        return ScenarioName, (self.scenario,)


def find_scenario(scenario: str | Scenario) -> Scenario:
    """Return a `Scenario` by name (built in or from a plugin); a `Scenario` object is returned as it is.

    Raises:
        InvalidValue: It is neither a `Scenario` nor a registered name.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, ScenarioName):
        return scenario.scenario
    found = plugins.load().scenarios
    if not isinstance(scenario, str) or scenario not in found:
        raise unknown("scenario", scenario, found, "`chatgym scenarios` lists them; a plugin registers others.")
    resolved: Scenario = found[scenario]
    return resolved
