#!/usr/bin/env bash
# Check, time and tune every kernel on this machine's GPU: bench/gpu.sh [FOLDER] [--minutes 9] ...
# Results go to FOLDER, else to $OUT, else to out/gpu, line by line while they come.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m bench.gpu "$@"
