"""What the sections of the report say, from the measurements of a results folder."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.account import findings
from bench.aims import Facts, aim_rows, aims_table
from bench.environment import Environment
from bench.generate.view import generate_table, paper_table
from bench.kernels.predicted import Compared, usable
from bench.kernels.tables import kernel_rows, kernels_output
from bench.kernels.validate import judge, verdict_output
from bench.kernels.validation_plot import validation_figure
from bench.measurement import Measurement
from bench.probe.tables import probe_output
from bench.report.figures import roofline_drawing, speedup_drawing
from bench.report.sections import Drawing, Report, Section
from perfmodel.hardware import HardwareSpec
from perfmodel.show.tables import Column, Table
from perfmodel.units import MIB

BASELINES = {"over_fp16": "the fastest FP16", "over_gptq": "GPTQ of as many bits"}


def report_of(
    environments: Sequence[Environment],
    compared: Sequence[Compared],
    measurements: Sequence[Measurement],
    lines: Sequence[Mapping[str, Any]],
    hardware: HardwareSpec,
    history: Section | None,
) -> Report:
    """Everything that was measured on one device, the environment first, what failed last."""
    results = usable(compared)
    refused = [c.measurement for c in compared if c.measurement.refused]
    generations = [m for m in measurements if m.suite == "generate"]
    skipped = [line for line in lines if line["kind"] == "skipped"]
    commands = [str(line["command"]) for line in lines if line["kind"] == "command"]
    facts = Facts(
        hardware=hardware, compared=results, generations=generations, lines=[*map(dict, lines)]
    )
    sections = [
        environment_section(environments),
        aims_section(facts) if environments[-1].kind == "cuda" else None,
        probe_section(hardware),
        *(kernel_sections(results, hardware) if results else []),
        errors_section(compared, generations, hardware) if results else None,
        generation_section(generations),
        findings_section(lines, measurements),
        history,
        refused_section(refused, skipped),
    ]
    dates = sorted(environment.date_utc for environment in environments)
    return Report(
        title=f"{hardware.name}: predicted and measured",
        subtitle=f"{len(results)} kernels and {len(generations)} generations, {dates[-1]}",
        command="; ".join(dict.fromkeys(commands)),
        sections=tuple(section for section in sections if section),
    )


def aims_section(facts: Facts) -> Section:
    """What was to be reached."""
    return Section(key="aims", title="Aims", tables=(aims_table(aim_rows(facts)),))


def findings_section(
    lines: Sequence[Mapping[str, Any]], measurements: Sequence[Measurement]
) -> Section | None:
    """Checks, rates, launches, tuning, the quantizer."""
    tables = tuple(findings(lines, measurements))
    return Section(key="findings", title="Checks and rates", tables=tables) if tables else None


def environment_section(environments: Sequence[Environment]) -> Section:
    """Where the numbers were taken."""
    rows = [row for environment in environments for row in _environment_rows(environment)]
    return Section(key="environment", title="Environment", tables=(_pairs(rows, "", ""),))


def _environment_rows(environment: Environment) -> list[tuple[str, str]]:
    state = "with changes" if environment.dirty else "clean"
    facts = {
        "device": environment.device_name,
        "cores": f"{environment.cores} ({environment.threads} CPU threads)",
        "last cache": f"{environment.cache_bytes / MIB:g} MiB",
        "system": f"{environment.system}, Python {environment.python}",
        "packages": ", ".join(f"{k} {v}" for k, v in environment.packages.items()),
        **environment.driver,
        "commit": f"{(environment.commit or 'unknown')[:12]} ({state})",
        "date": environment.date_utc,
    }
    return list(facts.items())


def probe_section(hardware: HardwareSpec) -> Section | None:
    """The device's own roofs; None where nobody probed it."""
    if hardware.measured is None:
        return None
    tables = tuple(probe_output(hardware).tables())
    return Section(key="probe", title="Roofs of this device", tables=tables)


def kernel_sections(results: Sequence[Compared], hardware: HardwareSpec) -> list[Section]:
    """The roofline and the speed-ups; `results` are usable."""
    rows = kernel_rows(results, hardware)
    speedups = {what: [r for r in rows if r[key]] for key, what in BASELINES.items()}
    above = [c.label for c in results if c.is_above_roof]
    warning = f"Above a roof, so wrong in bytes, units or cache: {', '.join(above)}."
    return [
        Section(
            key="roofline",
            title="Roofline",
            prose=(warning,) if above else (),
            drawings=(roofline_drawing(results, hardware),),
        ),
        Section(
            key="speed-ups",
            title="Speed-ups",
            drawings=tuple(
                speedup_drawing(found, key, what)
                for (key, what), found in zip(BASELINES.items(), speedups.values(), strict=True)
                if found
            ),
            tables=tuple(kernels_output(results, hardware).tables()),
        ),
    ]


def errors_section(
    compared: Sequence[Compared], generations: Sequence[Measurement], hardware: HardwareSpec
) -> Section:
    """What `validate` says, with its figure."""
    verdict = judge(compared, generations)
    figure = validation_figure(verdict, hardware.name)
    caption = "Every kernel and generation: predicted against measured time."
    return Section(
        key="errors",
        title="Predicted against measured",
        drawings=(Drawing(figure=figure, caption=caption),),
        tables=tuple(verdict_output(verdict, compared, hardware.name).tables()),
    )


def generation_section(generations: Sequence[Measurement]) -> Section | None:
    """Whole generations with their peak memory, and the paper's tables beside them."""
    if not generations:
        return None
    tables = (generate_table(generations), paper_table(generations))
    return Section(
        key="generation",
        title="Generation and memory",
        tables=tuple(table for table in tables if table),
    )


def refused_section(
    refused: Sequence[Measurement], skipped: Sequence[Mapping[str, Any]]
) -> Section | None:
    """What was measured but is no result, and what was not run, each with its reason."""
    rows = [(f"{m.suite}: {m.name} {_params(m)}", str(m.refused)) for m in refused]
    rows += [(_what(line), str(line["reason"])) for line in skipped]
    if not rows:
        return None
    return Section(
        key="refused", title="Refused and skipped", tables=(_pairs(rows, "what", "why"),)
    )


def _params(measurement: Measurement) -> str:
    return ", ".join(f"{key} {value}" for key, value in measurement.params.items())


def _what(line: Mapping[str, Any]) -> str:
    hidden = ("kind", "reason", "key")
    return " ".join(str(value) for key, value in line.items() if key not in hidden)


def _pairs(rows: Sequence[tuple[str, str]], left: str, right: str) -> Table:
    columns = [
        Column(key="what", heading=left, right=False),
        Column(key="value", heading=right, right=False),
    ]
    return Table(columns=columns, rows=[{"what": what, "value": value} for what, value in rows])
