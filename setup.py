"""The Cython extensions and their build switches; everything else is in pyproject.toml.

Every fastmq/**/*.pyx is one extension. The switches are environment variables:

    FASTMQ_DEBUG=1   bounds checks, assertions and -O1 instead of -O3
    FASTMQ_ASAN=1    assertions and -fsanitize=address,undefined
    FASTMQ_EXT=a,b   for developers: build only these modules, for example fastmq._core (`none`: no module)

A debug or ASan build never goes in place, where it would be taken for the ordinary one. It goes to a folder of its own:
`FASTMQ_DEBUG=1 python setup.py build --build-base build/debug --build-lib build/debug/lib`, then PYTHONPATH=build/debug/lib.
"""

import os
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("FASTMQ_DEBUG", "0") not in ("", "0")
ASAN = os.environ.get("FASTMQ_ASAN", "0") not in ("", "0")
ONLY = [name for name in os.environ.get("FASTMQ_EXT", "").split(",") if name]
VARIANT = "-".join(["cython"] + ["debug"] * DEBUG + ["asan"] * ASAN)

DIRECTIVES = {
    "language_level": "3",
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
}
COMPILE = ["-std=gnu11", "-Wall", "-fvisibility=hidden"]
COMPILE += ["-Wno-unused-function", "-Wno-unused-but-set-variable", "-Wno-sign-compare"]  # what Cython's own code has
MACROS: list[tuple[str, str | None]] = []
LINK: list[str] = []
if DEBUG or ASAN:
    COMPILE += ["-O1", "-g", "-fno-omit-frame-pointer", "-UNDEBUG"]
    MACROS += [("FASTMQ_DEBUG", "1")]
else:
    COMPILE += ["-O3", "-g0", "-fno-strict-aliasing"]
    MACROS += [("CYTHON_WITHOUT_ASSERTIONS", "1")]
if ASAN:
    COMPILE += ["-fsanitize=address,undefined"]
    LINK += ["-fsanitize=address,undefined"]

MISSING = """
fastmq is built from source and needs a C compiler and the headers of C and Python, which were not found:
    {reason}
On Debian and Ubuntu:   apt-get install gcc libc6-dev python3-dev
On Fedora:              dnf install gcc glibc-devel python3-devel
"""


def extensions() -> list[Extension]:
    found = []
    for path in sorted(Path("fastmq").rglob("*.pyx")):
        module = ".".join(path.with_suffix("").parts)
        if not ONLY or module in ONLY:
            found.append(Extension(module, [str(path)], extra_compile_args=COMPILE, extra_link_args=LINK,
                                   define_macros=MACROS))
    return found


def require_compiler() -> None:
    """End with the names of the packages to install unless a file that includes Python.h compiles."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc").split()
    command = [*compiler, "-fsyntax-only", "-I" + sysconfig.get_path("include"),
               "-I" + sysconfig.get_path("platinclude"), "-xc", "-"]
    try:
        tried = subprocess.run(command, input="#include <stdio.h>\n#include <Python.h>\n", text=True, capture_output=True)
    except OSError as error:
        raise SystemExit(MISSING.format(reason=f"{compiler[0]}: {error.strerror}")) from None
    if tried.returncode != 0:
        raise SystemExit(MISSING.format(reason=next(iter(tried.stderr.splitlines()), command[0])))


class BuildExtensions(build_ext):
    """Cython only when an extension is really built, and only what changed (its .pxd files count)."""

    def finalize_options(self) -> None:
        if self.distribution.ext_modules and not getattr(self.distribution, "cythonized", False):
            require_compiler()  # first: Cython takes most of a minute
            from Cython.Build import cythonize

            self.distribution.cythonized = True
            self.distribution.ext_modules = cythonize(
                self.distribution.ext_modules, build_dir=f"build/{VARIANT}", compiler_directives=DIRECTIVES, nthreads=2)
        super().finalize_options()
        self.parallel = self.parallel or 2

    def run(self) -> None:
        if self.extensions and self.inplace and (DEBUG or ASAN):
            raise SystemExit("A debug or ASan build does not go in place: see the head of setup.py.")
        super().run()


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
