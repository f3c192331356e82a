"""Builds the extension that counts allocations, once for each test session."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
source, folder = sys.argv[1:]
sys.argv = ["setup.py", "--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder]
setup(name="allocations", ext_modules=cythonize([Extension("allocations", [source])], build_dir=folder, language_level=3, quiet=True))
"""


def build_allocations(folder: Path) -> ModuleType:
    """The module `allocations`, built in `folder`."""
    source = Path(__file__).parent / "allocations.pyx"
    subprocess.run([sys.executable, "-c", BUILD, str(source), str(folder)], check=True, cwd=source.parent)
    found = next(folder.glob("allocations*.so"))
    spec = importlib.util.spec_from_file_location("allocations", found)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
