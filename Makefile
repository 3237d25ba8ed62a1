# make coach: the whole loop on the built-in starter, on two CPU cores · make test: the tests
PYTHON ?= python3

coach: .venv/installed
	PYTHON=.venv/bin/python ./coach.sh

test: .venv/installed
	.venv/bin/python -m pytest -q tests

.venv/installed: requirements.txt
	[ -d .venv ] || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -r requirements.txt
	touch $@

.PHONY: coach test
