"""`python -m bench validate`: measured kernels against their predictions."""

import argparse
from functools import partial

from bench.kernels.predicted import devices_in
from bench.kernels.validate import HELD_OUT, judge, verdict_output
from bench.kernels.validation_plot import validation_figure
from perfmodel.errors import UsageError
from perfmodel.output import save_figure, write_output

OK, CHECK_FAILED = 0, 1


def cmd_validate(args: argparse.Namespace) -> int:
    """Hold what a folder holds against its predictions; 1 above a roof or beyond the bar.

    Raises: UsageError for a folder without kernels; SpecError for a broken one.
    """
    devices = list(devices_in(args.out))
    if not devices:
        raise UsageError(f"{args.out}: no kernels were measured; run `python -m bench kernels`")
    code = OK
    for device in devices:
        name = device.environment.device_name
        verdict = judge(device.compared, device.measurements)
        write_output(verdict_output(verdict, device.compared, name), args.rendering, args.output)
        if args.plot:
            save_figure(args.plot, partial(validation_figure, verdict, name))
        held = verdict.summaries.get(HELD_OUT)
        missed = args.bar is not None and (held is None or held.median > args.bar / 100)
        code = CHECK_FAILED if verdict.above_roof or missed else code
    return code
