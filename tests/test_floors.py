"""The house stands: an import goes down, never up, never sideways between rooms; the doors use the face alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import handful

ROOT = Path(handful.__file__).parent
FLOORS = (
    ("errors", "synthesis"),
    ("jobs", "prompts"),
    ("backbones", "data", "tuning"),
    ("evaluation",),
    ("methods", "pretraining"),
    ("checkpoint", "curation", "session"),
    ("reports",),
    ("cohort", "experiments"),
    ("",),  # the face
    ("service",),
    ("cli",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    """'methods' of 'handful.methods.fate.method'; '' of the face."""
    return module.partition(".")[2].partition(".")[0]


def imported(path: Path) -> Iterator[str]:
    """Every module of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names = [node.module or ""]
        yield from (name for name in names if name.split(".")[0] == "handful")


def name_of(path: Path) -> str:
    return ".".join(("handful", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_runs_up_or_sideways(path: Path):
    own = room_of(name_of(path))
    assert own in FLOOR_OF, f"the room {own!r} has no floor yet"
    for module in imported(path):
        room = room_of(module)
        below = FLOOR_OF[room] < FLOOR_OF[own] or room == own
        assert below, f"{name_of(path)} (floor {FLOOR_OF[own]}) imports {module} (floor {FLOOR_OF[room]})"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(name_of(p)) in ("cli", "service")], ids=name_of)
def test_the_doors_know_only_the_face(path: Path):
    own = room_of(name_of(path))
    assert [module for module in imported(path) if room_of(module) not in ("", own)] == []


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "methods"], ids=name_of)
def test_methods_do_not_know_each_other(path: Path):
    shared = {f"handful.methods.{name}" for name in ("base", "seen", "promptable", "closer", "support_bank", "voting")}
    if path.name not in ("catalog.py", "ensemble.py"):  # which put methods together
        assert [m for m in imported(path) if room_of(m) == "methods" and m not in shared] == []


def test_errors_stands_on_nothing():
    assert list(imported(ROOT / "errors.py")) == []
