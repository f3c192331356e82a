"""Builds the Cython extensions that only tests use."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]

BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
name, source, folder, root = sys.argv[1:]
sys.argv = ["setup.py", "--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder]
made = cythonize([Extension(name, [source], extra_compile_args=["-w"])], build_dir=folder, language_level=3, quiet=True, include_path=[root])
setup(name=name, ext_modules=made)
"""


def build(source: Path, folder: Path) -> Path:
    """The file of the extension of a .pyx, built in `folder`."""
    name = source.stem
    subprocess.run([sys.executable, "-c", BUILD, name, str(source), str(folder), str(ROOT)], check=True, cwd=source.parent)
    return next(folder.glob(f"{name}*.so"))


def load(name: str, file: Path) -> ModuleType:
    """The module in a file that `build` made."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
