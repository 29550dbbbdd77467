"""Results on disk: nothing lost, nothing twice, wrong files named."""

import pytest

from bench.environment import this_environment
from bench.folder import LINES, ResultsFolder, read_environments, read_lines, read_measurements
from bench.measurement import Measurement
from perfmodel.errors import SpecError


def measurement(name="fp16", samples_s=(0.1, 0.2)):
    return Measurement(
        suite="kernels",
        name=name,
        params={"rows": 8},
        device="toy",
        timing_mode="cpu-clock",
        l2_policy="cold",
        samples_s=samples_s,
        bytes_moved=1,
        flops=2,
        environment="abc",
    )


def test_what_was_added_is_read_back_by_the_next_run(tmp_path):
    first = ResultsFolder(tmp_path / "results")
    environment = this_environment("cpu")
    first.add_environment(environment)
    first.add_environment(environment)
    first.add(measurement())
    again = ResultsFolder(tmp_path / "results")
    assert again.is_done(measurement().key)
    assert not again.is_done(measurement("other").key)
    assert read_measurements(tmp_path / "results") == [measurement()]
    assert read_environments(tmp_path / "results") == {environment.id: environment}
    assert len(read_lines(tmp_path / "results" / LINES)) == 2


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    ResultsFolder(tmp_path).add(measurement())
    with (tmp_path / LINES).open("a") as file:
        file.write('{"kind": "measurement", "key"')
    folder = ResultsFolder(tmp_path)
    folder.add(measurement("next"))
    assert [m.name for m in read_measurements(tmp_path)] == ["fp16", "next"]


def test_a_later_measurement_of_a_key_wins(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.add(measurement())
    folder.add(measurement(samples_s=(0.3,)))
    assert [m.samples_s for m in read_measurements(tmp_path)] == [(0.3,)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not json\n", ":1: found no JSON"),
        ("[1]\n", ':1: expected an object with a "kind"'),
        ('{"kind": "measurement", "record": {}}\n', ":1: measurement: Object missing"),
        ('{"kind": "measurement"}\n', ":1: measurement: Expected"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, problem):
    (tmp_path / LINES).write_text(text)
    with pytest.raises(SpecError, match=problem):
        read_measurements(tmp_path)


def test_the_environment_id_leaves_the_date_out():
    first = this_environment("cpu")
    assert len(first.id) == 12
    assert first.id == this_environment("cpu").id
