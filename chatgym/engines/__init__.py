"""Language models: the `Engine` protocol, and `make_engine` for the model that a user named."""

from chatgym.engines.choose import DEFAULT_MODEL, PLAIN_MODEL, find_model, make_engine
from chatgym.engines.protocol import Completion, Engine, LazyEngine, check_each, check_sampling

__all__ = [
    "DEFAULT_MODEL",
    "PLAIN_MODEL",
    "Completion",
    "Engine",
    "LazyEngine",
    "check_each",
    "check_sampling",
    "find_model",
    "make_engine",
]
