"""Builds the native kernels with the package; everything else is in pyproject.toml.

The library is plain (loaded with ctypes), so one wheel serves every Python of a platform. Without
a compiler the package is built all the same, without it.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def builder():
    """`kernels/native/build.py`, without importing varax."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "kernels/native/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Builds the library in the place of an extension module."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_name(builder().LIBRARY.name))

    def build_extension(self, ext):
        build = builder()
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            build.build(out)
        except build.BuildError as error:
            print(
                f"varax: the native kernels were not built, XLA will be used: {error}",
                file=sys.stderr,
            )

    def copy_extensions_to_source(self):
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            if built.exists():
                self.copy_file(str(built), str(ROOT / "kernels/native" / built.name))

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).exists()]


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and any Python."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class WithoutSetup(build_py):
    """The root is the package, but this file is no module of it."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[:2] != ("varax", "setup")]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("varax.kernels.native.libvarax", sources=[])],
        cmdclass={
            "build_ext": BuildNative,
            "build_py": WithoutSetup,
            "bdist_wheel": PlatformWheel,
        },
    )
