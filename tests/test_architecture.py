"""The house rules that can be counted: imports go down the rooms, modules are short."""

import ast

from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pymc_emf"

#: From the bottom to the top, see docs/architecture.md.
ROWS = [
    {"_compat", "exceptions", "report", "statistics", "storage"},
    {"arguments"},
    {"bijections", "rolling"},
    {"engine", "model"},
    {"layers"},
    {"variational"},
    {"bambi", "calibration", "density"},
    {"plots"},
]
ROW = {room: i for i, row in enumerate(ROWS) for room in row}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(name: str) -> str:
    return name.split(".")[1]


def imported(tree: ast.Module):
    """Modules of ours that a module imports when it runs, not only for its types."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pymc_emf."):
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = room(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        other = room(module)
        assert other == own or ROW[other] < ROW[own], f"{own} imports {module}"


def test_every_room_has_a_row():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__", "py"} == set(ROW)


def test_modules_are_short():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {path.name: n for path, n in lengths.items() if n > 450}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    n = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        n -= function.body[0].end_lineno - function.body[0].lineno + 1
    return n


def test_functions_are_short():
    lengths = {
        f"{path.relative_to(PACKAGE)}: {node.name}": code_lines(node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: n for name, n in lengths.items() if n > 60}
