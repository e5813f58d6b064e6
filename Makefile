# make demo   install, train a small network with attention on real images, and show what it looks at
# make test   install, and run lint, types and every lane of tests
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LANE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --lane

.PHONY: demo test lint plain interpreter compile gpu-tests traffic compile-report bench-blocks bench docs clean

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

test: lint gpu-tests plain interpreter compile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# A type checker cannot follow package-dir: it sees the package as it is installed, through links.
	rm -rf build/types && mkdir -p build/types/triton_attn
	ln -s $(CURDIR)/triton_attn/* $(CURDIR)/reference build/types/triton_attn/
	ln -s $(CURDIR)/benchmarks build/types/
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p triton_attn -p benchmarks

plain: $(INSTALLED)
	$(LANE) plain -n 2

interpreter: $(INSTALLED)
	$(LANE) interpreter -n 2

compile: $(INSTALLED)
	$(LANE) compile -n 2

gpu-tests: $(INSTALLED)
	$(LANE) gpu

# What every block moves over memory, counted.
traffic: $(INSTALLED)
	$(BIN)/python -m benchmarks.traffic --check

# The kernels as machine code, for GPUs that need not be there: benchmarks/results/compile.
compile-report: $(INSTALLED)
	$(BIN)/python -m benchmarks.compile_report

# How long blocks take here: benchmarks/results/<device>. On a CPU with small shapes.
bench-blocks: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks/bench_blocks.py

bench: traffic compile-report bench-blocks

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf .venv build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
