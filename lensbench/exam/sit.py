"""Sitting an exam with the methods of this package, or others of its interface, from the paper alone."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lensbench.errors import NotApplicableError, UsageError
from lensbench.evaluation.config import RunConfig
from lensbench.evaluation.models import load_context
from lensbench.evaluation.plan import Make, describe_method, make_inspectors
from lensbench.exam.answers import Card, write_answers
from lensbench.exam.paper import Paper, Table, as_toml
from lensbench.harness.context import RunContext
from lensbench.harness.recording import Question, evidence_of, require_one_layer
from lensbench.inspectors.base import Inspector
from lensbench.inspectors.evidence import SourceText, Training
from lensbench.inspectors.target import Target
from lensbench.models.activations import Residuals
from lensbench.models.corpus import Corpus, lens_cache
from lensbench.models.language_model import LanguageModel
from lensbench.utils.progress import Progress, silent

LOG = logging.getLogger("lensbench")
Rows = list[dict[str, Any]]


def sit_with(papers: Mapping[str, Paper], config: RunConfig, out: Path, progress: Progress = silent) -> list[Path]:
    """Answer papers with several methods; the models are loaded once.

    Args:
        papers: by name. The paper of one exam has the name "", and each method a file of answers with a card; those of
            a series have the names of their exams, and each method a folder with a file for each.
        config: its models, methods and parameters are used.
        out: a folder.
        progress: is told of each group of rows.

    Returns:
        The files of answers.

    Raises:
        UsageError: a method that does not fit a paper, found before a model is loaded; or other weights than those
            that a paper names.
    """
    makes = make_inspectors(config)
    for make in makes.values():
        for paper in papers.values():
            _check(make(), paper)
    context = load_context(config, ())
    for paper in papers.values():
        _check_models(paper, context)
    written = []
    for name, make in makes.items():
        for exam, paper in papers.items():
            written.append(out / name / f"{exam}.parquet" if exam else out / f"{name}.parquet")
            sit_exam(paper, make, context.model, context.verbalizer, written[-1], progress)
    return written


def _check_models(paper: Paper, context: RunContext) -> None:
    for role, model in (("", context.model), ("verbalizer_", context.verbalizer)):
        wanted = paper.about.get(f"{role}fingerprint", model.fingerprint)
        if model.fingerprint != wanted:
            raise UsageError(
                f"{model.name} is not the model of this paper: its fingerprint is {model.fingerprint}, the paper's "
                f"{wanted}; give another revision, or --dtype {paper.about['dtype']}"
            )


def _check(inspector: Inspector, paper: Paper) -> None:
    if beyond := sorted(inspector.reads - paper.reads - {"choices"}):
        raise UsageError(f"{inspector.name} reads {beyond[0]}, which this exam does not have; sit with another method")
    if inspector.learns_from == "labels" and paper.training is None:
        raise UsageError(f"{inspector.name} learns labels, and the paper has none; sit with another method")


def sit_exam(
    paper: Paper, make: Make, model: LanguageModel, verbalizer: LanguageModel, out: Path, progress: Progress = silent
) -> Card:
    """Answer a paper with one method; write the answers, and a card beside them.

    Args:
        paper: the paper.
        make: makes the method, unfitted.
        model: that the paper names; its norm and head are what a method may use of it.
        verbalizer: that turns activations into words.
        out: the Parquet file; its card is `OUT.card.toml`.
        progress: is told of each group of rows.

    Raises:
        UsageError: a method that reads what the paper has not, or does not fit the models.
    """
    inspector = make()
    _check(inspector, paper)
    inspector.check(Target(model), verbalizer)
    require_one_layer(inspector, paper.about["layers"], "an exam")
    scores: dict[str, np.ndarray] = {}
    attempts: tuple[str, ...] = ()
    refused: Rows = []
    groups = list(_groups(paper.asked))
    fitted = _Fits(paper, make, model, verbalizer)
    with progress(len(groups)) as advance:
        for rows, values in groups:
            advance(f"{inspector.name}, layer {rows[0]['layer']}")
            try:
                attempts, found = _answered(fitted.of(rows[0]), rows, values, model)
                scores |= {row["row"]: found[i] for i, row in enumerate(rows)}
            except NotApplicableError as error:
                LOG.warning("%s cannot answer %r, layer %d: %s", inspector.name, *_asked(rows[0]), error)
                refused += rows
            advance(None)
    if not scores:
        raise UsageError(f"{inspector.name} can answer none of this exam's questions; sit with another method")
    scores |= {row["row"]: np.zeros((len(attempts), len(row["answers"]))) for row in refused}
    write_answers(out, attempts, scores)
    described = describe_method(inspector)
    card = Card(
        name=inspector.name, summary=described["summary"], version=described["version"],
        reads=tuple(sorted(inspector.reads & paper.reads)), learns_from=inspector.learns_from,
        attempts=tuple(map(str, attempts)), rule=inspector.rule,
    )  # fmt: skip
    out.with_suffix(".card.toml").write_text(as_toml(card.model_dump(mode="json")), encoding="utf-8")
    return card


def _asked(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["question"], row["layer"]


def _groups(table: Table) -> Iterator[tuple[Rows, Float[np.ndarray, "row d_model"]]]:
    """Yield the rows of a sheet that are asked one question about one layer, after one training set, in their order."""
    groups: dict[Any, list[int]] = defaultdict(list)
    listed = table.rows.to_pylist()
    for i, row in enumerate(listed):
        asked = (row["question"], tuple(row["answers"]), row["site"], row["layer"])
        groups[row.get("sheet", 0), row.get("training", ""), asked].append(i)
    for places in groups.values():
        yield [listed[i] for i in places], table.activations[places]


class _Fits:
    """The fits that a paper asks for: one for all rows, or one for each training set."""

    def __init__(self, paper: Paper, make: Make, model: LanguageModel, verbalizer: LanguageModel) -> None:
        self._make, self._model, self._verbalizer = make, model, verbalizer
        self._rows = paper.asked.rows.select(["question", "layer", "choices"]).to_pylist()
        self._taught = (
            {}
            if paper.training is None
            else {rows[0]["training"]: (rows, values) for rows, values in _groups(paper.training)}
        )
        self._fitted: dict[str, tuple[Inspector, tuple[str, ...]]] = {}

    def of(self, row: Mapping[str, Any]) -> tuple[Inspector, tuple[str, ...]]:
        """Return the fit for a row, and the answers that it knows."""
        inspector = self._make()
        learns = inspector.learns_from == "labels"
        name = row["training"] if learns else ""
        if name not in self._fitted:
            training, answers = (
                self._training(inspector, *self._taught[name]) if learns else (self._corpus(inspector), ())
            )
            self._fitted[name] = inspector.fit(Target(self._model), self._verbalizer, training), answers
        return self._fitted[name]

    def _corpus(self, inspector: Inspector) -> Training:
        if inspector.learns_from == "nothing":
            return Training()
        return Training(corpus=Corpus(self._model, cache=lens_cache()))

    def _training(
        self, inspector: Inspector, rows: Rows, values: Float[np.ndarray, "row d_model"]
    ) -> tuple[Training, tuple[str, ...]]:
        subjects: dict[str, set[int]] = defaultdict(set)
        for row in rows:
            subjects[row["label"]].add(row["group"])
        every = tuple(rows[0]["answers"])
        answers = tuple(one for one in every if len(subjects[one]) >= inspector.class_subjects)
        sets = {tuple(row["choices"]) for row in self._rows if _asked(row) == _asked(rows[0])}
        if any(len(set(choices) & set(answers)) < 2 for choices in sets):
            answers = every  # the method says itself why it cannot learn this
        kept = [i for i, row in enumerate(rows) if row["label"] in answers]
        residuals = Residuals((rows[0]["layer"],), torch.from_numpy(values[kept])[None])
        reads = inspector.reads
        training = Training(
            answers=answers, groups=tuple(rows[i]["group"] for i in kept),
            read=(lambda: residuals) if "activation" in reads else None,
            labels=tuple(rows[i]["label"] for i in kept),
            question=rows[0]["question"] if "question" in reads else None,
        )  # fmt: skip
        return training, answers


def _answered(
    fitted: tuple[Inspector, tuple[str, ...]],
    rows: Rows,
    values: Float[np.ndarray, "row d_model"],
    model: LanguageModel,
) -> tuple[tuple[str, ...], Float[np.ndarray, "row attempt answer"]]:
    """Ask a fitted method about rows that belong together."""
    inspector, known = fitted
    first, every = rows[0], tuple(rows[0]["answers"])
    answers = known or every
    question = Question(first["question"], tuple(first["forms"]), answers, first["site"])
    evidence = evidence_of(
        inspector.reads, question, first["layer"], values, model,
        choices=[tuple(one for one in row["choices"] if one in answers) for row in rows],
        texts=[SourceText(row["source"], row["subject"]) for row in rows if "source" in row],
    )  # fmt: skip
    scores = inspector.inspect(evidence)
    scores.validate(inspector.name, (1, len(rows), len(answers)))
    found = np.full((len(rows), len(scores.attempts), len(every)), -np.inf)
    found[..., [every.index(one) for one in answers]] = scores.log_scores[0].transpose(0, 1).double().cpu().numpy()
    return scores.attempts, found
