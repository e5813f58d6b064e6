# make demo   install, train a small network with attention on real images, and show what it looks at
# make test   install, and run lint, types and every lane of tests
# make test-all  the same with every case of every test (make test leaves out what repeats itself)
# make bench  measure and count what a machine without a GPU can, and write docs/performance.md
# make gpu    on a machine with a GPU: test, measure, tune, and judge the claims (QUICK=1 tries that without one)
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# CASES=--every-case leaves none out: see tests/thinning.py.
CASES ?=
LANE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(CASES) --lane
# Who has nothing left takes from the other: tests of a file stay together, and so do its fixtures.
TWO := -n 2 --dist worksteal
# Every process would compile all tests again where the environment says so.
unexport PYTHONDONTWRITEBYTECODE

# What the GPU's command runs with: what is there, for it installs nothing.
HERE := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
BUDGET ?= 8m
STAGES ?=
OUTPUT ?= benchmarks/results
PAGE = $(if $(filter benchmarks/results,$(OUTPUT)),docs,$(OUTPUT))
QUICK ?=
BENCH ?=
# Where links lead that are followed without the repository: those of a package index, and of the pages.
REPOSITORY ?= $(patsubst %.git,%,$(filter https://%,$(shell git remote get-url origin 2>/dev/null)))
ENVIRONMENTS ?= build/compat

.PHONY: demo test test-all lint types plain interpreter compile execute gpu-tests compat guard traffic compile-report baseline bench gpu report docs dist clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("triton_attn needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,bench,dev]'
	touch $@

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/triton-attn train --model resnet18 --attention nonlocal --data digits --image-size 40 --epochs 8 --output runs/demo
	$(BIN)/triton-attn eval runs/demo
	$(BIN)/triton-attn show runs/demo digits:5 digits:8 digits:13 --output runs/demo/attention.png
	@printf '%s\n' '' \
	  'Look at   runs/demo/curves.png       loss, accuracy and learning rate, epoch by epoch' \
	  '          runs/demo/attention.png    where the attention looks, for three digits' \
	  '          runs/demo/confusion.png    which digits are taken for which' \
	  'Try next  $(BIN)/triton-attn show runs/demo digits:42 --at 20,20 --output digit.png' \
	  '          $(BIN)/triton-attn train --attention cbam --where block --output runs/cbam' \
	  '          $(BIN)/triton-attn train --data PATH/TO/IMAGES --model resnet50 --attention se --where block --output runs/mine' \
	  '          $(BIN)/triton-attn info'

# What has one process runs side by side; lanes have two of their own, and share them where they can: none waits for
# the last test of another, and PyTorch is imported once. Without a GPU its lane is collected by a test of its command.
test: $(INSTALLED)
	$(MAKE) -j 2 lint guard $(if $(wildcard /dev/nvidia0 /dev/kfd),gpu-tests)
	$(LANE) plain --lane compile --lane execute $(TWO)
	$(MAKE) interpreter

test-all:
	$(MAKE) test CASES=--every-case

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/mypy --cache-dir ../mypy --config-file ../../pyproject.toml -p triton_attn -p benchmarks

# A type checker and a reader of docstrings cannot follow package-dir: they see the package as it is installed, by links.
types:
	rm -rf build/types && mkdir -p build/types/triton_attn
	ln -s $(CURDIR)/triton_attn/* $(CURDIR)/reference build/types/triton_attn/
	ln -s $(CURDIR)/benchmarks build/types/

plain: $(INSTALLED)
	$(LANE) plain $(TWO)

interpreter: $(INSTALLED)
	$(LANE) interpreter $(TWO)

compile: $(INSTALLED)
	$(LANE) compile $(TWO)

# Kernels as compiled, executed on the CPU; a longer sweep: .venv/bin/python -m tests.execute --draw 300
execute: $(INSTALLED)
	$(LANE) execute $(TWO)

gpu-tests: $(INSTALLED)
	$(LANE) gpu

# Other versions of PyTorch and Triton, in environments of 5 GB each that are built once: benchmarks/results/compat.json.
compat: $(INSTALLED)
	$(BIN)/python -m benchmarks.counted.compat --folder $(ENVIRONMENTS)

# Traffic, launches, registers and spills against what is committed; `make baseline` puts the new ones in its place.
guard: $(INSTALLED)
	$(BIN)/python -m benchmarks.counted.guard --check

baseline: $(INSTALLED)
	$(BIN)/python -m benchmarks.counted.guard --write

# What every block moves over memory, counted.
traffic: $(INSTALLED)
	$(BIN)/python -m benchmarks.counted.traffic --check

# The kernels as machine code, for GPUs that need not be there: benchmarks/results/compile.
compile-report: $(INSTALLED)
	$(BIN)/python -m benchmarks.counted.compile_report

# On the CPU, also where there is a GPU: in seven to ten minutes on two cores. pytest-benchmark keeps the times of ours in
# build/benchmarks: BENCH=--benchmark-compare sets them beside the last ones.
bench: $(INSTALLED)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q benchmarks/timed --benchmark-columns=median,iqr,rounds \
	  --benchmark-sort=name --benchmark-storage=build/benchmarks --benchmark-autosave $(BENCH); status=$$?; \
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m benchmarks.counted.host_time --check || status=$$?; \
	$(BIN)/python -m benchmarks.counted.traffic --check --output benchmarks/results/traffic.json || status=$$?; \
	$(BIN)/python -m benchmarks.written.page && exit $$status

# The page is written whatever failed: losses are shown.
gpu:
	$(HERE) -m benchmarks.gpu --budget $(BUDGET) --output $(OUTPUT) $(if $(STAGES),--stages $(STAGES)) \
	  $(if $(QUICK),--quick); status=$$?; \
	if $(HERE) -c 'import matplotlib' 2>/dev/null; then \
	  $(HERE) -m benchmarks.written.page --results $(OUTPUT) --output $(PAGE) || exit; \
	else \
	  echo 'Without matplotlib no page is written: python -m benchmarks.written.page does so from the result files.'; \
	fi; \
	exit $$status

# docs/performance.md with its pictures, and the counted tables in docs/blocks, from benchmarks/results.
report: $(INSTALLED)
	$(BIN)/python -m benchmarks.written.page

# The pages, and the API reference from the docstrings, in build/site.
docs: $(INSTALLED) types
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	REPOSITORY=$(REPOSITORY) $(BIN)/mkdocs build --strict --site-dir build/site

# The sdist and the wheel, for a package index.
dist: $(INSTALLED)
	REPOSITORY=$(REPOSITORY) $(BIN)/python -m build

clean:
	rm -rf .venv build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
