"""Claims: how a comparison is read, what values are the mean of, and what is told of them."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensbench.errors import UsageError
from lensbench.results.arrays import KEYS
from lensbench.results.claim_rules import Claim, parse, read_claims
from lensbench.results.claim_values import StudyRun, values_of
from lensbench.results.claims import CANNOT_BE_TOLD, DOES_NOT_HOLD, HOLDS, Measured, NoValueError, Told, compare, tell
from lensbench.results.samples import SummarySettings
from lensbench.runs.claims import RULES
from lensbench.utils.layer_spec import parse_layers
from tests.results.test_summary import rows

ROOT = Path(__file__).parents[2]
UNIT = (np.zeros(1), np.ones(1))


def measured(values: np.ndarray, names: str = "s", relations: str = "r") -> Measured:
    values = np.atleast_2d(values.T).T.astype(float)
    subjects = np.array([f"{names}{i}" for i in range(len(values))], dtype=object)
    ends = np.zeros(values.shape[1]), np.ones(values.shape[1])
    return Measured(subjects, subjects, np.full(len(values), relations, object), values, ends)


def of_subjects(one: Measured) -> np.ndarray:
    """The values in the order of the subjects: items are in that of their names, 10 before 2."""
    return one.values[np.argsort(one.subjects)]


def claim(*holds_if: str, control: tuple[str, ...] = (), **values: dict[str, object]) -> Claim:
    return Claim.model_validate(
        {"says": "so", "source": "us", "runs": ["run"], "holds_if": holds_if, "control": control, "values": values}
    )


def study(records: pd.DataFrame, measures: pd.DataFrame | None = None, n_layers: int = 4) -> Callable[[str], StudyRun]:
    tables = {"cosines.csv": pd.DataFrame({"relation": "a", "subject": [1, 2], "layer": 0, "cosine": [0.2, 0.4]})}
    empty = measures if measures is not None else pd.DataFrame({"item": [], "metric": []})
    return lambda name: StudyRun(name, "m", n_layers, records, empty, SummarySettings({}), tables.__getitem__)


# Comparisons


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-40, 40).map(lambda n: n / 8)), min_size=1, max_size=6),
    st.sampled_from("<>"),
    st.integers(-20, 20).map(lambda n: n / 4),
)
def test_a_comparison_is_a_weighted_sum(terms: list[tuple[str, float]], sign: str, threshold: float) -> None:
    text = " + ".join(f"{weight} * {name}" if weight >= 0 else f"-{-weight} * {name}" for name, weight in terms)
    found = parse(f"{text} {sign} {threshold}")
    for name in {name for name, _ in terms}:
        assert found.weights[name] == pytest.approx(sum(weight for one, weight in terms if one == name))
    assert (found.above, found.threshold) == (sign == ">", threshold)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a >= 1",
        "a > b",
        "1 > a",
        "a + 1 > 0",
        "a * b > 0",
        "a > 0 > 1",
        "f(a) > 0",
        "a > ",
        "a.b > 0",
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a comparison such as"):
        parse(text)


def test_a_difference_is_paired_over_the_items_that_both_have() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.2, (60, 1)).clip(0, 0.9)
    values = {"a": measured(base + 0.1), "b": measured(base[:40])}
    found = compare(parse("a - b > 0"), values)
    assert (found.estimate, found.subjects) == (pytest.approx(0.1), 40)
    assert found.verdict, "each item differs by as much"
    apart = compare(parse("a - b > 0"), values | {"b": measured(base[:40], "t")})
    assert apart.high - apart.low > 1.5 * (found.high - found.low), "with other items the spread of both counts"
    assert apart.subjects == 40, "of the value that has the fewest"


def test_values_of_other_items_about_the_same_subjects_move_together() -> None:
    rng = np.random.default_rng(1)
    level = rng.normal(0.5, 0.3, (80, 1)).clip(0, 1)
    one, other = measured(level), measured(level)
    elsewhere = Measured(np.array([f"x{i}" for i in range(80)], dtype=object), *_rest(other))
    paired, unpaired = (compare(parse("a - b > 0"), {"a": one, "b": b}) for b in (other, elsewhere))
    assert (unpaired.low, unpaired.high) == (pytest.approx(paired.low), pytest.approx(paired.high))


def _rest(one: Measured) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    return one.subjects, one.relations, one.values, one.ends


def test_of_each_layer_the_one_that_decides_is_shown() -> None:
    rng = np.random.default_rng(2)
    values = (rng.random((200, 3)) < [0.9, 0.6, 0.8]).astype(float)
    found = compare(parse("a > 0.3"), {"a": measured(values)})
    assert found.verdict
    assert found.estimate == pytest.approx(values[:, 1].mean())
    refuted = compare(parse("a > 0.75"), {"a": measured(values)})
    assert refuted.verdict is False, "one layer is enough"
    assert refuted.estimate == pytest.approx(values[:, 1].mean())
    below = compare(parse("a < 0.75"), {"a": measured(values)})
    assert below.verdict is False
    assert below.estimate == pytest.approx(values[:, 0].mean())


def test_ties_are_told_to_differ_about_as_rarely_as_is_said() -> None:
    rng = np.random.default_rng(3)
    told = [
        compare(parse("a - b > 0"), {name: measured(rng.random((40, 1)) < 0.6) for name in "ab"}).verdict
        for _ in range(400)
    ]
    wrong = sum(one is not None for one in told) / len(told)
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


# Verdicts


def test_verdicts() -> None:
    rng = np.random.default_rng(4)
    values = {name: measured(rng.random((200, 1)) < mean) for name, mean in (("high", 0.9), ("low", 0.1), ("mid", 0.5))}

    def told(*holds_if: str, control: tuple[str, ...] = ()) -> Told:
        names = {name for text in (*holds_if, *control) for name in parse(text).weights}
        rule = claim(*holds_if, control=control, **{name: {"method": "probe"} for name in names})
        return tell("it", rule, "run", "m", values)

    assert told("high > 0.5").verdict == HOLDS
    assert told("low > 0.5").verdict == DOES_NOT_HOLD
    assert told("high > 0.5", "low > 0.5").verdict == DOES_NOT_HOLD
    found = told("high > 0.5", "mid > 0.5")
    assert (found.verdict, found.reason) == (CANNOT_BE_TOLD, "the interval includes the threshold: mid > 0.5")
    found = told("high > 0.5", control=("mid > 0.5",))
    assert (found.verdict, found.reason) == (CANNOT_BE_TOLD, "its control does not hold: mid > 0.5")
    assert told("low > 0.5", control=("mid > 0.5",)).verdict == CANNOT_BE_TOLD, "nor is it refuted without its control"


def test_few_subjects_tell_nothing() -> None:
    rule = claim("a > 0.1", a={"method": "probe"})
    assert tell("it", rule, "run", "m", {"a": measured(np.ones((10, 1)))}).verdict == HOLDS
    found = tell("it", rule, "run", "m", {"a": measured(np.ones((9, 1)))})
    assert (found.verdict, found.reason) == (CANNOT_BE_TOLD, "only 9 subjects are left")


def test_a_figure_without_an_interval_decides_alone() -> None:
    names = np.array(["all"], dtype=object)
    exact = Measured(names, names, names, np.full((1, 1), 0.7), (np.zeros(1), np.zeros(1)), exact=True)
    assert compare(parse("a > 0.69"), {"a": exact}).verdict is True
    assert compare(parse("a > 0.71"), {"a": exact}).verdict is False
    found = compare(parse("b - a > 0"), {"a": exact, "b": measured(np.ones((40, 1)))})
    assert found.estimate == pytest.approx(0.3)


# Values


def test_accuracies_are_rescaled_means_over_a_window() -> None:
    rng = np.random.default_rng(5)
    scores = (rng.random((30, 5)) < 0.6).astype(float)
    records = pd.concat([rows(scores, corrected=1 - scores), rows(scores[:, :1], inspector="other")])
    found = values_of(
        claim("a > 0", "b > 0", "c > 0", a={"method": "probe", "layers": [0.25, 0.5]},
              b={"method": "probe", "of": "correct", "layers": [1, 1]},
              c={"method": "probe", "layers": [0.5, 1.0], "each": True}),
        "run", study(records),
    )  # fmt: skip
    np.testing.assert_allclose(of_subjects(found["a"])[:, 0], (((1 - scores) - 0.25) / 0.75)[:, 1:3].mean(axis=1))
    np.testing.assert_allclose(of_subjects(found["b"])[:, 0], scores[:, 4])
    assert found["c"].values.shape == (30, 3)
    assert sorted(found["a"].subjects) == [f"s{i:03}" for i in range(30)]
    assert found["a"].ends[0] == pytest.approx(-1 / 3)


def test_attempts_are_averaged_chosen_or_the_best_of_all() -> None:
    rng = np.random.default_rng(6)
    scores = (rng.random((3, 40, 5)) < np.array([0.2, 0.8, 0.5])[:, None, None]).astype(float)
    records = pd.concat([rows(one, attempt=f"head={i}") for i, one in enumerate(scores)])
    window = {"method": "probe", "of": "correct", "layers": [0, 0.5]}
    found = values_of(
        claim("a + b + c + d + e > 0", a={**window, "attempts": ["head=0", "head=2"]}, b=window,
              c={**window, "rule": "selected"}, d={**window, "reduce": "any"}, e={**window, "rule": "oracle"}),
        "run", study(records),
    )  # fmt: skip
    inside = scores[:, :, :3]
    np.testing.assert_allclose(of_subjects(found["a"])[:, 0], inside[[0, 2]].mean(axis=(0, 2)))
    np.testing.assert_allclose(of_subjects(found["b"])[:, 0], inside[0].mean(axis=1))
    np.testing.assert_allclose(of_subjects(found["c"])[:, 0], inside[1].mean(axis=1))
    np.testing.assert_allclose(of_subjects(found["d"])[:, 0], inside.max(axis=(0, 2)))
    np.testing.assert_allclose(of_subjects(found["e"])[:, 0], inside.max(axis=0).mean(axis=1))


def test_shares_of_the_largest_and_of_relations() -> None:
    rng = np.random.default_rng(7)
    scores = rng.random((30, 5))
    both = [rows(scores, relation="capital"), rows(scores / 4, relation="river")]
    contributions = rng.normal(0, 1, (30, 5))
    records = pd.concat(
        [pd.concat(both), rows(scores, inspector="parts").assign(gold_log_prob=contributions.ravel())],
        ignore_index=True,
    )
    found = values_of(
        claim("a > 0", "b > 0", a={"method": "parts", "of": "gold_log_prob", "reduce": "share of largest 2"},
              b={"method": "probe", "of": "correct", "reduce": "relations above 0.4"}),
        "run", study(records),
    )  # fmt: skip
    sizes = np.sort(np.abs(contributions), axis=1)
    np.testing.assert_allclose(of_subjects(found["a"])[:, 0], sizes[:, 3:].sum(axis=1) / sizes.sum(axis=1), rtol=1e-6)
    assert found["b"].values.ravel().tolist() == [1.0, 0.0]
    assert found["b"].items.tolist() == ["capital", "river"]


def test_a_condition_leaves_the_items_for_which_it_holds() -> None:
    scores = np.arange(20)[:, None] / 20 * np.ones((1, 5))
    records = pd.concat([rows(scores), rows(1 - scores, inspector="other")])
    rule = claim(
        "a > 0", a={"method": "other", "of": "correct", "where": "b < 0.5"}, b={"method": "probe", "of": "correct"}
    )
    found = values_of(rule, "run", study(records))
    assert sorted(found["a"].items) == [f"capital{i}" for i in range(10)]
    np.testing.assert_allclose(of_subjects(found["a"])[:, 0], 1 - scores[:10, 0])


def test_a_condition_that_leaves_no_item_is_said() -> None:
    rule = claim("a > 0", a={"method": "probe", "where": "b < 0.5"}, b={"method": "probe", "of": "correct"})
    with pytest.raises(NoValueError, match=r"a: there is no item left where b < 0\.5"):
        values_of(rule, "run", study(rows(np.ones((20, 5)))))


def test_baselines_have_the_attempts_and_layers_of_the_method() -> None:
    """One with the method's attempts is judged by the default one; one that was asked at fewer layers by the better."""
    rng = np.random.default_rng(9)
    scores = (rng.random((2, 40, 5)) < np.array([0.3, 0.8])[:, None, None]).astype(float)
    records = pd.concat([
        *(rows(one, attempt=f"scale={i}") for i, one in enumerate(scores)),
        *(rows(one, attempt=f"scale={i}", baseline="shuffled") for i, one in enumerate(scores)),
        *(rows(one, attempt=f"form {i}", baseline="input_only") for i, one in enumerate(scores)),
        rows(scores[1][:, [0, 4]], baseline="gaussian", attempt="scale=0", layers=[0, 4]),
    ])  # fmt: skip
    own = {"method": "probe", "of": "correct", "layers": [0, 1]}
    values = {name: {**own, "baseline": name} for name in ("none", "shuffled", "input_only")}
    values["gaussian"] = {**own, "baseline": "gaussian", "layers": [0.4, 0.6]}
    found = values_of(claim("none + shuffled + input_only + gaussian > 0", **values), "run", study(records))
    np.testing.assert_allclose(found["shuffled"].values, found["none"].values)
    np.testing.assert_allclose(of_subjects(found["input_only"])[:, 0], scores[1].mean(axis=1))
    better = int(scores[1][:, 4].mean() > scores[1][:, 0].mean()) * 4
    np.testing.assert_allclose(of_subjects(found["gaussian"])[:, 0], scores[1][:, better])


def test_a_paired_difference_without_bounds_is_seen_as_clearly_as_its_subjects_agree() -> None:
    """A KL that is a quarter lower on each of 40 passages, whose items differ by far more than that."""
    rng = np.random.default_rng(10)
    level, noise = rng.gamma(4.0, 4.0, (320, 1)), rng.normal(0, 1, (320, 1))
    subjects = np.array([f"passage {i // 8:02}" for i in range(320)], dtype=object)
    items = np.array([f"{i:03}" for i in range(320)], dtype=object)

    def kl(values: np.ndarray) -> Measured:
        high = np.abs(values).max(axis=0)
        return Measured(items, subjects, np.full(320, "prose", object), values, (-high, high), bounded=False)

    found = compare(parse("logit - tuned > 0"), {"logit": kl(level), "tuned": kl(0.75 * level + noise)})
    assert found.verdict
    assert found.estimate == pytest.approx(level.mean() / 4, abs=0.3)


def test_the_sign_of_a_difference_decides_no_interval() -> None:
    rng = np.random.default_rng(11)
    values = {name: measured(rng.random((60, 1)) < mean) for name, mean in (("a", 0.7), ("b", 0.4))}
    one, other = (compare(parse(text), values) for text in ("a - 0.9 * b > 0", "0.9 * b - a < 0"))
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_values_at_other_layers_are_not_compared_layer_by_layer() -> None:
    one = replace(measured(np.ones((20, 2))), layers=(0, 2))
    with pytest.raises(NoValueError, match="its values were asked at other layers"):
        compare(parse("a - b > 0"), {"a": one, "b": replace(one, layers=(0, 3))})


def test_effects_measures_and_tables() -> None:
    rng = np.random.default_rng(8)
    clean, along = rng.normal(size=(2, 12, 5))
    own = rows(np.ones((12, 5)))
    swaps = pd.concat([
        rows(np.ones((12, 5)), baseline="intervention", attempt=name).assign(gold_log_prob=odds.ravel())
        for name, odds in (("clean", clean), ("along", along))
    ])  # fmt: skip
    keys = [
        "model",
        "verbalizer",
        "task",
        "relation",
        "inspector",
        "baseline",
        "site",
        "layer",
        "attempt",
        "item",
        "subject",
    ]
    kl = own[keys].assign(metric="kl", value=rng.random(60))
    bias = kl.iloc[:5].assign(metric="bias", item=None, subject=None, value=[1.0, 2.0, 3.0, 4.0, 5.0])
    values = {
        "a": {"method": "probe", "baseline": "intervention", "of": "effect", "attempts": ["along"], "layers": [0, 0]},
        "b": {"method": "probe", "of": "kl", "layers": [0.5, 0.5]},
        "c": {"method": "probe", "of": "bias", "layers": [0.5, 1]},
        "d": {"table": "cosines.csv", "of": "cosine", "layers": [0, 0]},
    }
    asked = study(pd.concat([own, swaps]), pd.concat([kl, bias]))
    found = values_of(claim("a + b + c + d > 0", **values), "run", asked)
    np.testing.assert_allclose(of_subjects(found["a"])[:, 0], (along - clean)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(of_subjects(found["b"])[:, 0], kl["value"].to_numpy().reshape(12, 5)[:, 2])
    assert found["c"].exact
    assert found["c"].values == pytest.approx(4.0)
    np.testing.assert_allclose(of_subjects(found["d"])[:, 0], [0.2, 0.4])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"method": "lens"}, "has no records of lens"),
        ({"method": "probe", "baseline": "mean"}, "has no records of probe / mean"),
        ({"method": "probe", "site": "t1"}, "has no records of probe at t1"),
        ({"method": "probe", "layers": [0.6, 0.7]}, "has no layer between 0.6 and 0.7 of the depth"),
        ({"method": "probe", "attempts": ["best"]}, "there is no attempt best; there are only"),
        ({"method": "probe", "of": "kl"}, "has no measure kl|has no records of probe"),
        ({"method": "probe", "of": "predicted"}, "predicted is a column of names, not of numbers"),
        ({"method": "probe", "of": "effect"}, "changes nothing: effects are of the baseline `intervention`"),
    ],
)
def test_what_a_run_does_not_have_is_said(value: dict[str, object], said: str) -> None:
    columns = [*KEYS, "relation", "layer", "attempt", "item", "subject", "metric", "value"]
    asked = study(rows(np.ones((12, 5))).assign(gold_log_prob=0.0), pd.DataFrame(columns=columns))
    with pytest.raises(NoValueError, match=said):
        values_of(claim("a > 0", a=value), "run", asked)


# Rules


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("says = 1", "says"),
        ('holds_if = ["b > 0"]', "b: there is no such value; expected a"),
        ('holds_if = ["a >> 0"]', "expected a comparison"),
        ('values = { a = { method = "probe" }, c = { method = "probe" } }', "c: nothing uses this value"),
        ('values = { a = { method = "probe", layer = 3 } }', "unknown key 'values.a.layer'"),
        ('values = { a = { method = "probe", layers = [0.5, 0.2] } }', "expected two shares of the depth"),
        ('values = { a = { of = "kl" } }', "a value is of a method, or of a table"),
        ('values = { a = { method = "p", reduce = "any" } }', 'of = "correct"'),
        ('values = { a = { method = "p", of = "kl", rule = "oracle" } }', "chooses what is higher"),
        ('values = { a = { method = "p", where = "a < 1" } }', "of one value that has no where itself"),
        ('values = { a = { table = "t.csv", where = "a < 1" } }', "where chooses items"),
        (
            'values = { a = { method = "probe", reduce = "most" } }',
            "expected any, share of largest K or relations above X",
        ),
    ],
)
def test_a_wrong_rule_is_refused_in_one_line(tmp_path: Path, rule: str, said: str) -> None:
    lines = {
        "says": '"so"',
        "source": '"us"',
        "runs": '["run"]',
        "holds_if": '["a > 0"]',
        "values": '{ a = { method = "p" } }',
    }
    key = rule.partition(" = ")[0]
    lines[key] = rule.partition(" = ")[2]
    path = tmp_path / "rules.toml"
    path.write_text("[it]\n" + "\n".join(f"{name} = {text}" for name, text in lines.items()))
    with pytest.raises(UsageError, match=said) as error:
        read_claims(path)
    assert "\n" not in str(error.value)
    assert "[it]" in str(error.value)


def test_every_shipped_rule_names_what_its_run_has() -> None:
    """Each value's run is configured, and asks its method and baseline about its site."""
    folder = ROOT / "examples" / "reference"
    configs = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.toml")}
    claims = read_claims(RULES)
    assert len(claims) >= 22
    for name, one, run in [(name, rule, run) for name, rule in claims.items() for run in rule.runs]:
        for key, value in one.values.items():
            if value.table is not None:
                assert run.endswith("analyses"), name
                continue
            config, where = configs[value.run or run], f"{name}.{key} in {value.run or run}"
            assert value.method in config["inspectors"], where
            assert value.baseline in ("none", *config.get("baselines", [value.baseline])), where
            assert value.site is None or value.site in config.get("sites", [value.site]), where
            depth = 18 if config["model"].startswith("gemma") else 30
            shares = [layer / depth for layer in parse_layers(config["layers"], depth)]
            assert any(value.layers[0] <= share <= value.layers[1] for share in shares), where
            asked = [task.partition("/")[2] for task in config["tasks"]]
            assert value.relations is None or "" in asked or set(value.relations) <= set(asked), where
