"""Strategies come through the entry points of installed packages, and broken packages are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from strategies import registry

STRATEGY = '''
from typing import Literal
from specs.strategy import StrategyConfig
from strategies.api import Strategy


class Config(StrategyConfig):
    name: Literal["{name}"] = "{name}"
    strength: float = 1.0


class Mine(Strategy[Config]):
    """Does nothing, well."""

    kind = "dynamic"
    paper = "Nobody 2024"
    Config = Config
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package with one strategy where Python finds it, as an installer would."""
    monkeypatch.syspath_prepend(tmp_path)

    def package(name: str, module: str, entry: str, code: str, target: str = "Mine") -> None:
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[slimvit.strategies]\n{entry} = {module}:{target}\n")
        registry._registered.cache_clear()

    yield package
    registry._registered.cache_clear()


def test_a_package_brings_a_strategy(install: Install) -> None:
    install("gentle", "gentle_strategy", "gentle", STRATEGY.format(name="gentle"))
    assert "gentle" in registry.names()
    assert "gentle" not in registry.builtin_names()
    assert "gentle_strategy" not in sys.modules, "only named strategies are imported"
    options = registry.resolver("gentle").model_validate({"name": "gentle", "strength": 0.5})
    strategy = registry.build(options)
    assert strategy.config.strength == 0.5
    assert strategy.name == "gentle"


def test_the_built_in_strategies_use_the_same_door() -> None:
    assert set(registry.builtin_names()) >= {
        "distillation_token", "early_exit", "feature", "response", "structured_pruning", "token_merging",
    }  # fmt: skip
    for name in registry.builtin_names():
        assert registry.resolver(name).model_fields["name"].default == name


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(registry.StrategyUnavailable, match="no strategy `token_merge`; did you mean `token_merging`"):
        registry.load("token_merge")


def test_two_owners_are_both_named(install: Install) -> None:
    install("first-one", "first_strategy", "twin", STRATEGY.format(name="twin"))
    install("second-one", "second_strategy", "twin", STRATEGY.format(name="twin"))
    with pytest.raises(registry.StrategyUnavailable, match=r"two packages .*`first-one` .*`second-one`") as caught:
        registry.load("twin")
    assert "rename" in caught.value.way_out
    assert registry.load("response"), "the others still work"


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("noisy", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("absent", "import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("hollow", "", "cannot be imported: AttributeError"),
        ("thing", "Mine = 3", "is no subclass of `strategies.api.Strategy`"),
        ("other", STRATEGY.format(name="another"), "`name` is not `Literal['other']`"),
        ("kindless", STRATEGY.format(name="kindless").replace('kind = "dynamic"', 'kind = "fancy"'), "has no `kind`"),
        ("secret", STRATEGY.format(name="secret").replace('    paper = "Nobody 2024"\n', ""), "names no `paper`"),
        ("bare", STRATEGY.format(name="bare").replace("    Config = Config\n", ""), "has no `Config`"),
    ],
)
def test_broken_packages_are_named(install: Install, entry: str, code: str, message: str) -> None:
    install("broken-package", f"broken_{entry}", entry, code)
    with pytest.raises(registry.StrategyUnavailable) as caught:
        registry.load(entry)
    assert message in str(caught.value)
    assert "`broken-package`" in str(caught.value)


def test_no_torch_for_names_and_options() -> None:
    code = (
        "import sys; from strategies import registry; [registry.resolver(n) for n in registry.builtin_names()]; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'ray', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
