"""The architecture, as tests: what may import what, and what is promised to readers."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WINGS = ("mapping", "compiler")
SOURCES = sorted(p for wing in WINGS for p in (ROOT / wing).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_there_is_one_arrow_between_the_wings(path):
    wing = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        assert not name.startswith(("jax._src", "flax._src")), name
        if wing == "mapping":
            assert top != "compiler", name
        elif top == "mapping":
            assert name == "mapping.core", name


def test_only_one_package_looks_inside_a_jaxpr():
    inside = {p.parent for p in SOURCES if "jax.extend" in set(imports(p))}
    assert inside == {ROOT / "compiler" / "jaxprs"}


@pytest.mark.parametrize("module", WINGS)
def test_every_public_name_has_a_docstring_with_an_example(module):
    package = importlib.import_module(module)
    for name in dir(package):
        value = getattr(package, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        text = inspect.getdoc(value) or ""
        assert text, name
        assert ">>>" in text, f"{module}.{name} has no example"


def test_the_wings_have_type_information():
    assert (ROOT / "mapping" / "py.typed").exists()
    assert (ROOT / "compiler" / "py.typed").exists()


def test_importing_the_compiler_does_not_import_flax_or_optax():
    code = (
        "import sys, compiler; "
        "sys.exit(bool({'flax', 'optax', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ci_runs_the_commands_the_readme_shows():
    readme = (ROOT / "README.md").read_text()
    first_screen = "\n".join(readme.splitlines()[:30])
    commands = re.findall(r"^python -m pip install .*$", first_screen, re.MULTILINE)
    assert len(commands) == 2
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        own = command.split("&& ")[1]
        assert own in ci


def test_every_link_of_the_documents_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
