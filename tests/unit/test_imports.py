"""The rules of the house that a program can check: imports go one way, functions and files stay short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastmq"

# Each part may import those in lines below its own, and itself; ALSO are the exceptions.
LAYERS = [
    {"__init__", "__main__", "testing"},
    {"cli", "web"},
    {"broker"},
    {"aio", "client", "server"},
    {"net", "storage", "model"},
    {"wire", "_core"},
    {"config"},
    {"errors"},
]
ALSO = {("aio", "client"), ("cli", "__init__"), ("web", "__init__"), ("__main__", "cli")}

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
# A hot loop that splitting would slow, or a table: the name and why.
EXCUSED: dict[str, str] = {
}

IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+(?:cimport|import)[ \t]+(\([^)]*\)|.*)|(?:cimport|import)[ \t]+(.*))$", re.M)
DUNDER = re.compile(r"\bfastmq\.(?!__)")
FUNCTION = re.compile(r"^([ \t]*)(?:async[ \t]+def|def|cdef|cpdef)\b(?![ \t]+class\b)[^=\n]*?(\w+)[ \t]*\(")


def sources(*suffixes, folders=("fastmq",)):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def part_of(path):
    name = path.relative_to(PACKAGE).parts[0].split(".")[0]
    return "_core" if name.startswith("_core_") else name


def absolute(module, path):
    """The full name of a module as written in `path`: `..wire` in fastmq/net/ring.pyx is fastmq.wire."""
    if not module.startswith("."):
        return module
    name = module.lstrip(".")
    package = path.relative_to(ROOT).parts[: -(len(module) - len(name))]
    return ".".join([*package, *([name] if name else [])])


def imported_parts(path, text):
    """The parts of fastmq that a source imports or cimports, wherever in the file it does."""
    found = set()
    for module, names, plain in IMPORT.findall(text):
        if module:
            full = absolute(module, path)
            listed = [name.split()[0] for name in names.split("#")[0].strip("() \n").replace("\n", " ").split(",") if name.strip()]
            modules = [f"{full}.{name}" for name in listed] if full == "fastmq" else [full]
        else:
            modules = [name.split()[0] for name in plain.split("#")[0].split(",") if name.strip()]
            if modules == ["fastmq"] and not DUNDER.search(text):
                continue                # for fastmq.__file__ and the like
        for name in modules:
            words = name.split(".")
            if words[0] == "fastmq":
                part = words[1] if len(words) > 1 else "__init__"
                is_part = (PACKAGE / part).is_dir() or any(PACKAGE.glob(f"{part}.*"))
                found.add(part if is_part else "__init__")
    return found


def layer_of(part):
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    raise AssertionError(f"fastmq.{part} stands in no layer: add it to LAYERS")


def forbidden(importer, imported):
    return importer != imported and layer_of(imported) <= layer_of(importer) and (importer, imported) not in ALSO


def long_functions(text):
    """(name, number of lines) of each function that is too long; comments and blank lines behind it do not count."""
    lines = text.split("\n")
    for first, line in enumerate(lines):
        match = FUNCTION.match(line)
        if not match:
            continue
        indent, last, depth = len(match[1]), first, line.count("(") - line.count(")")
        for number in range(first + 1, len(lines)):
            stripped = lines[number].strip()
            if not stripped or stripped.startswith("#"):
                continue
            if depth <= 0 and len(lines[number]) - len(lines[number].lstrip()) <= indent:
                break
            depth += lines[number].count("(") - lines[number].count(")")
            last = number
        if last - first + 1 > FUNCTION_LINES_MAX:
            yield match[2], last - first + 1


@pytest.mark.parametrize("path", sources(".py", ".pyx", ".pxd", ".pxi", ".pyi"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    importer = part_of(path)
    wrong = sorted(part for part in imported_parts(path, path.read_text()) if forbidden(importer, part))
    assert not wrong, f"{importer} must not import {', '.join(wrong)}"


@pytest.mark.parametrize(("path", "text", "parts"), [
    ("net/ring.pyx", "from fastmq.wire.records cimport (\n    Record,\n    Other)\nfrom libc.stdint cimport uint8_t\n", {"wire"}),
    ("net/ring.pyx", "    from ..server import worker\n", {"server"}),
    ("net/ring.pyx", "from . cimport libzmq\nfrom .libzmq cimport send\n", {"net"}),
    ("client/core.py", "import fastmq.server.worker as w, json  # why\n", {"server"}),
    ("client/core.py", "from fastmq import errors, Broker\n", {"errors", "__init__"}),
    ("client/core.py", "import fastmq\nfastmq.Broker()\n", {"__init__"}),
    ("client/core.py", "import fastmq\nprint(fastmq.__file__)\n", set()),
])
def test_imports_are_found_however_they_are_written(path, text, parts):
    assert imported_parts(PACKAGE / path, text) == parts


def test_client_importing_server_is_forbidden():
    assert forbidden("client", "server")
    assert forbidden("wire", "model")
    assert forbidden("model", "net")
    assert not forbidden("server", "net")
    assert not forbidden("broker", "server")


EVERYWHERE = sources(".py", ".pyx", ".pxd", ".pxi", folders=("fastmq", "tests", "benchmarks", "examples"))


def test_functions_and_files_stay_short():
    long = {}
    for path in EVERYWHERE:
        name, text = str(path.relative_to(ROOT)), path.read_text()
        if text.count("\n") > FILE_LINES_MAX:
            long[name] = text.count("\n")
        long.update({f"{name}:{function}": lines for function, lines in long_functions(text)})
    new = {name: lines for name, lines in long.items() if name not in EXCUSED}
    assert not new, f"too long (a noun is hiding in it, or it belongs into EXCUSED with its reason): {new}"
    assert set(EXCUSED) <= set(long), "no longer long, take it out of EXCUSED"


def test_long_function_is_found():
    body = "\n".join(["    x = 1"] * FUNCTION_LINES_MAX)
    assert list(long_functions(f"cdef inline int f(int a,\n    int b) noexcept nogil:\n{body}\n\ndef g():\n    pass\n")) == [
        ("f", FUNCTION_LINES_MAX + 2)]
