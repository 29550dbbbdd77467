"""Verdicts on runs: nothing slower, vanished or refused may pass, nothing becomes the norm."""

from msgspec.structs import replace

from bench.history.detect import Rules
from bench.history.gates import Past, check, past_of
from tests.bench.runs import key, run

RULES = Rules()
BASE = run(0, a=1.0, b=2.0)


def kinds(judged, past, **options):
    return {(f.kind, f.key): f for f in check(judged, past, RULES, **options)}


def past(*earlier, fresh=(), baseline=(BASE,)):
    return Past(baseline=baseline, earlier=(BASE, *earlier), fresh=fresh)


def test_an_equal_run_passes():
    assert check(run(1, a=1.0, b=2.0), past(), RULES) == []


def test_five_percent_in_one_benchmark_is_suspected_then_confirmed():
    slow = run(1, a=1.05, b=2.0)
    suspect = kinds(slow, past())["suspect", key("a")]
    assert suspect.fails
    assert suspect.text.startswith("+5.0% over the baseline (limit +3.0%, p ")
    fresh = [run(i, slow.id, a=1.05) for i in (2, 3, 4)]
    findings = kinds(slow, past(fresh=fresh))
    assert list(findings) == [("regression", key("a"))]


def test_a_slow_process_is_no_regression():
    slow = run(1, a=1.05, b=2.0)
    fresh = [run(2, slow.id, a=1.0), run(3, slow.id, a=1.05), run(4, slow.id, a=1.0)]
    (finding,) = check(slow, past(fresh=fresh), RULES)
    assert (finding.kind, finding.fails) == ("not repeated", False)


def test_two_fresh_processes_are_not_enough():
    slow = run(1, a=1.05, b=2.0)
    fresh = [run(2, slow.id, a=1.0), run(3, slow.id, a=1.0)]
    (finding,) = check(slow, past(fresh=fresh), RULES)
    assert finding.kind == "suspect"
    assert "2 of 3 fresh processes" in finding.text


def test_a_slow_run_does_not_become_what_later_runs_are_held_against():
    slow = [run(i, a=1.05, b=2.0) for i in range(1, 30)]
    for count in (1, 5, 28):
        findings = kinds(slow[count], past(*slow[:count]))
        assert {kind for kind, name in findings if name == key("a")} <= {"suspect", "regression"}
        assert key("a") in {name for _, name in findings}


def test_a_small_step_is_caught_when_it_lasts():
    before = [run(i, a=1 + 0.001 * (i % 3), b=2.0) for i in range(1, 8)]
    after = [run(i, a=1.026 + 0.001 * (i % 3), b=2.0) for i in range(8, 12)]
    assert check(after[0], past(*before), RULES) == []
    finding = kinds(after[3], past(*before, *after[:3]))["regression", key("a")]
    assert "its best level for 4 runs, since 0800000" in finding.text


def test_what_was_gained_since_the_baseline_is_not_lost_silently():
    faster = [run(i, a=0.8, b=2.0) for i in range(1, 4)]
    lost = run(4, a=0.84, b=2.0)
    findings = kinds(lost, past(*faster))
    assert ("suspect", key("a")) in findings
    assert "over the last 10 runs" in findings["suspect", key("a")].text
    assert ("faster", key("a")) in findings  # than the baseline, all the same


def test_a_vanished_benchmark_fails_unless_that_is_allowed():
    partial = run(1, a=1.0)
    assert kinds(partial, past())["vanished", key("b")].fails
    assert check(partial, past(), RULES, allow_missing=True) == []


def test_a_new_benchmark_is_said_and_passes():
    finding = kinds(run(1, a=1.0, b=2.0, c=1.0), past())["new", key("c")]
    assert not finding.fails


def test_what_the_baseline_refused_is_compared_with_nothing():
    refused = replace(BASE.measurements[0], refused="unsteady")
    base = replace(BASE, measurements=(refused, BASE.measurements[1]))
    findings = kinds(run(1, a=9.0, b=2.0), Past(baseline=[base], earlier=[base], fresh=()))
    assert list(findings) == [("new", key("a"))]


def test_a_refused_benchmark_never_passes_and_is_not_compared():
    slow = run(1, a=1.5, b=2.0)
    refused = replace(slow.measurements[0], refused="throttled: hw_slowdown", samples_s=())
    slow = replace(slow, measurements=(refused, slow.measurements[1]))
    (finding,) = check(slow, past(), RULES)
    assert (finding.kind, finding.key, finding.fails) == ("refused", key("a"), True)
    assert finding.text == "throttled: hw_slowdown"


def test_without_a_baseline_nothing_passes():
    (finding,) = check(BASE, Past(baseline=(), earlier=(), fresh=()), RULES)
    assert (finding.kind, finding.fails) == ("no baseline", True)
    assert f"python -m bench promote {BASE.id}" in finding.text


def test_other_conditions_are_other_benchmarks():
    other = run(1, a=9.0, b=2.0)
    profiled = replace(other.measurements[0], timing_mode="profiler")
    other = replace(other, measurements=(profiled, other.measurements[1]))
    findings = kinds(other, past())
    assert set(findings) == {("vanished", key("a")), ("new", profiled.key)}


def test_a_run_sees_what_was_before_it_and_what_repeats_it():
    slow = run(1, a=1.05)
    again, later = run(2, slow.id, a=1.05), run(3, a=1.0)
    seen = past_of(slow, [BASE, slow, again, later], [BASE])
    assert (seen.baseline, seen.earlier, seen.fresh) == ([BASE], [BASE], [again])
    assert past_of(later, [BASE, slow, again, later], [BASE]).earlier == [BASE, slow]


def test_several_promoted_runs_are_one_reference():
    three = [BASE, run(1, a=1.02, b=2.0), run(2, a=1.04, b=2.0)]
    judged = Past(baseline=three, earlier=three, fresh=())
    assert check(run(3, a=1.045, b=2.0), judged, RULES) == []
