# Two commands for a newcomer: `make demo` and `make test`; each makes the environment it needs. A second run needs no network.
PYTHON ?= python3
PY := .venv/bin/python
# .venv is remade when this line (of the interpreter behind PYTHON) or pyproject.toml changes.
PYTHON_ID := $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0], sys.base_prefix)')
ifneq ($(PYTHON_ID),$(shell cat .venv/made-with 2>/dev/null))
.PHONY: .venv/made-with
endif

.PHONY: env build demo check test test-long test-asan bench counts fuzz clean
env: .venv/made-with

.venv/made-with: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastmq needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > .venv/build-requires
	$(PY) -m pip install --quiet --disable-pip-version-check -r .venv/build-requires
	FASTMQ_EXT=none $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --config-settings editable_mode=compat -e '.[test,dev]'
	echo '$(PYTHON_ID)' > $@

build: env  # Cython and the compiler see themselves what changed; byte code, as pip makes it: a start need not compile, whatever may be written
	$(PY) setup.py --quiet build_ext --inplace
	$(PY) -m compileall -q fastmq

demo: build  # make demo INPUT='a file or a folder'
	$(PY) examples/wordcount.py $(if $(value INPUT),-- '$(subst ','\'',$(value INPUT))')

check: build
	.venv/bin/ruff check . && $(PY) -m mypy && PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint fastmq tests/asan
	$(PY) -m pytest -q tests/unit/test_imports.py

test: build check  # make test ARGS='-k name'
	$(PY) -m pytest $(ARGS)

test-long: build
	FASTMQ_LONG=1 $(PY) -m pytest --timeout=3600 $(ARGS)

test-asan: env
	$(PY) tests/asan/run.py $(ARGS)

bench: build  # make bench ARGS='queue pingpong', or '--list'
	$(PY) benchmarks/bench.py $(ARGS)

counts: build  # a new baseline of instructions a message; needs valgrind
	$(PY) tests/counting/instructions.py

fuzz: build
	FASTMQ_LONG=1 FASTMQ_EXAMPLES=50000 $(PY) -m pytest --timeout=0 -m fuzz $(ARGS)

clean:
	rm -rf build .venv fastmq.egg-info && find fastmq -name '*.so' -delete
