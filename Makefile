# make toy           the whole pipeline in miniature (about five minutes on two cores); AUGMENT=0 for the control
# make test          all tests; make lint: style
# make real          the pipeline on real text (needs ../shared/data), some minutes
# make scale         preprocessing and code-switching at full size: memory, rejects, duplicates (needs ../shared/data,
#                    20 GB of disk)
# make ablation      the paper's ablation in the toy world: 14 settings, 3 seeds (about an hour on two cores)
# make browser       the HTML report in headless Chromium (needs Debian's chromium, or another at /usr/bin/chromium)
# make soak          thirty kills in one run, every layout resumed in every other, and the losses of all of 9,225 real
#                    examples packed and alone (about three quarters of an hour on two cores)
# Each target builds .venv first, once. PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
AUGMENT ?= 1
BIN := .venv/bin

.PHONY: toy test lint browser real scale ablation soak clean

toy: .venv/installed
	PYTHON=$(BIN)/python AUGMENT=$(AUGMENT) toy/run.sh

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

browser: .venv/installed-test requirements-browser.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt -c constraints.txt
	$(BIN)/python -m pytest tests/browser

real: .venv/installed
	PYTHON=$(BIN)/python benchmarks/real_text.sh

scale: .venv/installed-test
	for what in rejects duplicates switching memory; do \
		$(BIN)/python benchmarks/scale.py $$what --folder work/scale || exit 1; \
	done

ablation: .venv/installed
	$(BIN)/python benchmarks/ablation.py --folder work/ablation

soak: .venv/installed-test
	SOAK=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/test_resume.py tests/test_sft.py \
		-k "layout or kills or losses_of_rows"

clean:
	rm -rf .venv work

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	touch $@

.venv/installed-test: .venv/installed requirements-data.txt requirements-test.txt requirements-transformers4.txt \
		requirements-lm-eval.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-data.txt -r requirements-test.txt \
		-c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/transformers4 -r requirements-transformers4.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target .venv/lm-eval -r requirements-lm-eval.txt
	touch $@
