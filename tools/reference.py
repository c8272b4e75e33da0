"""Make the runs of the reference study, examples/reference/, and what they need; see docs/decisions/0016-study.md.

python tools/reference.py             # says what each run will take, and makes them; repeat it to resume
python tools/reference.py prose used  # only these runs
"""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "reference"
OUT = Path("reports") / "reference"
FITS = OUT / "fits"
LENSBENCH = [sys.executable, "-m", "lensbench"]
LEARNED = {
    # What is learned once, for the runs that name it: its folder, and what `lensbench fit` is asked for.
    "jacobian": ["jacobian_lens", "--set", "prompts=64"],
    "gemma-jacobian": ["jacobian_lens", "--model", "gemma3-270m", "--set", "prompts=32"],
    "oracle": ["oracle", "--set", "together=true", "--set", "steps=100"],
    "selfie": ["selfie_adapter", "--set", "steps=100"],
}
ANALYSES = {"analyses": "smollm2-135m", "gemma-analyses": "gemma3-270m"}
CALIBRATION = "calibration"
"""`lensbench calibrate` with its defaults, on all implants that ship; its table is in docs/trust.md."""


def main() -> None:
    """Make the runs that are asked for, and then the page of claims."""
    names = sorted(path.stem for path in CONFIGS.glob("*.toml"))
    known = [*names, *ANALYSES, CALIBRATION]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"only these: {', '.join(known)}")
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="as of lensbench evaluate")
    asked = parser.parse_args()
    if wrong := set(asked.runs) - set(known):
        parser.error(f"there is no run {', '.join(sorted(wrong))}; expected {', '.join(known)}")
    chosen = asked.runs or known
    evaluated = [name for name in chosen if name in names]
    for name in needed(evaluated):
        make_fit(name)
    for name in evaluated:
        print(f"{name}: {first_comment(name)}")
        run([*evaluate(name, asked.executor), "--dry-run", "--quiet"], show=False)
    for name in evaluated:
        run(evaluate(name, asked.executor))
    for name in (one for one in chosen if one in ANALYSES):
        run(["analyze", "updates", "--model", ANALYSES[name], "--texts", "64", "--out", str(OUT / name)])
    if CALIBRATION in chosen:
        run(["calibrate", "--out", str(OUT.with_name("reference-calibration"))])
    run(["claims", str(OUT)])


def evaluate(name: str, executor: str) -> list[str]:
    """Return the command of a run."""
    return ["evaluate", "--config", str(CONFIGS / f"{name}.toml"), "--out", str(OUT / name), "--executor", executor]


def first_comment(name: str) -> str:
    """Return what the configuration says that the run is for."""
    return (CONFIGS / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def needed(runs: list[str]) -> list[str]:
    """Return what the runs' configurations name of FITS, each once."""
    found = []
    for name in runs:
        config = tomllib.loads((CONFIGS / f"{name}.toml").read_text(encoding="utf-8"))
        values = (value for one in config.get("parameters", {}).values() for value in one.values())
        paths = [config["model"], *map(str, values)]
        found += [Path(path).relative_to(FITS).parts[0] for path in paths if path.startswith(f"{FITS}{os.sep}")]
    return list(dict.fromkeys(found))


def make_fit(name: str) -> None:
    """Learn what is missing; training that was interrupted goes on where it was."""
    if name == "random":
        make_random()
    elif not (ROOT / FITS / name).exists():
        run(["fit", *LEARNED[name], "--out", str(FITS / name)])


def make_random() -> None:
    """Write the network with random weights that has the built-in model's shape and tokenizer."""
    folder = ROOT / FITS / "random"
    if (folder / "config.json").exists():
        return
    from lensbench import load_model
    from lensbench.models.loading import with_random_weights

    part = folder.with_suffix(".partial")
    model = with_random_weights(load_model("smollm2-135m"), 0)
    model.module.save_pretrained(part)
    model.tokens.tokenizer.save_pretrained(part)
    part.rename(folder)


def run(arguments: list[str], *, show: bool = True) -> None:
    """Run a command of lensbench, and end with its status if it fails."""
    if show:
        print("lensbench", *arguments, flush=True)
    status = subprocess.run([*LENSBENCH, *arguments], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
