# make coach: the whole loop on the built-in starter, on two CPU cores · make test: the tests · make lint: ruff
PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE                         # or each stage compiles what it imports anew
LONGEST = loop readme parallel plan crash sandbox bad_input report rehearsal toolqa_hints made_up_world   # begin first

coach: .venv/installed
	PYTHON=.venv/bin/python ./coach.sh

test: .venv/installed
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(LONGEST:%=tests/test_%.py) tests

lint: .venv/installed
	.venv/bin/ruff check .

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; choose it with PYTHON=python3.12")'
	[ -d .venv ] || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --no-compile -r requirements.txt
	touch $@

.PHONY: coach test lint
