"""What the documents show works as it stands there."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer

from tests import calibration_table
from tests.test_reference import FIGURE

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), *ROOT.glob("tasks/*/README.md"), *ROOT.glob("*/README.md")]
ADDING_A_METHOD = (DOCS / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, "LENSBENCH_CACHE": str(cwd / "cache"), "PYTHONPATH": str(path or "")}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second method of docs/adding-a-method.md as a package of its own, installed away from lensbench."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    _, method, *_ = blocks(ADDING_A_METHOD, "python")
    (entry,) = blocks(ADDING_A_METHOD, "toml")
    (source / "nearest_mean.py").write_text(method, encoding="utf-8")
    project = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    project += '[project]\nname = "nearest-mean"\nversion = "1"\n'
    project += '[tool.hatch.build.targets.wheel]\nonly-include = ["nearest_mean.py"]\n'
    (source / "pyproject.toml").write_text(project + entry, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*pip, "--target", target, source, cwd=source)
    return target


def test_the_methods_of_the_docs_are_short_files() -> None:
    *methods, _ = blocks(ADDING_A_METHOD, "python")
    assert len(methods) == 3
    for method in methods:
        code = [line for line in method.splitlines() if line.strip() and not line.strip().startswith(('"""', "#"))]
        assert len(code) <= 25


def test_the_method_of_the_docs_is_found_by_its_entry_point(
    package: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    listed = run(sys.executable, "-m", "lensbench", "list", "inspectors", cwd=tmp_path, path=package)
    assert "nearest_mean  " in listed
    run(
        *(sys.executable, "-m", "lensbench", "evaluate", "--model", tiny_llama_folder, "--limit", "30"),
        *("--tasks", "attribute_extraction/country_continent", "--inspectors", "nearest_mean", "--out", "run"),
        cwd=tmp_path,
        path=package,
    )
    from lensbench.runs.run import load_run

    records, summary = load_run(tmp_path / "run").records, load_run(tmp_path / "run").summary
    assert "shuffled" in set(summary.baseline)
    assert {"none", "gaussian", "input_classifier", "control_task", "majority"} <= set(records.baseline)
    assert set(records.inspector) == {"nearest_mean"}


def test_the_packaged_method_of_the_docs_keeps_the_contract(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package)
    from nearest_mean import NearestMean

    from lensbench.testing import check_inspector

    check_inspector(NearestMean)


def test_the_baseline_of_the_docs_runs(tiny_llama_folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    (settings,), (function,) = blocks(text, "toml"), blocks(text, "python")
    (tmp_path / "norm_only.toml").write_text(settings, encoding="utf-8")
    (tmp_path / "my_rivals.py").write_text(function, encoding="utf-8")
    run(
        *(sys.executable, "-m", "lensbench", "evaluate", "--model", tiny_llama_folder, "--limit", "10"),
        *("--tasks", "attribute_extraction/country_capital", "--inspectors", "logit_lens"),
        *("--baselines", "./norm_only.toml,input_only", "--out", "run"),
        cwd=tmp_path,
    )
    from lensbench.runs.run import load_run

    loaded = load_run(tmp_path / "run")
    assert set(loaded.records.baseline) == {"none", "norm_only", "input_only"}
    assert loaded.info["baselines"]["norm_only"]["question"] == "uses_activation"


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slugs(text: str) -> set[str]:
    """The anchors that a code host and the site give the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-{sum(one.startswith(slug) for one in found)}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in slugs(there.read_text(encoding="utf-8")), f"{page.name} links to {target}"


def test_the_site_lists_every_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\nvalidation:")[0]
    listed = re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md"))


def commands_in(text: str) -> list[str]:
    """The commands of lensbench in blocks of code, and those in a sentence that begin with `lensbench `."""
    lines = [
        line.strip() for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S) for line in joined(block)
    ]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))
    return [
        one.removeprefix("$ ") for one in (*lines, *spans) if re.match(r"(\$ )?(\S+=\S+ )*(\S*bin/)?lensbench ", one)
    ]


def joined(block: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", block).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_documents_exist(page: Path) -> None:
    from lensbench.cli import app

    group: Any = typer.main.get_command(app)
    common = {*(name for option in group.params for name in (*option.opts, *option.secondary_opts)), "--help"}
    for command in commands_in(page.read_text(encoding="utf-8")):
        words = shlex.split(command, comments=True)
        words = words[next(i for i, word in enumerate(words) if word.endswith("lensbench")) + 1 :]
        name = next((word for word in words if not word.startswith("-")), None)
        if name is None or not name.isidentifier() or not name.islower():
            assert name is not None or set(words) <= common, f"{page.name}: {command}"
            continue  # `lensbench COMMAND`, `lensbench 0.1.0`
        assert name in group.commands, f"{page.name}: {command}: there is no command {name}"
        command_of = group.commands[name]
        if own := getattr(command_of, "commands", None):  # such as `exam make`
            second = words[words.index(name) + 1]
            assert second in own, f"{page.name}: {command}: there is no command {name} {second}"
            command_of = own[second]
        known = {one for option in command_of.params for one in (*option.opts, *option.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | common, f"{page.name}: {command}: there is no {', '.join(given - known - common)}"


MODEL_NAMES = re.compile(
    r"""--(?:model|verbalizer|reference|judge)[ =]([^\s`"'\\]+)|(?:load_model|evaluate)\(\s*["']([^"']+)|"""
    r"""(?:^model|[(, ]model) ?= ?["']([^"']+)|lensbench doctor ([^\s`-][^\s`]*)"""
)


def test_every_model_name_that_is_shown_can_be_a_model() -> None:
    """In documents, examples and help: what a reader copies is not refused."""
    from lensbench.cli import app
    from lensbench.models.sources import check_model_name

    group: Any = typer.main.get_command(app)
    texts = [page.read_text(encoding="utf-8") for page in (*PAGES, *(ROOT / "examples").iterdir()) if page.is_file()]
    texts += [command.help or "" for command in group.commands.values()]
    found = {name for text in texts for groups in MODEL_NAMES.findall(text) for name in groups if name}
    names = {name.split("+")[0].rstrip(".,;)") for name in found}
    assert {"gpt2", "smollm2-135m", "Qwen/Qwen3-0.6B"} <= names
    placeholders = {"M", "MODEL", "NAME", "DIR", "FOLDER"}
    for name in names - placeholders:
        if not name.startswith(("./", "../", "/", "...", "path/")) and name.upper() != name:
            check_model_name(name)


def test_python_of_the_documents_is_python() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            compile(block, str(page), "exec")


def test_the_method_of_the_docs_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, *_ = blocks(ADDING_A_METHOD, "python")
    (tmp_path / "cosine_lens.py").write_text(method, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from cosine_lens import CosineLens

    from lensbench.testing import check_inspector

    assert "check_layers_are_local" in check_inspector(CosineLens)


def test_the_patchscope_of_the_docs_keeps_the_contract(tmp_path: Path) -> None:
    *_, method, _ = blocks(ADDING_A_METHOD, "python")
    (tmp_path / "one_word.py").write_text(method, encoding="utf-8")
    from lensbench.inspectors.catalog import load_inspector
    from lensbench.testing import check_inspector

    found = load_inspector(f"{tmp_path}/one_word.py:OneWordPatchscope")
    assert found().own_prompt("{subject} is in").text == "Answer in one word. {subject} is in"
    assert "check_layers_are_local" in check_inspector(found)


def test_the_methods_of_the_docs_are_typed(tmp_path: Path) -> None:
    """Whoever types a method against lensbench gets its types: mypy in strict mode has nothing to say."""
    *methods, _ = blocks(ADDING_A_METHOD, "python")
    for number, method in enumerate(methods):
        (tmp_path / f"method{number}.py").write_text(method, encoding="utf-8")
    calls = blocks((DOCS / "python.md").read_text(encoding="utf-8"), "python")
    (tmp_path / "calls.py").write_text("\n".join(calls), encoding="utf-8")
    wrong = "import lensbench\n\nlensbench.evaluate(insepctors=['probe'])\nlensbench.evaluate(layers=3.5)\n"
    (tmp_path / "wrong.py").write_text(wrong, encoding="utf-8")
    # With the settings of `make lint`, whose cache is used again.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, tmp_path.glob("*.py"))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {Path(line.split(":")[0]).name for line in done.stdout.splitlines() if ": error:" in line}
    assert found == {"wrong.py"}, done.stdout
    assert done.stdout.count("wrong.py:3: error") == done.stdout.count("wrong.py:4: error") == 1


def test_every_check_of_a_method_is_explained() -> None:
    from lensbench import testing

    assert [name for name in testing.__all__ if name.startswith("check_") and f"`{name}`" not in ADDING_A_METHOD] == [
        "check_inspector"
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    # Not --quiet: what is not said is not counted either.
    assert done.returncode == 0, done.stderr
    assert not re.search("WARNING|ERROR", done.stdout + done.stderr), done.stderr
    return folder


def test_the_site_is_built_without_a_warning(site: Path) -> None:
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert "--inspectors" in commands
    api = (site / "python.html").read_text(encoding="utf-8")
    import lensbench

    absent = [name for name in lensbench.__all__ if f"lensbench.{name}" not in api]
    assert not absent, "the page of the stable names has no entry for these"
    hosts = set(re.findall(r"""(?:src|href)=["'](https?://[^/"']+)""", api)) - {"https://squidfunk.github.io"}
    assert not hosts, "pages ask nothing of other hosts"


def test_the_site_says_which_version_it_describes(site: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"lensbench {version}" in (site / "scale.html").read_text(encoding="utf-8")


def test_the_site_is_searched_without_a_server(site: Path) -> None:
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path: apt-get install chromium")
    asked: list[str] = []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "results.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("Patchscope")
        page.wait_for_selector(".md-search-result__item")
        assert "Patchscopes" in page.inner_text(".md-search-result__list")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "about:", "data:"))] == []


def test_toml_of_the_documents_is_toml() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "toml"):
            tomllib.loads(block)


def test_the_result_of_the_readme_is_that_of_the_kept_run(capsys: pytest.CaptureFixture[str]) -> None:
    """reports/country-capital holds run.json and summary.csv of the command that the README shows."""
    from lensbench.cli.terminal import show_run
    from lensbench.runs.run import load_run

    run = load_run(ROOT / "reports" / "country-capital")
    show_run(run)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.startswith(("site", "subject"))]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(printed) == 4
    for line in printed:
        assert line in readme
    of_relation = run.best[run.best["relation"] == "country_capital"]
    (best,) = of_relation[of_relation["inspector"] == "patchscope"].to_dict("records")
    assert f"scores {best['beats_text_baseline_accuracy']:.2f}".replace("0.", ".") in readme
    assert best["uses_activation_baseline_accuracy"] == pytest.approx(best["chance"], abs=0.01)
    assert f"{best['subjects']} countries" in readme
    config = run.info["config"]
    assert (config["tasks"], config["sites"]) == (["attribute_extraction/country_capital"], ["subject"])
    assert f"--methods {','.join(config['inspectors'])} " in readme


@pytest.mark.parametrize(
    ("page", "run", "relation", "methods"),
    [
        ("concepts", "country-capital", "country_capital", ["patchscope"]),
        ("concepts", "reference/planted", "city", ["patchscope"]),
        ("results", "reference/main", "all", ["logit_lens", "patchscope", "probe", "tuned_lens"]),
    ],
)
def test_tables_of_the_pages_are_those_of_kept_runs(
    page: str, run: str, relation: str, methods: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from lensbench.report.tables import print_table, result_table
    from lensbench.runs.run import load_run

    best = load_run(ROOT / "reports" / run).best
    print_table(result_table(best[(best["site"] == "subject") & (best["relation"] == relation)]))
    text = squeezed((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    lines = list(map(squeezed, capsys.readouterr().out.splitlines()))
    for method in methods:
        at = next(i for i, line in enumerate(lines) if line.startswith(method))
        rows = [lines[at], *takewhile(lambda line: re.match(r"[a-z_ ]+ \.\d\d [+-]", line), lines[at + 1 :])]
        assert len(rows) > 1
        for row in rows:
            assert row in text


def test_the_sentence_of_the_page_is_that_of_the_default_run() -> None:
    from lensbench.report.sentences import result_sentences
    from lensbench.runs.run import load_run

    run = load_run(ROOT / "reports" / "reference" / "main")
    (told,) = (one for one in result_sentences(run.best, run.info, run.summaries) if one.site == "answer")
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    assert squeezed(told.sentence) in squeezed(text.replace("\n> ", " "))


def squeezed(text: str) -> str:
    """Several spaces as one."""
    return re.sub(r" +", " ", text).strip()


def test_the_example_of_the_concepts_is_that_of_the_kept_run() -> None:
    summary = pd.read_csv(ROOT / "reports" / "country-capital" / "summary.csv")
    own = summary[(summary["relation"] == "country_capital") & (summary["inspector"] == "patchscope")]
    own = own[own["rule"] == "fixed"].drop_duplicates(["baseline", "layer"]).set_index(["baseline", "layer"])
    table = re.findall(r"^    \| (.*) \|$", (DOCS / "concepts.md").read_text(encoding="utf-8"), re.MULTILINE)
    heads, *rows = (line.split(" | ") for line in table if "---" not in line)
    assert len(rows) == 7
    for name, *told in rows:
        baseline = "none" if name == "Patchscope" else name.split("`")[1]
        for layer, value in zip(heads[1:], told, strict=True):
            found = own.loc[(baseline, int(layer)), "accuracy_corrected"]
            assert float(value) == pytest.approx(found, abs=0.0051), (name, layer)


SETTINGS = {
    # What is no result: defaults, thresholds, published figures, and the two that the README's kept run has.
    "methods": {"0.001", "6.25", "100 %", "57 %", ".01"},
    "analyses": {"5 %", ".04"},
    "baselines": {".85", ".79"},
    "verbalizers": set(),
}


@pytest.mark.parametrize("page", sorted(SETTINGS))
def test_pages_tell_no_results_of_runs_that_are_not_kept(page: str) -> None:
    """They stand in the findings, which are tested against the kept runs, or in the notebook, which says what it is."""
    text = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    told = set(FIGURE.findall(text))
    assert told <= SETTINGS[page]


def test_what_calibration_found_is_what_is_kept() -> None:
    text = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    rows = calibration_table.rows()
    assert len(rows) > 20
    assert [row for row in rows if row not in text] == []
    kept = json.loads(calibration_table.KEPT.read_text(encoding="utf-8"))
    assert kept["problems"] == []
    before = sum(one["compared"] for one in kept["findings"])
    assert f"all {before:,} predictions" in " ".join(text.split())
    assert sum(one["differing"] for one in kept["findings"]) == 0


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("examples/*.ipynb")], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_the_documents_name_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\blensbench(?:/[\w-]+)+(?:\.\w+)?", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for name in re.findall(r"\blensbench(?:\.[A-Za-z_]\w*)+", text):
        assert name == "lensbench.json" or there_is(name), f"{page.name} names {name}"


def there_is(name: str) -> bool:
    """Whether a dotted name is a module, something in one, or a file beside one, such as a style of matplotlib."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None or any((ROOT / "/".join(parts[:-1])).glob(f"{parts[-1]}.*"))
    return False
