"""Language models: the `Engine` protocol, and `make_engine`, which makes one by name."""

from chatgym.engines.choose import DEFAULT_MODEL, PLAIN_MODEL, find_model, make_engine
from chatgym.engines.protocol import UNKNOWN_TOKEN, Completion, Engine, LazyEngine, check_each, check_sampling

__all__ = [
    "DEFAULT_MODEL",
    "PLAIN_MODEL",
    "UNKNOWN_TOKEN",
    "Completion",
    "Engine",
    "LazyEngine",
    "check_each",
    "check_sampling",
    "find_model",
    "make_engine",
]
