"""The rooms stand on floors: an import goes down, never up or sideways; the command line imports rooms when it runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import handful

ROOT = Path(handful.__file__).parent
MAP = (ROOT.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
FLOORS = [
    tuple("" if room == "__init__" else room for room in line[4:39].split())
    for line in reversed(MAP.split("```")[1].strip().splitlines())
]
"""Rooms by floor, the lowest first, as the map has them."""
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SHARED_BY_METHODS = (
    "base",
    "class_tokens",
    "encoded_support",
    "explained",
    "learned",
    "online",
    "promptable",
    "stacks",
)
"""Modules of `handful.methods` that any method may import."""


def name_of(path: Path) -> str:
    return ".".join(("handful", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    """'methods' of 'handful.methods.fate.method'; '' of the face."""
    return module.partition(".")[2].partition(".")[0]


def method_of(module: str) -> str:
    """'fate' of 'handful.methods.fate.method', 'lora' of 'handful.methods.lora'."""
    return ".".join(module.split(".")[2:3])


def imported(node: ast.AST) -> Iterator[str]:
    """Every module of the package that is imported anywhere under a node."""
    for item in ast.walk(node):
        names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else []
        if isinstance(item, ast.ImportFrom):
            source = "." * item.level + (item.module or "")
            inner = {f"{source}.{alias.name}" for alias in item.names} & TREES.keys()  # modules of a package
            names = sorted(inner) or [source]
        yield from (name for name in names if name.split(".")[0] in ("handful", ""))


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """The modules of the package that come with the import of a module."""
    for statement in tree.body:
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not is_typing(
            statement
        ):
            yield from imported(statement)


def is_typing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def test_every_import_is_absolute():
    relative = [f"{own}: {module}" for own, tree in TREES.items() for module in imported(tree) if module[0] == "."]
    assert relative == []


def test_every_room_has_a_floor():
    assert {room_of(module) for module in TREES} - set(FLOOR_OF) == set()


def test_no_import_runs_up_or_sideways():
    wrong = [
        f"{own} (floor {FLOOR_OF[room_of(own)]}) imports {module} (floor {FLOOR_OF[room_of(module)]})"
        for own, tree in TREES.items()
        for module in imported(tree)
        if room_of(module) != room_of(own) and FLOOR_OF[room_of(module)] >= FLOOR_OF[room_of(own)]
    ]
    assert wrong == []


def test_the_command_line_imports_rooms_inside_functions_only():
    early = [
        f"{own}: {module}"
        for own, tree in TREES.items()
        if room_of(own) == "cli"
        for module in imported_at_once(tree)
        if module != "handful.errors" and room_of(module) != "cli"
    ]
    assert early == []


def test_methods_do_not_import_each_other():
    combining = ("", "auto", "catalog", "description", "experts", "know_sam", "self_training", "wrappers")
    wrong = [
        f"{own}: {module}"
        for own, tree in TREES.items()
        if room_of(own) == "methods" and method_of(own) not in combining
        for module in imported(tree)
        if room_of(module) == "methods" and method_of(module) not in (method_of(own), *SHARED_BY_METHODS)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    waiting = {own: {module for module in imported(tree) if module in TREES} for own, tree in TREES.items()}
    while ready := [own for own, modules in waiting.items() if not modules & waiting.keys()]:
        for own in ready:
            del waiting[own]
    assert sorted(waiting) == []


def test_no_function_is_longer_than_sixty_lines():
    long = [
        f"{own}: {node.name}"
        for own, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []


def test_nothing_above_methods_imports_a_class_of_a_method():
    """They know the base classes, and methods by their names."""
    shared = (
        "base",
        "catalog",
        "cost",
        "description",
        "everything",
        "experts",
        "explained",
        "left_out",
        "online",
        "promptable",
        "router",
        "settings",
        "volume_prompts",
    )
    wrong = [
        f"{own}: {module}"
        for own, tree in TREES.items()
        if FLOOR_OF[room_of(own)] > FLOOR_OF["methods"] and room_of(own)
        for module in imported(tree)
        if room_of(module) == "methods" and method_of(module) not in shared
    ]
    assert wrong == []


def test_nothing_above_methods_checks_the_class_of_a_segmenter():
    """They use the capabilities that the base classes have."""
    kinds = ("Segmenter", "Promptable", "Method")
    probes = [
        f"{own}:{node.lineno} {ast.unparse(node)}"
        for own, tree in TREES.items()
        if FLOOR_OF[room_of(own)] > FLOOR_OF["methods"]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        if any(kind in ast.unparse(node.args[1]) for kind in kinds)
        or (getattr(node.func, "id", "") == "hasattr" and "segmenter" in ast.unparse(node.args[0]))
    ]
    assert probes == []


def test_the_map_has_a_row_for_every_room_and_names_the_modules_of_most():
    rows = dict(re.findall(r"^\| `([a-z]+)/` \| (.*) \|$", MAP, re.MULTILINE))
    listed = {room: set(re.findall(r"`([a-z0-9_]+)`", text)) for room, text in rows.items()}
    present = {room: {method_of(m) for m in TREES if room_of(m) == room and method_of(m)} for room in rows}
    missing = {room: present[room] - listed[room] for room in rows if room not in ("experiments", "methods", "session")}
    assert {room: names for room, names in missing.items() if names} == {}
    rooms = {room for room in FLOOR_OF if (ROOT / room).is_dir()} - {"", "cli"}
    assert rows.keys() == rooms


def test_errors_imports_nothing():
    assert list(imported(TREES["handful.errors"])) == []
