"""The layers of the library, read from its imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"types"},
    {"tree", "leaves", "retention", "storage", "backend"},
    {"losses", "scopes", "parallel", "models", "data", "envs", "official"},
    {"embeddings", "layouts"},
    {"transforms", "inner"},
    {"learners"},
    {"recipes", "objectives"},
    {"outer", "evaluation", "analysis", "checkpoint", "interop"},
    {"rl"},
    {"problems"},
]
# May import from themselves, without cycles.
FOLDERS = ("data", "models", "envs", "rl", "problems")
FILES = sorted((ROOT / "l2f_jax").rglob("*.py"))
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in FILES}
INSIDE = [m for m in MODULES if m != "l2f_jax.__init__"]


def imports(name):
    """Yield the dotted name of everything that a module imports, at any depth."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            # What is imported may be a module itself: `from l2f_jax import backend`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(name):
    """`l2f_jax.data.bank.ImageBank` -> `data`."""
    return name.split(".")[1]


def layer(name):
    return next(i for i, parts in enumerate(LAYERS) if part(name) in parts)


def module(name):
    """Return the module of an imported name, which may be that of a thing in it."""
    known = [m.removesuffix(".__init__") for m in MODULES]
    return name if name in known else name.rpartition(".")[0]


def own(name):
    return [module(i) for i in imports(name) if i.startswith("l2f_jax.")]


@pytest.mark.parametrize("name", INSIDE)
def test_imports_are_from_lower_layers(name):
    for imported in own(name):
        inside = part(name) == part(imported) and part(name) in FOLDERS
        assert inside or layer(imported) < layer(name), imported


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_has_no_cycle(folder):
    graph = {
        m.removesuffix(".__init__"): {i for i in own(m) if part(i) == folder}
        for m in INSIDE
        if part(m) == folder
    }
    while graph:
        free = [m for m, needed in graph.items() if not needed & graph.keys()]
        assert free, f"a cycle among {sorted(graph)}"
        graph = {m: needed for m, needed in graph.items() if m not in free}


@pytest.mark.parametrize("name", MODULES)
def test_library_imports_nothing_above_it(name):
    roots = {imported.split(".")[0] for imported in imports(name)}
    assert not roots & {"experiments", "configs", "tests"}


@pytest.mark.parametrize("name", MODULES)
def test_library_neither_logs_nor_prints_nor_parses_flags(name):
    roots = {imported.split(".")[0] for imported in imports(name)}
    assert not roots & {"absl", "argparse", "logging", "ml_collections"}
    nodes = ast.walk(ast.parse(MODULES[name].read_text()))
    assert "print" not in {node.id for node in nodes if isinstance(node, ast.Name)}
