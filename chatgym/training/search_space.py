"""The search space of a tuning: ranges from an agent's `Config`, or ranges and values from the command line."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from chatgym.agent import Range, make_config, plain, setting_hints, setting_type
from chatgym.errors import InvalidValue, unknown

Space = Mapping[str, "Range | tuple[Any, ...]"]
"""Name of a setting to its range or its values."""

GRID_LIMIT = 1000


def search_space(config: type, params: Iterable[str] = ()) -> dict[str, Range | tuple[Any, ...]]:
    """Return the search space of an agent.

    Args:
        config: The agent's `Config`.
        params: ``"name"`` (the range that `Config` declares), ``"name=0.1,0.3"`` (values), ``"name=0.1:0.5"`` (a
            range) or ``"name=1e-4:1e-2:log"`` (a logarithmic range). Empty: all settings with a declared range.

    Raises:
        InvalidValue: A name is unknown, or a value isn't allowed.
    """
    types_of = setting_hints(config)
    declared = {field.name: field.metadata.get("tune") for field in dataclasses.fields(config)}
    own = {name: choices for name, choices in declared.items() if choices is not None}
    space: dict[str, Range | tuple[Any, ...]] = {}
    for param in params:
        name, equals, text = param.partition("=")
        name = name.strip().replace("-", "_")
        if name not in types_of:
            raise unknown("setting", name, types_of)
        if not equals and name not in own:
            raise InvalidValue(f"{name} declares no range; give values to try, such as --param {name}=1,2,3")
        space[name] = _parse(name, text, types_of[name]) if equals else own[name]
    space = space or own
    if not space:
        raise InvalidValue("the agent declares no ranges to tune; name settings and values: --param name=1,2,3")
    for name, choices in space.items():
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            make_config(config, {name: _cast(value, types_of[name])})  # refuses what is out of range
    return {name: _typed(choices, types_of[name]) for name, choices in space.items()}


def grid(space: Space) -> list[dict[str, Any]]:
    """Return all combinations of values; a range contributes its `Range.points`.

    Raises:
        InvalidValue: There are more than `GRID_LIMIT`.
    """
    axes = {name: points(choices) for name, choices in space.items()}
    if (size := math.prod(map(len, axes.values()))) > GRID_LIMIT:
        raise InvalidValue(
            f"the grid over {', '.join(axes)} has {size:,} points; name fewer settings (--param), or use --method tpe"
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def points(choices: Range | tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of one setting in a grid."""
    if not isinstance(choices, Range):
        return choices
    low, high = (math.log(end) if choices.log else end for end in (choices.low, choices.high))
    between = [low + (high - low) * k / max(choices.points - 1, 1) for k in range(choices.points)]
    values = [math.exp(value) if choices.log else value for value in between]
    if isinstance(choices.low, int) and isinstance(choices.high, int):
        return tuple(dict.fromkeys(round(value) for value in values))
    return tuple(min(max(float(f"{value:.6g}"), choices.low), choices.high) for value in values)


def read_settings(config: type, pairs: Iterable[str]) -> dict[str, Any]:
    """Read settings of an agent's `Config`, each given as ``"name=value"``.

    Raises:
        InvalidValue: A name is unknown, or a value isn't allowed.
    """
    types_of, found = setting_hints(config), {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name not in types_of:
            raise unknown("setting", name, types_of)
        if not equals:
            raise InvalidValue(f"{name} needs a value: {name}=VALUE")
        found[name] = _read(name, text, types_of[name])
    return found


def _parse(name: str, text: str, hint: Any) -> Range | tuple[Any, ...]:
    """Parse the text after ``name=``: a range, or values."""
    if ":" in text and setting_type(hint) in (int, float):
        low, high, *more = text.split(":")
        if more not in ([], ["log"]):
            raise InvalidValue(f"{name}={text} is no range; write it as low:high or low:high:log")
        made = Range(_read(name, low, hint), _read(name, high, hint), log=bool(more))
        if not made.low < made.high or (made.log and made.low <= 0):
            raise InvalidValue(f"{name}={text} is no range: its low end is below its high end, and above 0 with log")
        return made
    return tuple(dict.fromkeys(_read(name, value, hint) for value in text.split(",")))


def _read(name: str, text: str, hint: Any) -> Any:
    """Parse one value of the type `hint`."""
    text, kind = text.strip(), setting_type(hint)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidValue(f"{name} is true or false, not {text!r}")
        return text.lower() == "true"
    if typing.get_origin(kind) is typing.Literal:
        return text  # `make_config` checks it
    try:
        return kind(text)
    except ValueError:
        raise InvalidValue(f"{name} is of type {kind.__name__}, not {text!r}") from None


def _cast(value: Any, hint: Any) -> Any:
    """Convert a number to the type of its setting."""
    value, kind = plain(value), setting_type(hint)
    return kind(value) if kind in (int, float) and value is not None else value


def _typed(choices: Range | tuple[Any, ...], hint: Any) -> Range | tuple[Any, ...]:
    """Convert the numbers of a range, or values, to the type of their setting."""
    if isinstance(choices, Range):
        return dataclasses.replace(choices, low=_cast(choices.low, hint), high=_cast(choices.high, hint))
    return tuple(_cast(value, hint) for value in choices)
