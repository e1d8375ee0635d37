"""The direction of imports, and what no file may use, read from the sources without importing them."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

from ldm.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "ldm").rglob("*.py"))
SOURCES = [*PACKAGE, *sorted(ROOT.glob("train_*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]

# A package imports only those to its left, lazily or not; utils and diffusion import no other.
ORDER = "utils diffusion config formats data models pipelines training evaluation hub apps cli".split()
APART = {("diffusion", "utils"), ("hub", "evaluation")}
OLD_NAMES = {"font.py", "outlines.py", "sheet.py", "verbs.py"}  # documented in version 0.1: they only import
MOVED = {"data/decoding.py", "data/image_files/folder.py", "data/image_files/records.py"}  # likewise, up to 0.2
PICKLES = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """ldm/data/toy.py -> ldm.data.toy, ldm/data/__init__.py -> ldm.data."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """The second part of a module of ours: ldm.data.toy -> data; ldm itself -> ''."""
    return (module.split(".") + [""])[1]


MODULES = {name_of(path): path for path in PACKAGE}


def is_aside(node: ast.AST) -> bool:
    """Blocks that importing a module does not run: for type checkers, or for running it as a program."""
    return isinstance(node, ast.If) and any(word in ast.dump(node.test) for word in ("TYPE_CHECKING", "__main__"))


def imports(node: ast.AST, top_only: bool = False):
    """Full names of everything imported below `node`, asides left out."""
    for child in ast.iter_child_nodes(node):
        if is_aside(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import of {child.module}"
            full = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in MODULES else str(child.module) for name in full)
        elif not (top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(child, top_only)


def packages_used(path: Path) -> set[str]:
    """Packages of ldm that a file imports anywhere, for type checkers too; its own and the root left out."""
    nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
    used = {
        package_of(name) for node in nodes for name in imports(ast.Module([node], [])) if name.split(".")[0] == "ldm"
    }
    return used - {package_of(name_of(path)), ""}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def in_package(package: str) -> list[Path]:
    return [path for path in PACKAGE if package_of(name_of(path)) == package]


def against_the_order(path: Path) -> set[str]:
    """The packages that a file of ldm imports and may not."""
    own = package_of(name_of(path))
    left = (
        set(ORDER[: ORDER.index(own)]) - {other for first, other in APART if first == own}
        if own in ORDER
        else set(ORDER)
    )
    return packages_used(path) - left


def test_every_package_has_its_place_in_the_order():
    assert {path.parent.name for path in (ROOT / "ldm").glob("*/__init__.py")} == set(ORDER)
    assert {path.name for path in (ROOT / "ldm").glob("*.py")} == {"__init__.py", "__main__.py", "train.py", *OLD_NAMES}


def test_a_package_imports_only_those_to_its_left():
    assert not {(str(path.relative_to(ROOT)), package) for path in PACKAGE for package in against_the_order(path)}


def test_old_names_only_import():
    for name in OLD_NAMES | MOVED:
        body = tree(ROOT / "ldm" / name).body
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body)


def test_only_the_entry_points_import_the_command_line():
    outside = [path for path in SOURCES if package_of(name_of(path)) != "cli" and "cli" in packages_used(path)]
    assert {path.name for path in outside if path.is_relative_to(ROOT / "ldm")} == {"__main__.py", "train.py"}


def test_diffusion_needs_torch_and_numpy_alone():
    for path in in_package("diffusion"):
        others = {name for name in imports(tree(path)) if not name.startswith("ldm.diffusion")}
        assert {name.split(".")[0] for name in others} - set(sys.stdlib_module_names) <= {"torch", "numpy", "jaxtyping"}
        assert set(imports(tree(path))) == set(imports(tree(path), top_only=True)), f"{path} imports in a function"


def test_data_never_imports_torch():
    heavy = {"torch", "diffusers", "transformers", "accelerate", "torchvision"}
    for path in [*in_package("formats"), *in_package("data")]:
        used = {name.split(".")[0] for name in imports(tree(path))}
        assert not used & heavy, f"{path} imports {used & heavy}"


def test_open_clip_stays_behind_its_door():
    behind = {"open_clip", "torchvision", "timm"}
    for path in SOURCES:
        used = {name.split(".")[0] for name in imports(tree(path))} & behind
        assert not used or name_of(path) == "ldm.models.open_clip", f"{path} imports {used}"


def test_the_web_framework_stays_behind_its_door():
    for path in SOURCES:
        used = {name.split(".")[0] for name in imports(tree(path))} & {"gradio", "starlette", "fastapi"}
        door = name_of(path) == "ldm.apps.demo.ui" or name_of(path).startswith("ldm.apps.demo.page.")
        assert not used or door, f"{path} imports {used}"


def in_circles(edges: dict[str, set[str]]) -> set[str]:
    """The nodes of a directed graph that can reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [*edges[start]]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += edges[here]
        return seen

    return {node for node in edges if node in reached(node)}


def test_imports_form_no_circle():
    """Those inside functions and for type checkers counted too."""
    edges = {}
    for module, path in MODULES.items():
        nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        used = {name for node in nodes for name in imports(ast.Module([node], []))}
        edges[module] = {name for name in used if name in MODULES} - {module, "ldm"}
    assert not in_circles(edges)


def subcommand_modules(registry=None):
    for place, _ in (cli.COMMANDS if registry is None else registry).values():
        yield from subcommand_modules(place) if isinstance(place, dict) else [place]


@pytest.mark.parametrize("module", sorted(set(subcommand_modules())))
def test_a_subcommand_can_print_its_help_without_loading_anything_heavy(module):
    """At module level it, and what it imports of ours there, may need the standard library and light ones only."""
    seen, todo = set(), [module]
    while todo:
        here = todo.pop()
        seen.add(here)
        parents = [".".join(here.split(".")[:n]) for n in range(1, here.count(".") + 1)]
        found = set(imports(tree(MODULES[here]), top_only=True))
        outside = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"ldm", "pydantic", "numpy"}
        assert not outside, f"{here} imports {outside} at module level"
        todo += [name for name in [*found, *parents] if name in MODULES and name not in seen]


FORBIDDEN_CALLS = {
    *("torch.load", "torch.save", "eval", "exec", "compile", "__import__"),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load")),
    *(f"os.{name}" for name in ("system", "popen", "execv", "execvp", "spawnl", "spawnv")),
}
FORBIDDEN_WORDS = {"allow_pickle": True, "trust_remote_code": True, "shell": True, "weights_only": False}
WEIGHTLESS = ("Tokenizer", "tokenizer", "Processor")  # what is loaded without weights


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_reads_or_writes_pickles_or_runs_what_it_reads(path):
    used = {name.split(".")[0] for name in imports(tree(path))}
    assert not used & PICKLES
    assert not faults_of(tree(path))


def faults_of(source: ast.Module) -> list[str]:
    """Calls that would run code from a file: by their name, or by a word that asks for it."""
    found = []
    for node in (node for node in ast.walk(source) if isinstance(node, ast.Call)):
        name, words = dotted(node.func), {word.arg: word.value for word in node.keywords}
        if name in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: {name}")
        for word, value in words.items():
            safe = isinstance(value, ast.Constant) and value.value is not FORBIDDEN_WORDS.get(word)
            if word in FORBIDDEN_WORDS and not safe:
                found.append(f"{node.lineno}: {word}")
        # other formats of weights are pickles; the pipeline passes this word with others
        wants = isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained" and None not in words
        if wants and not name.rpartition(".")[0].endswith(WEIGHTLESS) and "use_safetensors" not in words:
            found.append(f"{node.lineno}: from_pretrained without use_safetensors")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "numpy.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=wanted)",
        "AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=True)",
        "AutoModel.from_pretrained(name)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_the_lint_sees_what_it_forbids(line):
    assert len(faults_of(ast.parse(line))) == 1


def test_no_file_holds_the_scaling_factor_of_another_model():
    for path in SOURCES:
        constants = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)]
        assert 0.18215 not in constants, path
