# One command each: `make serve` sets everything up and serves, `make test` sets everything up and
# tests. Nothing here needs root; what does is `make test-system`, prepared by .ci/run.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
# Tests run in so many processes; a server's memory and a core each is what one takes.
TEST_PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY_STAMP := $(VENV)/.installed-ray
# Wheels of several hundred megabytes outlast the default of 30 s on a slow line.
export UV_HTTP_TIMEOUT ?= 300

.DEFAULT_GOAL := help
.PHONY: help .venv serve test test-fuzz audit sbom scan-image test-system test-compose test-image-cuda dashboard manifests lint format bench soak build constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  %-18s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(STAMP) ## install everything, pinned, into .venv (about 6 GB)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), 3.11 or newer is needed;" \
	       "name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments;" \
	       "on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing the pinned packages: about 6 GB, some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv \
	  && $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || { echo "==> uv could not do it, trying pip"; \
	       $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; }
	@touch $@

# Ray Serve is large and only needed by its own tests: no part of `make test`.
$(RAY_STAMP): $(STAMP)
	@echo "==> installing Ray Serve"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,ray]' \
	  || $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	@touch $@

serve: $(STAMP) ## set up and serve: make serve ARGS="--port 9000"
	@exec $(BIN)/tocom serve $(ARGS)

test: $(STAMP) ## all tests that need neither root nor other programs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not system" -n $(TEST_PROCESSES) --dist worksteal \
	  $(PYTEST_ARGS)

test-fuzz: $(STAMP) ## 200 odd requests of each operation of the OpenAPI document
	TOCOM_FUZZ_EXAMPLES=200 $(BIN)/python -m pytest tests/integration/test_fuzz.py $(PYTEST_ARGS)

test-system: $(RAY_STAMP) ## tests with Docker, Prometheus, Ray, …: root, and what .ci/run installs
	$(BIN)/python -m pytest -m system $(PYTEST_ARGS)

test-compose: $(STAMP) ## compose for real: a load spike, the degree's way up and back, an alert
	$(BIN)/python -m pytest -m system tests/system/test_compose.py $(PYTEST_ARGS)

dashboard: $(STAMP) ## write Grafana's dashboard from its code in deploy/grafana
	$(BIN)/python -m deploy.grafana.dashboard

manifests: $(STAMP) ## render deploy/kubernetes into build/manifests and check it (needs kubectl)
	$(BIN)/python -m deploy.kubernetes.prometheus_rule
	$(BIN)/python -m deploy.kubernetes.validation build/manifests

test-image-cuda: $(STAMP) ## the image tests on a full image with PyPI's CUDA wheels (very long)
	TOCOM_SYSTEM_FULL_IMAGE=1 $(BIN)/python -m pytest -m system tests/system/test_image.py $(PYTEST_ARGS)

lint: $(STAMP) ## style, types, layers, Dockerfile, YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint --config .hadolint.yaml Dockerfile
	$(BIN)/yamllint --strict .

format: $(STAMP) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --strict: a source of packages that knows nothing of vulnerabilities is a failure, not a clean bill.
audit: $(STAMP) ## look the pinned packages up among known vulnerabilities (needs PyPI itself)
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip \
	  --progress-spinner off

sbom: $(STAMP) ## what this is made of, as CycloneDX: dist/sbom.json
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-format JSON --output-file dist/sbom.json

IMAGE ?= tocom-serve:0.1.0
scan-image: ## look into the built image for known vulnerabilities, with trivy or grype
	@if command -v trivy >/dev/null; then trivy image --exit-code 1 --severity HIGH,CRITICAL $(IMAGE); \
	elif command -v grype >/dev/null; then grype --fail-on high $(IMAGE); \
	else echo "error: neither trivy nor grype is installed; either can scan $(IMAGE)" >&2; exit 1; fi

bench: $(STAMP) ## throughput per degree, and the time of a switch
	$(BIN)/python benchmarks/throughput.py $(ARGS)
	$(BIN)/python benchmarks/switch.py $(ARGS)

soak: $(STAMP) ## ten minutes at twice the capacity with faults; the books must balance
	$(BIN)/python -m benchmarks.soak $(ARGS)

build: $(STAMP) ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --no-isolation

constraints: $(STAMP) ## move every pin to the newest version that fits pyproject.toml
	{ grep '^#' constraints.txt; \
	  $(BIN)/uv pip compile pyproject.toml --extra dev --extra engine-peers --extra peers --upgrade --quiet --no-header --no-annotate; \
	} > constraints.new && mv constraints.new constraints.txt

clean: ## remove everything made here, the environment too
	rm -rf $(VENV) .cache build dist .coverage .hypothesis .import_linter_cache .mypy_cache \
	  .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
