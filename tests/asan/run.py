"""`make test-asan`: the unit tests on an ASan + UBSan build of every extension, in build/asan, beside the ordinary build.

First a deliberate overflow (overflow.pyx) must be reported: a check that cannot fail shows nothing. Arguments go to pytest.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "asan"


def library(name: str) -> str:
    """The path of a sanitizer's runtime library, asked of the compiler."""
    path = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(path):
        sys.exit(f"gcc has no {name}: apt-get install libgcc-12-dev (it comes with gcc)")
    return os.path.realpath(path)


def sanitized_environment() -> dict[str, str]:
    return os.environ | {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": f"{BUILD / 'lib'}{os.pathsep}{BUILD}",
        "FASTMQ_ASAN": "1",
    }


def build() -> None:
    """The package with its extensions into build/asan/lib, and overflow.pyx into build/asan."""
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(BUILD), "--build-lib", str(BUILD / "lib")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"FASTMQ_ASAN": "1"}, check=True)
    source = BUILD / "overflow.c"
    subprocess.run([sys.executable, "-m", "cython", "-3", "tests/asan/overflow.pyx", "-o", str(source)], cwd=ROOT, check=True)
    target = BUILD / f"overflow{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-g", "-fsanitize=address,undefined",
                    f"-I{sysconfig.get_path('include')}", str(source), "-o", str(target)], check=True)


def must_report(environment: dict[str, str], code: str, report: str) -> None:
    """Run a line of Python that must die with the sanitizer's report."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode == 0 or report not in done.stderr:
        sys.exit(f"the sanitizers did not report `{code}`: status {done.returncode}\n{done.stderr}")
    print(f"reported, as it must be: {report} in `{code}`", flush=True)


def main() -> int:
    build()
    environment = sanitized_environment()
    subprocess.run([sys.executable, "-c", "import overflow; assert overflow.write(8, 7) == 7"], env=environment, check=True)
    must_report(environment, "import overflow; overflow.write(8, 8)", "heap-buffer-overflow")
    must_report(environment, "import overflow; overflow.shift(40)", "shift exponent 40 is too large")
    where = "import fastmq, sys; print(fastmq.__file__)"
    used = subprocess.run([sys.executable, "-P", "-c", where], env=environment, capture_output=True, text=True, check=True)
    if not used.stdout.startswith(str(BUILD)):
        sys.exit(f"the tests would run on {used.stdout.strip()}, not on the sanitized build")
    arguments = sys.argv[1:] or ["tests/unit"]
    return subprocess.run([sys.executable, "-P", "-m", "pytest", "-q", "--capture=sys", "--timeout=1200", *arguments], cwd=ROOT,
                          env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
