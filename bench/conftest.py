"""`pytest bench`: our engine measures, pytest-benchmark shows and stores, --history keeps.

What the pieces do is in bench/replay.py; here are only the hooks and the fixtures.
"""

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from bench.environment import Environment
from bench.history.store import History, check_repeats, new_run
from bench.measurement import Measurement
from bench.replay import (
    RefusedError,
    ReplayClock,
    describe_machine,
    differing,
    other_conditions,
    other_machine,
    refuse,
    replay,
)
from bench.session import open_environment
from perfmodel.errors import PerfmodelError

ENVIRONMENT = pytest.StashKey[Environment]()
MEASURED = pytest.StashKey[list[Measurement]]()
COMPARED = pytest.StashKey[dict[str, dict]]()  # extra_info of the stored run, by benchmark
LINES = pytest.StashKey[list[str]]()  # for the end of the session


def pytest_addoption(parser):
    group = parser.getgroup("latency history")
    group.addoption("--history", metavar="DIR", type=Path, help="add what is measured as one run")
    group.addoption("--confirms", metavar="RUN", help="this run repeats RUN in a fresh process")
    group.addoption("--device", choices=("cuda", "cpu"), help="(the GPU where there is one)")
    group.addoption("--threads", metavar="N", type=int, help="of a CPU, one per core (all)")


def pytest_configure(config):
    """What is wrong with the options is said before anything is measured."""
    config.stash[MEASURED] = []
    config.stash[COMPARED] = {}
    config.stash[LINES] = []
    folder, confirmed = config.getoption("history"), config.getoption("confirms")
    try:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise pytest.UsageError(f"--history {folder}: is a file, expected a folder")
        if confirmed is not None:
            if folder is None:
                raise pytest.UsageError("--confirms needs --history")
            repeated = History(folder).find(confirmed)
            check_repeats(repeated, _environment(config))
            config.option.confirms = repeated.id
        if config.getoption("device") or config.getoption("threads"):
            _environment(config)  # before numba is imported, which counts the threads
    except PerfmodelError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(items):
    for item in items:
        if "measured" in item.fixturenames:
            own = item.get_closest_marker("benchmark")
            options = {**(own.kwargs if own else {}), "timer": ReplayClock()}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.fixture(scope="session")
def environment(pytestconfig):
    """Where this session measures: the GPU where there is one."""
    return _environment(pytestconfig)


@pytest.fixture
def measured(request, benchmark):
    """A function of one Measurement: pytest-benchmark shows its samples, --history keeps it."""

    def note(measurement):
        if not benchmark.disabled:
            facts = {**measurement.facts, "test": request.node.nodeid}
            request.config.stash[MEASURED].append(msgspec.structs.replace(measurement, facts=facts))
        before = request.config.stash[COMPARED].get(request.node.nodeid)
        if problem := measurement.refused or other_conditions(before, measurement):
            with suppress(RefusedError):
                refuse(benchmark, problem)
            pytest.fail(problem, pytrace=False)
        replay(benchmark, request.node.get_closest_marker("benchmark").kwargs["timer"], measurement)

    return note


def pytest_benchmark_update_machine_info(config, machine_info):
    describe_machine(machine_info, _environment(config))


def pytest_benchmark_update_json(config, output_json):
    output_json["environment"] = msgspec.to_builtins(_environment(config))


def pytest_benchmark_compare_machine_info(config, machine_info, compared_benchmark):
    """Another device is refused; another driver or Python is said, where pytest-benchmark warns."""
    theirs = compared_benchmark["machine_info"]
    if why := other_machine(theirs, _environment(config)):
        raise pytest.UsageError(f"--benchmark-compare: that run cannot be compared: {why}")
    ours = msgspec.json.decode(msgspec.json.encode(machine_info))  # lists, as they were stored
    if names := differing(theirs, ours):
        config.stash[LINES].append(f"compared with a run of another {', '.join(names)}")
        compared_benchmark["machine_info"] = machine_info
    for benchmark in compared_benchmark["benchmarks"]:
        if "measurement" in benchmark["extra_info"]:
            config.stash[COMPARED][benchmark["fullname"]] = benchmark["extra_info"]["measurement"]


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("history") is None:
        return
    try:
        line = _keep(session.config, exitstatus)
    except PerfmodelError as error:
        line, session.exitstatus = str(error), pytest.ExitCode.TESTS_FAILED
    session.config.stash[LINES].append(f"history: {line}")


def _keep(config, exitstatus):
    """Add what was measured as one run; says what became of it."""
    measurements = config.stash[MEASURED]
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return "nothing added, the session did not end well"
    if not measurements:
        return "nothing added, no benchmark was measured"
    run = new_run(_environment(config), measurements, config.getoption("confirms"))
    path, _ = History(config.getoption("history")).add(run)
    return f"run {run.id} with {len(measurements)} measurements: {path}"


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[LINES]:
        terminalreporter.write_line(line)


def _environment(config) -> Environment:
    if ENVIRONMENT not in config.stash:
        config.stash[ENVIRONMENT] = open_environment(
            config.getoption("device"), config.getoption("threads")
        )
    return config.stash[ENVIRONMENT]
