"""What a build says on a machine where it cannot work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_HEADERS = """#!/bin/sh
for argument; do
    shift
    case $argument in -I*) ;; *) set -- "$@" "$argument" ;; esac
done
exec cc "$@"
"""  # a compiler that finds the C library, but not Python.h


@pytest.mark.parametrize(
    ("compiler", "reason"), [(None, "No such file or directory"), (WITHOUT_HEADERS, "Python.h")], ids=["compiler", "headers"]
)
def test_build_names_the_packages_to_install_without(compiler: str | None, reason: str, tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_bytes((ROOT / "setup.py").read_bytes())
    (tmp_path / "fastmq").mkdir()
    (tmp_path / "fastmq" / "one.pyx").touch()
    cc = tmp_path / "cc"
    if compiler:
        cc.write_text(compiler)
        cc.chmod(0o700)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CC": str(cc)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "apt-get install gcc libc6-dev python3-dev" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "build").exists()  # said before Cython's work, which takes most of a minute
