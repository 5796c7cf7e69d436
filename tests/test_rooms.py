"""Who imports whom: no room reaches back up, and the core imports torch and numpy only."""

import ast
import re
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# From bottom to top. A room may import from rooms of lower rank.
RANKS = {
    "_errors": 0,
    "_arguments": 0,
    "_threads": 0,
    "_sites": 1,
    "trials": 1,
    "store": 2,
    "runner": 3,
    "model": 2,
    "_mode": 3,
    "theory": 1,
    "functional": 2,
    "nn": 3,
    "optim": 3,
    "data": 3,
    "flow": 4,
    "moments": 5,
    "probe": 6,
    "evidence": 7,
    "rules": 8,
    "report": 9,
    "_repeat": 9,
    "_check": 10,
    "fixes": 10,
    "monitor": 10,
    "_watch": 11,
    "_fix": 11,
    "comparison": 12,
    "_compare": 13,
    "__init__": 14,
    "integrations": 15,
    "cli": 16,
}
CORE = set(RANKS) - {"report", "integrations", "cli"}
# Packages that a room of the core uses where they are installed, imported inside functions only.
OPTIONAL = {"runner": {"submitit", "ray"}}

# The same for the lab.
LAB_RANKS = {
    "networks": 0,
    "data": 0,
    "studies": 1,
    "training": 2,
    "recipes": 3,
    "render": 4,
    "_trainer": 5,
    "_demo": 6,
    "_story": 7,
    "verbs": 8,
    "__init__": 9,
}


def files(package="varshift"):
    return sorted((SOURCE / package).rglob("*.py"))


def room(path):
    parts = path.relative_to(SOURCE).parts
    return parts[1].removesuffix(".py")


def imported_modules(path, nested=True):
    """Absolute names of all imported modules, those for type checkers and inside functions included.

    Without `nested` those that run when the file is imported only.
    """
    package = path.parent.relative_to(SOURCE).parts
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            whole = name in ("varshift", "varshift_lab")
            yield from ([f"{name}.{alias.name}" for alias in node.names] if whole else [name])


def target_room(name, ranks=RANKS):
    """The room that an imported name of a package lives in, or the package itself."""
    parts = name.split(".")
    if len(parts) < 2:
        return "__init__"
    return parts[1] if parts[1] in ranks else "__init__"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_room_reaches_back_up(path):
    own = room(path)
    for name in imported_modules(path):
        assert not name.startswith("varshift_lab"), f"{path.name} imports the lab"
        if name.split(".")[0] != "varshift" or own == "__init__":
            continue
        other = target_room(name)
        # A room's version or public names come from the package itself, which imports lazily.
        if other != own and not (other == "__init__" and own in ("cli", "integrations", "report")):
            assert RANKS[other] < RANKS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", files("varshift_lab"), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_room_of_the_lab_reaches_back_up(path):
    own = room(path)
    for name in imported_modules(path):
        if name.split(".")[0] != "varshift_lab":
            # The verbs print as the command line does; all else does without it.
            assert own == "verbs" or not name.startswith("varshift.cli"), f"{own} imports {name}"
            continue
        other = target_room(name, LAB_RANKS)
        if other != own:
            assert LAB_RANKS[other] < LAB_RANKS[own], f"{own} imports {name}"


def foreign_private_names(path, sources=SOURCE):
    """What a file imports past the face of another room: its private modules, private names of its face."""
    package = path.relative_to(sources).parts[:-1]
    own = ".".join(path.relative_to(sources).with_suffix("").parts[:2])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            inside = len(parts) > 2 and parts[0] in ("varshift", "varshift_lab")
            if inside and ".".join(parts[:2]) != own and any(part.startswith("_") for part in parts[2:]):
                yield name


@pytest.mark.parametrize(
    "path", [*files(), *files("varshift_lab")], ids=lambda path: str(path.relative_to(SOURCE))
)
def test_a_room_is_entered_through_its_face(path):
    private = list(foreign_private_names(path))
    assert not private, f"make these names public in their room's __init__, or move them down: {private}"


@pytest.mark.parametrize(
    ("line", "private"),
    [
        ("from varshift.rules._thresholds import SHIFT_ERROR", ["varshift.rules._thresholds.SHIFT_ERROR"]),
        ("from varshift.rules import _thresholds", ["varshift.rules._thresholds"]),
        ("from ..rules._thresholds import SHIFT_ERROR", ["varshift.rules._thresholds.SHIFT_ERROR"]),
        ("from ..rules import _thresholds as t", ["varshift.rules._thresholds"]),
        ("import varshift.rules._thresholds", ["varshift.rules._thresholds"]),
        ("if TYPE_CHECKING:\n    from varshift.rules._x import Y", ["varshift.rules._x.Y"]),
        ("def f():\n    from varshift.rules._x import Y", ["varshift.rules._x.Y"]),
        ("from varshift.rules import thresholds", []),
        ("from varshift._errors import VarshiftError", []),
        ("from varshift import __version__", []),
        ("from ._words import figure", []),
        ("from varshift.report._words import figure", []),
        ("from torch.nn.modules.batchnorm import _BatchNorm", []),
    ],
)
def test_private_names_of_other_rooms_are_seen_however_they_are_imported(line, private, tmp_path):
    path = tmp_path / "varshift" / "report" / "_file.py"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert list(foreign_private_names(path, tmp_path)) == private


def circles(names):
    """Groups of files that import one another in a circle, imports for type checkers included."""
    found = []
    edges = {name: {other for other in others if other != name} for name, others in names.items()}
    reach = {name: set(others) for name, others in edges.items()}
    for middle in edges:
        for start in edges:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    for name in edges:
        circle = sorted({other for other in reach[name] if name in reach.get(other, ())})
        if circle and circle not in found:
            found.append(circle)
    return found


def test_the_files_of_the_report_import_one_another_in_no_circle():
    modules = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in files()}
    room = {name: path for name, path in modules.items() if name.startswith("varshift.report._")}
    edges = {
        name: {other for other in imported_modules(path) if other in room} for name, path in room.items()
    }
    assert len(edges["varshift.report._report"]) >= 3
    assert circles(edges) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_core_imports_torch_and_numpy_only(path):
    if room(path) not in CORE:
        return
    allowed = {"torch", "numpy", "varshift", *sys.stdlib_module_names}
    optional = OPTIONAL.get(room(path), set())
    assert {name.split(".")[0] for name in imported_modules(path) if name} <= allowed | optional
    top = {name.split(".")[0] for name in imported_modules(path, nested=False)}
    assert not top & optional, f"{path.name} needs {top & optional} to be imported"


def test_rules_and_theory_import_without_torch():
    import subprocess

    code = (
        "import sys\n"
        "import varshift, varshift.rules, varshift.theory\n"
        "varshift.rules.all_rules()[0].page()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_and_trials_are_made_without_fabric():
    import subprocess

    code = (
        "import sys\n"
        "import varshift_lab.training\n"
        "heavy = {'lightning_fabric', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ABOVE_FLOW = [path for path in files() if RANKS.get(room(path), 0) > RANKS["flow"]]


@pytest.mark.parametrize("path", ABOVE_FLOW, ids=lambda path: str(path.relative_to(SOURCE)))
def test_operations_have_one_vocabulary(path):
    assert not re.search(r"\baten\b", path.read_text()), f"{path.name} spells torch's names of operations"
    private = [name for name in imported_modules(path) if name.startswith("varshift.flow._")]
    assert not private, f"{path.name} imports {private[0]}"
