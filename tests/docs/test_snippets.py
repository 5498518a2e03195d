"""What the documentation shows is what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from specs.load import load
from strategies import registry

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "fixtures" / "third_party_strategy"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_tutorial_shows_the_tested_strategy() -> None:
    source = (PACKAGE / "patch_dropout.py").read_text(encoding="utf-8")
    shown = blocks(ROOT / "docs" / "writing-a-strategy.md", "python")
    assert len(shown) >= 4
    for block in shown:
        assert block in source


def test_the_tutorial_shows_the_tested_entry_point() -> None:
    (shown,) = blocks(ROOT / "docs" / "writing-a-strategy.md", "toml")
    key = "entry-points"
    real = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(shown)["project"][key] == real["project"][key]


def test_the_spec_in_the_readme_is_valid(tmp_path: Path) -> None:
    (shown,) = blocks(ROOT / "README.md", "yaml")
    spec = tmp_path / "spec.yaml"
    spec.write_text(shown, encoding="utf-8")
    experiment = load(spec, resolver=registry.resolver).experiment
    assert experiment.name == yaml.safe_load(shown)["name"]


@pytest.mark.parametrize(
    "page",
    sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.md"))
    + sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")),
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_decision_has_a_number_of_its_own_and_stands_in_the_list() -> None:
    folder = ROOT / "docs" / "adr"
    pages = sorted(page.name for page in folder.glob("[0-9]*.md"))
    assert [page[:4] for page in pages] == [f"{i:04d}" for i in range(1, len(pages) + 1)]
    listed = re.findall(r"^\| \[(\d{4})\]\((.*?)\)", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for _, name in listed] == pages
    for number, name in listed:
        assert name.startswith(number)
        assert (folder / name).read_text(encoding="utf-8").startswith(f"# {number} ")
