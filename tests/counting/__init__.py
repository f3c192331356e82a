"""Builds the extensions that count allocations and instructions, once for each test session."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
name, source, folder = sys.argv[1:]
sys.argv = ["setup.py", "--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder]
setup(name=name, ext_modules=cythonize([Extension(name, [source])], build_dir=folder, language_level=3, quiet=True))
"""


def build(name: str, folder: Path) -> Path:
    """The file of the extension of tests/counting/`name`.pyx, built in `folder`."""
    source = Path(__file__).parent / f"{name}.pyx"
    subprocess.run([sys.executable, "-c", BUILD, name, str(source), str(folder)], check=True, cwd=source.parent)
    return next(folder.glob(f"{name}*.so"))


def load(name: str, file: Path) -> ModuleType:
    """The module in a file that `build` made."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_allocations(folder: Path) -> ModuleType:
    """The module `allocations`, built in `folder`."""
    return load("allocations", build("allocations", folder))
