"""What is put on the Hugging Face Hub: a run, a lens or an edit, as a folder with a card that explains it."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lensbench.errors import LensbenchError, UsageError
from lensbench.models.adapters import WEIGHTS, read_adapter
from lensbench.models.hub import check_repo, is_repo
from lensbench.models.sources import ADAPTER, ASKED, EDIT_FILES, FACTS, FINETUNED, IMPLANT, read_table
from lensbench.models.tuned_lens_files import CONFIG, OURS, PARAMS, check_new
from lensbench.report.sentences import result_sentences
from lensbench.report.wording import readable
from lensbench.results.crossed_files import CROSSED
from lensbench.results.records import ALL, MEASURES, RECORDS
from lensbench.results.run_file import RUN_FILE
from lensbench.results.summary import accuracy_column
from lensbench.runs.run import PLOTS, SUMMARY, Run
from lensbench.utils.cache import atomic_folder

CARD = "README.md"
# Notes of `lensbench fit oracle` beside its adapter.
ORACLE_NOTES = "lensbench.json"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# The folders of an absolute path, or of one that begins in the home folder.
_LOCAL = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\:'\"]+[/\\])+")
_AT = "COMMIT"
_VERDICTS = ("uses_activation_verdict", "beats_text_verdict")
NO_LICENCE = "No licence is stated. What it was made from has licences of its own."
WHICH_COMMIT = "COMMIT is the full commit of this repository."


@dataclass(frozen=True)
class Parcel:
    """What is to be uploaded.

    Attributes:
        kind: of repository: `dataset` or `model`.
        files: path in the repository -> file here.
        card: the text of README.md.
        load: the command that loads it from the Hub, with COMMIT in place of the commit.
        texts: path in the repository -> text, of files that are not uploaded as they are here.
    """

    kind: str
    files: Mapping[str, Path]
    card: str
    load: str
    texts: Mapping[str, str] = field(default_factory=dict)


def pack(source: Path, to: str, licence: str | None = None) -> Parcel:
    """Look at a run folder, a fitted lens or an edit, and say what of it is uploaded.

    Args:
        source: the folder.
        to: the repository that it is for, ORG/NAME.
        licence: an identifier of the Hub, such as `apache-2.0`; by default the card says that none is stated.

    Raises:
        UsageError: a folder of another kind, or a name or licence of another form.
        LensbenchError: a damaged folder.
    """
    check_repo(to)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UsageError(f"--licence {licence!r}: expected an identifier of the Hub, such as apache-2.0 or cc-by-4.0")
    if (source / RUN_FILE).is_file():
        return _run(source, to, licence)
    if (source / CONFIG).is_file() and (source / PARAMS).is_file():
        return _lens(source, to, licence)
    if (source / IMPLANT).is_file() or (source / ADAPTER).is_file():
        return _edit(source, to, licence)
    raise UsageError(
        f"{source} is no run ({RUN_FILE}), lens ({CONFIG} and {PARAMS}) or edit ({IMPLANT} or {ADAPTER}); give the "
        "folder that `lensbench evaluate`, `fit`, `implant` or `finetune` wrote"
    )


def write(parcel: Parcel, out: Path) -> list[Path]:
    """Write a parcel into a new folder, whole or not at all; return its files.

    Raises:
        UsageError: there is such a folder, or it cannot be written.
    """
    check_new(out)
    try:
        with atomic_folder(out) as folder:
            for name, file in parcel.files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / name)
            for name, text in {CARD: parcel.card, **parcel.texts}.items():
                (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written to: {error.strerror}; choose another folder") from None
    return [out / name for name in (CARD, *parcel.files)]


def _card(head: Mapping[str, Any], licence: str | None, parts: list[str]) -> str:
    """Join a card: its head is YAML, of which JSON is a part."""
    told = {"license": licence} if licence else {"license": "other", "license_name": "not-stated"}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in {**told, **head}.items()]
    under = f"Licence: {licence}." if licence else NO_LICENCE
    return "\n".join(["---", *lines, "---", "", "\n\n".join([*parts, under]), ""])


def _cell(value: Any) -> str:
    """Return a value as the cell of a table in Markdown: a name may be anything."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _table(columns: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> str:
    lines = (f"| {' | '.join(map(_cell, row))} |" for row in rows)
    return "\n".join([f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines])


def _shown(model: object) -> str:
    """Return a model's name without the folders that it lies in here."""
    parts = str(model).split("+")
    return "+".join(part if is_repo(part) and not Path(part).exists() else Path(part).name for part in parts)


def _base(model: object) -> dict[str, Any]:
    """Return what a card's head says of the model that something is for: only Hub ids are known there."""
    name = str(model)
    return {"base_model": name} if is_repo(name) and not Path(name).exists() else {}


def _run(source: Path, to: str, licence: str | None) -> Parcel:
    run = Run(source)
    if not run.done:
        raise LensbenchError(f"{source} has no finished cell: run `lensbench evaluate` again with the same --out")
    found = [source / RUN_FILE, *sorted(source.glob("*.csv")), *sorted((source / PLOTS).glob("*.png"))]
    shards = (source / folder / file for folder in (RECORDS, MEASURES, CROSSED) for file in run.done)
    files = {path.relative_to(source).as_posix(): path for path in (*found, *shards) if path.is_file()}
    name = to.rpartition("/")[2]
    head = {
        "pretty_name": name, "tags": ["lensbench", "interpretability"],
        "configs": [
            {"config_name": "summary", "data_files": SUMMARY, "default": True},
            {"config_name": "records", "data_files": f"{RECORDS}/*.parquet"},
        ],
    }  # fmt: skip
    told = result_sentences(run.best, run.info, run.summaries)
    parts = [
        f"# {name}",
        f"A run of lensbench: methods that read the hidden states of {_cell(_shown(run.info['setting']['model']))}, "
        "layer by layer, beside what could produce the same score without reading them.",
        "\n".join(f"- {_cell(f'{readable(one.task)}, read at {one.site}: {one.sentence}')}" for one in told),
        f"## Each method at its best layer\n\n{_best(run)}",
        f"The score is {run.score}. Where the relation is all, it is the mean over relations of (accuracy - chance) / "
        "(1 - chance).",
        *(
            [f"Cells that failed and are not in it: {len(run.failed)}, of {_cell(', '.join(_failed(run)))}."]
            if run.failed
            else []
        ),
        _made_with(run),
        f"## Load it\n\n```\nhf download {to} --repo-type dataset --local-dir {name}\nlensbench verdict {name}\n```\n\n"
        f'```python\nfrom datasets import load_dataset\n\nrecords = load_dataset("{to}", "records")\n```',
    ]
    load = f"hf download {to} --repo-type dataset --revision {_AT} --local-dir {name}"
    texts = {RUN_FILE: json.dumps(_without_places(run.info), indent=2, ensure_ascii=False)}
    return Parcel("dataset", files, _card(head, licence, parts), load, texts)


def _without_places(told: Any) -> Any:
    """Return what a run says of itself without tracebacks, and without the folders that files lie in here."""
    if isinstance(told, Mapping):
        return {key: _without_places(value) for key, value in told.items() if key != "traceback"}
    if isinstance(told, list):
        return [_without_places(value) for value in told]
    return _LOCAL.sub("", told) if isinstance(told, str) else told


def _failed(run: Run) -> list[str]:
    return sorted({str(run.info["cells"][file]["inspector"]) for file in run.failed})


def _made_with(run: Run) -> str:
    setting = run.info["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.info.get("versions", {}).items()))
    asked = {name: setting[name] for name in ("seed", "limit", "dtype", "device", "model_args") if name in setting}
    return f"Made with {_cell(versions) or 'unknown versions'}. Settings: {_cell(json.dumps(asked))}."


def _best(run: Run) -> str:
    column = accuracy_column(run.score)
    columns = (
        "task", "relation", "site", "method", "layer", "accuracy", "band", "chance", "uses the activation?",
        "beats the text?",
    )  # fmt: skip
    best = run.best[(run.best["relation"] != ALL) | (run.best["relations"] > 1)]
    rows = (
        (
            row["task"], row["relation"], row["site"], row["inspector"], "-" if pd.isna(row["layer"]) else row["layer"],
            f"{row[column]:.2f}", f"{row['ci_low']:.2f} to {row['ci_high']:.2f}",
            f"{row['chance']:.2f}", *("-" if pd.isna(row[name]) else row[name] for name in _VERDICTS),
        )
        for row in best.to_dict("records")
    )  # fmt: skip
    return _table(columns, rows)


def _lens(source: Path, to: str, licence: str | None) -> Parcel:
    settings = read_table(source / CONFIG, "fit the lens again")
    model = settings.get("base_model_name_or_path", "?")
    load = (
        f"lensbench evaluate --model {_shown(model)} --inspectors tuned_lens --set tuned_lens.checkpoint=hub:{to}@{_AT}"
    )
    ours = settings.get(OURS)
    known = {"blocks": settings.get("num_hidden_layers"), "width": settings.get("d_model")}
    known |= ours if isinstance(ours, dict) else {}
    parts = [
        f"# {to.rpartition('/')[2]}",
        f"A tuned lens for {_cell(_shown(model))}: a linear map for each layer, after which the model's own norm and "
        "head predict the next token. It is a checkpoint in the format of the tuned-lens package, fitted by lensbench.",
        _table(("setting", "value"), iter(known.items())),
        f"## Load it\n\n```\n{load}\n```\n\n{WHICH_COMMIT}",
    ]
    head = {"tags": ["lensbench", "tuned-lens", "interpretability"], "library_name": "lensbench", **_base(model)}
    return Parcel("model", {name: source / name for name in (CONFIG, PARAMS)}, _card(head, licence, parts), load)


def _edit(source: Path, to: str, licence: str | None) -> Parcel:
    """An implant, what `lensbench finetune` wrote, or a LoRA adapter of PEFT."""
    known: dict[str, Any]
    if (source / IMPLANT).is_file():
        told = read_table(source / IMPLANT)
        model, what = told["base"]["name"], f"Facts planted at layer {', '.join(map(str, told['layers']))}"
        known = {key: told.get(key) for key in ("design", "task", "attributes", "lensbench")} | told.get("figures", {})
    else:
        adapter = read_adapter(source)
        model, what = adapter.base, "A LoRA adapter, as PEFT writes it,"
        notes = read_table(source / FINETUNED) if (source / FINETUNED).is_file() else {}
        known = {"rank": adapter.settings.get("r"), "alpha": adapter.settings.get("lora_alpha"), **notes}
        model = notes.get("base", {}).get("name", model)
    names = [*dict.fromkeys(name for group in EDIT_FILES for name in group), FINETUNED, FACTS, ASKED, ORACLE_NOTES]
    files = {name: source / name for name in names if (source / name).is_file()}
    pinned = f"hub:{to}@{_AT}"
    load = f"lensbench evaluate --model {_shown(model)}+{pinned}"
    if ORACLE_NOTES in files:
        load = f"lensbench evaluate --model {_shown(model)} --inspectors oracle --set oracle.adapter={pinned}"
    parts = [
        f"# {to.rpartition('/')[2]}",
        f"{what} in {_cell(_shown(model))}, made for lensbench.",
        _table(
            ("what", "value"), ((key, value) for key, value in known.items() if isinstance(value, str | int | float))
        ),
        f"## Load it\n\n```\n{load}\n```\n\n{WHICH_COMMIT}",
    ]
    head = {"tags": ["lensbench", "interpretability"], "library_name": "peft" if WEIGHTS in files else "lensbench"}
    return Parcel("model", files, _card({**head, **_base(model)}, licence, parts), load)
