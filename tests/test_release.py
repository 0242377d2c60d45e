"""What a paper cites and installs: CITATION.cff, the citation in the README, and the lock of all versions."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and later

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = ROOT / "constraints" / "lock-3.11.txt"
REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url",
    "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url",
    "version",
}  # fmt: skip
"""The fields of the schema of CFF 1.2.0, which allows no others."""
AUTHOR = {"name", "family-names", "given-names"}


def pins() -> dict[str, str]:
    """Package to version, of the lock."""
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in found.items()}


def test_the_citation_is_valid_and_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert REQUIRED <= citation.keys() <= ALLOWED
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    assert all(AUTHOR & author.keys() for author in citation["authors"])
    assert citation["authors"]
    assert all(isinstance(citation[name], str) and citation[name] for name in ("message", "title", "abstract"))
    assert len(set(citation["keywords"])) == len(citation["keywords"]) > 0
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    readme = (ROOT / "README.md").read_text()
    for field, value in (("title", citation["title"]), ("version", citation["version"])):
        assert re.search(rf"^  {field} +=  *{{{re.escape(value)}}},$", readme, re.MULTILINE), field


def test_the_lock_names_one_version_of_each_requirement_and_no_place() -> None:
    found = pins()
    for line in LOCK.read_text().splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"}):
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), text
    constraints = (ROOT / "constraints" / "cpu.txt").read_text()
    assert f"torch=={found['torch']}\n" in constraints


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="the lock is of Python 3.11 on Linux"
)
def test_the_lock_is_whole() -> None:
    """It pins what the requirements need in turn, so nothing is left to the day of the installation."""
    found, waiting = pins(), [(name, "") for name in pins()]
    waiting += [
        (canonicalize_name(requirement.name), extra)
        for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])
        for requirement in [Requirement(text)]
        for extra in requirement.extras
    ]
    for name, extra in waiting:
        for text in distribution(name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                assert canonicalize_name(needed.name) in found, f"{name} needs {text}"
                assert needed.specifier.contains(found[canonicalize_name(needed.name)], prereleases=True), text
