"""Probes: 31 layers, 8 classes, 400 training items and 5 values of C, on real residuals.

Compared: everything that lensbench.inspectors.probes.probe.Probe.fit does with the residuals in hand, with a plain
loop over scikit-learn: for each layer StandardScaler, for each C LogisticRegression on the subjects that learn, the
best C by log-loss on the subjects that choose, and one more fit on all. scikit-learn's own solver (lbfgs) and
tolerance (the largest gradient 1e-4), which is also where lensbench stops to compare values of C; its last fit ends at
1e-5.
The plain loop runs twice: as it is written, with as many threads in a matrix product as the machine has cores, and
with one, which is faster for such small ones. Predictions are compared on items that neither has seen, with each
other and with fits at a tolerance of 1e-8, and so are the chosen values of C.
The items are cities of eight countries in several texts of attribute_extraction/city_country; texts of one city stay
on one side of every split.

Not compared: reading the residuals, which both need. What the probe keeps of an earlier fit is removed before each run.
"""

from functools import partial

import numpy as np
from common import Table, clocked, heading, interleaved, load, options
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lensbench.inspectors.evidence import Evidence, Training
from lensbench.inspectors.probes import probe
from lensbench.models.activations import Reading, capture
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
    return answers, values.at_items(train), labels[train], groups[train], values.at_items(test)


def ours(answers, residuals, labels, groups, strengths):
    """Fit the probe as the harness does."""
    probe._kept.clear()
    training = Training(answers, tuple(groups.tolist()), lambda: residuals, labels=tuple(labels.tolist()))
    return probe.Probe(strengths=strengths).fit(None, None, training)


def plain(residuals, labels, groups, strengths, threads=None, tolerance=1e-4):
    """Fit a scaler a layer and a regression for each layer and C; return for each layer scaler, regression and C."""
    learn, choose = next(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(labels, groups=groups))
    found = []
    with threadpool_limits(threads):
        for values in residuals.values.numpy():
            scaler = StandardScaler().fit(values)
            standard = scaler.transform(values if tolerance >= 1e-4 else values.astype(np.float64))
            losses = []
            for strength in strengths:
                fit = LogisticRegression(C=strength, max_iter=10000, tol=tolerance).fit(standard[learn], labels[learn])
                losses.append(log_loss(labels[choose], fit.predict_proba(standard[choose]), labels=fit.classes_))
            best = strengths[int(np.argmin(losses))]
            fit = LogisticRegression(C=best, max_iter=10000, tol=tolerance).fit(standard, labels)
            found.append((scaler, fit, best))
    return found


def plain_reading(found, test):
    """Return a plain loop's log-probabilities on held-out items, [layer, item, class], and its values of C."""
    pairs = zip(test.values.numpy(), found, strict=True)
    scores = np.stack([fit.predict_log_proba(scaler.transform(values)) for values, (scaler, fit, _) in pairs])
    return scores, [best for *_, best in found]


def our_reading(answers, fitted, layers, test):
    """Return the same of the probe."""
    items = test.values.shape[1]
    evidence = Evidence(tuple(answers), (tuple(answers),) * items, layers, test)
    return fitted.inspect(evidence).log_scores[:, 0].numpy(), [fit.C for fit in fitted.probes_]


def compare(name, one, other):
    """Print how far two readings agree."""
    (scores, chosen), (theirs, their_chosen) = one, other
    same = (scores.argmax(-1) == theirs.argmax(-1)).mean()
    agree = np.array(chosen) == np.array(their_chosen)
    apart = np.abs(scores - theirs)[agree]
    print(
        f"- {name}: the same C at {agree.sum()} of {len(agree)} layers, the same prediction for {same:.2%} of "
        f"{scores.shape[0] * scores.shape[1]}; where C is the same, log-probabilities differ by {apart.mean():.1e} on "
        f"average and by {apart.max():.1e} at most"
    )


def main() -> None:
    """Print a table."""
    parser = options(__doc__, repeats=3)
    parser.add_argument("--items", type=int, default=400)
    given = parser.parse_args()
    model = load()
    layers = tuple(range(0, model.n_layers + 1, 5 if given.quick else 1))
    answers, train, labels, groups, test = make_data(model, given.items, layers)
    heading(f"Probes: {len(layers)} layers, {CLASSES} classes, {given.items} items, {len(STRENGTHS)} values of C")
    del model
    loop = partial(plain, train, labels, groups, STRENGTHS)
    timings = interleaved(
        {
            "ours": clocked(lambda: ours(answers, train, labels, groups, STRENGTHS)),
            "plain loop": clocked(loop),
            "plain loop, one thread": clocked(lambda: loop(threads=1)),
        },
        given.repeats,
    )
    mine = our_reading(answers, timings["ours"].result, layers, test)
    theirs = plain_reading(timings["plain loop"].result, test)
    exact = plain_reading(loop(threads=1, tolerance=1e-8), test)
    compare("ours and the plain loop", mine, theirs)
    compare("ours and the optimum", mine, exact)
    compare("the plain loop and the optimum", theirs, exact)
    table = Table("side", "seconds", "times ours")
    for name, timing in timings.items():
        table.add(name, timing, f"{timing.median / timings['ours'].median:.3g}")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
