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
        shown = own if frames[-1] in own else [*own, frames[-1]]
        trace = "".join([*traceback.format_list(shown), *traceback.format_exception_only(error)])
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST]}".rstrip(": ")
        place = (own or shown)[-1]
        raise AgentFailed(
            f"the agent {agent!r} of plugin {_plugin(agent)} failed with {said} ({place.filename}, line "
            f"{place.lineno}); {how()}",
            trace,
        ) from error


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


def _roots(agent: str) -> tuple[str, ...]:
    """Return the folders of the package, or the file of the module, that an agent's code is in."""
    try:
        name = plugins.load().agents[agent].__module__.partition(".")[0]
    except Unavailable:
        return ()
    module = sys.modules[name]
    return tuple(getattr(module, "__path__", None) or [str(module.__file__)])
