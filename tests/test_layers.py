"""The layer rule of docs/design.md, section 3, read from the source of every module; nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("daemon", "patches", "policies", "state")
OURS = {*PACKAGES, "benchmarks", "tests"}
MAY_IMPORT = {"daemon": set(PACKAGES), "patches": {"patches"}, "policies": {"policies"}, "state": {"state"}}
TENSORS = {"torch", "transformers", "peft", "accelerate"}
OUTSIDE_WORLD = {
    "os",
    "io",
    "pathlib",
    "shutil",
    "tempfile",
    "subprocess",
    "socket",
    "sqlite3",
    "time",
    "random",
    "logging",
}
FORBIDDEN = {"state": TENSORS, "policies": TENSORS | OUTSIDE_WORLD | {"numpy", "structlog", "safetensors"}}
CLOCK = {"now", "utcnow", "today"}
SUPERVISOR = ("daemon.cli", "daemon.service", "daemon.__main__")

Modules = Mapping[str, str]
"""Source by dotted name; a package's own module is called "package.__init__"."""


def read_modules() -> dict[str, str]:
    return {
        f"{package}.{path.stem}": path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a tree imports; what comes from a module is named with it, as either may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = package if node.level == 1 and not origin else f"{package}.{origin}"
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("__import__", "import_module") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def wrong_imports(modules: Modules) -> list[str]:
    """Every import across a layer, as "module imports name"."""
    found = []
    for module, source in modules.items():
        package = module.split(".")[0]
        for name in imports(ast.parse(source), package):
            top = name.split(".")[0]
            if (top in OURS and top not in MAY_IMPORT[package]) or top in FORBIDDEN.get(package, set()):
                found.append(f"{module} imports {name}")
            if package == "state" and name.startswith("safetensors.torch"):
                found.append(f"{module} imports {name}")
    return sorted(set(found))


def impure_policies(modules: Modules) -> list[str]:
    """Calls in policies/ that read the clock or a file."""
    found = []
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)) if module.startswith("policies.") else ():
            if isinstance(node, ast.Call):
                func = node.func
                name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                is_open = isinstance(func, ast.Name) and name in ("open", "print", "input")
                if is_open or (isinstance(func, ast.Attribute) and name in CLOCK):
                    found.append(f"{module} calls {name}")
    return found


def package_modules_with_code(modules: Modules) -> list[str]:
    """`__init__` modules that are more than one docstring."""
    found = []
    for module, source in modules.items():
        if module.endswith(".__init__"):
            tree = ast.parse(source)
            if len(tree.body) != 1 or ast.get_docstring(tree) is None:
                found.append(module)
    return found


def loaded_at_start(modules: Modules, start: str) -> dict[str, str]:
    """Everything that importing ``start`` loads, each with the module that imports it first."""
    reached, left = {start: start}, [start]
    while left:
        module = left.pop()
        if module not in modules:
            continue
        for name in _module_level_imports(modules[module]):
            parent = name.rpartition(".")[0]
            target = name if name in modules or parent not in modules else parent
            if target not in reached:
                reached[target] = module
                left.append(target)
    return reached


def _module_level_imports(source: str) -> Iterator[str]:
    """Imports that run when the module is loaded, not those under `if TYPE_CHECKING` or in functions."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node, "")


def test_no_layer_imports_what_it_must_not() -> None:
    modules = read_modules()
    assert {name.split(".")[0] for name in modules} == set(PACKAGES)
    assert len(modules) > 40
    assert wrong_imports(modules) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("state.store", "from patches import merge"),
        ("state.store", "import patches.merge"),
        ("state.store", "from policies.gates import decide"),
        ("state.store", "import torch"),
        ("state.store", "from safetensors.torch import load_file"),
        ("state.store", "import daemon"),
        ("policies.gates", "from state.rows import Row"),
        ("policies.gates", "from pathlib import Path"),
        ("policies.gates", "def late():\n    import time"),
        ("policies.gates", "import importlib\nimportlib.import_module('torch')"),
        ("patches.merge", "from daemon.config import Config"),
        ("patches.merge", "if True:\n    from state import store"),
        ("daemon.round", "from benchmarks.world import world"),
        ("daemon.round", "from tests.tiny_model import save"),
    ],
)
def test_a_planted_wrong_import_is_found(module: str, line: str) -> None:
    assert [found.split(" ")[0] for found in wrong_imports({module: line})] == [module]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("daemon.round", "from patches.merge import merged\nimport state.store\nfrom policies import gates"),
        ("state.store", "from state import durable\nfrom . import lock\nimport os\nimport numpy as np"),
        ("patches.merge", "import torch\nfrom patches.mask import Mask"),
        ("policies.gates", "import math\nfrom datetime import datetime\nfrom policies.decision import Decision"),
        ("state.store", "import statement"),
    ],
)
def test_a_rightful_import_is_let_through(module: str, line: str) -> None:
    assert wrong_imports({module: line}) == []


def test_policies_read_neither_clock_nor_files() -> None:
    assert impure_policies(read_modules()) == []
    planted = {
        "policies.a": "from datetime import datetime\ndatetime.now()",
        "policies.b": "open('x')",
        "policies.c": "def now(): ...\nnow()",
    }
    assert impure_policies(planted) == ["policies.a calls now", "policies.b calls open"]


def test_package_modules_are_one_docstring_and_there_are_no_sub_packages() -> None:
    modules = read_modules()
    assert package_modules_with_code(modules) == []
    assert [name for name in modules if name.endswith(".__init__")] == [f"{package}.__init__" for package in PACKAGES]
    assert not [path for package in PACKAGES for path in (ROOT / package).glob("*/*.py")]
    planted = {"state.__init__": '"""State."""\nimport os', "daemon.__init__": "", "patches.__init__": '"""Fine."""'}
    assert package_modules_with_code(planted) == ["state.__init__", "daemon.__init__"]


@pytest.mark.parametrize("start", SUPERVISOR)
def test_the_supervisor_loads_no_torch(start: str) -> None:
    reached = loaded_at_start(read_modules(), start)
    assert f"{start.split('.')[0]}.exitcodes" in reached or start == "daemon.__main__"
    assert {name: by for name, by in reached.items() if name.split(".")[0] in TENSORS | {"patches"}} == {}


def test_the_command_line_loads_only_what_every_command_needs() -> None:
    """A rollback must be quick: what numbers, settings and long explanations need is imported where it is used."""
    reached = loaded_at_start(read_modules(), "daemon.cli")
    heavy = {"numpy", "msgspec", "structlog", "logging", "jinja2", "rich", "pyarrow", "policies", "patches"}
    assert {name: by for name, by in reached.items() if name.split(".")[0] in heavy} == {}
    assert not {"daemon.render_show", "daemon.render_version", "daemon.render_bisect", "daemon.config"} & reached.keys()


def test_torch_behind_two_imports_of_the_supervisor_is_found() -> None:
    planted = {
        "daemon.service": "from daemon import round",
        "daemon.round": "def late():\n    import peft\nfrom daemon.bench import Bench",
        "daemon.bench": "import torch.nn",
    }
    reached = loaded_at_start(planted, "daemon.service")
    assert reached["torch.nn"] == "daemon.bench"
    assert "peft" not in reached


@pytest.mark.parametrize("package", PACKAGES)
def test_the_four_names_are_ours(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py")
