"""Who imports whom, and what must never be imported: the arrows of the design."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from llmcli import errors

PACKAGE = Path(__file__).resolve().parents[1] / "llmcli"
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Which modules of ours each may import, longest match first; "" is the package's version alone.
MAY_IMPORT = {
    "cli": {"", "commands", "errors"},
    "__main__": {"cli"},
    "commands": {
        "", "commands", "render", "hub", "tokenizer", "streaming", "config", "checkpoint", "errors",
        "gpt", "inspection", "tokenizing", "tokenizer_file", "budget", "trace", "trace_lines",
        "strict_json", "units", "parameters",
    },
    "budget": {"config", "errors", "units"},
    "render": {"render", "shell", "units"},
    "streaming": {"tokenizer"},
    "inspection": {
        "inspection", "gpt", "config", "checkpoint", "trace", "trace_lines", "errors", "shell",
        "units", "parameters",
    },
    "trace": {"trace_lines", "errors"},
    "trace_lines": {"strict_json"},
    "gpt": {"gpt", "config", "checkpoint", "errors"},
    "gpt.tap": {"errors"},
    "gpt.cache": {"config"},
    "gpt.sampling": {"config"},
    "gpt.facts": {"gpt.sampling"},
    "gpt.rounding": {"errors"},
    "gpt.kernels": set(),
    "gpt.linear": {"gpt.kernels", "gpt.rounding"},
    "gpt.packing": {"gpt.kernels", "gpt.linear", "gpt.rounding"},
    "gpt.activation": set(),
    "gpt.model": {"gpt.activation", "gpt.kernels", "gpt.linear", "gpt.tap", "gpt.cache", "config"},
    "gpt.weights": {
        "gpt.model", "gpt.packing", "config", "checkpoint", "errors", "parameters",
    },
    "gpt.place": {"config", "errors"},
    "gpt.script": {"gpt.model", "gpt.cache"},
    "gpt.gpu": {"gpt.model", "gpt.cache", "config"},
    "gpt.step": {"gpt.model", "gpt.cache", "gpt.script", "gpt.gpu"},
    "gpt.generation": {
        "gpt.model", "gpt.cache", "gpt.facts", "gpt.packing", "gpt.sampling", "gpt.step",
        "gpt.tap", "config", "errors",
    },
    "hub": {"", "hub", "errors", "checkpoint", "config", "units"},
    "tokenizer": {"tokenizer_file", "errors"},
    "tokenizing": {"tokenizing", "tokenizer", "tokenizer_file", "errors"},
    "tokenizer_file": {"errors"},
    "config": {"errors"},
    "checkpoint": {"errors"},
    "parameters": {"config", "checkpoint", "errors"},
    "errors": set(),
    "shell": set(),
    "strict_json": set(),
    "units": set(),
    "": set(),
}  # fmt: skip
ONLY_IMPORTER = {
    "torch": ("gpt", "inspection"),
    "rich": ("render",),
    "tiktoken": ("tokenizer",),
    "huggingface_hub": ("hub",),
    "safetensors": ("gpt", "inspection"),
    "click": (),
}


def imports(path: Path, top_only: bool = False) -> list[str]:
    """The dotted names that a file imports; `if TYPE_CHECKING` blocks import nothing."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            inside = {alias.name for alias in node.names if f"{module}.{alias.name}" in OURS}
            found += [f"{module}.{name}" for name in sorted(inside)]
            if len(inside) < len(node.names):
                found.append(module)
    return found


OURS = {f"llmcli.{name}".removesuffix(".__init__") for name in SOURCES}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("name", SOURCES)
def test_each_module_imports_only_what_the_design_allows(name):
    rule = max((r for r in MAY_IMPORT if r and within(name, r)), key=len, default="")
    allowed = MAY_IMPORT[rule]
    for imported in imports(SOURCES[name]):
        if imported == "llmcli" or imported.startswith("llmcli."):
            target = imported.removeprefix("llmcli").removeprefix(".")
            ok = any(within(target, a) if a else target == "" for a in allowed)
            assert ok, f"{name} imports {imported}"
        root = imported.split(".")[0]
        if root in ONLY_IMPORTER:
            assert any(within(name, p) for p in ONLY_IMPORTER[root]), f"{name} imports {imported}"


@pytest.mark.parametrize("name", [n for n in SOURCES if n.startswith("commands.")])
def test_commands_import_nothing_heavy_at_the_top(name):
    heavy = ("torch", "rich", "tiktoken", "numpy", "llmcli.gpt", "llmcli.inspection")
    for imported in imports(SOURCES[name], top_only=True):
        assert not any(within(imported, h) for h in heavy), imported


@pytest.mark.parametrize("name", ["ask", "catalogue", "grammar", "plan", "values"])
def test_what_is_asked_of_a_view_is_known_without_torch(name):
    reached, new = set(), {f"llmcli.inspection.{name}"}
    while new:
        reached |= new
        ours = [SOURCES[each.removeprefix("llmcli.")] for each in new if each in OURS]
        new = {found for path in ours for found in imports(path, top_only=True)} - reached
    assert "torch" not in reached


@pytest.mark.parametrize("name", ["gpt.__init__", "inspection.run"])
def test_numpy_is_imported_before_torch(name):
    """By the modules that come first. Torch's C code swallows a Ctrl-C while it imports numpy."""
    outside = [each for each in imports(SOURCES[name], top_only=True) if each in ("numpy", "torch")]
    assert outside[0] == "numpy"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["generate", "--help"], ["tokenize", "Once upon a time"]],
    ids=" ".join,
)
def test_light_commands_never_import_torch(arguments):
    code = (
        "import sys\nfrom llmcli.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "huggingface_hub"} & set(run.stderr.split())


def test_every_error_that_a_command_raises_has_a_remedy():
    """The fact alone leaves the reader where they are."""
    bare = [
        f"{path.name}:{call.lineno}"
        for path in (PACKAGE / "commands").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        and call.func.id in vars(errors) and call.func.id.endswith("Error")
        and len(call.args) + len(call.keywords) < 2
    ]  # fmt: skip
    assert not bare
