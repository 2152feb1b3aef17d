"""Runs of the miniature, each ended by a signal at another moment, resumed, and compared with a run left alone.

    python scripts/crash_check.py [--seeds 20] [--signals KILL,TERM,USR1]

Prints for each seed the moment that was aimed at and what the run left behind there; exit code 1 where a resumed run
differs in a number of metrics.jsonl (times aside), a transcript, a weight or a bit of the last checkpoint.
"""

import argparse
import signal
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# megatron-core warns, at import, of what is not installed.
warnings.filterwarnings("ignore", module=r"megatron\b")

from tests.loop.crashes import assert_same, end_at, go_on, moment_of  # noqa: E402
from tests.support.miniature import make_miniature  # noqa: E402

EXPECTED = {signal.SIGKILL: -9, signal.SIGTERM: 85, signal.SIGUSR1: 85}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="moments for each signal (20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--signals", default="KILL,TERM,USR1", help="comma-separated names without SIG")
    chosen = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        miniature = make_miniature(folder)
        unbroken = folder / "unbroken"
        go_on(miniature, unbroken)
        for number in [signal.Signals[f"SIG{text}"] for text in chosen.signals.split(",")]:
            for seed in range(chosen.first, chosen.first + chosen.seeds):
                moment, step, _ = moment_of(seed)
                run = folder / f"{number.name}-{seed}"
                code, place = end_at(miniature, run, seed, number)
                verdict = "same" if code == EXPECTED[number] else f"exit code {code}"
                try:
                    go_on(miniature, run)
                    assert_same(run, unbroken)
                except AssertionError as error:
                    verdict = f"DIFFERS: {error}"
                failures += verdict != "same"
                print(f"{number.name} {seed:2d}  {moment.label} of step {step}: {place}  -> {verdict}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
