"""What a paper cites and installs: CITATION.cff, the lock of all versions, the sdist and the examples' wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
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
    assert [author["name"] for author in PROJECT["authors"]] == [author["name"] for author in citation["authors"]]
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


def test_the_classifiers_name_the_pythons_that_it_runs_on() -> None:
    first, end = (int(minor) for minor in re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["classifiers"]))
    assert [int(minor) for minor in named] == list(range(first, end))


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a "wheel" or an "sdist" of a copy of `source` with setuptools, and return its path."""
    caches = (".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "studies", "chatgym_agents")
    copy = shutil.copytree(source, out / "source", ignore=shutil.ignore_patterns(*caches))
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({os.fspath(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


SHIPPED = (
    "agents", "benchmarks", "chatgym", "constraints", "docs", "examples", "tests", "__init__.py", "CHANGELOG.md",
    "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml",
)  # fmt: skip


def test_the_sdist_holds_everything_and_its_tests_run(tmp_path: Path) -> None:
    archive = build("sdist", ROOT, tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    root = tmp_path / archive.name.removesuffix(".tar.gz")
    needed = [path.relative_to(ROOT) for name in SHIPPED for path in (ROOT / name, *(ROOT / name).rglob("*.*"))]
    made = ("__pycache__", "build", "dist")
    left_out = [
        path for path in needed
        if not any(part in made or part.endswith(".egg-info") for part in path.parts) and not (root / path).exists()
    ]  # fmt: skip
    assert not left_out
    (root / "chatgym_agents").symlink_to("agents")
    names = ("imports.py", "values.py", "clone.py", "docs.py::test_the_links_of_a_page_lead_to_files")
    tests = [f"tests/test_{name}" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("plugin", [path.parent for path in sorted((ROOT / "examples").glob("*/pyproject.toml"))])
def test_the_wheel_of_an_example_has_its_data_files(plugin: Path, tmp_path: Path) -> None:
    """With those that `chatgym scenarios` writes into the folder of a scenario, as an editable installation has it."""
    source = shutil.copytree(plugin, tmp_path / "edited")
    (folder,) = (file.parent for file in source.rglob("sentences.json"))
    for name in ("nlu.npz", "reward.npz", "references.json", "banks.json", "dropped.json", "voice.json"):
        (folder / name).touch()
    with zipfile.ZipFile(build("wheel", source, tmp_path)) as wheel:
        packed = {Path(name).name for name in wheel.namelist() if name.startswith(folder.name + "/")}
    assert packed == {file.name for file in folder.iterdir() if file.is_file()}
