"""An OpenAI-compatible HTTP server over a model in this process, so that many processes share one.

`app.make_app` is the application, `server.serve` runs it; ``chatgym serve`` does both. Needs the extra ``serve``.
"""

from __future__ import annotations

from importlib.util import find_spec

from chatgym.errors import Unavailable

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


def check_installed() -> None:
    """Look whether the server's libraries are here.

    Raises:
        Unavailable: One isn't.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Unavailable(f"the server needs {', '.join(missing)}: pip install 'chatgym[serve]'")
