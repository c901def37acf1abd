"""The package's layers: who may import whom (the table of CONTRIBUTING.md)."""

import ast
import re
from pathlib import Path

import pantomim

ROOT = Path(pantomim.__file__).parent

# Each part may import the parts named behind it, and itself. `engine` and `config` know more of methods than the
# engine's modules do: see test_the_engine_knows_no_method.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "nn": {"core"},
    "masking": {"core"},
    "formats": {"core", "nn", "data"},
    "tokenizers": {"core", "nn", "formats"},
    "teachers": {"core", "nn", "tokenizers", "formats"},
    "targets": {"core", "nn", "tokenizers", "teachers"},
    "methods": {"core", "nn", "masking", "targets", "tokenizers", "teachers"},
    "data": {"core"},
    "optim": {"core", "nn"},
    "config": {"core", "methods", "data"},
    "checkpoint": {"core", "nn", "formats"},
    "recipes": {"core", "nn", "masking", "tokenizers", "teachers", "targets", "methods", "data", "config", "formats"},
    "engine": {"core", "nn", "methods", "config", "optim", "checkpoint", "data", "formats"},
    "evaluate": {"core", "nn", "methods", "data", "optim", "checkpoint", "formats", "config", "engine"},
    "analysis": {
        *(
            "core",
            "nn",
            "masking",
            "targets",
            "tokenizers",
            "teachers",
            "methods",
            "formats",
            "data",
            "config",
        ),
        "checkpoint",
        "evaluate",
    },
    "explain": {"data", "nn", "masking", "teachers", "targets", "config", "methods", "optim", "recipes"},
    "report": {"core", "masking", "config", "formats", "analysis"},
    "study": {
        "core",
        "nn",
        "teachers",
        "methods",
        "data",
        "formats",
        "config",
        "checkpoint",
        "recipes",
        "engine",
        "evaluate",
        "analysis",
        "report",
    },
    "parity": {
        "core",
        "nn",
        "masking",
        "targets",
        "teachers",
        "tokenizers",
        "methods",
        "formats",
        "data",
        "optim",
        "config",
        "recipes",
        "engine",
        "evaluate",
        "analysis",
    },
}
MAY_IMPORT["verbs"] = set(MAY_IMPORT) - {"parity"}  # only the command line lies above them
MAY_IMPORT["demo"] = {*MAY_IMPORT["verbs"], "verbs"}
TOP = {"cli", "__main__", "__init__"}


def imports() -> list[tuple[Path, str, str, str]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(path, part, name.split(".")[1], name) for name in names if name.startswith("pantomim.")]
    return found


def test_every_part_is_in_the_table() -> None:
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert parts - TOP == set(MAY_IMPORT)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, part, target, name in imports()
        if part not in TOP and target != part and target not in MAY_IMPORT[part] | {"core"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_knows_no_method() -> None:
    methods = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, part, target, name in imports()
        if part == "engine"
        and target == "methods"
        and not name.startswith(("pantomim.methods.base", "pantomim.methods.task"))
    ]
    assert not methods, "\n".join(methods)


def test_no_message_below_the_command_line_names_an_option() -> None:
    others = ("engine/folder.py", "report/charts.py")  # git's, and CSS
    copied = ("report/stages.py", "study/cells.py")  # whole command lines, which pages and messages give to copy
    wrong = [
        f"{path.relative_to(ROOT)}: {node.value}"
        for path in sorted(ROOT.rglob("*.py"))
        if "cli" not in path.relative_to(ROOT).parts and not str(path).endswith(others + copied)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(?<![\w-])--[a-zA-Z]", node.value)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_below_the_command_line_prints() -> None:
    calls = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.rglob("*.py"))
        if "cli" not in path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls
