# make                  joins the SQL sources into the extension's script
# make install          the extension and its Python module, for the server of PG_CONFIG; uninstall undoes it
# make demo             one real distillation, start to end; make demo-text: of a transformer on a column of texts
# make quick            in under a minute: does a change hold? make lint
# make bench            what serving costs; bench-sql, -sql-students, -text, -quality, -few, -scale, -steady: CONTRIBUTING.md has which
# make test             the tests, on every server that can be had here, in under 15 minutes
# make test-all         the same, and then wheels, images, a pooler, dbt, a browser, and what takes longest
# make fuzz             hostile ONNX files by the thousand; make third-party, which exports of other software are taken
# make docs             the reference under extension/doc, from the comments of the SQL objects
# make pictures         the picture of the architecture, from the imports
# make results          the tables of measurements in the documents, from tests/bench/results
# make test-faults      the long form of the faults, and every test on an upgraded extension; prints what was injected
# make test-long        the tests of SQL with those that take minutes each: a million rows as SQL and ONNX, 10 million rows scored
# make dist             the archive for PGXN
# make images           the Docker images; IMAGES="15" for one of them
EXTENSION = extension/pg_distill
DISTILL_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" $(EXTENSION).control)

# A release's scripts are committed and never edited. Until then they are build products: the install script joins the files
# of sql/, an upgrade script those that its source under sql/upgrade/ includes.
JOINED = build/pg_distill--$(DISTILL_VERSION).sql
UPGRADES := $(patsubst sql/upgrade/%.sql,build/pg_distill--%.sql,$(wildcard sql/upgrade/*--$(DISTILL_VERSION).sql))
PRODUCTS := $(JOINED) $(UPGRADES)
FROZEN := $(wildcard extension/pg_distill--*.sql)
DATA = $(FROZEN) $(filter-out $(FROZEN:extension/%=build/%),$(PRODUCTS))

EXTRA_CLEAN = build docker/certs/*.crt

.DEFAULT_GOAL := all
.PHONY: all install uninstall clean install-dependencies freeze check-frozen dist \
	images host-certificates lock lint test test-all test-extra test-packages test-faults test-long unit quick fuzz third-party docs demo bench bench-sql bench-sql-students bench-quality \
	bench-few bench-scale bench-steady bench-text demo-text

all: $(PRODUCTS)
clean:
	rm -rf $(EXTRA_CLEAN)

$(JOINED): $(wildcard sql/*.sql) $(EXTENSION).control
	@mkdir -p build
	printf '%s\n\n' '\echo Use "CREATE EXTENSION pg_distill" to load this file. \quit' | cat - $(sort $(filter %.sql,$^)) > $@.part
	mv $@.part $@

# A line "-- include FILE" of an upgrade's source stands for a whole file of sql/ that the older release had not,
# "-- include FILE since VERSION" for what stands in it below the line "-- since VERSION".
build/pg_distill--%.sql: sql/upgrade/%.sql $(wildcard sql/*.sql)
	@mkdir -p build
	{ printf '%s\n\n' '\echo Use "ALTER EXTENSION pg_distill UPDATE" to load this file. \quit'; \
	  awk '/^-- include / { on = $$4 != "since"; while ((found = getline line < ("sql/" $$3)) > 0) \
	  { if (on) print line; if (line == "-- since " $$5) on = 1 } if (found < 0 || !on) exit 1; next } { print }' $<; } > $@.part
	mv $@.part $@

# At a release: from then on an edit under sql/ needs a new default_version and an upgrade script. extension/RELEASED has the
# digests of what was released.
freeze: check-frozen
	@test ! -e $(JOINED:build/%=extension/%) || { echo "$(DISTILL_VERSION) is released already" >&2; exit 1; }
	cp $(PRODUCTS) extension/
	cd extension && sha256sum $(PRODUCTS:build/%=%) >> RELEASED

check-frozen: $(PRODUCTS)
	@cd extension && sha256sum --check --quiet RELEASED
	@for script in $(FROZEN:extension/%=%); do grep -q "  $$script$$" extension/RELEASED \
	|| { echo "extension/$$script is not in extension/RELEASED: make freeze puts it there" >&2; exit 1; }; done
	@for script in $(PRODUCTS:build/%=%); do test ! -e extension/$$script || cmp build/$$script extension/$$script \
	|| { echo "sql/ differs from the released extension/$$script: give it a new default_version and an upgrade script" >&2; exit 1; }; done

# The archive for PGXN: what is committed, META.json at its top, and a release's scripts where it names them.
DIST = pg_distill-$(DISTILL_VERSION)
dist: $(PRODUCTS)
	git archive --format=zip --output=build/$(DIST).zip --prefix=$(DIST)/ --add-file=extension/META.json \
		--prefix=$(DIST)/extension/ $(addprefix --add-file=,$(filter-out $(FROZEN:extension/%=build/%),$(PRODUCTS))) \
		--prefix=$(DIST)/ HEAD
	@echo build/$(DIST).zip

# --- the server: by its pg_config alone, as PGXS would bring a compiler and knows no Python module (python/install.py) ---

PG_CONFIG ?= pg_config
# The Python that PL/Python was built with.
SERVER_PYTHON ?= /usr/bin/python3
# The operating system's user that the server runs as: whether it can read what was installed is tried.
SERVER_USER ?= postgres
# A constraints file for pip; empty: the newest that pyproject.toml's ranges allow.
CONSTRAINTS ?=
# With commas: vectors (static word vectors for students of texts), dask (training on a cluster). What is not named is not kept.
EXTRAS ?=
# DESTDIR stages the files elsewhere. prefix is for the setting extension_control_path of PostgreSQL 18, and needs no root.
INSTALL_PY = $(SERVER_PYTHON) python/install.py --pg-config='$(PG_CONFIG)' --destdir='$(DESTDIR)' --prefix='$(prefix)' \
	--constraints='$(CONSTRAINTS)' --extras='$(EXTRAS)' --server-user='$(SERVER_USER)'

install: $(PRODUCTS)
	@$(INSTALL_PY) install $(DATA)

install-dependencies:
	@$(INSTALL_PY) dependencies

uninstall:
	@$(INSTALL_PY) uninstall $(DATA)

# --- images ---

IMAGES ?= 15 17 18
DEBIAN_15 = bookworm
DEBIAN_17 = trixie
DEBIAN_18 = forky
# The host's network: a registry that the host reaches is then reached from the build too.
DOCKER_BUILD_FLAGS ?= --network=host
HOST_CERTIFICATES = /usr/local/share/ca-certificates

images: $(addprefix image-,$(IMAGES))
image-%: host-certificates
	docker build --force-rm $(DOCKER_BUILD_FLAGS) --file docker/Dockerfile --build-arg DEBIAN=$(DEBIAN_$*) --tag pg_distill:pg$* .

# Once, before all images: of two that copy a file at the same time one fails.
host-certificates:
	@for file in $(wildcard $(HOST_CERTIFICATES)/*.crt); do cp -u "$$file" docker/certs/ || exit; done

# --- checks ---

# The tests' Python is the server's where it can be, so that a temporary cluster can load from the same environment.
TEST_PYTHON ?= $(shell for python in $(SERVER_PYTHON) python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; done)
VENV = build/venv
# frameworks, too: exports of PyTorch, XGBoost and CatBoost as teachers
TEST_EXTRAS ?= client,convert,dask,plot,test,text
# BLAS waits in a loop for its threads: three processes of tests on two cores did that for two minutes.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest --config-file=python/pyproject.toml --rootdir=.
# One process for one server, and the last one's for the local cluster, too (tests/spread.py).
PYTEST_FLAGS ?= --numprocesses=3
# auto: every server that can be had here; local, pg15, pg17, pg18, none, or a connection string
SERVER ?= auto

$(VENV)/.made: python/pyproject.toml python/constraints.txt
	@test -n "$(TEST_PYTHON)" || { echo "no Python >= 3.11 with the venv module: install python3-venv" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(TEST_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -qq --constraint python/constraints.txt --editable './python[$(TEST_EXTRAS)]'
	touch $@

# dbt has an environment of its own: it wants an older protobuf than onnx is locked to.
build/dbt/.made: python/pyproject.toml python/constraints-dbt.txt
	@test -n "$(TEST_PYTHON)" || { echo "no Python >= 3.11 with the venv module: install python3-venv" >&2; exit 1; }
	test -x build/dbt/bin/python || $(TEST_PYTHON) -m venv build/dbt
	$(DBT_REQUIREMENTS) | build/dbt/bin/python -m pip install -qq --constraint python/constraints-dbt.txt --requirement /dev/stdin
	touch $@
DBT_REQUIREMENTS = $(TEST_PYTHON) -c 'import tomllib; \
	print(*tomllib.load(open("python/pyproject.toml", "rb"))["project"]["optional-dependencies"]["dbt"], sep="\n")'

# The newest of everything that the ranges allow, for CI and the images; to be run, tested and committed. The index's torch
# brings 5 GB of CUDA: its version is the one of which CI has the CPU build.
TORCH ?= 2.13.0
lock:
	rm -rf build/lock && $(TEST_PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq './python[$(TEST_EXTRAS),frameworks]' 'torch==$(TORCH)'
	{ head -1 python/constraints.txt; build/lock/bin/python -m pip freeze --exclude pg_distill | sed 's/+cpu$$//'; } > build/constraints.txt
	rm -rf build/lock && $(TEST_PYTHON) -m venv build/lock
	$(DBT_REQUIREMENTS) | build/lock/bin/python -m pip install -qq --requirement /dev/stdin
	{ head -1 python/constraints-dbt.txt; build/lock/bin/python -m pip freeze; } > build/constraints-dbt.txt
	rm -rf build/lock
	mv build/constraints.txt build/constraints-dbt.txt python/

lint: $(VENV)/.made check-frozen
	$(VENV)/bin/ruff check --config python/pyproject.toml python tests
	$(VENV)/bin/ruff format --check --config python/pyproject.toml python tests
	$(VENV)/bin/mypy --config-file python/pyproject.toml python/pg_distill python/install.py python/loader.py tests/servers.py
	$(PYTEST) --server=none -q tests/unit/test_rooms.py

unit: $(VENV)/.made
	$(PYTEST) --server=none $(PYTEST_FLAGS) tests/unit

# Under a minute: units but those that train or wait, and the main job on a temporary local server.
quick: $(VENV)/.made $(PRODUCTS)
	$(PYTEST) --server=local --tier=quick --numprocesses=2 -q tests/unit tests/sql/test_smoke.py

# On Debian and Ubuntu, as root: the server where no Docker engine answers, and what a virtual environment needs.
test-packages:
	python3 python/demo/packages.py '$(SERVER)'

test: test-packages $(VENV)/.made $(PRODUCTS)
	$(PYTEST) --server='$(SERVER)' --tier=test $(PYTEST_FLAGS) tests

test-all: test test-extra

# What is marked extra alone: what make test leaves out.
test-extra: test-packages $(VENV)/.made build/dbt/.made $(PRODUCTS)
	$(PYTEST) --server='$(SERVER)' --tier=extra $(PYTEST_FLAGS) tests

# Hostile ONNX files, 20,000 unless FUZZ_FLAGS says otherwise; the frameworks extra adds their exports to the seeds.
fuzz: $(VENV)/.made
	PYTHONPATH=python:tests $(VENV)/bin/python tests/fuzz/run.py $(FUZZ_FLAGS)

# The table of which exports are taken, extension/doc/third_party_models.md; needs the frameworks extra.
third-party: $(VENV)/.made
	PYTHONPATH=python:tests $(VENV)/bin/python -W ignore tests/third_party.py

# What takes minutes each: a million rows as SQL and as ONNX, 10 million rows scored.
test-long: $(VENV)/.made build/dbt/.made $(PRODUCTS)
	$(PYTEST) --server='$(SERVER)' --long $(PYTEST_FLAGS) tests/sql

# An hour or so: 200 interrupts, 20 crashes of the server, 10 minutes of 16 sessions.
RELEASED := $(patsubst extension/pg_distill--%.sql,%,$(filter-out extension/pg_distill--%--%.sql,$(FROZEN)))
OLDER = $(filter-out $(DISTILL_VERSION),$(RELEASED))
test-faults: $(VENV)/.made $(PRODUCTS)
	$(PYTEST) --server='$(SERVER)' --long $(PYTEST_FLAGS) tests/faults tests/sql/test_upgrade.py
	for version in $(OLDER); do $(PYTEST) --server='$(SERVER)' --upgraded-from=$$version $(PYTEST_FLAGS) tests || exit 1; done

# The reference, from the comments of the SQL objects.
docs: $(VENV)/.made $(PRODUCTS)
	PYTHONPATH=tests $(VENV)/bin/python tests/docs/reference.py

# What the documents show: the tables of measurements, from tests/bench/results, and who imports whom.
.PHONY: results pictures
results:
	python3 tests/docs/results.py

pictures:
	python3 tests/docs/architecture.py

demo:
	python3 python/demo/run.py $(DEMO_FLAGS)
demo-text:
	python3 python/demo/run.py --text $(DEMO_FLAGS)

bench: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/serving.py $(BENCH_FLAGS)

bench-sql: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/sql_forms.py $(BENCH_FLAGS)

# With --server pg18 networks have pgvector.
bench-sql-students: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/sql_students.py $(BENCH_FLAGS)

bench-quality: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/quality.py $(BENCH_FLAGS)

bench-few: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/few.py $(BENCH_FLAGS)

bench-scale: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/scale.py $(BENCH_FLAGS)

bench-steady: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/steadiness.py $(BENCH_FLAGS)

bench-text: $(VENV)/.made $(PRODUCTS)
	$(VENV)/bin/python tests/bench/texts.py $(BENCH_FLAGS)
