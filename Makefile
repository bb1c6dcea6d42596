# What a developer types. `make setup` is quick where everything is there already, so the others ask for it.

VENV = .venv/bin
# In this order: the images for the containers and what takes long first, the many small ones last.
HERE = tests/docker/test_images.py tests/integration tests/corpus tests/unit
IN_CONTAINERS = $(VENV)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 tests/docker

.PHONY: help setup demo test test-docker test-fast bench bench-write lint

help:
	@echo "make setup      Debian packages that are missing, and .venv with everything"
	@echo "make demo       two operators on loopback exchange an MMS (root)"
	@echo "make test       all tests; those with a private Postfix need root"
	@echo "make test-docker  the tests in containers: Debian 12 and 13, systemd, Ansible, the image (root)"
	@echo "make test-fast  unit tests and corpus, no Postfix"
	@echo "make bench      messages a second beside a Postfix without a milter, part by part (root)"
	@echo "make bench-write  the same into docs/performance.md"
	@echo "make lint       ruff and mypy"

setup:
	@.ci/setup tests

demo:
	@.ci/setup
	$(VENV)/mm4 demo

test: setup
	$(VENV)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --durations 15 $(HERE)
	$(IN_CONTAINERS)

test-docker: export MM4_DOCKER = 1
test-docker: setup
	$(IN_CONTAINERS)

test-fast: setup
	$(VENV)/python -m pytest -n 4 -m "not slow" tests/unit tests/corpus

bench: setup
	$(VENV)/python tests/bench/run.py

# The numbers of docs/performance.md, between its markers. On a machine that does nothing else.
bench-write: setup
	$(VENV)/python tests/bench/run.py --write

# Layout is by hand: `ruff format` would take tables and long reasons apart.
lint: setup
	$(VENV)/ruff check .
	$(VENV)/mypy
