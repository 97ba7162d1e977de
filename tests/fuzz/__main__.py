"""Fuzz the codec and the gateway, or repeat what was found: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import structlog

from tests.fuzz.campaign import AtherisIsMissing, Figures, fuzz, require_atheris
from tests.fuzz.targets import TARGETS, Target, named

CLEAN, FOUND, MISSING, INTERRUPTED = 0, 1, 3, 130

EPILOG = """\
targets:
{targets}

examples:
  uv run --group fuzz python -m tests.fuzz codec --minutes 10
  uv run --group fuzz python -m tests.fuzz all --minutes 5 --keep
  uv run --group test python -m tests.fuzz wire --repeat tests/fuzz/corpus/wire/found-0123456789ab

What is found is reduced, written to tests/fuzz/corpus/<target>/found-..., and shown with the command
that repeats it. Leave the file there: pytest repeats the whole corpus, so it fails until the bug is
mended and stays as a regression test afterwards. --repeat needs no atheris.

exit status:
  0  nothing found    1  found something, or the repeated input fails    2  wrong arguments
  3  atheris is not there (Linux x86_64, CPython 3.11 to 3.13)    130  Ctrl-C; figures are still shown
"""


def _arguments() -> argparse.Namespace:
    targets = "\n".join(f"  {target.name:<11} {target.about}" for target in TARGETS.values())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Fuzz a target, guided by coverage, for as long as you like.",
        epilog=EPILOG.format(targets=targets),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="+", choices=[*TARGETS, "all"], metavar="target", help="one or more; see below")
    parser.add_argument("--minutes", type=_minutes, default=1.0, help="for each target, default 1; fractions are fine")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach more to the corpus")
    parser.add_argument("--repeat", type=Path, nargs="+", metavar="FILE", help="run these inputs once, without fuzzing")
    return parser.parse_args()


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 1_440:
        raise argparse.ArgumentTypeError("more than 0, at most 1440")
    return minutes


def main() -> int:
    """The exit status."""
    arguments = _arguments()
    targets = named(arguments.target)
    if arguments.repeat:
        return max(_repeat(target, path) for target in targets for path in arguments.repeat)
    try:
        require_atheris()
    except AtherisIsMissing as missing:
        print(missing.__doc__, file=sys.stderr)
        return MISSING
    return _fuzz(targets, arguments.minutes * 60, keep=arguments.keep)


def _fuzz(targets: list[Target], seconds: float, *, keep: bool) -> int:
    structlog.configure(processors=[_drop])  # of what fails again and again while it is reduced
    done: list[Figures] = []
    for target in targets:
        done.append(fuzz(target, seconds, keep=keep, say=_say))
        if done[-1].interrupted:
            break
    print()
    for figures in done:
        print(figures)
        if figures.finding is not None:
            print(f"  FOUND: uv run --group test python -m tests.fuzz {figures.target} --repeat {figures.finding}")
    if any(figures.finding is not None for figures in done):
        return FOUND
    return INTERRUPTED if done[-1].interrupted else CLEAN


def _drop(*_: object) -> dict[str, object]:
    raise structlog.DropEvent


def _say(line: object) -> None:
    print(line, flush=True)


def _repeat(target: Target, path: Path) -> int:
    try:
        target.run(path.read_bytes())
    except Exception:  # whatever a target finds
        traceback.print_exc()
        print(f"{target.name} {path}: FAILS")
        return FOUND
    print(f"{target.name} {path}: holds")
    return CLEAN


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
