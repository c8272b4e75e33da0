"""Two runs side by side: made-up records, no model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensbench.errors import LensbenchError, UsageError
from lensbench.results.compare import (
    FIRST_HIGHER,
    IDENTICAL,
    INCONCLUSIVE,
    LOOKED_AT_MANY,
    SAME,
    SECOND_HIGHER,
    Place,
    differences,
    holm,
    shared_items,
)
from lensbench.results.records import RECORDS, read_shard, table_from_columns, write_shard
from lensbench.results.samples import SummarySettings
from lensbench.runs.compare import as_json, compare
from tests.command import lensbench, refused
from tests.made_run import Made, write_run

SMALL = Made(accuracy={"patchscope": 0.9, "logit_lens": 0.4}, rivals={"shuffled": 0.15}, subjects=60)


def both(tmp_path: Path, first: Made, second: Made) -> tuple[Path, Path]:
    return write_run(tmp_path / "first", first), write_run(tmp_path / "second", second)


def change(folder: Path, edit) -> None:
    """Rewrite the records of a run."""
    for path in (folder / RECORDS).glob("*.parquet"):
        frame = edit(read_shard(path).to_pandas())
        columns = {name: None if frame[name].isna().all() else frame[name].tolist() for name in frame}
        write_shard(path, table_from_columns(columns))


def set_in(folder: Path, **changed: object) -> None:
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    info["setting"].update(changed)
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")


def test_the_same_answers_are_called_identical(tmp_path):
    found = compare(*both(tmp_path, SMALL, SMALL))
    assert set(found.differences["verdict"]) == {IDENTICAL}
    assert (found.differences["difference"] == 0).all()
    assert found.changed.empty
    assert found.unpaired.empty
    assert found.settings.empty


def test_a_better_second_run_is_found_and_its_items_are_named(tmp_path):
    better = replace(SMALL, accuracy={"patchscope": 0.9, "logit_lens": 0.95}, seed=0)
    found = compare(*both(tmp_path, SMALL, better))
    lens = found.best[found.best["inspector"] == "logit_lens"]
    assert set(lens["verdict"]) == {SECOND_HIGHER}
    assert sorted(lens["relation"]) == ["all", "capital", "currency"]
    assert (lens["low"] > 0.1).all()
    assert (lens["p_holm"] < 0.05).all()
    back = compare(tmp_path / "second", tmp_path / "first")
    mirrored = back.best[back.best["inspector"] == "logit_lens"]
    assert set(mirrored["verdict"]) == {FIRST_HIGHER}
    np.testing.assert_allclose(mirrored["difference"], -lens["difference"])
    for row in lens[lens["relation"] != "all"].itertuples():
        items = found.changed[
            (found.changed["inspector"] == "logit_lens") & (found.changed["relation"] == row.relation)
        ]
        assert (items["change"] == "gained").sum() == row.gained > row.lost
        assert (items["change"] == "lost").sum() == row.lost
        assert ((items["other_correct"] > items["correct"]) == (items["change"] == "gained")).all()


def test_differences_are_paired_means_at_each_layer(tmp_path):
    first, second = both(tmp_path, SMALL, replace(SMALL, accuracy={"patchscope": 0.5, "logit_lens": 0.4}, seed=3))
    found = compare(first, second)
    here = found.differences
    here = here[(here["inspector"] == "patchscope") & (here["relation"] == "capital") & (here["at"] == "layer")]
    assert here["layer"].tolist() == here["other_layer"].tolist() == [0, 1, 2, 3]
    import lensbench as package

    means = []
    for folder in (first, second):
        records = package.load_run(folder).records
        own = records[
            (records.baseline == "none") & (records.inspector == "patchscope") & (records.relation == "capital")
        ]
        means.append(own.groupby("layer")["correct_corrected"].mean().to_numpy())
    np.testing.assert_allclose(here["accuracy"], means[0], atol=1e-6)
    np.testing.assert_allclose(here["difference"], means[1] - means[0], atol=1e-6)
    assert ((here["low"] <= here["difference"]) & (here["difference"] <= here["high"])).all()


def of_chance(seed: int, layers: tuple[int, int], subjects: int = 50) -> dict[str, object]:
    """The row at the best layers of two runs that guess at each layer."""
    rng = np.random.default_rng(seed)
    frames = []
    for count in layers:
        right = (rng.random((subjects, count)) < 0.3).astype(float)
        item, layer = (axis.ravel() for axis in np.indices(right.shape))
        names = [f"s{i}" for i in item]
        frames.append(
            pd.DataFrame(
                {"item": names, "subject": names, "layer": layer, "fold": item % 5, "correct": right.ravel(),
                 "correct_corrected": right.ravel()}
            ).assign(
                task="t", site="answer", inspector="lens", baseline="none", relation="r", chance=0.125, gold="a",
                attempt="default", predicted_corrected="b",
            )
        )  # fmt: skip
    place = Place("t", "answer", "lens", "lens")
    rows, _ = differences(shared_items(place, *frames), SummarySettings({}, draws=300))
    return rows[rows["at"] == "best"].to_dict("records")[0]


@pytest.mark.parametrize("layers", [(12, 1), (12, 12), (1, 1)])
def test_choosing_layers_is_allowed_for(layers):
    rows = [of_chance(seed, layers) for seed in range(60)]
    claimed = sum(row["verdict"] in (FIRST_HIGHER, SECOND_HIGHER) for row in rows)
    # .05 of 60 and three standard errors; intervals of a single layer would claim 20 and more of the first kind.
    assert claimed <= 8
    assert all((row["p"] < 0.05) == (row["low"] > 0 or row["high"] < 0) for row in rows)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_p_values_are_adjusted_as_holm_says(p: list[float]) -> None:
    def naive(own: float) -> float:
        # The largest, over all that are no larger, of each times the number of those that are not smaller.
        return min(1.0, max(one * sum(other >= one for other in p) for one in p if one <= own))

    assert holm(np.array(p)) == pytest.approx([naive(own) for own in p])


def test_many_relations_are_corrected_for(tmp_path):
    relations = tuple(f"relation_{i}" for i in range(40))
    made = Made(accuracy={"logit_lens": 0.4}, rivals={}, relations=relations, layers=(0, 1), subjects=20)
    found = compare(*both(tmp_path, made, replace(made, seed=9)))
    each = found.best[found.best["relation"] != "all"]
    assert len(each) == 40
    assert (each["p_holm"] >= each["p"]).all()
    clear = each[(each["low"] > 0) | (each["high"] < 0)]
    assert set(clear.loc[clear["p_holm"] >= 0.05, "verdict"]) <= {LOOKED_AT_MANY, INCONCLUSIVE, SAME}


def test_two_methods_of_one_run(tmp_path):
    run = write_run(tmp_path / "run", SMALL)
    with pytest.raises(UsageError, match="--pair FIRST=SECOND"):
        compare(run, run)
    found = compare(run, run, {"logit_lens": "patchscope"})
    assert set(found.best["inspector"]) == {"logit_lens"}
    assert set(found.best["other_inspector"]) == {"patchscope"}
    assert found.best.set_index("relation").loc["all", "verdict"] == SECOND_HIGHER
    with pytest.raises(UsageError, match="did you mean 'logit_lens'"):
        compare(run, run, {"logit_lense": "patchscope"})


def test_single_methods_of_other_names_are_compared(tmp_path):
    one = replace(SMALL, accuracy={"logit_lens": 0.4})
    found = compare(*both(tmp_path, one, replace(SMALL, accuracy={"my_lens": 0.9})))
    assert set(found.best["other_inspector"]) == {"my_lens"}


def test_what_one_run_alone_has_is_named(tmp_path):
    second = replace(
        SMALL, accuracy={"logit_lens": 0.4, "probe": 0.5}, layers=(0, 1, 2), relations=("capital", "river")
    )
    first, second_folder = both(tmp_path, SMALL, second)
    found = compare(first, second_folder)
    assert set(found.best["inspector"]) == {"logit_lens"}
    assert set(found.best["relation"]) == {"capital"}
    told = {(row.what, row.name, row.where) for row in found.unpaired.itertuples(index=False)}
    assert ("method", "patchscope", f"only in {first}") in told
    assert ("method", "probe", f"only in {second_folder}") in told
    layers = found.unpaired[found.unpaired["what"] == "layers"]
    assert layers["examples"].tolist() == ["3"]
    items = found.unpaired[found.unpaired["what"] == "items"]
    assert len(items) == 2
    assert all("logit_lens" in name for name in items["name"])


def test_items_that_ask_something_else_are_left_out(tmp_path):
    first, second = both(tmp_path, SMALL, SMALL)

    def another(frame: pd.DataFrame) -> pd.DataFrame:
        wrong = frame["subject"] == frame["subject"].iloc[0]
        return frame.assign(gold=frame["gold"].astype(object).where(~wrong, "another"))

    change(second, another)
    found = compare(first, second)
    left_out = found.unpaired[found.unpaired["where"].str.startswith("another answer")]
    assert (left_out["count"] >= 1).all()
    assert len(left_out)
    assert (found.best.loc[found.best["relation"] == "capital", "n"] < 60).all()


def test_settings_that_differ(tmp_path):
    first, second = both(tmp_path, SMALL, SMALL)
    set_in(second, dtype="torch.bfloat16", model="other")
    settings = compare(first, second).settings.set_index("setting")
    assert settings.loc["model"].tolist() == ["tiny", "other"]
    assert settings.loc["dtype", "second"] == "torch.bfloat16"
    assert pd.isna(settings.loc["dtype", "first"])


@pytest.mark.parametrize(
    "made",
    [
        replace(SMALL, layers=(5,)),
        replace(SMALL, subjects=1),
        replace(SMALL, hostile=True, subjects=12),
        replace(SMALL, layers=tuple(range(200)), subjects=10, accuracy={"logit_lens": 0.4}),
    ],
    ids=["one layer", "one item", "names from everywhere", "200 layers"],
)
def test_edge_cases_compare_and_print(made, tmp_path):
    both(tmp_path, made, replace(made, seed=5))
    done = lensbench("compare", "first", "second", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "facts, read at subject" in done.stdout
    assert "\x1b[" not in done.stdout
    found = as_json(compare(tmp_path / "first", tmp_path / "second"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["differences"]


def test_a_method_that_reads_no_layer(tmp_path):
    made = Made(accuracy={"logit_lens": 0.4}, rivals={}, subjects=20)
    first, second = both(tmp_path, made, replace(made, accuracy={"text": 0.9}))
    change(second, lambda frame: frame[frame["layer"] == 0].assign(layer=None))
    found = compare(first, second)
    assert found.best["other_layer"].isna().all()
    assert found.differences.loc[found.differences["at"] == "layer", "layer"].nunique() == 4


def test_files_and_wrong_input(tmp_path):
    both(tmp_path, SMALL, replace(SMALL, seed=4))
    done = lensbench("compare", "first", "second", "--out", "found.csv", "--items", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "found.csv")
    assert set(rows["at"]) == {"best", "layer"}
    items = pd.read_csv(tmp_path / "found-items.csv")
    assert f"{len(items) - 2} more items" in done.stdout
    found = json.loads(lensbench("compare", "first", "second", "--json", cwd=tmp_path).stdout)
    assert len(found["changed"]) == len(items)
    assert "ends in .csv" in refused(lensbench("compare", "first", "second", "--out", "x.txt", cwd=tmp_path), 2)
    assert "expected FIRST=SECOND" in refused(lensbench("compare", "first", "second", "--pair", "x", cwd=tmp_path), 2)
    assert "not a run folder" in refused(lensbench("compare", "first", "nowhere", cwd=tmp_path), 1)


def test_nothing_in_common(tmp_path):
    first, second = both(tmp_path, SMALL, replace(SMALL, task="other"))
    with pytest.raises(LensbenchError, match="no task and site with one method in common"):
        compare(first, second)
    third = write_run(tmp_path / "third", replace(SMALL, relations=("river",)))
    with pytest.raises(LensbenchError, match="other relations"):
        compare(first, third)


def test_a_damaged_shard_is_named(tmp_path):
    _, second = both(tmp_path, SMALL, SMALL)
    shard = next((second / RECORDS).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert f"{shard.name} is damaged" in refused(lensbench("compare", "first", "second", cwd=tmp_path), 1)
