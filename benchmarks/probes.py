"""Probes: 31 layers, 8 classes, 400 training items and 5 values of C, on real residuals.

Compared: everything that lensbench.inspectors.probe.Probe.fit does with the residuals in hand, with a plain loop over
scikit-learn: for each layer and each C, StandardScaler and LogisticRegression on the subjects that learn, the best C
by log-loss on the subjects that choose, and one more fit on all. Same solver (lbfgs), same tolerances, same split.
Predictions are compared on items that neither has seen, and so are the chosen values of C.
The items are cities of eight countries in several texts of attribute_extraction/city_country; texts of one city stay
on one side of every split.

Not compared: reading the residuals, which both need. Starting the worker processes of joblib is not counted (a
first, untimed run starts them; its seconds are printed).
"""

import warnings

import numpy as np
from common import Table, clocked, heading, interleaved, load, options
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from sklearn.preprocessing import StandardScaler

from lensbench.evidence import Evidence, Training
from lensbench.inspectors.probe import Probe
from lensbench.residuals import Reading, Residuals, capture
from lensbench.tasks import load_task

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
CLASSES = 8


def make_data(model, count, layers):
    """Return training and held-out residuals, labels and subjects: every city of the classes in every text."""
    task = load_task("attribute_extraction/city_country")
    relation = task.relations["city_country"]
    answers = relation.answers[:CLASSES]
    facts = [fact for fact in task.facts if fact.answer in answers]
    texts = list(relation.sources["subject"].values())
    rows = [(fact, text) for text in texts for fact in facts]
    order = np.random.default_rng(0).permutation(len({fact.subject for fact, _ in rows}))
    held = {facts[i].subject for i in order[: len(facts) // 4]}
    readings = [Reading(model.tokens.encode(text.replace("{subject}", fact.subject)).ids) for fact, text in rows]
    values = capture(model, readings, layers)
    train = [i for i, (fact, _) in enumerate(rows) if fact.subject not in held][:count]
    test = [i for i, (fact, _) in enumerate(rows) if fact.subject in held]
    if len(train) < count:
        raise SystemExit(f"{count} training items were asked for, and there are {len(train)}")
    labels = np.array([fact.answer for fact, _ in rows])
    number = {fact.subject: i for i, fact in enumerate(facts)}
    groups = np.array([number[fact.subject] for fact, _ in rows])
    return answers, values.of(train), labels[train], groups[train], values.of(test)


def ours(answers, residuals, labels, groups, strengths):
    """Fit the probe as the harness does."""
    training = Training(answers, tuple(groups.tolist()), lambda: residuals, labels=tuple(labels.tolist()))
    return Probe(strengths=strengths).fit(None, None, training)


def plain(residuals, labels, groups, strengths, tolerances):
    """Fit a scaler and a regression for each layer and C; return for each layer scaler, regression and C."""
    learn, choose = next(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(labels, groups=groups))
    rough, fine = tolerances
    found = []
    for values in residuals.values.numpy():
        losses = []
        for strength in strengths:
            scaler = StandardScaler().fit(values[learn])
            fit = LogisticRegression(C=strength, max_iter=300, tol=rough).fit(
                scaler.transform(values[learn]), labels[learn]
            )
            guessed = fit.predict_proba(scaler.transform(values[choose]))
            losses.append(log_loss(labels[choose], guessed, labels=fit.classes_))
        best = strengths[int(np.argmin(losses))]
        scaler = StandardScaler().fit(values)
        fit = LogisticRegression(C=best, max_iter=300, tol=fine).fit(scaler.transform(values), labels)
        found.append((scaler, fit, best))
    return found


def predictions(answers, probe, layers, test: Residuals, found):
    """Return both sides' log-probabilities on held-out items, [layer, item, class], and the chosen values of C."""
    items = test.values.shape[1]
    evidence = Evidence(tuple(answers), (tuple(answers),) * items, layers, test)
    mine = probe.inspect(evidence).log_scores[:, 0].numpy()
    theirs = np.stack(
        [
            fit.predict_log_proba(scaler.transform(values.numpy()))
            for values, (scaler, fit, _) in zip(test.values, found, strict=True)
        ]
    )
    return mine, theirs, [fit.C for _, _, fit in probe.probes_], [best for *_, best in found]


def compare(name, mine, theirs, chosen, other):
    """Print how far the two sides agree."""
    same = (mine.argmax(-1) == theirs.argmax(-1)).mean()
    apart = np.abs(mine - theirs)
    agree = np.array(chosen) == np.array(other)
    inside = f", where C is the same at most {apart[agree].max():.1e}" if agree.any() else ""
    print(
        f"- {name}: the same C at {agree.sum()} of {len(agree)} layers; the same prediction for {same:.2%} of "
        f"{mine.shape[0] * mine.shape[1]}; log-probabilities differ by {apart.mean():.1e} on average{inside}"
    )


def main() -> None:
    """Print a table."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--items", type=int, default=400)
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    model = load()
    layers = tuple(range(0, model.n_layers + 1, 5 if given.quick else 1))
    answers, train, labels, groups, test = make_data(model, given.items, layers)
    heading(f"Probes: {len(layers)} layers, {CLASSES} classes, {given.items} items, {len(STRENGTHS)} values of C")
    del model
    first, _ = clocked(lambda: ours(answers, train, labels, groups, STRENGTHS))()
    print(f"first run, with the start of worker processes: {first:.2f} s")
    tolerances = {"the same tolerances": (1e-2, 1e-3), "scikit-learn's own tolerance": (1e-4, 1e-4)}
    sides = {"ours": clocked(lambda: ours(answers, train, labels, groups, STRENGTHS))}
    for name, pair in tolerances.items():
        sides[f"plain loop, {name}"] = clocked(lambda pair=pair: plain(train, labels, groups, STRENGTHS, pair))
    timings = interleaved(sides, given.repeats)
    table = Table("side", "seconds", "times ours")
    for name, timing in timings.items():
        table.add(name, timing, f"{timing.median / timings['ours'].median:.3g}")
        if name != "ours":
            compare(name, *predictions(answers, timings["ours"].result, layers, test, timing.result))
    print(f"\n{table}")


if __name__ == "__main__":
    main()
