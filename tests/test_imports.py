"""The import rule of docs/architecture.md: imports point down, without cycles; no name hides an imported one of ours.

All imports count, also those inside functions.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [                                                 # top to bottom
    ["collect", "review", "distill", "evaluate", "starter", "examples", "docs"],   # run by a user, imported by no other
    ["desk", "planning"],
    ["agent", "scaling", "training", "tools"],
    ["lora"],
    ["model"],
    ["engine"],
    ["formats"],
    ["common"],
]
ROW_OF = {part: row for row, parts in enumerate(ROWS) for part in parts}
NOT_OURS = {"tests", "runs", "data"}
TOOLS_MAY_IMPORT = {"tools", "formats", "common"}        # the agent's world knows no agent and no model


def part(module: str) -> str:
    return module.split(".")[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in NOT_OURS]
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in folder.glob("**/*.py"))])
TREES = {module_name(path): ast.parse(path.read_text(), path) for path in FILES}


def imports(tree: ast.AST) -> list[tuple[str, str, int]]:
    """(module of ours, the name it or its function has in this file, line) of each import in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((alias.name, alias.asname or part(alias.name), node.lineno))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import with the folder's name, not with a dot"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                module = submodule if submodule in TREES else node.module
                found.append((module, alias.asname or alias.name, node.lineno))
    return [(module, name, line) for module, name, line in found if part(module) in ROW_OF]


IMPORTS = {module: imports(tree) for module, tree in TREES.items()}


def new_names(tree: ast.AST) -> list[tuple[str, int]]:
    """(name, line) of every parameter, variable and inner function; the members of a class hide nothing."""
    members = {id(node) for scope in ast.walk(tree) if isinstance(scope, ast.ClassDef)
               for statement in scope.body
               for node in ([statement] if isinstance(statement, ast.FunctionDef) else
                            ast.walk(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else [])}
    found = []
    for node in ast.walk(tree):
        if id(node) in members:
            continue
        if isinstance(node, ast.arg):
            found.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.id, node.lineno))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            found.append((node.name, node.lineno))
    return found


def test_every_file_has_a_row():
    unknown = sorted({part(module) for module in TREES} - set(ROW_OF))
    assert not unknown, f"give these a row in tests/test_imports.py and docs/architecture.md: {', '.join(unknown)}"


def test_imports_point_down():
    wrong = []
    for importer, found in IMPORTS.items():
        for imported, _, line in found:
            above, below = part(importer), part(imported)
            if above == below:
                continue
            if ROW_OF[below] < ROW_OF[above]:
                wrong.append(f"{importer}, line {line}: imports {imported}, which is higher")
            elif ROW_OF[below] == 0:
                wrong.append(f"{importer}, line {line}: imports {imported}; what both use belongs into a lower folder")
            elif above == "tools" and below not in TOOLS_MAY_IMPORT:
                wrong.append(f"{importer}, line {line}: imports {imported}; tools/ imports only formats and common")
    assert not wrong, "\n".join(["imports point down (docs/architecture.md):", *wrong])


@pytest.mark.parametrize("unit", ["files", "folders"])
def test_there_is_no_cycle(unit):
    graph = {}
    for importer, found in IMPORTS.items():
        for imported, _, _ in found:
            source, target = (importer, imported) if unit == "files" else (part(importer), part(imported))
            if unit == "files" or source != target:
                graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"a cycle of imports: {' <- '.join(e.args[1])}")


def test_no_name_hides_an_imported_one_of_ours():
    wrong = []
    for module, tree in TREES.items():
        ours = {name for _, name, _ in IMPORTS[module]}
        wrong += [f"{module}, line {line}: `{name}` hides the import of that name"
                  for name, line in new_names(tree) if name in ours]
    assert not wrong, "\n".join(["rename these parameters and variables:", *wrong])
