"""The scenarios, one package each; `chatgym.dynamics.scenario` defines the type."""

from __future__ import annotations

from collections.abc import Mapping
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
    "recorded_name",
    "versioned",
]


class ScenarioName(str):
    """The name of a `Scenario` object, for JSON; within this process it also leads to the object."""

    scenario: Scenario

    def __new__(cls, scenario: Scenario) -> ScenarioName:
        """Name a scenario: by its registered name, or by name and digest if it isn't registered."""
        names = (name for name in (scenario.name, f"{scenario.name}-v{scenario.version}") if _found(name) is scenario)
        made = super().__new__(cls, next(names, f"{scenario.name}@{scenario.digest[:12]}"))
        made.scenario = scenario
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> ScenarioName:
        return self

    def __reduce__(self) -> tuple[type[ScenarioName], tuple[Scenario]]:
        return ScenarioName, (self.scenario,)


def find_scenario(scenario: str | Scenario) -> Scenario:
    """Return a `Scenario` by name (built in or from a plugin); a `Scenario` object is returned as it is.

    ``"customer_service"`` is the newest version, ``"customer_service-v1"`` version 1.

    Raises:
        InvalidValue: It is neither a `Scenario` nor a registered name.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, ScenarioName):
        return scenario.scenario
    if (found := _found(scenario)) is None:
        known = plugins.load().scenarios
        raise unknown("scenario", scenario, known, "`chatgym scenarios` lists them; a plugin registers others.")
    return found


def versioned(name: str, version: int) -> str:
    """Return the name by which `find_scenario` finds a version of a scenario: ``NAME-vVERSION``, or ``NAME``."""
    newest, earlier = _found(name), f"{name}-v{version}"
    return name if newest is None or newest.version == version or _found(earlier) is None else earlier


def recorded_name(identity: Mapping[str, Any]) -> str:
    """Return the name by which `find_scenario` finds the scenario of an environment's identity."""
    return versioned(identity["scenario"]["name"], identity["scenario"]["version"])


def _found(name: Any) -> Scenario | None:
    """Return the registered scenario, or the version of one, that has a name; None if there is none."""
    known = plugins.load().scenarios
    if not isinstance(name, str):
        return None
    if name in known:
        return known[name]
    base, _, version = name.rpartition("-v")
    versions = (known[base], *known[base].earlier) if base in known else ()
    return next((one for one in versions if str(one.version) == version), None)
