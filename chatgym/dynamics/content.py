"""Hash functions by content: their code, and the values that they call, close over and read as globals.

A compiled function freezes all of that, so its digest tells whether two of them do the same. Modules, names of
functions, comments, docstrings and annotations don't matter. Needs the standard library only.
"""

from __future__ import annotations

import ast
import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from chatgym.dynamics.identity import tree_text
from chatgym.errors import InvalidValue

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice)
_KNOWN_BY_NAME = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}
_WHAT_IT_IS = (
    inspect.CO_VARARGS
    | inspect.CO_VARKEYWORDS
    | inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
)


def source_digest(*things: Any) -> str:
    """Return the SHA-256 of functions and values, the same under every Python: code counts as its syntax tree.

    A function without source (made by ``exec``, or in a file that has changed since) counts as its bytecode.

    Raises:
        InvalidValue: A function reads something that has no content, such as an open file.
    """
    return _Walk(_tree_of).digest(things)


def bytecode_digest(*things: Any) -> str:
    """Return a SHA-256 as `source_digest` does, but of bytecode: fast, and what this process really runs."""
    return _Walk(_bytecode_of).digest(things)


def bytecode_digests(*things: Any) -> tuple[str, list[tuple[Any, str]]]:
    """Return `bytecode_digest`, and each compiled function on the way with its own."""
    walk = _Walk(_bytecode_of)
    whole = walk.digest(things)
    return whole, [(function, walk.digest(function)) for function in walk.compiled]


class _Walk:
    """A walk over functions and values, each hashed with the digests of its parts.

    What contains itself, such as a recursive function, is hashed as the number of steps back to it.
    """

    def __init__(self, text_of: Callable[[FunctionType], Any]) -> None:
        """Begin; `text_of` returns what stands for a function's code."""
        self._text_of = text_of
        self._done: dict[int, tuple[str, Any]] = {}  # by id; the thing is held, so that the id stays its own
        self._open: dict[int, int] = {}  # id to depth
        self._back = sys.maxsize  # the least depth that was stepped back to
        self.compiled: list[Any] = []

    def digest(self, thing: Any) -> str:
        """Return the digest of a value of any kind."""
        if isinstance(thing, _PLAIN) and not isinstance(thing, enum.Enum):
            return _sha(type(thing).__name__, ascii(thing))
        key, depth, outer = id(thing), len(self._open), self._back
        if key in self._done:
            return self._done[key][0]
        if key in self._open:
            self._back = min(outer, self._open[key])
            return _sha("back", str(depth - self._open[key]))
        self._open[key], self._back = depth, sys.maxsize
        label, parts = self._parts(thing)
        digests = [self.digest(part) for part in parts]
        found = _sha(label, *(sorted(digests) if isinstance(thing, Set) else digests))
        del self._open[key]
        if self._back >= depth:
            self._done[key] = found, (thing, parts)
        self._back = min(outer, self._back if self._back < depth else sys.maxsize)
        return found

    def _parts(self, thing: Any) -> tuple[str, Sequence[Any]]:
        """Return a value's kind and what it consists of."""
        kind = type(thing)
        if isinstance(thing, ModuleType) or _by_name(thing):
            return f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', thing.__name__)}", ()
        if isinstance(thing, FunctionType):
            return "function", [*self._function(thing), *_overloads_of(thing)]
        if isinstance(wrapped := getattr(thing, "py_func", getattr(thing, "__wrapped__", None)), FunctionType):
            self.compiled.append(thing)
            return "wrapped", [wrapped, *_options(thing)]
        if isinstance(thing, (MethodType, BuiltinFunctionType)):
            return f"method {thing.__name__}", (getattr(thing, "__func__", None), thing.__self__)
        if isinstance(thing, type):
            return thing.__qualname__, _class_parts(thing)
        if kind.__module__.partition(".")[0] in ("numpy", "numba"):
            return _array_parts(thing)
        if isinstance(thing, enum.Enum):
            return f"{kind.__qualname__}.{thing.name}", (thing.value,)
        if isinstance(thing, Mapping):
            return kind.__name__, [each for item in thing.items() for each in item]
        if isinstance(thing, (Sequence, Set)):
            return kind.__name__, list(thing)
        if isinstance(thing, os.PathLike):
            return kind.__name__, (os.path.basename(thing),)  # where it lies differs between machines
        if dataclasses.is_dataclass(thing):
            return kind.__qualname__, [getattr(thing, each.name) for each in dataclasses.fields(thing)]
        return kind.__qualname__, _state(thing)

    def _function(self, function: FunctionType) -> list[Any]:
        """Return what a function consists of: code, defaults, and the values of the names that it reads."""
        code, scope = function.__code__, function.__globals__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        found: list[Any] = [self._text_of(function), function.__defaults__, function.__kwdefaults__]
        for name, *attributes in _names(code):
            if name in cells:
                try:
                    value = cells[name].cell_contents
                except ValueError:  # nothing was put there yet
                    continue
            elif name in scope:
                value = scope[name]
            else:
                continue  # a builtin
            for attribute in attributes:
                if not isinstance(value, ModuleType) or _by_name(value):
                    break
                value = getattr(value, attribute, None)
            found += [".".join((name, *attributes)), value]
        return found


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> list[tuple[str, ...]]:
    """Return the names that code reads from outside, each with the attributes that are taken of it, sorted."""
    found: set[tuple[str, ...]] = set()
    for part in _inner(code):
        chain: tuple[str, ...] = ()
        for step in dis.get_instructions(part):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
                chain = (*chain, step.argval)
            elif step.opname != "EXTENDED_ARG":
                found.add(chain)
                chain = (step.argval,) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF") else ()
    return sorted(found - {()})


def _bytecode_of(function: FunctionType) -> str:
    """Return the digest of a function's code, in the terms of this Python."""
    code = function.__code__
    return _digest_of_code(code, function.__doc__ is not None and code.co_consts[:1] == (function.__doc__,))


@functools.lru_cache(maxsize=4096)
def _digest_of_code(code: CodeType, documented: bool) -> str:
    """Return the digest of bytecode; the first constant of `documented` code is a docstring."""
    constants = [None, *code.co_consts[1:]] if documented else code.co_consts
    return _Walk(_bytecode_of).digest(_bytecode(code, constants))


def _bytecode(code: CodeType, constants: Sequence[Any]) -> list[Any]:
    """Return bytecode, and all that it refers to; `constants` are its constants, perhaps without a docstring."""
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    flags = code.co_flags & _WHAT_IT_IS  # a profiler sets others
    shape = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags
    handlers = getattr(code, "co_exceptiontable", b"")
    inner = [_bytecode(each, each.co_consts) if isinstance(each, CodeType) else each for each in constants]
    return [sys.implementation.cache_tag, code.co_code, names, shape, handlers, inner]


def _tree_of(function: FunctionType) -> Any:
    """Return a function's syntax tree as text, or its bytecode if its source isn't known for certain."""
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    found = _parsed(code.co_filename, text).get((code.co_name, code.co_firstlineno), [])
    if [isinstance(each, CodeType) for each in found] == [False, True]:
        node, compiled = found
        if _bytecode(compiled, compiled.co_consts) == _bytecode(code, code.co_consts):
            return [tree_text(node)]
    return _bytecode_of(function)


@functools.lru_cache(maxsize=64)
def _parsed(filename: str, text: str) -> dict[tuple[str, int], list[Any]]:
    """Return the syntax trees of the functions in a source, and then what they are compiled to, by name and line."""
    try:
        tree = ast.parse(text)
        whole = compile(text, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return {}
    found: dict[tuple[str, int], list[Any]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found.setdefault((node.name, line), []).append(node)
        elif isinstance(node, ast.Lambda):
            found.setdefault(("<lambda>", node.lineno), []).append(node)
    for code in _inner(whole):
        found.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    return found


def _inner(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inner(constant)


def _by_name(thing: Any) -> bool:
    """Tell whether a class, function or module belongs to the standard library, numpy or numba: its name is enough."""
    if isinstance(thing, ModuleType):
        return thing.__name__.partition(".")[0] in _KNOWN_BY_NAME
    name, module = getattr(thing, "__name__", None), getattr(thing, "__module__", None) or "numpy"  # which ufuncs lack
    if not isinstance(name, str) or module.partition(".")[0] not in _KNOWN_BY_NAME:
        return False
    return getattr(sys.modules.get(module), name, None) is thing


def _class_parts(kind: type) -> list[Any]:
    """Return what a class consists of: its bases, its methods and the plain values in it."""
    if issubclass(kind, enum.Enum):
        return [each for name, member in kind.__members__.items() for each in (name, member.value)]
    fields = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    own = sorted((name, value) for name, value in vars(kind).items() if not name.startswith("_abc_"))
    methods = getattr(getattr(kind, "class_type", None), "jit_methods", {})  # of numba's jitclass
    found: list[Any] = [kind.__bases__, fields, methods]
    for name, value in own:
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        written = isinstance(value, FunctionType) and not value.__code__.co_filename.startswith("<")
        numeric = type(value).__module__.partition(".")[0] == "numpy" or hasattr(value, "py_func")
        constant = numeric or isinstance(value, (*_PLAIN, tuple, list, dict))
        if written or (constant and not name.startswith("__")):
            found += [name, value]
    return found


def _array_parts(thing: Any) -> tuple[str, Sequence[Any]]:
    """Return kind and content of numpy's arrays, scalars and dtypes, and of numba's types."""
    if hasattr(thing, "descr"):
        return "dtype", (str(thing.descr), thing.itemsize, thing.type.__name__)
    if not hasattr(thing, "dtype"):
        if not type(thing).__module__.startswith("numba"):
            return type(thing).__name__, _state(thing)
        if " at 0x" in (text := repr(thing)):  # where it lies, not what it is
            raise _no_content(thing)
        return text, ()
    values = thing.tolist() if thing.dtype.hasobject else thing.tobytes()
    return type(thing).__name__, (thing.dtype, thing.shape, values)


def _overloads_of(function: FunctionType) -> list[Any]:
    """Return what stands for a function in compiled code, by ``numba.extending.overload``."""
    templates = sys.modules.get("numba.core.typing.templates")
    known = templates.builtin_registry.globals if templates else ()
    return _overloads(len(known)).get(id(function), [])


@functools.lru_cache(maxsize=1)
def _overloads(count: int) -> dict[int, list[Any]]:
    """Return the functions that `_overloads_of` looks up, by id; there are `count` entries, and they only grow."""
    found: dict[int, list[Any]] = {}
    for value, kind in sys.modules["numba.core.typing.templates"].builtin_registry.globals if count else ():
        if isinstance(value, FunctionType) and not _by_name(value):
            found[id(value)] = [each._overload_func for each in kind.templates if hasattr(each, "_overload_func")]
    return found


def _options(thing: Any) -> list[Any]:
    """Return what changes the results of numba's compiled function, besides its code."""
    options = getattr(thing, "targetoptions", {})
    fixed = [] if getattr(thing, "_can_compile", True) else thing.nopython_signatures
    chosen = {
        name: options[name] for name in ("fastmath", "error_model", "parallel", "boundscheck") if options.get(name)
    }
    return [chosen, list(map(str, fixed)), str(getattr(thing, "locals", {}))]


def _state(thing: Any) -> list[Any]:
    """Return an object's state, as it would be copied.

    Raises:
        InvalidValue: It can't be.
    """
    try:
        reduce = copyreg.dispatch_table.get(type(thing))
        parts = reduce(thing) if reduce else thing.__reduce_ex__(4)
    except Exception as error:
        raise _no_content(thing) from error
    if isinstance(parts, str):
        return [parts]
    first, *rest = parts
    return [first, *(list(each) if isinstance(each, Iterator) else each for each in rest)]


def _no_content(thing: Any) -> InvalidValue:
    """Return the error for an object that nothing identifies."""
    return InvalidValue(
        f"a scenario's function reads {type(thing).__name__} object {ascii(thing)[:100]}, which has no content to "
        "identify it by; use numbers, texts, arrays, tuples, dataclasses and functions"
    )


def _sha(*texts: str) -> str:
    """Return the SHA-256 of texts."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
