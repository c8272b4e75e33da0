import numpy as np
import pandas as pd
import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.provenance import shares
from lensbench.results.records import ALL
from tests.results.test_permutation import ANSWERS, said, world


def facts(gold, subject, relation="city"):
    return {relation: {f"s{name:03}": str(ANSWERS[code]) for name, code in zip(subject, gold, strict=True)}}


def share(table, follows, **keys):
    keep = table["follows"] == follows
    for column, value in keys.items():
        keep &= table[column] == value
    return table[keep]["share"].to_numpy()


def test_shares_are_counts_over_the_items_where_the_worlds_differ():
    rng = np.random.default_rng(0)
    gold, subject = world(40, 0)
    other = np.where(subject % 4 == 0, gold, (gold + 1 + subject % 3) % 4)
    picks, corrected = rng.integers(0, 4, (2, len(gold), 3))
    records = pd.concat([
        said(picks, gold, subject, corrected=corrected),
        said(other[:, None], gold, subject, baseline="input_only", layers=[None]),
    ])  # fmt: skip
    table = shares(records, facts(gold, subject), facts(other, subject), draws=200)
    differ = gold != other
    for follows, truth in (("target", gold), ("verbalizer", other)):
        expected = (corrected[differ] == truth[differ][:, None]).mean(axis=0)
        np.testing.assert_allclose(share(table, follows, baseline="none"), expected)
    assert set(table["verbalizer"]) == {"v"}
    total = table.groupby(["baseline", "layer"], dropna=False)["share"].sum()
    np.testing.assert_allclose(total, 1)
    assert share(table, "verbalizer", baseline="input_only").tolist() == pytest.approx([1])
    assert table[table["baseline"] == "input_only"]["layer"].isna().all()
    assert (table["n"] == differ.sum()).all()
    assert (table["subjects"] == len(set(subject[differ]))).all()
    assert ((table["ci_low"] <= table["share"] + 1e-9) & (table["share"] <= table["ci_high"] + 1e-9)).all()


def test_a_tie_is_shared_out():
    gold, subject = world(20, 0)
    other = (gold + 1) % 4
    records = said(np.zeros((40, 2), int), gold, subject, ties=4)
    table = shares(records, facts(gold, subject), facts(other, subject), draws=50)
    for follows, expected in (("target", 0.25), ("verbalizer", 0.25), ("neither", 0.5)):
        np.testing.assert_allclose(share(table, follows), expected)


def test_several_relations_have_a_mean():
    gold, subject = world(20, 0)
    other = (gold + 1) % 4
    records = pd.concat([said(gold[:, None], gold, subject), said(other[:, None], gold, subject, relation="drink")])
    both = [{**facts(codes, subject), **facts(codes, subject, "drink")} for codes in (gold, other)]
    table = shares(records, *both, draws=50)
    assert share(table, "target", relation="city").tolist() == pytest.approx([1])
    assert share(table, "target", relation="drink").tolist() == pytest.approx([0])
    assert share(table, "target", relation=ALL).tolist() == pytest.approx([0.5])


def test_bands_follow_subjects_not_items():
    gold, subject = world(40, 0, items=1)
    other = (gold + 1) % 4
    picks = np.where(np.random.default_rng(0).random((40, 1)) < 0.5, gold[:, None], other[:, None])
    worlds = facts(gold, subject), facts(other, subject)
    once = shares(said(picks, gold, subject), *worlds, draws=50)
    many = [index.repeat(6, axis=0) for index in (picks, gold, subject)]
    often = shares(said(*many), *worlds, draws=50)
    np.testing.assert_allclose(once["ci_low"], often["ci_low"])
    np.testing.assert_allclose(once["ci_high"], often["ci_high"])


def test_errors_say_what_is_wrong():
    gold, subject = world(20, 0)
    records = said(gold[:, None], gold, subject)
    own = facts(gold, subject)
    with pytest.raises(UsageError, match="differ on no item"):
        shares(records, own, own)
    with pytest.raises(UsageError, match="differ on no item"):
        shares(records, own, {})
    with pytest.raises(LensbenchError, match="'Atlantis' is nobody's gold"):
        shares(records, own, {"city": dict.fromkeys(own["city"], "Atlantis")})
    two = said(np.stack([gold, gold], axis=1), gold, subject)
    with pytest.raises(LensbenchError, match="incomplete records"):
        shares(two.iloc[:-1], own, facts((gold + 1) % 4, subject))
