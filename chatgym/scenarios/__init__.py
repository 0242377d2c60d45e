"""Scenarios: what conversations are about. Each package here is content; the type is `chatgym.dynamics.scenario`."""

from __future__ import annotations

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
    "fill",
    "find_scenario",
]


def find_scenario(scenario: str | Scenario) -> Scenario:
    """Return a scenario by name (built in or a plugin's), or the one given.

    Raises:
        InvalidValue: No plugin registered that name.
    """
    if isinstance(scenario, Scenario):
        return scenario
    found = plugins.load().scenarios
    if scenario not in found:
        raise unknown("scenario", scenario, found, "`chatgym scenarios` lists them.")
    resolved: Scenario = found[scenario]
    return resolved
