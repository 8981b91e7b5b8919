PYTHON ?= python3
STAMP := .venv/pairwright.stamp

# Without byte code on disk every worker process would compile torch and vLLM again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-selection bench-features bench-training bench-labels lock FORCE

help:  ## Print the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

demo: $(STAMP)  ## Run one lineage of rounds on this machine's CPU
	.venv/bin/pairwright run configs/demo.yaml

test: $(STAMP)  ## Run the tests
	.venv/bin/python -m pytest

lint: $(STAMP)  ## Check style, types and the layers of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: $(STAMP)  ## Measure generation against its bare engine
	.venv/bin/python tests/benchmarks/generation_ratio.py

bench-selection: $(STAMP)  ## Measure the selection core against its peers
	.venv/bin/python tests/benchmarks selection

bench-features: $(STAMP)  ## Measure gradients as features against their peers
	.venv/bin/python tests/benchmarks features

bench-training: $(STAMP)  ## Measure training against TRL, schedulers, and rounds that regenerate a share
	.venv/bin/python tests/benchmarks training

bench-labels: $(STAMP)  ## Measure whether asking a pair several times pays
	.venv/bin/python tests/benchmarks labels

lock:  ## Renew the pinned versions in cluster/manifests/cpu.lock
	$(PYTHON) cluster/manifests/install.py --lock

$(STAMP): FORCE
	@$(PYTHON) cluster/manifests/install.py
