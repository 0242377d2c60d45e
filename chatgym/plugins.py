"""Load plugins: entry points of the group ``chatgym``, once in a process, at the first use of a name.

A plugin that can't be loaded adds nothing and breaks nothing: a warning names it, ``chatgym plugins`` says why. The
environment variable ``CHATGYM_LOAD_PLUGINS`` names the entry points to load, separated by commas; ChatGym's own, which
holds the scenarios, is always loaded.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from chatgym import hookspecs
from chatgym.errors import InvalidValue, Unavailable, unknown

BUILT_IN = "chatgym_agents"
KINDS = ("agents", "scenarios", "engines", "reward_models")
RESERVED = {"engines": {"deepspeed", "hf", "openai", "record", "recorded"}, "reward_models": {"hf", "judge"}}
"""Names before the colon of ``llm=`` and ``reward_model=`` that mean something already."""
MEMBERS = ("requires", "Config", "learn", "act", "save", "load")
"""What every agent class has."""


class Registered(Mapping[str, Any]):
    """Objects of one kind by name; one given as ``"module:attribute"`` is imported at its first use."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, Any] = {}
        self.sources: dict[str, str] = {}  # name -> the plugin that registered it

    def __getitem__(self, name: str) -> Any:
        thing = self._things[name]
        if isinstance(thing, str):
            whose = f"{name!r} of plugin {self.sources[name]!r}"
            try:
                found = pkgutil.resolve_name(thing)
            except Exception as error:  # whatever a stranger's module raises
                raise Unavailable(
                    f"{whose} can't be imported from {thing!r} ({_reason(error)}); install what it needs, or uninstall "
                    "the plugin"
                ) from error
            if wrong := _wrong(self.kind, found):
                raise Unavailable(f"{whose}, {thing!r}, {wrong}")
            thing = self._things[name] = found
        return thing

    def usable(self) -> dict[str, Any]:
        """Return the objects that can be imported, by name."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except Unavailable:
                continue
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._things  # without importing it

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


@dataclass(frozen=True)
class Registry:
    """Everything that plugins registered."""

    agents: Registered = field(default_factory=lambda: Registered("agents"))
    scenarios: Registered = field(default_factory=lambda: Registered("scenarios"))
    engines: Registered = field(default_factory=lambda: Registered("engines"))
    reward_models: Registered = field(default_factory=lambda: Registered("reward_models"))
    plugins: dict[str, str] = field(default_factory=dict)  # entry point loaded -> distribution and version
    failures: list[tuple[str, str]] = field(default_factory=list)  # entry point, what is wrong

    @property
    def sources(self) -> dict[tuple[str, str], str]:
        """(kind, name) to the plugin that registered it."""
        return {(kind, name): plugin for kind in KINDS for name, plugin in getattr(self, kind).sources.items()}

    def _add(self, kind: str, name: str, thing: Any, plugin: str) -> None:
        """Register an object, or record a failure if it, or its name, can't be used."""
        things: Registered = getattr(self, kind)
        if name in things:
            wrong = f"is already registered by plugin {things.sources[name]!r}, which stays; uninstall or rename one"
        elif name in RESERVED.get(kind, ()):
            wrong = f"would never be used: {name}:... means something already; rename it"
        elif not re.fullmatch(r"\w[\w.+-]*", name):
            wrong = "can't be named on a command line; use letters, digits and _.+- only"
        else:
            wrong = "" if isinstance(thing, str) else _wrong(kind, thing)
        if wrong:
            self.failures.append((plugin, f"{kind[:-1].replace('_', ' ')} {name!r} {wrong}"))
        else:
            things._things[name], things.sources[name] = thing, plugin


@functools.cache
def load() -> Registry:
    """Return the registry; the first call loads the plugins, ChatGym's own first, then by name."""
    registry, manager = Registry(), pluggy.PluginManager("chatgym")
    manager.add_hookspecs(hookspecs)
    for entry in _chosen(registry):
        try:
            things = _collect(manager, entry)
        except (Exception, SystemExit) as error:  # whatever a stranger's module raises
            registry.failures.append((entry.name, _reason(error)))
            continue
        registry.plugins[entry.name] = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        for kind, name, thing in things:
            registry._add(kind, name, thing, entry.name)
    if registry.failures:
        names = ", ".join(sorted({plugin for plugin, _ in registry.failures}))
        warnings.warn(f"plugins with a problem: {names}; `chatgym plugins` says which", RuntimeWarning, stacklevel=2)
    return registry


def _chosen(registry: Registry) -> list[EntryPoint]:
    """Return the entry points to load, and record those that are missing."""
    found = sorted(entry_points(group="chatgym"), key=lambda entry: (entry.name != BUILT_IN, entry.name, entry.value))
    if (restriction := os.environ.get("CHATGYM_LOAD_PLUGINS")) is None:
        return found
    wanted = {name.strip() for name in restriction.split(",")} - {""}
    missing = sorted(wanted - {entry.name for entry in found})
    registry.failures.extend((name, "named in CHATGYM_LOAD_PLUGINS, but not installed") for name in missing)
    return [entry for entry in found if entry.name in wanted or entry.name == BUILT_IN]


def _collect(manager: pluggy.PluginManager, entry: EntryPoint) -> list[tuple[str, str, Any]]:
    """Import a plugin and call its hooks; return (kind, name, object) for all that it registers.

    Raises:
        InvalidValue: A hook isn't one, as it lacks ``@hookimpl`` or its argument or has another name.
    """
    others, plugin, things = manager.get_plugins(), entry.load(), []
    hooks = [f"register_{kind}" for kind in KINDS]
    for name in hooks:
        if hasattr(plugin, name) and manager.parse_hookimpl_opts(plugin, name) is None:
            raise InvalidValue(f"{name} is never called: decorate it with @hookimpl from chatgym.hookspecs")
    manager.register(plugin, entry.name)
    callers = manager.get_hookcallers(plugin) or ()
    for caller in callers:
        if not caller.has_spec():
            raise unknown("hook", caller.name, hooks)
        if any(one.plugin is plugin and "register" not in one.argnames for one in caller.get_hookimpls()):
            raise InvalidValue(f"{caller.name} gets nothing to register with: write `def {caller.name}(register):`")
    if not callers:
        raise InvalidValue(f"{entry.value} has no hook; write one of {', '.join(hooks)}, decorated with @hookimpl")
    for kind in KINDS:
        hook = manager.subset_hook_caller(f"register_{kind}", others)
        hook(register=lambda name, thing, kind=kind: things.append((kind, str(name), thing)))
    return things


def _wrong(kind: str, thing: Any) -> str:
    """Return why a registered object isn't of its kind, with the remedy; empty if it is."""
    if kind == "scenarios":
        from chatgym.dynamics.scenario import Scenario

        return "" if isinstance(thing, Scenario) else f"is no `chatgym.scenarios.Scenario` but {thing!r}; register one"
    if kind == "agents":
        missing = ", ".join(f"`{name}`" for name in MEMBERS if not hasattr(thing, name))
        return f"is no agent: it lacks {missing}; write what `chatgym.agent.Agent` says" if missing else ""
    return "" if callable(thing) else f"can't be called: it is {thing!r}; register a function of the text after 'NAME:'"


def _reason(error: BaseException) -> str:
    """Return an exception in one line, with the place in the plugin's code where it was raised."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    said = " ".join((str(error) if isinstance(error, InvalidValue) else f"{type(error).__name__}: {error}").split())
    packages = (os.path.dirname(str(one.__file__)) for one in (importlib, pluggy))
    loading = ("<frozen", __file__, str(pkgutil.__file__), *packages)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(loading)]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(frames[0].filename).parent)]
    return f"{said} ({own[-1].filename}, line {own[-1].lineno})" if own else said
