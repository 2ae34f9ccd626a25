# SPDX-License-Identifier: Apache-2.0
"""Imports go one way: the order of the rooms is written here once; every import and the map are checked against it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sohes"

# From the lowest to the highest: a room may import those before it. Rooms of one line do not import each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("_version",),
    ("utils",),
    ("configs",),
    ("ops",),
    ("structures",),
    ("visual",),
    ("data",),
    ("models",),
    ("losses", "labels"),
    ("engine", "evaluation"),
    ("baselines", "report"),
    ("phases",),
    ("cli",),
    ("train", "pretrain", "segment", "evaluate", "env"),
    ("__main__",),
)
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# sohes/__init__.py offers names of these rooms, imported at their first use.
LAZY = {"sohes": {"_version", "utils", "structures", "data", "models"}}
NOT_IMPORTED = {"__init__", "weights", "py.typed", "_build.json"}


def module_name(path: Path) -> str:
    """`sohes/ops/__init__.py` -> `sohes.ops`."""
    name = ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))
    return name.removesuffix(".__init__")


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Dotted names of the package that a module imports, also inside functions and for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if is_module(inner) else node.module


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room_of(name: str) -> str:
    """`sohes.ops.mask_pack` -> `ops`; the package itself is `sohes`."""
    _, _, inner = name.partition(".")
    return inner.split(".")[0] or name


def upward(name: str, imported: str) -> str | None:
    """Why one module may not import another, or None."""
    room, other = room_of(name), room_of(imported)
    if room == other or other == "sohes" or other in LAZY.get(room, ()):
        return None
    for one in (room, other):
        if one not in LEVELS and one != "sohes":
            return f"{name}: room {one!r} has no place in ORDER"
    if room == "sohes" or LEVELS[other] >= LEVELS[room]:
        return f"{name} imports {imported}: {other} is not below {room}"
    return None


def graph() -> dict[str, set[str]]:
    """Every module and what it imports of the package."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {module_name(path): set(imports_of(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of modules, each importing the next; empty if there is none. A package is its `__init__`."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    for name in edges:
        if found := visit(name, []):
            return found
    return []


def test_imports_go_one_way():
    faults = [reason for name, found in graph().items() for other in sorted(found) if (reason := upward(name, other))]
    assert faults == []


def test_no_module_imports_itself_through_others():
    assert circle(graph()) == []


def test_every_room_has_its_place():
    rooms = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    rooms = {room for room in rooms if not room.startswith("_C")} - NOT_IMPORTED
    assert rooms - {"py"} == set(LEVELS)


def test_the_map_of_contributing_is_the_tree():
    """Every room in one line, the highest first, then the folders beside the package."""
    root = PACKAGE.parent
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## The rooms\n")[2].partition("\n## ")[0]
    lines = text.partition("```text\n")[2].partition("```")[0].splitlines()
    entries = [re.fullmatch(r"(\S+) +\S.*", line)[1] for line in lines]
    assert [entry for entry in entries if not (root / entry).exists()] == []
    rooms = [Path(entry).stem for entry in entries if entry.startswith("sohes/")]
    assert sorted(rooms) == sorted([*LEVELS, "weights"])
    levels = [LEVELS[room] for room in rooms if room != "weights"]
    assert levels == sorted(levels, reverse=True)
    others = {entry for entry in entries if not entry.startswith("sohes/")}
    assert others == {"csrc/", "tests/", "benchmarks/", "docs/", ".ci/"}


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("sohes.ops.mask_pack", "sohes.structures.masks"),
        ("sohes.losses.matcher", "sohes.engine.loop"),
        ("sohes.labels.view", "sohes.losses.points"),
        ("sohes.configs.run", "sohes.models.segmenter"),
        ("sohes", "sohes.phases.explore"),
        ("sohes.somewhere.new", "sohes.utils.files"),
    ],
)
def test_a_planted_upward_import_is_found(name, imported):
    assert upward(name, imported) is not None


def test_a_planted_circle_is_found():
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"a"}}
    assert circle(edges) == ["a", "b", "d", "a"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
