"""Instructions a message costs in each function of its path: `python tests/counting/instructions.py` writes them to baseline.json.

callgrind counts, so the numbers are the same on every run with the same Python, compiler and libraries. A function's count has in it
what it calls. Only Cython's own functions are counted (`cdef`, nearly all of them nogil), and of each step only those that make out
a hundredth of it. A batch of one message and one of 450 are told apart by what is done once a batch.
"""

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
BASELINE = FOLDER / "baseline.json"
BATCHES = (1, 450)
ROUNDS = 4
SHARE_MIN = 0.01        # of a step's instructions, below which a function is not listed
RAISE_MAX = 1.05        # more than this times the baseline is a failure,
SLACK = 3.0             # unless it is only so many instructions a message

Counts = dict[str, dict[str, float]]        # "450 client publish" -> function -> instructions a message, what it calls included

CALLER = re.compile(r"fn=\((\d+)\)(?: (.*))?")
CALLEE = re.compile(r"cfn=\((\d+)\)(?: (.*))?")
ANOTHER_FORM = re.compile(r"\.(constprop|isra|part|cold)\.?\d*|'\d+$")
TOTAL = "all"


def setting() -> dict[str, str]:
    """What the numbers depend on beside the code."""
    from importlib.metadata import version

    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc").split()
    try:
        told = subprocess.run([*compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    except OSError:
        told = "none"
    return {"python": platform.python_version(), "compiler": f"{compiler[0].rpartition('-')[2]} {told}", "cython": version("cython"),
            "libc": " ".join(platform.libc_ver()), "machine": platform.machine()}


def function_name(symbol: str) -> str | None:
    """`model.publish.publish_run` of __pyx_f_6fastmq_5model_7publish_publish_run; None when it is no function of ours."""
    symbol = ANOTHER_FORM.sub("", symbol)
    if not symbol.startswith("__pyx_f_6fastmq_"):
        return None
    rest, parts = symbol.removeprefix("__pyx_f_6fastmq_"), []
    while match := re.match(r"\d+", rest):
        end = match.end() + int(match[0])
        parts.append(rest[match.end():end])
        rest = rest[end + 1:]
    return ".".join([*parts, rest])


def read_calls(lines: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """(caller, callee, instructions) of each call in one file of callgrind."""
    names: dict[str, str] = {}
    caller = callee = ""
    is_call = False
    for line in lines:
        if match := CALLER.match(line) or CALLEE.match(line):
            if match[2] is not None:
                names[match[1]] = match[2].strip()
            if line.startswith("c"):
                callee = names[match[1]]
            else:
                caller = names[match[1]]
        elif line.startswith("calls="):
            is_call = True
        elif is_call:
            is_call = False
            yield caller, callee, int(line.split()[1])


def count(folder: Path, extension: Path, batch: int) -> Counts:
    """Run path.py under callgrind."""
    # libc has several memcpys, and which one it takes depends on the processor.
    plain = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSSE3,-Fast_Unaligned_Copy"
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "GLIBC_TUNABLES": plain}
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no", f"--callgrind-out-file={folder}/counts",
         sys.executable, str(FOLDER / "path.py"), str(extension), str(batch), str(ROUNDS)],
        env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"callgrind ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    sums: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in folder.glob("counts.*"):
        lines = path.read_text().splitlines()
        step = next((line.rpartition("Client Request: ")[2] for line in lines if line.startswith("desc: Trigger: Client Request: ")), None)
        for caller, callee, instructions in read_calls(lines) if step is not None else ():
            above, below = function_name(caller), function_name(callee)
            if below is None or above == below:
                continue
            sums[f"{batch} {step}"][below] += instructions
            if above is None:
                sums[f"{batch} {step}"][TOTAL] += instructions
        path.unlink()
    return {step: {name: round(n / ROUNDS / batch, 1) for name, n in sorted(found.items()) if n >= SHARE_MIN * found[TOTAL]}
            for step, found in sorted(sums.items())}


def count_all() -> Counts:
    sys.path.insert(0, str(FOLDER.parent))
    from counting import build

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "built").mkdir()
        extension = build("callgrind", folder / "built")
        return {step: found for batch in BATCHES for step, found in count(folder, extension, batch).items()}


def raised(before: Counts, now: Counts) -> list[str]:
    """What has become more than it may; and what the baseline names and is not called any more, so that the baseline stays true."""
    wrong = []
    for step, functions in before.items():
        for name, old in functions.items():
            new = now.get(step, {}).get(name)
            if new is None and old >= 2 * SHARE_MIN * functions[TOTAL]:
                wrong.append(f"{step}: {name} is not called, or hardly")
            elif new is not None and new > max(old * RAISE_MAX, old + SLACK):
                wrong.append(f"{step}: {name} {old:.0f} -> {new:.0f} instructions a message (+{(new / old - 1) * 100:.1f} %)")
    return wrong


def main() -> None:
    now = count_all()
    if BASELINE.exists():
        before = json.loads(BASELINE.read_text())["counts"]
        for step, found in now.items():
            print(f"{step:<28} {before.get(step, {}).get(TOTAL, 0):9.1f} -> {found[TOTAL]:9.1f}")
    BASELINE.write_text(json.dumps({"setting": setting(), "counts": now}, indent=1) + "\n")


if __name__ == "__main__":
    main()
