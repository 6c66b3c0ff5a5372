"""What is said of supported versions agrees: ranges, constraints and docs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LIBRARIES = ("transformers", "peft", "lightning", "wandb")
FILES = ("constraints-oldest.txt", "constraints.txt", "constraints-newest.txt")


def ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, project["dependencies"])
    return {one.name: one.specifier for one in requirements if one.name != "torch"}  # which the Makefile chooses


def pinned(file):
    lines = (ROOT / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def lower_bound(specifier):
    return next(Version(one.version) for one in specifier if one.operator == ">=")


@pytest.mark.parametrize("file", FILES)
def test_every_dependency_is_pinned_within_its_range(file):
    versions = pinned(file)
    assert {name: versions[name] for name, allowed in ranges().items() if not allowed.contains(versions[name])} == {}


def test_the_oldest_are_the_lower_bounds():
    versions = pinned("constraints-oldest.txt")
    for name in LIBRARIES:
        assert Version(versions[name]) == lower_bound(ranges()[name]), name


def test_the_docs_name_the_versions():
    text = (ROOT / "docs/versions.md").read_text()
    for name in LIBRARIES:
        row = re.search(rf"^\| {name} \| (.*) \|$", text, re.MULTILINE)
        assert row is not None
        assert row[1].split(" | ") == [pinned(file)[name] for file in FILES]
