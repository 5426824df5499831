"""The package's rooms: each imports only from rooms below it, says what it is for, and holds several files."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seam"
# From the ground up. A room or file may import from those before it and from itself; ARCHITECTURE.md says why.
ORDER = (
    "errors",
    "io",
    "runtime",
    "settings",
    "models",
    "policy",
    "data",
    "quant",
    "training",
    "calibration",
    "search",
    "onnx",
    "experiment",
    "claims",
    "report",
    "tracking",
    "tool",
    "stages",
    "cli_options",
    "cli_tool",
    "cli",
)
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all modules of the package."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, at the top or inside a function (not for type checking alone)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "seam":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "seam"}
    return found


def place(module: str) -> int:
    return ORDER.index(module.split(".")[1])


def test_every_room_has_a_place_in_the_order():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert files | set(ROOMS) == set(ORDER)


def test_no_room_imports_from_one_above_it():
    known = modules()
    turned = [
        f"{name} imports {other}"
        for name, path in known.items()
        if name not in ("seam", "seam.__main__")
        for other in imports(path, known)
        if other != "seam" and place(other) > place(name)
    ]
    assert not turned, "\n".join(turned)


def test_no_two_files_import_each_other():
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    done, path = set(), []

    def walk(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(graph.get(name, ())):
            walk(other)
        done.add(path.pop())

    for name in sorted(graph):
        walk(name)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_holds_several_files(room):
    text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len([path for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"]) > 1
