"""Hash the code that decides the course of a conversation, and recognise digests recorded by earlier versions.

Needs the standard library only: ``python3.12 chatgym/dynamics/identity.py FILE…`` prints the digest of some files.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DECIDING = ("scenario", "simulator", "error_model", "nlu", "reward", "max_turns")
"""The keys of an environment's identity that its ``sha256`` covers: what decides outcomes and rewards."""

INTERFACE = ("action", "observation", "nlu", "words", "tokenizer")
"""The keys of an environment's identity that say how an agent acts and observes."""

SUPERSEDED: Mapping[str, tuple[str, ...]] = {
    # customer_service-v1
    "6d58cad7732d9e927ed6e1e9e2abb09b80d7cac320592ec7ebafbdc6be619bd2": (
        "0335e6a4b93bc6db9f3eadf6e0a20bf51e813301df0216477441a4c2674ea003",
        "0335e6a4b93bc6db9f3eadf6e0a20bf51e813301df0216477441a4c2674ea003",
        "8dc436af5d6cc627d640986dcb1c0598ee9384bc30f2f9179c5c53bb21818584",
        "f086cfe92b17435d96384c832c381411ea522627d121a00facc540bdcabf6399",
    ),
    # education-v1
    "ff22657b0ca7a8c7f5a71f0bd49fb0bd1e07259be5c1a6921ba4c88b2f68c10a": (
        "",
        "",
        "",
        "64276fd5827a75c371735f401feb8408222d7897f94f304c247908529aac960b",
    ),
    # social-v1
    "fffede3936b8d9077cd6d8e40db4c25108d97c5368c0ebb1bd83fa232b329218": (
        "",
        "",
        "",
        "aae6c2b5b749887fbf0ab5a3c0b16a23ae06b5f7de8c35d115c584e1be0aea87",
    ),
    # the loops and the draws
    "73e0be070f0bba1e89573a2cab0719337fabe123b80fa2ce728d5e97dd8f03f0": (
        "d00ec4c38e0703412e183558b67a766f3e9e2656affc4df257e7ac1d2f6050b0",
        "d00ec4c38e0703412e183558b67a766f3e9e2656affc4df257e7ac1d2f6050b0",
        "0108bc06a1f48fc08a91a5e87c33999915ef16ded8f5ae6159ba1bcb05d934fd",
        "c5a6cf8e17336bce9994f7807668a113af1a17acfe3b0fecb147fc071661411e",
    ),
}
"""SHA-256 of code to what earlier versions of ChatGym recorded where the same acts gave the same conversation. The
first three hashed source files: their tokens (under Python 3.10 and 3.11, and under 3.12 and 3.13), then their syntax
trees; in education and social the same acts gave other questions and rewards then (``""``). The fourth hashed content,
when version 1 of the scenarios was the newest. The simulator of a language model isn't here: NLU understood its words
otherwise."""
BELIEF = 3
"""The first of `SUPERSEDED` in which beliefs had the fields that they have now."""

_UNUSED = {"annotation", "returns", "kind", "type_comment", "type_ignores", "ctx"}


def code_digest(*sources: str) -> str:
    """Return the SHA-256 of the syntax trees of Python sources, the same under every Python.

    Comments, docstrings, layout, imports and the annotations of functions don't change it, so modules may move; a
    name that an import gives to a thing (``from x import a as b``) does.
    """
    digest = hashlib.sha256()
    for source in sources:
        for piece in _statements(ast.parse(source).body, imports=False):
            digest.update(piece.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the parts of an environment's identity that decide outcomes and rewards."""
    deciding = json.dumps({key: identity[key] for key in DECIDING}, sort_keys=True)
    return hashlib.sha256(deciding.encode()).hexdigest()


def interface_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment's identity that says how an agent acts and observes."""
    return {key: identity[key] for key in INTERFACE}


def same_simulator(recorded: str, here: Mapping[str, Any], *, same_belief: bool = False) -> bool:
    """Tell whether a recorded ``identity["sha256"]`` names the simulator with the identity `here`.

    It does if it is the same, or is what an earlier version recorded for the same arguments and for code whose
    conversations are the same (`SUPERSEDED`); with `same_belief` only if beliefs have the same fields, too.
    """
    earlier = _earlier(here, BELIEF if same_belief else 0)
    return recorded == here["sha256"] or any(recorded == identity_digest(each) for each in earlier)


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say what differs between a recorded identity and the one `here`, in what decides outcomes and rewards."""
    known = sorted((_differing(recorded, each) for each in (here, *_earlier(here))), key=len)
    return ", ".join(known[0]) or f"sha256 {recorded['sha256'][:12]}, here {here['sha256'][:12]}"


def _differing(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what differs in two identities, each with both values; hashes are cut."""
    before, now = (_flat({key: each.get(key) for key in DECIDING}) for each in (recorded, here))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} {before.get(name, 'missing')}, here {now.get(name, 'missing')}" for name in names]


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values by their path, as short texts."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{name} {inner}": text for inner, text in _flat(value).items()})
        else:
            found[name] = str(value)[: 12 if name.endswith("sha256") else 100]
    return found


def _earlier(here: Mapping[str, Any], first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield what earlier versions, from the `first` of `SUPERSEDED` on, recorded for an identity, in `DECIDING`.

    They had one hash, of the scenario's whole content, in the places of three.
    """
    for version in range(first, max(map(len, SUPERSEDED.values()), default=0)):

        def then(digest: str, version: int = version) -> str:
            known = SUPERSEDED.get(digest, ())
            return known[version] if version < len(known) else digest

        content = then(here["content"])
        if not content:
            continue  # other conversations then
        whole = {key: {**here[key], "sha256": content} for key in ("scenario", "error_model", "reward")}
        simulator = {**here["simulator"], "sha256": then(here["simulator"]["sha256"])}
        yield {**{key: here[key] for key in DECIDING}, **whole, "simulator": simulator}


def tree_text(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
    """Return the syntax tree of a function as text, without its name and decorators."""
    kind = "async" if isinstance(function, ast.AsyncFunctionDef) else ""
    return kind + _dump(function.args, True) + _dump(function.body, True)


def _statements(body: list[ast.stmt], imports: bool) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)) and not imports:
            if isinstance(statement, ast.ImportFrom):
                renamed = [one for one in statement.names if one.asname not in (None, one.name)]
                yield from (f"{one.name} as {one.asname};" for one in renamed)
        elif not (isinstance(statement, ast.Expr) and _is_text(statement.value)):
            yield _dump(statement, imports) + ";"


def _dump(value: Any, imports: bool) -> str:
    """Return a node, a list of nodes or a plain value as ASCII text; what is empty is left out of a node.

    `ast.dump` would differ: Pythons differ in the fields that they know and in those that they print.
    """
    if isinstance(value, list):
        if value and isinstance(value[0], ast.stmt):
            return "{" + "".join(_statements(value, imports)) + "}"
        return "[" + ",".join(_dump(one, imports) for one in value) + "]"
    if isinstance(value, ast.JoinedStr):
        value = ast.JoinedStr(_joined(value))
    if not isinstance(value, ast.AST):
        return ascii(value)  # not repr: which characters are printable depends on the Python's Unicode
    fields = [(name, getattr(value, name, None)) for name in sorted(value._fields) if _counts(value, name)]
    inner = ",".join(f"{name}={_dump(one, imports)}" for name, one in fields if one is not None and one != [])
    # None is left out where it stands for "nothing there", not where it is the value.
    if isinstance(value, ast.Constant) and value.value is None:
        inner = "None"
    return f"{type(value).__name__}({inner})"


def _counts(node: ast.AST, field: str) -> bool:
    """Tell whether a field of a node changes what the code does; the annotations in a class may (a dataclass's)."""
    return field not in _UNUSED or (field == "annotation" and isinstance(node, ast.AnnAssign))


def _joined(text: ast.JoinedStr) -> list[ast.expr]:
    """Return the parts of an f-string, its literal parts merged: Pythons split them at different places."""
    parts: list[ast.expr] = []
    for part in text.values:
        for one in _joined(part) if isinstance(part, ast.JoinedStr) else [part]:
            if isinstance(one, ast.FormattedValue) and isinstance(one.format_spec, ast.JoinedStr):
                spec = ast.JoinedStr(_joined(one.format_spec)) if _joined(one.format_spec) else None
                one = ast.FormattedValue(one.value, one.conversion, spec)
            if _is_text(one) and parts and _is_text(parts[-1]):
                parts[-1] = ast.Constant(parts[-1].value + one.value)  # type: ignore[attr-defined]
            elif not _is_text(one) or one.value:  # type: ignore[attr-defined]
                parts.append(one)
    return parts


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


if __name__ == "__main__":
    print(code_digest(*(Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])))
