"""`python -m perfmodel`: signals first, so that an early Ctrl-C is one line too."""

import signal
import sys

INTERRUPTED_EXIT = 130
TERMINATED_EXIT = 143

signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED_EXIT))  # clean up on the way out
try:
    from perfmodel.cli import main
except KeyboardInterrupt:
    print("perfmodel: interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED_EXIT)

sys.exit(main())
