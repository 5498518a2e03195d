"""What no line of the source may do: load code from data, run text, or ask a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    p for package in ("specs", "strategies", "cluster", "orchestrator") for p in (ROOT / package).rglob("*.py")
)

LOADERS_OF_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
MAY_IMPORT_BY_NAME = {"orchestrator/execution/lane.py", "orchestrator/storage.py", "cluster/remote.py"}
"""The names are written in code: in `Runners`, and beside the import."""


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"imports {a.name}" for a in node.names if a.name.split(".")[0] in LOADERS_OF_CODE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS_OF_CODE:
            yield f"imports {node.module}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in BUILTINS:
                yield f"calls {name}"
            elif name in (
                "torch.load",
                "torch.hub.load",
                "torch.hub.load_state_dict_from_url",
                "load_state_dict_from_url",
            ):
                if options.get("weights_only") != "True":
                    yield f"calls {name} without weights_only=True"
            elif name.endswith(("np.load", "numpy.load")) and options.get("allow_pickle", "False") != "False":
                yield f"calls {name} with allow_pickle"
            elif name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
                if not {"yaml.SafeLoader", "yaml.CSafeLoader"} & {*options.values(), *map(ast.unparse, node.args)}:
                    yield f"calls {name} without a safe loader"
            elif name in ("os.system", "os.popen") or options.get("shell", "False") != "False":
                yield f"asks a shell ({name})"
            elif name in ("importlib.import_module", "import_module"):
                yield "imports by name"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_runs_code_from_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = list(offences(ast.parse(path.read_text(encoding="utf-8"))))
    if name in MAY_IMPORT_BY_NAME:
        found = [offence for offence in found if offence != "imports by name"]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "importlib.import_module(name)",
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(offences(ast.parse(code)))


def test_there_is_something_to_search() -> None:
    assert len(FILES) > 150
