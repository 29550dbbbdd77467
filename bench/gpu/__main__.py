"""`python -m bench.gpu STAGE ...`: one stage of `bench all`, in a process of its own.

An illegal access ends this process and costs its own job alone.
"""

import argparse
import os
import sys
from pathlib import Path

from bench.cli import JOB_VARIABLE, die_with_parent
from bench.environment import this_environment
from bench.folder import ResultsFolder
from bench.gpu import ncu, quantize, sanitize, stages
from bench.measuring_options import DEFAULT_FOLDER
from perfmodel.errors import PerfmodelError

STAGES = {
    "rates": stages.rates,  # no argument
    "check": stages.check_subject,  # a subject
    "peer": stages.peer,  # the name of one
    "quantize": quantize.quantize,  # kmeans-w3 [BLOCKS], a format of GPTQ or GPTVQ, or fisher
    "tune": stages.tune,  # ROWSxCOLUMNS
    "isolated": stages.isolated,  # ROWSxCOLUMNS
    "sanitize": sanitize.sanitize,  # memcheck or racecheck
    "profile": ncu.profile,  # a subject and ROWSxCOLUMNS
    "once": ncu.once,  # what `profile` runs under ncu
    "touch": sanitize.touch,  # what `sanitize` runs under its tool
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
    args = parser.parse_args()
    if JOB_VARIABLE in os.environ:
        die_with_parent()
    try:
        environment = this_environment("cuda")
        results = ResultsFolder(args.out)
        results.add_environment(environment)
        STAGES[args.stage](environment, results, *args.arguments)
    except PerfmodelError as error:
        print(f"bench.gpu: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
