"""Analyses of the residual stream: their definitions, identities that must hold, every architecture, the command."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lensbench.errors import LensbenchError, UsageError
from lensbench.explore.alignment import (
    make_interventions,
    mean_interval,
    sample_residuals,
    short_texts,
    stimulus_response,
    update_alignment,
)
from lensbench.explore.analyze import ANALYSES, AnalysisSettings, analyze, drift_of_layers, drift_of_pairs, outliers
from lensbench.explore.prompt import load_lens
from lensbench.inspectors.base import Lens
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.target import Target
from lensbench.models.corpus import PROSE, Corpus
from lensbench.models.gradients import loss_gradients
from lensbench.models.language_model import LanguageModel
from lensbench.models.patching import PatchedPass, Prompt
from lensbench.report.analyses import FIGURES
from tests import tiny
from tests.command import lensbench, refused

LAYERS = (0, 1, 2, 3, 4)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def heldout(kind: str) -> Corpus:
    return Corpus(tiny.model(kind), PROSE / "heldout.txt")


# Drift


def test_cka_does_not_see_rotation_and_scale_and_covariance_does() -> None:
    x = noise(400, 12) * torch.linspace(1, 4, 12).double()
    rotation = torch.linalg.qr(noise(12, 12, seed=1)).Q
    values = torch.stack([x, 3.0 * x @ rotation + 5.0, noise(400, 12, seed=2)])
    pairs = drift_of_pairs((0, 1, 2), values).set_index(["layer", "other"])
    assert pairs.cka[0, 1] == pytest.approx(1.0, abs=1e-9)
    assert pairs.cka[0, 2] < 0.1
    assert pairs.covariance[0, 1] < 0.95
    for column in ("cosine", "cosine_centred", "cka", "covariance"):
        for layer in range(3):
            assert pairs[column][layer, layer] == pytest.approx(1.0, abs=1e-9)
            assert pairs[column][0, layer] == pytest.approx(pairs[column][layer, 0], abs=1e-12)


def test_similarities_equal_naive_ones() -> None:
    values = sample_residuals(heldout("llama"), 256, LAYERS).double()
    pairs = drift_of_pairs(LAYERS, values).set_index(["layer", "other"])
    x, y = values[1].numpy(), values[4].numpy()

    def cosines(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]))

    xc, yc = x - x.mean(0), y - y.mean(0)
    # The other form of CKA: by Gram matrices of tokens.
    grams = xc @ xc.T, yc @ yc.T
    cka = (grams[0] * grams[1]).sum() / np.linalg.norm(grams[0]) / np.linalg.norm(grams[1])
    one, two = np.cov(x.T), np.cov(y.T)
    covariance = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
    found = pairs.loc[(1, 4)]
    expected = {"cosine": cosines(x, y), "cosine_centred": cosines(xc, yc), "cka": cka, "covariance": covariance}
    for column, value in expected.items():
        assert found[column] == pytest.approx(value, abs=1e-9), column


def test_a_known_covariance_is_recovered() -> None:
    deviations = torch.tensor([3.0, 2.0, 1.0, 1.0]).double()
    values = torch.stack([noise(200_000, 4) * deviations + 7.0, noise(200_000, 4, seed=1)])
    first, last = drift_of_layers((0, 1), values).to_dict("records")
    share = (deviations.square() / deviations.square().sum()).numpy()
    assert first["variance"] == pytest.approx(15.0, rel=0.02)
    assert first["top1"] == pytest.approx(share[0], abs=0.01)
    assert first["participation_ratio"] == pytest.approx(1 / (share**2).sum(), rel=0.02)
    assert first["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=0.02)
    assert first["distance"] == pytest.approx(np.linalg.norm(share - 0.25) / 0.5, rel=0.03)
    assert last["participation_ratio"] == pytest.approx(4.0, rel=0.01)
    assert last["distance"] == 0.0


def test_outliers_are_named_and_left_out_beside_the_whole() -> None:
    values = noise(2, 500, 40)
    assert outliers(values) == ()
    assert set(drift_of_layers((0, 1), values).coordinates) == {"all"}
    values[1, :, 7] *= 100.0
    assert outliers(values) == (7,)
    layers = drift_of_layers((0, 1), values).set_index(["coordinates", "layer"])
    assert layers.participation_ratio["all", 1] < 1.1
    without = torch.cat([values[:, :, :7], values[:, :, 8:]], dim=2)
    expected = drift_of_layers((0, 1), without)
    found = layers.loc["without outliers"]
    np.testing.assert_allclose(found.participation_ratio, expected.participation_ratio, rtol=1e-9)
    pairs = drift_of_pairs((0, 1), values).query("coordinates == 'without outliers'")
    columns = ["cosine", "cosine_centred", "cka", "covariance"]
    np.testing.assert_allclose(pairs[columns], drift_of_pairs((0, 1), without)[columns], rtol=1e-9, atol=1e-12)


# Stimulus and response


def logit_lens(kind: str) -> Lens:
    model = tiny.model(kind)
    return LogitLens().fit(Target(model), model, Training())  # type: ignore[return-value]


class OwnBlocks(Lens):
    """What is left of the model, as a lens for one text: its response to anything is the model's own."""

    name = "own_blocks"

    def __init__(self, kind: str, text: torch.Tensor) -> None:
        self.kind = kind
        self.text = text

    def logits(self, layer: int, values: torch.Tensor, attempt: int) -> torch.Tensor:
        prompt = Prompt(tuple(self.text.tolist()), len(self.text) - 1)
        passes = PatchedPass(tiny.model(self.kind), prompt, "plain")
        return tiny.model(self.kind).unembed(passes.final_residuals(values, torch.full((len(values),), layer)))


def interventions_for(kind: str, texts: int):
    return make_interventions(LAYERS, sample_residuals(heldout(kind), 512, LAYERS), texts, seed=0, each=3)


def test_the_models_own_blocks_are_aligned_at_every_layer() -> None:
    text = short_texts(heldout("llama"), 1, 0)
    texts = text.expand(3, -1)
    lenses = {"own": OwnBlocks("llama", text[0]), "logit_lens": logit_lens("llama")}
    found = stimulus_response(tiny.model("llama"), lenses, texts, interventions_for("llama", 3))
    own = found.query("lens == 'own'")
    np.testing.assert_allclose(own.alignment, 1.0, atol=1e-4)
    np.testing.assert_allclose(own.stimulus, own.response, rtol=1e-3)
    logit = found.query("lens == 'logit_lens'").set_index(["directions", "layer"])
    assert logit.alignment["principal", 4] == pytest.approx(1.0, abs=1e-6)
    assert logit.alignment["principal", 1] < 0.95
    assert (found.silent < 0.5).all()


def test_alignment_is_the_weighted_cosine_of_centred_log_ratios() -> None:
    model, layer = tiny.model("gpt2"), 2
    texts = short_texts(heldout("gpt2"), 2, 3)
    chosen = interventions_for("gpt2", 2)
    found = stimulus_response(model, {"logit_lens": logit_lens("gpt2")}, texts, chosen)
    means = []
    for place, text in enumerate(texts):
        prompt = Prompt(tuple(text.tolist()), len(text) - 1)
        every = model.residuals(text[None], torch.ones_like(text)[None], torch.tensor([[len(text) - 1]]), (layer, 4))
        h, last = every[0, 0, 0], every[1, 0, 0]
        p = model.unembed(last[None])[0].softmax(0).double()
        cosines = []
        for direction in range(3):  # the principal ones
            v = chosen.directions[layer, direction]
            changed = h + v * (chosen.donors[layer, place, direction] - v @ h)
            end = PatchedPass(model, prompt, "plain").final_residuals(changed[None], torch.tensor([layer]))
            heads = [model.unembed(one.reshape(1, -1))[0].log_softmax(0).double() for one in (changed, h, end, last)]
            # Centred log-ratio: minus the log of the weighted geometric mean.
            ratios = [log - (p * log).sum() for log in heads]
            s, r = ratios[0] - ratios[1], ratios[2] - ratios[3]
            cosines.append(float((p * s * r).sum() / ((p * s * s).sum() * (p * r * r).sum()).sqrt()))
        means.append(np.mean(cosines))
    row = found.query("layer == @layer and directions == 'principal'").iloc[0]
    assert row.silent == 0
    assert row.alignment == pytest.approx(np.mean(means), abs=1e-4)


def test_interventions_put_in_the_donors_coordinate_and_nothing_else() -> None:
    sample = noise(2, 300, 16).float()
    sample[0, :, 5] *= 9.0
    chosen = make_interventions((0, 3), sample, 4, seed=1, each=2)
    assert chosen.kinds == ("principal", "principal", "random", "random")
    assert abs(float(chosen.directions[0, 0, 5])) > 0.99
    h = noise(2, 4, 16, seed=3).float()
    changed = chosen.resample(h)
    along = torch.einsum("ltkd,lkd->ltk", changed, chosen.directions)
    torch.testing.assert_close(along, chosen.donors, rtol=1e-4, atol=1e-4)
    moved = changed - h[:, :, None]
    across = moved - torch.einsum("ltkd,lkd->ltk", moved, chosen.directions)[..., None] * chosen.directions[:, None]
    torch.testing.assert_close(across, torch.zeros_like(across), rtol=0, atol=1e-5)
    coordinates = torch.einsum("lnd,lkd->lnk", sample, chosen.directions)
    assert all(float((coordinates[0, :, 1] - value).abs().min()) < 1e-5 for value in chosen.donors[0, :, 1])


# Updates


def loss_with(model: LanguageModel, text: torch.Tensor, layer: int, place: int, change: torch.Tensor) -> float:
    """The text's summed cross-entropy, with a change added to the residual stream at one layer and position."""

    def add(_module: object, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[object, object]:
        name = None if args else next(iter(kwargs))
        hidden = (args[0] if name is None else kwargs[name]).clone()
        hidden[0, place] += change
        return ((hidden, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: hidden})

    handle = [*model.parts.blocks, model.parts.final][layer].register_forward_pre_hook(add, with_kwargs=True)
    with torch.no_grad():
        logits = model.module(text[None, :-1], use_cache=False).logits[0].double()
    handle.remove()
    return float(torch.nn.functional.cross_entropy(logits, text[1:], reduction="sum"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "mamba"])
def test_gradients_equal_finite_differences(kind: str) -> None:
    model = tiny.model(kind)
    text = short_texts(heldout(kind), 1, 0)[0, :20]
    places = torch.tensor([3, 18])
    found = loss_gradients(model, text[None, :-1], lambda rows, _logits: text[None, None, 1:], places)
    exact_loss = loss_with(model, text, 0, 0, torch.zeros(model.d_model))
    assert float(found.losses) * 19 == pytest.approx(exact_loss, rel=1e-4)
    for layer in LAYERS:
        for index, place in enumerate(places.tolist()):
            gradient = found.gradients[0, layer, 0, index]
            direction = torch.nn.functional.normalize(
                gradient + gradient.norm() * noise(len(gradient)).float() / 6, dim=0
            )
            # What a Mamba with enlarged weights adds is 10,000 times its embeddings: straight only near by.
            step = (1e-4 if kind == "mamba" else 1e-2) * float(found.residuals[layer, 0, index].norm())
            up, down = (loss_with(model, text, layer, place, sign * step * direction) for sign in (1, -1))
            slope = float(gradient @ direction)
            assert (up - down) / (2 * step) == pytest.approx(slope, rel=0.05, abs=1e-3 / step), (layer, place)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_updates_are_compared_with_their_own_gradients_and_with_others() -> None:
    model = tiny.model("gpt2")
    texts = short_texts(heldout("gpt2"), 9, 0)
    table = update_alignment(model, texts, LAYERS).set_index(["loss", "layer"])
    assert sorted(set(table.index.get_level_values("layer"))) == [0, 1, 2, 3]
    found = loss_gradients(model, texts[:, :-1], lambda rows, _logits: texts[rows, 1:][None], torch.arange(4, 63, 4))
    update, descent = found.residuals[3] - found.residuals[2], -found.gradients[0, 2]
    cosines = torch.nn.functional.cosine_similarity(update[:, None], descent[None], dim=3).mean(2)
    row = table.loc[("next token", 2)]
    assert row.cosine == pytest.approx(float(cosines.diagonal().mean()), abs=1e-6)
    apart = ~torch.eye(9, dtype=torch.bool)
    assert row.control == pytest.approx(float(cosines[apart].mean()), abs=1e-6)
    assert row.low <= row.cosine <= row.high
    assert row.nats == pytest.approx(float(found.losses.mean()), abs=1e-6)
    assert (row.texts, row.positions) == (9, 9 * 15)
    assert table.nats["own top token", 0] < row.nats


def test_an_update_along_the_gradient_is_told_from_one_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lensbench.explore import alignment
    from lensbench.models.gradients import Gradients

    gradients = noise(2, 5, 6, 2, 32)
    residuals = torch.ones(5, 6, 2, 32, dtype=torch.float64)
    residuals[1] = residuals[0] - 0.1 * gradients[0, 0]
    residuals[2] = residuals[1] + 0.1 * gradients[0, 1]
    monkeypatch.setattr(alignment, "loss_gradients", lambda *_: Gradients(residuals, gradients, torch.zeros(2, 6)))
    table = update_alignment(tiny.model("llama"), torch.zeros(6, 12, dtype=torch.long), (0, 1))
    rows = table.query("loss == 'next token'").set_index("layer")
    assert rows.cosine[0] == pytest.approx(1.0)
    assert rows.cosine[1] == pytest.approx(-1.0)
    assert rows.control.abs().max() < 0.2


# All together


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_every_architecture(kind: str) -> None:
    model, corpus = tiny.model(kind), heldout(kind)
    texts = short_texts(corpus, 4, 0)
    table = stimulus_response(model, {"logit_lens": logit_lens(kind)}, texts, interventions_for(kind, 4))
    last = table.query("layer == 4")
    np.testing.assert_allclose(last.alignment, 1.0, atol=1e-3)
    assert table.alignment.between(-1.0001, 1.0001).all()
    updates = update_alignment(model, texts, LAYERS)
    assert np.isfinite(updates.select_dtypes("number")).all(axis=None)
    assert updates.cosine.abs().max() > 0


def test_intervals() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    mean, low, high = mean_interval(values, 0)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (low, high) == (pytest.approx(mean - half, abs=0.02), pytest.approx(mean + half, abs=0.02))
    assert mean_interval(np.ones(5), 0) == (1.0, 1.0, 1.0)
    assert np.isnan(mean_interval(np.array([]), 0)).all()
    assert mean_interval(np.array([2.0]), 0)[0] == 2.0


def test_a_folder_holds_tables_figures_and_what_was_asked(tmp_path: Path, isolated_cache: Path) -> None:
    model, out = tiny.model("llama"), tmp_path / "out"
    settings = AnalysisSettings(tokens=512, texts=4, layers="0,2,4", inspectors=("logit_lens",))
    analyze(model, ("drift",), settings, out)
    tables = analyze(model, ("alignment", "updates"), settings, out)
    assert set(tables) == {"alignment", "updates", "updates-texts"}
    assert set(tables["updates"].layer) == {0, 2}
    written = {path.name for path in out.iterdir()}
    expected = {f"{name}{suffix}" for name in FIGURES for suffix in (".csv", ".png", ".svg", ".pdf")}
    assert written == expected | {"analysis.json", "updates-texts.csv"}
    content = json.loads((out / "analysis.json").read_text())
    assert content["model"] == "tiny-llama"
    assert content["fingerprint"] == model.fingerprint
    assert set(content["analyses"]) == set(ANALYSES)
    assert content["analyses"]["drift"]["settings"]["tokens"] == 512
    assert content["analyses"]["drift"]["positions"] == 4 * 127
    before = (out / "alignment.csv").read_bytes()
    analyze(model, ("alignment",), settings, out)
    assert (out / "alignment.csv").read_bytes() == before
    (out / "analysis.json").write_text(json.dumps({**content, "fingerprint": "0"}))
    with pytest.raises(UsageError, match="analyses of other weights"):
        analyze(model, ("drift",), settings, out)


def test_figures_show_every_curve() -> None:
    model, corpus = tiny.model("llama"), heldout("llama")
    values = sample_residuals(corpus, 512, LAYERS)
    values[3, :, 4] *= 100.0
    texts = short_texts(corpus, 4, 0)
    lenses = {"logit_lens": logit_lens("llama"), "mine": logit_lens("llama")}
    tables = {
        "drift-layers": drift_of_layers(LAYERS, values),
        "drift-pairs": drift_of_pairs(LAYERS, values),
        "alignment": stimulus_response(model, lenses, texts, interventions_for("llama", 4)),
        "updates": update_alignment(model, texts, LAYERS),
    }
    figures = {name: draw(tables[name], "tiny-llama") for name, draw in FIGURES.items()}
    words = {name: texts_of(figure) for name, figure in figures.items()}
    assert "without outliers" in words["drift-layers"]
    assert "linear CKA" in words["drift-pairs"]
    maps = [
        axis.collections[0] for axis in figures["drift-pairs"].axes if axis.collections and axis.get_title(loc="left")
    ]
    assert len(maps) == 4
    cka = tables["drift-pairs"].query("coordinates == 'all'").cka.to_numpy()
    np.testing.assert_allclose(np.ravel(maps[2].get_array()), cka)
    assert "logit lens" in words["alignment"]
    assert "mine" in words["alignment"]
    principal = figures["alignment"].axes[0]
    expected = tables["alignment"].query("lens == 'mine' and directions == 'principal'").alignment
    assert any(np.array_equal(line.get_ydata(), expected) for line in principal.lines)
    assert len(principal.collections) == 2
    assert "own top token" in words["updates"]
    assert "gradients of other texts" in words["updates"]


def texts_of(figure: Figure) -> str:
    found = [artist.get_text() for artist in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    return " | ".join(text for text in found if text)


def test_too_much_is_refused() -> None:
    with pytest.raises(LensbenchError, match="give fewer"):
        short_texts(heldout("llama"), 10**6, 0)
    with pytest.raises(LensbenchError, match="at least 128"):
        sample_residuals(heldout("llama"), 100, LAYERS)
    with pytest.raises(UsageError, match="name lenses, such as logit_lens"):
        load_lens("probe")


WRONG = {
    ("--model", "smollm2-135"): "unknown model 'smollm2-135'; did you mean 'smollm2-135m'?",
    ("--inspectors", "logit_lense"): "did you mean 'logit_lens'?",
    ("--inspectors", "patchscope"): "gives no distribution of the next token at each layer",
    ("--inspectors", ","): "name at least one lens",
    ("--layers", "3,x"): "expected all, stride:2, or layers and ranges",
    ("--layers", "0,3"): "the model has layers 0 (embeddings) to 2; layer 3 is not one",
    ("--dtype", "int8"): "unknown dtype 'int8'",
    ("--device", "toaster"): "--device 'toaster' is not available on this machine",
    ("--out", "taken"): "--out taken cannot be written to",
    ("--out", "other"): "holds analyses of another, now",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_settings_are_usage_errors(arguments: tuple[str, str], tiny_llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "analysis.json").write_text('{"model": "another"}')
    done = lensbench("analyze", "drift", "--model", tiny_llama_folder, "--out", "run", *arguments, cwd=tmp_path)
    assert WRONG[arguments] in refused(done, 2)
    assert not (tmp_path / "run").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"taken", "other", "cache"}


def test_the_command_prints_and_writes(tiny_llama_folder: Path, tmp_path: Path) -> None:
    given = ("--model", tiny_llama_folder, "--inspectors", "logit_lens", "--tokens", 512, "--texts", 4)
    done = lensbench("analyze", "all", *given, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tables and figures in run" in done.stdout
    assert {"logit_lens", "principal", "participation"} <= set(done.stdout.split())
    assert len(list((tmp_path / "run").glob("*.csv"))) == 5
    # The PDF's fonts are not talked about.
    assert len(done.stderr.splitlines()) < 20, done.stderr


@pytest.mark.parametrize("arguments", [["analyze", "--help"], ["analyze", "--model", "smollm2-135n"]], ids=" ".join)
def test_help_and_names_do_not_import_torch(arguments: list[str]) -> None:
    from tests.test_imports import early_imports

    run = f"sys.argv = {['lensbench', *arguments]!r}\ntry:\n    main()\nexcept SystemExit:\n    pass"
    assert early_imports(f"from lensbench.cli import main\n{run}") == set()


@pytest.mark.model
def test_smollm2_drifts_where_it_is_known_to(smollm2_folder: Path) -> None:
    """A coordinate of huge variance enters at layer 3 and leaves by 11; the last layers are aligned, early ones not."""
    from lensbench.models.loading import load_model

    model = load_model(str(smollm2_folder))
    corpus = Corpus(model, PROSE / "heldout.txt")
    layers = (2, 5, 15, 29, 30)
    values = sample_residuals(corpus, 512, layers)
    assert 507 in outliers(values)
    ratio = drift_of_layers(layers, values).set_index(["coordinates", "layer"]).participation_ratio
    assert ratio["all", 5] < 6 < 15 < ratio["all", 15]
    assert ratio["without outliers", 5] > 5 * ratio["all", 5]
    pairs = drift_of_pairs(layers, values).set_index(["coordinates", "layer", "other"])
    assert pairs.cka["all", 5, 15] < 0.4 < pairs.cka["without outliers", 5, 15]
    texts = short_texts(corpus, 3, 0)
    chosen = make_interventions(layers, values, len(texts), seed=0, each=2)
    lens = LogitLens().fit(Target(model), model, Training())
    found = stimulus_response(model, {"logit_lens": lens}, texts, chosen).query("directions == 'principal'")
    alignment = found.set_index("layer").alignment
    assert alignment[30] == pytest.approx(1.0, abs=1e-6)
    assert abs(alignment[5]) < 0.35 < 0.5 < alignment[29]
