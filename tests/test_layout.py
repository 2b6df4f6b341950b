"""The rules of the source tree, read off its syntax: who imports whom, docstrings, length."""

import ast
import tomllib
from pathlib import Path

import pytest

import varax

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("kernels", "transforms", "ppl", "models")  # each may import itself and those before it
UNSTABLE_JAX = ("jax._src", "jax.core", "jax.extend", "jax.interpreters")
UNSTABLE_JAX_HOME = ("transforms/_jax.py", "kernels/_jax.py")  # one for each layer that needs it
MAX_LINES = 400

IN_LAYERS = [file for layer in LAYERS for file in (ROOT / layer).rglob("*.py")]
LIBRARY = sorted(file.relative_to(ROOT).as_posix() for file in [*ROOT.glob("*.py"), *IN_LAYERS])
MODELS = [path for path in LIBRARY if path.startswith("models/")]


def within(name, prefix):
    return name == prefix or name.startswith(f"{prefix}.")


def imports(path, source):
    """Yield (line, full dotted name, is it relative, local name) of everything imported."""
    here = ["varax", *Path(path).parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield node.lineno, a.name, False, a.asname or a.name
        elif isinstance(node, ast.ImportFrom):
            base = here[: max(0, len(here) + 1 - node.level)] if node.level else []
            base = [*base, node.module] if node.module else base
            for a in node.names:
                yield node.lineno, ".".join([*base, a.name]), node.level > 0, a.asname or a.name


def names(path, source):
    """Yield (line, full dotted name) of every import and of every attribute of an imported name."""
    full = {local: name for _, name, _, local in imports(path, source)}

    def dotted(node):
        if isinstance(node, ast.Name):
            return full.get(node.id, node.id)
        owner = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return owner and f"{owner}.{node.attr}"

    yield from ((line, name) for line, name, _, _ in imports(path, source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (name := dotted(node)):
            yield node.lineno, name


def wrong_direction(path, source):
    """Imports that point to a later layer, out of the package, or are not written as they should.

    The library imports itself relatively. A model imports `varax` like any user, and relatively
    only its neighbours in models/.
    """
    layer = path.split("/")[0] if "/" in path else None
    allowed = LAYERS[: LAYERS.index(layer) + 1] if layer else ()
    for line, name, relative, _ in imports(path, source):
        if not relative and not within(name, "varax"):
            continue  # another library
        target = name.split(".")[1] if "." in name else None
        if layer == "models":
            right = relative == (target == "models") and within(name, "varax")
        else:
            right = relative and within(name, "varax") and (layer is None or target in allowed)
        if not right:
            yield f"{path}:{line} imports {name}"


def beyond_public(path, source, public):
    """What is used of varax other than its public names and the neighbours in models/."""
    allowed = [[], ["models"], *([name] for name in public)]
    for line, name in names(path, source):
        if within(name, "varax") and name.split(".")[1:2] not in allowed:
            yield f"{path}:{line} uses {name}"


def unstable_jax(path, source):
    """Names of JAX that are private or differ between the supported versions."""
    for line, name in names(path, source):
        if path not in UNSTABLE_JAX_HOME and any(within(name, prefix) for prefix in UNSTABLE_JAX):
            yield f"{path}:{line} uses {name}, which belongs in {' or '.join(UNSTABLE_JAX_HOME)}"


@pytest.mark.parametrize("path", LIBRARY)
def test_imports_point_one_way(path):
    assert not list(wrong_direction(path, (ROOT / path).read_text()))


@pytest.mark.parametrize("path", MODELS)
def test_models_use_the_public_names_only(path):
    assert not list(beyond_public(path, (ROOT / path).read_text(), varax.__all__))


@pytest.mark.parametrize("path", LIBRARY)
def test_unstable_jax_names_sit_in_one_file(path):
    assert not list(unstable_jax(path, (ROOT / path).read_text()))


@pytest.mark.parametrize("path", LIBRARY)
def test_files_are_documented_and_short(path):
    source = (ROOT / path).read_text()
    assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"
    assert len(source.splitlines()) <= MAX_LINES, f"{path} is over {MAX_LINES} lines"


def test_every_package_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {Path(path).parent for path in LIBRARY}
    assert set(declared["packages"]) == {".".join(["varax", *folder.parts]) for folder in folders}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


REFUSED = [
    (wrong_direction, "kernels/a.py", "from ..transforms import b"),
    (wrong_direction, "transforms/estimators/a.py", "from ...ppl.b import c"),
    (wrong_direction, "transforms/a.py", "from .. import ppl"),
    (wrong_direction, "ppl/a.py", "def f():\n    from ..models import b"),
    (wrong_direction, "ppl/a.py", "from ...elsewhere import b"),
    (wrong_direction, "ppl/a.py", "import varax as vx"),
    (wrong_direction, "ppl/a.py", "from varax.kernels import b"),
    (wrong_direction, "models/a.py", "from ..ppl import b"),
    (wrong_direction, "cli.py", "import varax.ppl"),
    (unstable_jax, "ppl/a.py", "from jax import core"),
    (unstable_jax, "ppl/a.py", "import jax._src.core as c"),
    (unstable_jax, "ppl/a.py", "import jax\njax.interpreters.batching.primitive_batchers"),
    (unstable_jax, "transforms/a.py", "from jax.extend.core import Primitive"),
]
ACCEPTED = [
    (wrong_direction, "transforms/estimators/a.py", "from ...kernels import b\nfrom ..c import d"),
    (wrong_direction, "models/a.py", "import varax as vx\nfrom varax import dist as d"),
    (wrong_direction, "models/a.py", "from ._b import c\nimport numpy as np"),
    (wrong_direction, "cli.py", "from .ppl import a\nfrom . import models"),
    (unstable_jax, UNSTABLE_JAX_HOME[0], "from jax.interpreters import batching"),
    (unstable_jax, "ppl/a.py", "import jax\njax.jit(jax.lax.scan)"),
]


@pytest.mark.parametrize(("check", "path", "source"), REFUSED)
def test_a_breach_is_found(check, path, source):
    assert list(check(path, source))


@pytest.mark.parametrize(("check", "path", "source"), ACCEPTED)
def test_what_is_right_is_accepted(check, path, source):
    assert not list(check(path, source))


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import varax as vx\nvx.sample", 0),
        ("import varax as vx\nvx.ppl.model.Model", 3),
        ("from varax import sample, _secret", 1),
        ("from varax.transforms.site import Site", 1),
    ],
)
def test_a_model_beyond_the_public_names_is_found(source, count):
    assert len(list(beyond_public("models/a.py", source, ["sample"]))) == count
