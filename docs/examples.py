"""Run the commands in the documentation's console blocks and hold their output against the text.

A block holds commands (`$ ...`), each followed by its output. `--write` puts the output of a run
into the text; `--check` fails where it differs. Commands that do not start with `python -m
perfmodel` or `printf` are for the reader and stay untouched.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/predict.md", "docs/model.md", "docs/formats.md", "docs/forecast.md")
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
RUNNABLE = ("python -m perfmodel", "printf ")


def run(command: str, folder: Path) -> str:
    """Everything that a command prints, in an environment whose `python` is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    process = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return process.stdout


def refreshed(block: str, folder: Path) -> str:
    """The block with the output of every runnable command as it is now."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    if not all(command[2:].startswith(RUNNABLE) for command in commands):
        return block
    return "".join(f"{command}\n{run(command[2:], folder)}" for command in commands)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="refresh the pages")
    mode.add_argument("--check", action="store_true", help="fail where a page is stale")
    args = parser.parse_args()
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            current = BLOCK.sub(lambda block, f=folder: refreshed(block[0], Path(f)), text)
        if current != text:
            stale.append(page)
            if args.write:
                path.write_text(current, encoding="utf-8")
    print("refreshed:" if args.write else "stale:", ", ".join(stale) or "nothing")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
