"""Run every benchmark of speed and memory, one after the other, and print their tables."""

import subprocess
import sys
from pathlib import Path

from common import options

HERE = Path(__file__).resolve().parent
# Which peers each is given.
SCRIPTS = {
    "patchscope.py": ("nnterp",),
    "grid.py": (),
    "arithmetic.py": (),
    "tuned_lens.py": ("tuned-lens",),
    "logit_lens.py": ("nnterp", "tuned-lens"),
    "probes.py": (),
    "memory.py": (),
}


def main() -> None:
    """Run them."""
    parser = options(__doc__)
    parser.add_argument("--nnterp-python", default="python", help="of an environment with nnterp 1.3")
    parser.add_argument("--tuned-lens-python", default="python", help="of an environment with tuned-lens 0.2.0")
    given = parser.parse_args()
    failed = []
    for script, peers in SCRIPTS.items():
        command = [sys.executable, str(HERE / script), "--repeats", str(given.repeats)]
        command += ["--quick"] * given.quick
        for peer in peers:
            command += [f"--{peer}-python", getattr(given, f"{peer.replace('-', '_')}_python")]
        if subprocess.run(command, check=False).returncode:
            failed.append(script)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
