"""Load plugins: entry points of the group ``chatgym``, once in a process, at the first use of a name.

A plugin that can't be loaded adds nothing and breaks nothing: a warning names it, ``chatgym plugins`` says why. The
environment variable ``CHATGYM_LOAD_PLUGINS`` names the entry points to load, separated by commas; ChatGym's own, which
holds the scenarios, is always loaded.
"""

from __future__ import annotations

import functools
import os
import pkgutil
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from chatgym import hookspecs
from chatgym.errors import Unavailable, unknown

BUILT_IN = "chatgym_agents"
KINDS = ("agents", "scenarios", "engines", "reward_models")


class Registered(Mapping[str, Any]):
    """Objects of one kind by name; one given as ``"module:attribute"`` is imported at its first use."""

    def __init__(self) -> None:
        self._things: dict[str, Any] = {}
        self.sources: dict[str, str] = {}  # name -> the plugin that registered it

    def __getitem__(self, name: str) -> Any:
        thing = self._things[name]
        if isinstance(thing, str):
            try:
                thing = self._things[name] = pkgutil.resolve_name(thing)
            except Exception as error:  # whatever a stranger's module raises
                raise Unavailable(
                    f"{name!r} of plugin {self.sources[name]!r} can't be imported from {thing!r} "
                    f"({type(error).__name__}: {error}); install what it needs, or uninstall the plugin"
                ) from error
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self._things  # without importing it

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)


@dataclass(frozen=True)
class Registry:
    """Everything that plugins registered."""

    agents: Registered = field(default_factory=Registered)
    scenarios: Registered = field(default_factory=Registered)
    engines: Registered = field(default_factory=Registered)
    reward_models: Registered = field(default_factory=Registered)
    plugins: dict[str, str] = field(default_factory=dict)  # entry point loaded -> distribution and version
    failures: list[tuple[str, str]] = field(default_factory=list)  # entry point, last line of the traceback

    @property
    def sources(self) -> dict[tuple[str, str], str]:
        """(kind, name) to the plugin that registered it."""
        return {(kind, name): plugin for kind in KINDS for name, plugin in getattr(self, kind).sources.items()}

    def _add(self, kind: str, name: str, thing: Any, plugin: str) -> None:
        """Register an object, or record a failure if the name is taken."""
        things: Registered = getattr(self, kind)
        if name in things:
            what = f"{kind[:-1].replace('_', ' ')} {name!r} is already registered by plugin {things.sources[name]!r}"
            self.failures.append((plugin, f"{what}, which stays; uninstall or rename one of them"))
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
            registry.failures.append((entry.name, traceback.format_exception_only(error)[-1].splitlines()[0]))
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
    """Import a plugin and call its hooks; return (kind, name, object) for all that it registers."""
    others, plugin, things = manager.get_plugins(), entry.load(), []
    manager.register(plugin, entry.name)
    for caller in manager.get_hookcallers(plugin) or ():
        if not caller.has_spec():
            raise unknown("hook", caller.name, (f"register_{kind}" for kind in KINDS))
    for kind in KINDS:
        hook = manager.subset_hook_caller(f"register_{kind}", others)
        hook(register=lambda name, thing, kind=kind: things.append((kind, str(name), thing)))
    return things
