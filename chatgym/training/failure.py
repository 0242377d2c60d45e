"""Errors of a run that its plugin causes: an exception in the agent's own code, or a plugin that is gone."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from chatgym import plugins
from chatgym.errors import AgentFailed, ChatGymError, Unavailable

HERE = Path(__file__).parent
MOST = 300
"""Characters of an exception in the message; the trace has all."""


@contextlib.contextmanager
def blaming(agent: str, how: Callable[[], str]) -> Iterator[None]:
    """Raise an exception of the block as `AgentFailed`; errors of ChatGym itself are raised as they are.

    So are exceptions of what the agent calls back: the run, and the user's own functions.

    Args:
        agent: Name of the agent whose code runs in the block.
        how: Returns what there is and how to go on, a sentence.
    """
    try:
        yield
    except ChatGymError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        frames, roots = traceback.extract_tb(error.__traceback__), _roots(agent)
        own = [frame for frame in frames if frame.filename.startswith(roots)]
        inner = frames[max(i for i, frame in enumerate(frames) if frame in own) + 1 :] if own else []
        if any(Path(frame.filename).parent == HERE for frame in inner):  # in the callback that the agent calls
            raise
        if isinstance(error, OSError) and not own:  # a file of ours
            raise
        raise _failed(agent, error, own, frames[-1], how()) from error


def blamed(error: Exception) -> AgentFailed | None:
    """Return an exception that the code of a registered agent raised, as an error that names it; None for another.

    It is an agent's if what it went through last is an agent's, of all code that is ChatGym's or an agent's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    roots = {agent: _roots(agent) for agent in plugins.load().agents}
    for frame in reversed(frames):
        agents = [agent for agent in roots if frame.filename.startswith(roots[agent])]
        if agents:
            agent = next((one for one in agents if _file(one) == frame.filename), agents[0])
            own = [one for one in frames if one.filename.startswith(roots[agent])]
            return _failed(agent, error, own, frames[-1], "mend the agent")
        if Path(frame.filename).is_relative_to(HERE.parent):
            return None
    return None


def _failed(
    agent: str, error: Exception, own: list[traceback.FrameSummary], last: traceback.FrameSummary, remedy: str
) -> AgentFailed:
    """Return the error that an agent's code failed, with its `own` frames of the traceback, and the `last` of all."""
    shown = own if last in own else [*own, last]
    trace = "".join([*traceback.format_list(shown), *traceback.format_exception_only(error)])
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST]}".rstrip(": ")
    place = (own or shown)[-1]
    return AgentFailed(
        f"the agent {agent!r} of plugin {_plugin(agent)} failed with {said} ({place.filename}, line {place.lineno}); "
        f"{remedy}",
        trace,
    )


def without_plugin(folder: Path, kind: str, name: str, plugin: str) -> Unavailable:
    """Return the error that the agent or scenario (`kind`) of a run isn't registered.

    Args:
        folder: The run folder.
        kind, name: What it needs.
        plugin: The distribution that registered it and its version, as recorded.
    """
    distribution, _, number = plugin.rpartition(" ")
    remedy = f"install it, such as by `pip install {distribution}=={number}`" if distribution else "install it"
    return Unavailable(
        f"{folder} needs the {kind} {name!r} of the plugin {plugin}, which isn't loaded here; {remedy}, or let "
        "`chatgym plugins` say why it isn't"
    )


def _plugin(agent: str) -> str:
    """Return the plugin of an agent, with its distribution and version."""
    registry = plugins.load()
    plugin = registry.agents.sources[agent]
    return f"{plugin!r} ({registry.plugins[plugin]})"


def _file(agent: str) -> str | None:
    """Return the file of the module that an agent's class is in."""
    return sys.modules[plugins.load().agents[agent].__module__].__file__


def _roots(agent: str) -> tuple[str, ...]:
    """Return the folders of the package, or the file of the module, that an agent's code is in."""
    try:
        name = plugins.load().agents[agent].__module__.partition(".")[0]
    except Unavailable:
        return ()
    module = sys.modules[name]
    return tuple(getattr(module, "__path__", None) or [str(module.__file__)])
