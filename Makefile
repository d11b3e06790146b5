# Everything a contributor does. `make demo` and `make test` set themselves up in .venv on the first call.
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes with one thread each: the tiny runs use two cores and no GPU.
ON_CPU := PATH="$(CURDIR)/$(BIN):$$PATH" DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
REAL := $(ON_CPU) deepspeed --num_gpus 2 launch/implant.py --recipe recipes/smollm2
REAL_BASE := model.path=build/real/model
TINY := $(ON_CPU) deepspeed --num_gpus 2 launch/implant.py --recipe recipes/tiny

.PHONY: help demo real test test-all test-gpu test-gpu-rehearsal test-newest test-skew lint schema docs audit bench study dial-study scaling models reliability tiny-world learning-rates clean

help:  ## list these targets
	@awk '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## /{split($$0, part, ":.*## "); printf "  make %-15s %s\n", part[1], part[2]}' $(MAKEFILE_LIST)

$(READY): pyproject.toml $(CONSTRAINTS)
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch numpy setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation deepspeed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[dev]'
	touch $(READY)

##@ To try it

demo: $(READY)  ## teach the tiny model tool calls by LoKI, on random rows and by full fine-tuning, and compare
	$(TINY)/loki.yaml
	$(TINY)/random.yaml
	$(TINY)/full.yaml
	$(BIN)/loki-ds compare runs/tiny/loki runs/tiny/random runs/tiny/full
	@echo "The LoKI run: runs/tiny/loki (report/report.html, verify.json, model/)"

real: $(READY)  ## a real model: SmolLM2-135M taught BFCL's calls by LoKI, LoRA and full fine-tuning (about an hour on two cores)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) gguf
	$(BIN)/python eval/real/fetch.py build/real
	$(REAL)/calls-q30.yaml $(REAL_BASE) run=runs/smollm2/calls-q30
	$(REAL)/calls-baseline-lora.yaml $(REAL_BASE) run=runs/smollm2/calls-baseline-lora
	$(REAL)/calls-baseline-full.yaml $(REAL_BASE) run=runs/smollm2/calls-baseline-full
	$(BIN)/loki-ds compare runs/smollm2/calls-q30 runs/smollm2/calls-baseline-lora runs/smollm2/calls-baseline-full --out runs/smollm2/compare

##@ To change it

test: $(READY)  ## lint, types, documentation and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) docs
	$(ON_CPU) pytest -n 2 --dist loadfile -m "not slow" --junit-xml build/tests.xml

test-all: $(READY)  ## every test, also those that take long and rarely find anything
	$(ON_CPU) pytest -n 2 --dist loadfile --junit-xml build/tests.xml

test-gpu: test-gpu-rehearsal  ## the distributed tests on this machine's GPUs

test-gpu-rehearsal: $(READY)  ## the distributed tests on pretended GPUs, where there are no others (tests/pretended)
	ON_GPUS=1 $(ON_CPU) pytest -m "not slow" tests/distributed

lint: $(READY)  ## format and lint in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

schema: $(READY)  ## the JSON Schema that editors check recipes by, after a key has changed
	mkdir -p build && $(BIN)/loki-ds schema > build/recipe.schema.json && mv build/recipe.schema.json recipes/recipe.schema.json

docs: $(READY)  ## the documentation site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test-newest:  ## the package in an empty folder with the newest versions, the main job twice (about ten minutes)
	tests/newest.sh

test-skew:  ## the tests with the oldest versions that are supported, in an environment of its own (make test has the newest)
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	$(MAKE) models VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
	git diff --stat docs/models.md

audit: $(READY)  ## known vulnerabilities of the dependencies
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

clean:  ## remove the environment, what was built, and all runs
	rm -rf .venv .venv-oldest build dist runs

##@ What the figures were made with

bench: $(READY)  ## attribution and training step against their baselines, the plan against measurement (about forty minutes on two idle cores)
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=2 $(BIN)/python eval/benchmarks/training_step.py
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=2 $(BIN)/python eval/benchmarks/attribution.py
	$(BIN)/python eval/benchmarks/plan.py

study: $(READY)  ## methods, selections, quotas and baselines on the tiny world, three seeds (about an hour on two cores)
	$(ON_CPU) python eval/studies/trade_off.py eval/studies/methods.yaml

dial-study: $(READY)  ## pull, rehearsal and the dial, alone and together (about an hour on two cores)
	$(ON_CPU) python eval/studies/trade_off.py eval/studies/dial.yaml

models: $(READY)  ## docs/models.md: what works for every type that the installed transformers knows (about six minutes)
	$(ON_CPU) python eval/studies/models.py

scaling: $(READY)  ## eval/reports/scaling.md: the plan's counts carried to 512 GPUs
	$(ON_CPU) python eval/benchmarks/scaling.py

reliability: $(READY)  ## eval/reports/reliability.md: what the last `make test` broke on purpose, and what happened
	$(BIN)/python eval/studies/reliability.py

learning-rates: $(READY)  ## find each tiny recipe's learning rate by the stated rule (about half an hour on two cores)
	$(ON_CPU) python eval/studies/learning_rates.py

tiny-world: $(READY)  ## pre-train the tiny model again (about twenty minutes on two cores)
	$(BIN)/python recipes/tiny/world/make.py
