import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lensbench.errors import LensbenchError, UsageError
from lensbench.report import coding
from lensbench.report.figures.grid import attempt_cells, target_of
from lensbench.report.page import ItemText, MethodText, PageRun, render
from lensbench.report.page.measures import costs, measures
from lensbench.report.page.render import summary_table
from lensbench.report.sentences import result_sentences
from lensbench.results.summary import best_layers
from lensbench.results.verdicts import VERDICTS
from lensbench.runs.pages import read_page_run, write_page
from lensbench.runs.run import finish
from tests.command import lensbench, refused
from tests.made_run import HOSTILE, Made, write_run

PLOTLY = "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first", Made())


def decoded(coded):
    """A coded table as a frame, the way page.js reads it."""
    data = gzip.decompress(base64.b64decode(coded))
    size = int.from_bytes(data[:4], "little")
    header, columns = json.loads(data[4 : 4 + size]), {}
    for column in header["columns"]:
        kind = np.dtype(f"<{column['type']}")
        values = np.frombuffer(data, kind, header["rows"], 4 + size + column["at"])
        if column["words"] is not None:
            columns[column["name"]] = [column["words"][code] for code in values]
        else:
            missing = np.iinfo(kind).min
            columns[column["name"]] = [None if one == missing else one / column["scale"] for one in values]
    return pd.DataFrame(columns, dtype=object)


def tables_of(page):
    found = re.findall(r'<script type="application/octet-stream" data-table="([\w-]+)">([\w+/=]*)</script>', page)
    return dict(found)


def index_of(page):
    return json.loads(gzip.decompress(base64.b64decode(tables_of(page)["index"])))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    return tags


def test_columns_come_back_as_they_were():
    frame = pd.DataFrame(
        {"name": ["a", None, "<é>", "a"], "small": [1, -127, None, 0], "large": [49151, None, 0, 7],
         "share": [0.123, 1.0, None, -0.5], "nothing": [None] * 4}
    )  # fmt: skip
    columns = {"name": coding.words(frame["name"]), "share": coding.numbers(frame["share"], 1000)}
    columns |= {name: coding.numbers(frame[name]) for name in ("small", "large", "nothing")}
    back = decoded(coding.encode_table(columns))
    for name in frame:
        expected = [None if pd.isna(one) else one for one in frame[name]]
        assert back[name].tolist() == expected, name
    assert coding.encode_table(columns) == coding.encode_table(columns)
    assert columns["small"].values.dtype.itemsize == 1
    many = pd.Series([f"w{i}" for i in range(70_000)])
    assert decoded(coding.encode_table({"w": coding.words(many)}))["w"].tolist() == many.tolist()
    with pytest.raises(ValueError, match="equally long"):
        coding.encode_table({"a": coding.words(many), "b": coding.numbers(pd.Series([1]))})


def test_the_page_holds_everything_itself(made):
    page = render([read_page_run(made)])
    for tag, attributes in parsed(page).seen:
        for name in ("src", "href", "action", "data"):
            target = attributes.get(name) or "#"
            assert target.startswith("#"), f"<{tag} {name}={target}>"
    assert "default-src 'none'" in page
    assert "MIT license" in page
    tables = tables_of(page)
    library = gzip.decompress(base64.b64decode(tables["plotly"]))
    assert hashlib.sha256(library).hexdigest() == PLOTLY, "that of npm pack plotly.js-cartesian-dist-min@4.1.1"
    shown = decoded(tables["rows-0-0"])
    records = read_page_run(made).records
    assert len(shown) == len(records)
    assert sum(shown["credit"]) == pytest.approx(records["correct_corrected"].sum())
    assert render([read_page_run(made)]) == page, "the same run gives the same bytes"


def test_the_summary_of_the_page_is_that_of_the_run(made):
    run = read_page_run(made)
    back = decoded(summary_table(run.summary))
    np.testing.assert_allclose(back["gap"].astype(float), run.summary["gap"], atol=5.1e-7)
    assert back["verdict"].fillna("").tolist() == run.summary["verdict"].fillna("").tolist()
    assert back["layer"].tolist() == run.summary["layer"].tolist()


def sentences(run, relations=None):
    return list(result_sentences(best_layers(run.summary), run.info, relations or {}))


CAPITAL = {("facts", "capital"): "country \u2192 capital"}


def test_one_sentence_a_task_and_site_says_what_the_figures_say(made):
    run = read_page_run(made)
    (one,) = sentences(run, CAPITAL)
    rows = run.summary[(run.summary["relation"] == "all") & (run.summary["rule"] == "fixed")]
    own = rows[(rows["baseline"] == "none") & (rows["inspector"] == "patchscope")]
    top = own.sort_values("accuracy_corrected").iloc[-1]
    assert one.sentence.startswith(f"Patchscope reads facts best at layer {top['layer']} (")
    assert f"{top['accuracy_corrected']:.2f}".lstrip("0") in one.sentence
    assert "mean of 2 relations" in one.sentence
    assert "the verbalizer that is given the name in text" in one.sentence
    assert "logit lens" in one.others
    assert not one.holds


def alone(run, **changes):
    """The sentence on one relation of one method whose verdicts are given."""
    rows = run.summary[(run.summary["relation"] == "capital") & (run.summary["inspector"] == "patchscope")].copy()
    for question, verdict in changes.items():
        rows.loc[(rows["baseline"] == "none") & (rows["question"] == question), "verdict"] = verdict
    return sentences(dataclasses.replace(run, summary=rows), CAPITAL)[0]


@pytest.mark.parametrize(
    ("uses", "beats", "end", "holds"),
    [
        ("uses the activation", "within .10 of input_only", "given the name in text does as well (.95).", False),
        ("uses the activation", "beaten by input_only", "given the name in text does better (.95).", False),
        ("uses the activation", "beats this text reader", "given the name in text (.95) (layers 0-3; "
         "0 is token identity).", True),
        ("beaten by shuffled", "inconclusive", "20 subjects do not tell whether it beats the verbalizer that is given "
         "the name in text (.95) there.", False),
        ("x", "incomplete without mean", "incomplete without mean.", False),
        ("x", "no verdict (chosen items)", "no verdict, as the items were chosen by what the model says.", False),
    ],
)  # fmt: skip
def test_each_question_is_answered_in_the_sentence(made, uses, beats, end, holds):
    one = alone(read_page_run(made), uses_activation=uses, beats_text=beats)
    assert "Patchscope reads country \u2192 capital best at layer" in one.sentence
    assert "chance .12" in one.sentence
    assert one.sentence.endswith(end)
    assert one.holds is holds


def test_without_baselines_nothing_is_said_of_where_a_score_comes_from(tmp_path):
    (one,) = sentences(read_page_run(write_run(tmp_path / "r", Made(rivals={}))))
    assert "no baseline was run" in one.sentence
    assert one.verdict == "no baseline"


def test_nothing_from_data_becomes_markup(tmp_path):
    bad = HOSTILE[0]
    made = Made(
        hostile=True, subjects=12, task=f"t{HOSTILE[1]}", relations=(bad, HOSTILE[2]), says=True,
        accuracy={"patchscope": 0.8, bad: 0.5}, rivals={"shuffled": 0.2, HOSTILE[1]: 0.6},
    )  # fmt: skip
    folder = write_run(tmp_path / "<i>run", made)
    run = read_page_run(folder)
    run = dataclasses.replace(
        run, problems=(bad, HOSTILE[2]), unanswered={bad: HOSTILE[1]}, calibrations={bad: bad, "x": None},
        methods={bad: MethodText(bad, ("activation",), "labels")}, relations={(made.task, bad): bad},
        texts={(made.task, item): ItemText(bad * 2, 0, len(bad), bad, bad) for item in run.records["item"].unique()},
        info={**run.info, "machine": bad, "git_commit": bad},
    )  # fmt: skip
    page = render([run])
    tags = parsed(page)
    kinds = [attributes.get("type") for tag, attributes in tags.seen if tag == "script"]
    assert kinds.count(None) == 1, "one program, ours"
    assert len(kinds) == len(tables_of(page)) + 1
    assert not {"img", "iframe", "object"} & {tag for tag, _ in tags.seen}
    assert "<i>run" in "".join(tags.text)
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert bad in "".join(tags.text), "it is there, as text"
    assert bad not in page.replace("&lt;", "")
    assert "49" not in [text.strip() for text in tags.text]


@pytest.mark.parametrize("kind", ["missing", "cut short", "no parquet", "older", "other columns"])
def test_a_shard_that_cannot_be_read_is_named_and_costs_its_cell_alone(tmp_path, kind):
    folder = write_run(tmp_path / "r", Made())
    path = folder / "records" / "subject-1-0.parquet"  # the logit lens itself
    table = pq.read_table(path)
    if kind == "missing":
        path.unlink()
    elif kind == "cut short":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "no parquet":
        path.write_text("nothing")
    elif kind == "older":
        pq.write_table(table.drop_columns(["text", "known"]).replace_schema_metadata({}), path)
    else:
        pq.write_table(table.drop_columns(["correct_corrected"]), path)
    run = read_page_run(folder)
    assert any("subject-1-0.parquet" in problem for problem in run.problems)
    read = set(run.records.loc[run.records["baseline"] == "none", "inspector"])
    assert read == ({"patchscope", "logit_lens"} if kind == "older" else {"patchscope"})
    page = render([run])
    assert "What is missing" in page
    assert "subject-1-0.parquet" in page
    assert str(tmp_path) not in page, "a page that is passed on names no folders of this machine"


def test_what_is_not_finished_or_failed_is_named(tmp_path):
    folder = write_run(tmp_path / "r", Made())
    info = json.loads((folder / "run.json").read_text())
    first, second, *_ = info["cells"]
    info["cells"][first] |= {"status": "failed", "error": "OutOfMemory: much\ntraceback"}
    info["cells"][second]["status"] = "missing"
    info["plan"].append("never-begun.parquet")
    (folder / "run.json").write_text(json.dumps(info))
    problems = "\n".join(read_page_run(folder).problems)
    assert "failed: OutOfMemory: much" in problems
    assert "traceback" not in problems
    assert "rival shuffled: not finished" in problems
    assert len([line for line in problems.splitlines() if "not finished" in line]) == 2


@pytest.mark.parametrize("damage", ["none", "a,b\n1,2\n", "\x00\x01"])
def test_a_summary_that_is_not_there_is_made_again_and_says_so(tmp_path, damage):
    folder = write_run(tmp_path / "r", Made(layers=(0, 1)))
    if damage != "none":
        (folder / "summary.csv").write_text(damage)
    run = read_page_run(folder)
    assert len(run.summary)
    assert any("made again from the records" in problem for problem in run.problems)


def test_an_older_run_json_gives_a_page_with_items(tmp_path):
    folder = write_run(tmp_path / "r", Made(layers=(0, 1)))
    info = json.loads((folder / "run.json").read_text())
    for key in ("due", "baselines", "plan", "config", "calibration"):
        del info[key]
    (folder / "run.json").write_text(json.dumps(info))
    run = read_page_run(folder)
    assert any("run.json has no 'due'" in problem or "cannot be told" in problem for problem in run.problems)
    assert len(decoded(tables_of(render([run]))["rows-0-0"])) == len(run.records)


def test_no_results_at_all_give_a_page(tmp_path):
    folder = write_run(tmp_path / "r", Made(layers=(0,)))
    for path in (folder / "records").iterdir():
        path.unlink()
    page = render([read_page_run(folder)])
    assert "There are no results" in page
    empty = PageRun("empty", {}, read_page_run(folder).summary, read_page_run(folder).records)
    assert "There are no results" in render([empty])


@pytest.mark.parametrize(
    "made",
    [
        Made(subjects=1, relations=("only",), layers=(5,)),
        Made(layers=tuple(range(200)), subjects=6, relations=("r",)),
        Made(relations=tuple(f"relation_{i}" for i in range(60)), subjects=5, layers=(0, 9)),
        Made(attempts=("target_layer=0", "target_layer=same"), layers=(0,), sites=("subject", "answer")),
    ],
    ids=["one item, one layer", "200 layers", "60 relations", "one layer, two sites"],
)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_runs_of_all_shapes_give_a_page(tmp_path, made):
    page = render([read_page_run(write_run(tmp_path / "r", made))])
    places = index_of(page)["runs"][0]["places"]
    assert {tuple(place[1:]) for place in places} >= {(r, s) for r in made.relations for s in made.sites}
    assert any(place[1] == "all" for place in places) == (len(made.relations) > 1)


def rows_of_metrics(metric, method, relations, layers, **more):
    where = {"task": "facts", "site": "subject", "inspector": method, "baseline": "none", "metric": metric}
    row = where | {"rule": "fixed", "question": "diagnostic", "value": 0.25, "ci_low": 0.1, "ci_high": np.nan, "n": 20}
    return [row | more | {"relation": relation, "layer": layer} for relation in relations for layer in layers]


def test_what_was_measured_besides_has_a_table(made):
    many = [
        *rows_of_metrics("selectivity", "probe", ("all", "capital"), range(40), baseline="control_task", ci_high=0.4),
        *rows_of_metrics("likeness_<b>", "patchscope", ("capital",), (-1,)),
        *rows_of_metrics("accuracy_known", "probe", ("all",), (0,), baseline="shuffled"),
    ]
    found = measures(pd.DataFrame(many).astype({"layer": "Int16"}))
    assert found["layers"] == [0, 5, 10, 15, 20, 24, 29, 34, 39]
    assert [(row["where"], row["metric"], row["method"]) for row in found["rows"]] == [
        ("facts, all relations, subject", "selectivity", "probe"),
        ("facts, capital, subject", "likeness <b>", "patchscope"),
    ], "the mean stands for its relations, and rivals are not shown"
    assert found["rows"][0]["cells"][3] == ("0.25", "95 %: 0.10 to 0.40, 20 items")
    assert found["rows"][1]["cells"][0] == ("0.25", ""), "what hangs on no layer is said at each"
    assert [row["about"] for row in found["rows"]] == ["n\xa0=\xa020"] * 2
    assert list(found["explained"]) == ["selectivity"]
    page = render([dataclasses.replace(read_page_run(made), metrics=pd.DataFrame(many))])
    assert "likeness &lt;b&gt;" in page
    assert "Nothing else was measured" in render([dataclasses.replace(read_page_run(made), metrics=pd.DataFrame())])


def test_the_page_begins_with_the_model_the_day_and_how_much_was_asked(tmp_path):
    run = read_page_run(write_run(tmp_path / "r", Made(sites=("subject", "answer"))))
    page = render([dataclasses.replace(run, info={**run.info, "date": "2026-08-01"})])
    begins = page.index("tiny, 2026-08-01, 20 subjects, 40 items at each of 2 sites, 2 relations")
    assert page.index("<main>") < begins < page.index("Results</h2>")
    assert "tiny, 20 subjects" in render([run]), "runs of earlier versions have no day"


def test_more_measures_than_a_page_holds_are_counted():
    many = [row for name in range(200) for row in rows_of_metrics(f"m{name}", "probe", ("all",), (0, 1))]
    found = measures(pd.DataFrame(many))
    assert (len(found["rows"]), found["left_out"]) == (150, 50)


@pytest.mark.parametrize("name", ["summary.csv", "metrics.csv"])
def test_a_table_that_is_cut_short_is_named(tmp_path, name):
    folder = write_run(tmp_path / "r", Made())
    finish(folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    (problem,) = read_page_run(folder).problems
    assert problem.startswith(f"{name} is damaged (it ends in the middle of a line)")


def test_large_runs_are_sampled_and_say_so(tmp_path):
    run = read_page_run(write_run(tmp_path / "r", Made(relations=("a", "b"), subjects=40, sites=("subject", "answer"))))
    ((first, second),) = coding.item_chunks([run], records=len(run.records) // 4)
    assert (first.kept, first.of) == (20, 80)
    items = decoded(first.items)
    assert items["relation"].value_counts().to_dict() == {"a": 10, "b": 10}
    rows = decoded(first.rows)
    whole = run.records[(run.records["site"] == first.site) & run.records["item"].isin(items["item"])]
    assert len(rows) == len(whole), "an item that is kept has all its predictions"
    assert set(decoded(second.items)["subject"]) == set(items["subject"]), "the same subjects at both sites"
    page = render([run], records=len(run.records) // 4)
    assert "The item browser shows 40 of 160 items" in page
    assert "The item browser shows" not in render([run])
    ((small, _),) = coding.item_chunks([run], characters=6000)
    assert 0 < small.kept < 80


def test_grids_are_by_target_layer_and_their_totals_are_rescaled(tmp_path):
    attempts = ("target_layer=1", "target_layer=6", "target_layer=same")
    run = read_page_run(write_run(tmp_path / "r", Made(attempts=attempts)))
    cells = attempt_cells(run.records)
    assert set(cells["inspector"]) == {"patchscope"}
    assert set(cells["target"]) == {"1", "6", "same"}
    one = cells[(cells["relation"] == "capital") & (cells["target"] == "6") & (cells["layer"] == 2)]["value"].item()
    records = run.records.query("baseline == 'none' and attempt == 'target_layer=6' and layer == 2")
    means = records.groupby("relation", observed=True)["correct_corrected"].mean()
    assert one == pytest.approx(means["capital"])
    total = cells[(cells["relation"] == "all") & (cells["target"] == "6") & (cells["layer"] == 2)]["value"].item()
    assert total == pytest.approx(((means - 0.125) / 0.875).mean())
    left_out = attempt_cells(run.records, frozenset({("facts", "capital")}))
    assert "all" not in set(left_out["relation"])


@pytest.mark.parametrize(
    ("attempt", "place"),
    [
        ("target_layer=12", ("", "12")), ("target_layer=same", ("", "same")), ("default", None),
        ("form=0 placeholder=x y target_layer=3 amplifier=2.0", ("form=0 placeholder=x y amplifier=2.0", "3")),
        ("t1->t2@9", ("t1->t2", "9")), ("mlp x6 -> 4", ("mlp x6", "4")), ("The capital of {subject} is", None),
    ],
)  # fmt: skip
def test_target_layers_are_those_declared_or_found_in_the_names_of_attempts(attempt, place):
    assert target_of(attempt, {}) == place
    assert target_of(attempt, {attempt: ("variant", "7")}) == ("variant", "7")


def test_costs_are_those_of_the_cells():
    cells = {
        "a": {"inspector": "probe", "baseline": "none", "seconds": 2.0, "rows": 10, "peak_memory_mb": 9,
              "fit": {"seconds": 1.5, "training_items": 100, "training_tokens": 0}},
        "b": {"inspector": "probe", "baseline": "mean", "seconds": 3.0, "rows": 5, "peak_memory_mb": 11},
        "c": {"inspector": "lens", "baseline": "none", "status": "failed"},
    }  # fmt: skip
    lens, probe = costs({"cells": cells})
    assert (probe["seconds"], probe["rival_seconds"], probe["fit_seconds"]) == (2.0, 3.0, 1.5)
    assert (probe["labels"], probe["memory"], probe["predictions"]) == (100, 11, 15)
    assert lens["seconds"] == 0
    assert costs({}) == []


def test_several_runs_have_a_chooser(made, tmp_path):
    other = write_run(tmp_path / "second", Made(accuracy={"probe": 0.7}))
    page = render([read_page_run(made), read_page_run(other)])
    assert [run["name"] for run in index_of(page)["runs"]] == ["first", "second"]
    assert '<option value="1">second</option>' in page
    assert len({*tables_of(page)}) == 2 + 2 * 3


def test_calibrations_and_verdict_words_stand_in_the_page(made):
    calibrations = {"patchscope": "found 7 of 8 planted facts", "probe": None}
    run = dataclasses.replace(read_page_run(made), calibrations=calibrations)
    page = render([run])
    assert "found 7 of 8 planted facts" in page
    assert "not calibrated" in page
    assert index_of(page)["runs"][0]["holds"] == dict(VERDICTS)


def test_the_command_writes_a_page(made, tmp_path):
    out = tmp_path / "deep" / "page.html"
    done = lensbench("report", made, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{out} (" in done.stdout
    assert "it lists 2 missing parts" in done.stdout  # the summary was never written
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_command_refuses_what_is_no_run(tmp_path):
    assert "is not a run folder" in refused(lensbench("report", tmp_path, cwd=tmp_path), 1)
    assert "RUN" in refused(lensbench("report", cwd=tmp_path), 2)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(LensbenchError, match="names no cells"):
        read_page_run(tmp_path)


def test_a_place_that_cannot_be_written_to_is_a_wrong_use(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        write_page([read_page_run(made)], tmp_path / "file" / "page.html")
