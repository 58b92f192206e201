# The commands of the repository. `make` alone lists them.
SHELL := /bin/sh
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --no-sync
# Most tests wait, for a process or a clock: two at a time take little more than half as long.
WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo up down images test test-machine test-newest check format generate bench sync host

help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

host: ## Install what this machine lacks: uv, gVisor, image tools
	@sh deploy/install-host

sync: host
	@$(UV) sync --quiet --locked

demo: sync ## Start the whole stack and see one program run in gVisor, end to end
	@$(RUN) crucible demo

up: sync ## Start the stack and leave it running
	@$(RUN) crucible up

down: ## Stop the stack; nothing of it keeps running
	@$(RUN) crucible down

images: sync # the sandbox images; what is up to date is left alone
	@$(RUN) python -m crucible_executor.build_images --source deploy/runtimes --output /var/lib/crucible/images

test: images ## Run every test, on the real parts
	@$(RUN) pytest $(WORKERS) --durations=30

test-machine: images ## Run what depends on control groups in an emulated machine that has version 2 alone
	@$(RUN) python tests/machine

test-newest: images ## Run the sandbox tests on a recent gVisor, built from its sources
	@CRUCIBLE_TEST_RUNSC=$$(sh .ci/newest-gvisor) && export CRUCIBLE_TEST_RUNSC && \
		$(RUN) pytest $(WORKERS) $(addprefix tests/executor/test_,containment.py sandbox_port.py sandbox_posture.py sandbox_lifecycle.py sandbox_limits.py)

check: sync ## Lint, format, types, contracts, imports, generated code
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) buf lint
	$(RUN) buf format --diff --exit-code --path protos/crucible
	$(RUN) python protos/generate.py --check
	$(RUN) python gateway/generate_descriptions.py --check
	@$(RUN) python protos/breaking.py
	$(RUN) lint-imports --no-cache
	$(RUN) pyright

format: sync ## Format code and contracts
	$(RUN) ruff check --fix
	$(RUN) ruff format
	$(RUN) buf format --write --path protos/crucible

generate: sync ## Generate code and API descriptions from the contracts
	$(RUN) python protos/generate.py
	$(RUN) python gateway/generate_descriptions.py

bench: images ## Measure a run from submit to verdict, beside a bare cold runsc
	@$(RUN) python -m bench
