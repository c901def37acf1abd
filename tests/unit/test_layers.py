"""The package's layers: who may import whom (the table of CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pantomim

ROOT = Path(pantomim.__file__).parent

# Each part may import the parts named behind it, and itself. `engine` and `config` know more of methods than the
# engine's modules do: see test_the_engine_knows_no_method.
MAY_IMPORT: dict[str, set[str]] = {
    "frozen": set(),
    "files": set(),
    "nn": {"frozen", "masking"},
    "masking": {"frozen", "files"},
    "formats": {"frozen", "files", "nn"},
    "tokenizers": {"frozen", "nn", "formats"},
    "teachers": {"frozen", "nn", "tokenizers", "formats"},
    "targets": {"frozen", "nn", "tokenizers", "teachers"},
    "methods": {"frozen", "nn", "masking", "targets", "tokenizers", "teachers"},
    "data": {"frozen", "methods"},
    "optim": {"nn"},
    "config": {"frozen", "methods", "data"},
    "checkpoint": {"files", "nn", "formats"},
    "recipes": {"frozen", "nn", "masking", "teachers", "targets", "methods", "data", "config", "formats"},
    "engine": {"frozen", "files", "nn", "methods", "config", "optim", "checkpoint", "data", "formats"},
    "evaluate": {"frozen", "files", "nn", "data", "optim", "checkpoint", "formats", "config", "engine"},
    "analysis": {
        *(
            "frozen",
            "files",
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
    "report": {"files", "formats", "analysis"},
    "stages": {"frozen", "files", "nn", "teachers", "methods", "config", "checkpoint", "engine", "evaluate"},
    "study": {"frozen", "files", "config", "recipes", "engine", "evaluate", "analysis", "report"},
    "parity": {
        "frozen",
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
        "analysis",
    },
}
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
        if part not in TOP and target != part and target not in MAY_IMPORT[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_engine_knows_no_method() -> None:
    methods = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, part, target, name in imports()
        if part == "engine" and target == "methods" and not name.startswith("pantomim.methods.base")
    ]
    assert not methods, "\n".join(methods)
