"""Inversion: the tokens that an activation decodes to, and the verbalizer asked about them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import Ridge

from lensbench import testing
from lensbench.baselines.spec import find_baselines, find_function
from lensbench.errors import NotApplicableError, UsageError
from lensbench.harness.bench import Bench
from lensbench.harness.crossfit import CrossFit
from lensbench.inspectors.evidence import Training
from lensbench.inspectors.lenses.logit_lens import LogitLens
from lensbench.inspectors.patchscopes.patchscope import Patchscope
from lensbench.inspectors.target import Target
from lensbench.inspectors.verbalizers.inversion import Inversion
from lensbench.inspectors.verbalizers.recipe import CONVENTIONS, Notes
from lensbench.models.corpus import PROSE, WINDOW, Corpus
from lensbench.models.language_model import LanguageModel
from lensbench.models.loading import Loading, load_source
from lensbench.models.patching import Patcher, Prompt
from lensbench.models.prompting import score_answers, score_next_tokens
from lensbench.models.sources import resolve
from lensbench.tasks import load_task
from tests import tiny
from tests.inspectors.test_oracle import write_adapter

HELD_OUT = PROSE / "heldout.txt"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return testing.small_bench()


def fitted(kind: str, **settings: object) -> tuple[Inversion, Corpus]:
    """An inversion of a tiny model, and the model on prose that it has not learned from."""
    model = tiny.model(kind)
    found = Inversion(**{"tokens": 8192, **settings}).fit(Target(model), model, Training(corpus=Corpus(model)))
    return found, Corpus(model, HELD_OUT)


def recovered(inversion: Inversion, held: Corpus, layer: int, tokens: int = 1024) -> torch.Tensor:
    """The share of tokens that are decoded exactly, by offset."""
    right = [inversion.decode(layer, values[layer]) == ids for values, ids in held.positions(tokens, inversion.offsets)]
    return torch.cat(right).float().mean(0)


def small() -> Inversion:
    return Inversion(offsets=3, tokens=1024)


def test_conformance(bench: Bench) -> None:
    assert len(testing.check_inspector(small, bench)) >= 7


@pytest.mark.parametrize("back", [1, 2, 4])
def test_positions_are_residuals_beside_their_tokens(back: int) -> None:
    """A pass over a window alone, and the window's own tokens, one place at a time."""
    model = tiny.model("llama")
    corpus = Corpus(model)
    batches = list(corpus.positions(20 * WINDOW, back))
    values, ids = torch.cat([v for v, _ in batches], dim=1), torch.cat([i for _, i in batches])
    places = range(max(1, back - 1), WINDOW)
    assert ids.shape == (20 * len(places), back)
    for window in (0, 17):
        row = corpus.windows[window : window + 1]
        alone = model.residuals(row, torch.ones_like(row), torch.arange(WINDOW)[None], range(5))[:, 0]
        for place in (places[0], 63, WINDOW - 1):
            i = window * len(places) + place - places[0]
            torch.testing.assert_close(values[:, i], alone[:, place], rtol=1e-4, atol=1e-4)
            assert ids[i].tolist() == [int(row[0, place - o]) for o in range(back)]


def test_layer_0_decodes_to_the_token_that_was_read() -> None:
    """Where no positions are added, layer 0 is the embedding, and nothing of the tokens before is in it."""
    inversion, held = fitted("llama")
    share = recovered(inversion, held, layer=0)
    assert share[0] == 1.0
    assert (share[1:] < 0.5).all()


def test_layer_0_with_positions_still_decodes_nearly_always() -> None:
    share = recovered(*fitted("gpt2"), layer=0)
    assert share[0] > 0.95, share


def test_the_maps_are_ridge_regressions() -> None:
    """scikit-learn's, on standardised coordinates; half precision is all that is between them."""
    model = tiny.model("llama")
    inversion = Inversion(offsets=3, tokens=2048, ridge=0.01)
    inversion.fit(Target(model), model, Training(corpus=Corpus(model)))
    batches = list(Corpus(model).positions(2048, 3))
    values, ids = torch.cat([v for v, _ in batches], dim=1), torch.cat([i for _, i in batches])
    x = values[2].double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    unseen = torch.cat([v for v, _ in Corpus(model, HELD_OUT).positions(256, 3)], dim=1)[2]
    for offset in range(3):
        y = model.module.get_input_embeddings().weight[ids[:, offset]].double()
        ridge = Ridge(alpha=0.01 * len(x)).fit(x.numpy(), y.numpy())
        standard = (unseen - inversion.mean_[2]) / inversion.scale_[2]
        ours = standard @ inversion.weight_[2, offset].float() + inversion.bias_[offset]
        expected = torch.from_numpy(ridge.predict(standard.double().numpy())).float()
        torch.testing.assert_close(ours, expected, rtol=5e-3, atol=5e-3 * float(expected.abs().max()))


def test_the_nearest_token_is_that_of_a_search_one_by_one() -> None:
    model = tiny.model("llama")
    vectors = torch.randn(40, model.d_model, generator=torch.Generator().manual_seed(0))
    table = model.module.get_input_embeddings().weight
    cosines = torch.stack([torch.cosine_similarity(vector[None], table) for vector in vectors])
    cosines[:, sorted(model.tokens.special_ids)] = -torch.inf
    target = Target(model)
    assert target.nearest(vectors).tolist() == cosines.argmax(1).tolist()
    best = cosines.argmax(1).unique().tolist()
    without = target.nearest(vectors, without=best)
    assert not set(without.tolist()) & set(best)
    cosines[:, best] = -torch.inf
    assert without.tolist() == cosines.argmax(1).tolist()
    assert target.nearest(vectors, among=[40, 7, 40], without=[7]).tolist() == [40] * 40
    assert int(target.nearest(target.embed(torch.tensor([40])))[0]) == 40


def test_what_is_decoded_is_what_the_verbalizer_is_asked_about(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens in the order of the text, as many as the attempt keeps, in the slot of the inspection prompt."""
    tokens = bench.context.model.tokens
    name = [tokens.encode(f"We talk about {item.subject}").ids for item in bench.items]
    ids = torch.tensor([[*row[::-1][:3]] for row in name])
    monkeypatch.setattr(Inversion, "decode", lambda self, layer, values, without=(): ids)
    scores = CrossFit(small, bench).scores()
    assert scores.attempts == ("tokens=2", "tokens=1", "tokens=3")
    answers = [tokens.answer_token(answer) for answer in bench.answers]
    for attempt, kept in enumerate((2, 1, 3)):
        texts = [bench.question.replace("{subject}", tokens.decode(row[-kept:]).strip()) for row in name]
        asked = score_next_tokens(bench.context.verbalizer, texts, answers).log_probs
        for layer in range(len(bench.context.layers)):
            torch.testing.assert_close(scores.log_scores[layer, attempt], asked, rtol=1e-4, atol=1e-4)


def test_it_goes_on_where_a_description_is_asked_for(bench: Bench) -> None:
    asked = replace(bench, relation=replace(bench.relation, describe=3))
    said = CrossFit(small, asked).scores().texts
    assert said.shape == (4, 3, 20)
    assert all(isinstance(text, str) for text in said.flat)
    assert len(set(said.flat)) > 1


def test_no_answer_is_decoded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subjects that are called like the answers decode to something else."""
    model = bench.context.model
    words = [model.tokens.decode([token]) for token in range(model.vocabulary)]
    tea, wine = [word.strip() for word in words if word.startswith(" ") and word[1:].isalpha() and len(word) > 4][:2]
    named = testing.make_bench(model, bench.context.corpus, testing.Subjects((tea, wine) * 5, (tea, wine)), (0,))
    answers = [model.tokens.answer_token(answer) for answer in named.answers]
    seen: list[torch.Tensor] = []
    whole = Inversion.decode

    def spy(self: Inversion, layer: int, values: torch.Tensor, without: tuple[int, ...] = ()) -> torch.Tensor:
        seen.extend((whole(self, layer, values), whole(self, layer, values, without)))
        return seen[-1]

    monkeypatch.setattr(Inversion, "decode", spy)
    CrossFit(small, named).scores()
    plain, kept_out = seen
    assert set(plain[:, 0].tolist()) == set(answers)
    assert not torch.isin(kept_out, torch.tensor(answers)).any()


def test_other_prompts_and_vocabularies_share_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    corpus = Corpus(model, cache=tmp_path)
    first = Inversion(tokens=1024).fit(Target(model), model, Training(corpus=corpus))
    monkeypatch.setattr(Inversion, "_learn", lambda *_: pytest.fail("learned again"))
    other = Inversion(tokens=1024, prompt="Of {subject}", vocabulary=(40, 41, 42))
    other.fit(Target(model), model, Training(corpus=corpus))
    assert other.weight_ is first.weight_
    # It counts as it did when it was learned, for each that has it.
    assert corpus.spent.tokens == 2 * 1024
    assert set(other.decode(2, torch.randn(30, model.d_model)).flatten().tolist()) <= {40, 41, 42}
    again = Inversion(tokens=1024).fit(Target(model), model, Training(corpus=Corpus(model, cache=tmp_path)))
    assert torch.equal(again.weight_, first.weight_)


@pytest.mark.parametrize("kind", [*tiny.CONFIGS, *tiny.HYBRIDS])
def test_every_architecture(kind: str) -> None:
    """Whatever is added to the embeddings or scales them, layer 0 tells the token better than the last layer does."""
    model = tiny.model(kind)
    inversion, held = fitted(kind, offsets=2, tokens=2048)
    share = [float(recovered(inversion, held, layer)[0]) for layer in (0, model.n_layers)]
    assert share[0] > 0.9, share
    assert share[1] <= share[0]
    subjects = testing.Subjects(("Bo Ash", "Cy Birch", "Di Cole", "Ed Dow"), ("tea", "wine"))
    bench = testing.make_bench(model, Corpus(model), subjects, (0, 2, 4))
    assert CrossFit(lambda: Inversion(offsets=2, tokens=1024), bench).scores().log_scores.shape == (3, 2, 4, 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"offsets": 0}, r"inversion.offsets = 0: expected a number of tokens, 1 to 64"),
        ({"offsets": 65}, r"inversion.offsets = 65"),
        ({"tokens": 100}, r"inversion.tokens = 100: expected at least 128"),
        ({"ridge": -0.1}, r"inversion.ridge = -0.1: expected 0 or more"),
        ({"prompt": "What is it?"}, r"inversion.prompt = 'What is it\?': expected a text with the slot \{subject\}"),
        ({"vocabulary": ()}, r"inversion.vocabulary = \(\): expected ids of tokens"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], expected: str) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError, match=expected):
        Inversion(**settings).check(Target(model), model)


def test_a_vocabulary_of_answers_alone_is_refused() -> None:
    model = tiny.model("llama")
    inversion = Inversion(tokens=1024, vocabulary=(40, 41)).fit(Target(model), model, Training(corpus=Corpus(model)))
    with pytest.raises(UsageError, match="no token of tiny-llama is left to choose from"):
        inversion.decode(0, torch.randn(2, model.d_model), without=(40, 41))


OTHER = "Some say {subject} wants"


@pytest.mark.parametrize(
    ("make", "prompts"),
    [(LogitLens, None), (lambda: Patchscope(prompt=OTHER), [OTHER]), (lambda: TwoPrompts((1,)), [OTHER, OTHER + " a"])],
    ids=["no prompt", "own prompt", "two prompts"],
)
def test_the_rival_reads_the_sources_tokens_in_the_methods_prompts(
    make: Callable, prompts: list[str] | None, bench: Bench
) -> None:
    """It is the inversion with that prompt, choosing among the tokens of the relation's sources."""
    tokens = bench.context.model.tokens
    vocabulary = {t for item in (*bench.items, *bench.train_items) for t in tokens.encode(item.source).ids}
    outcomes = find_function("inversion")(CrossFit(make, bench))
    assert len(outcomes) == len(prompts or [bench.question])
    names = [name for outcome in outcomes for name in outcome.scores.attempts]
    assert len(set(names)) == len(names)
    for outcome, prompt in zip(outcomes, prompts or [bench.question], strict=True):
        same = CrossFit(lambda prompt=prompt: Inversion(prompt=prompt, vocabulary=tuple(sorted(vocabulary))), bench)
        torch.testing.assert_close(outcome.scores.log_scores, same.scores().log_scores)
        assert outcome.layers == bench.context.layers
        assert outcome.zero_shot


class TwoPrompts(Patchscope):
    """Asks in two prompts."""

    def own_prompts(self, forms: tuple[str, ...]) -> tuple:
        own = self.own_prompt(forms[0])
        return (replace(own, text=OTHER), replace(own, text=f"{OTHER} a"))


def decoder_in(folder: Path, model: LanguageModel, **settings: object) -> Path:
    """An adapter that says that it was trained to write texts, and nothing else."""
    recipe = replace(CONVENTIONS["plain"], placeholder=" a", layers=(2,))
    told = {"settings": {"inverts": True, "prose": 1.0, **settings}}
    Notes(recipe, model.fingerprint, str(model.dtype), (), told).write(write_adapter(folder))
    return folder


def test_a_trained_decoder_writes_the_text(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adapter says of each activation, as long as asked for, is asked about."""
    model = bench.context.model
    folder, asked = decoder_in(tmp_path / "decoder", model), []
    said = {2: "I like Tea, teams", 1: "wine "}

    def generate(
        _self: Patcher, prompt: Prompt, vectors: torch.Tensor, at: torch.Tensor, steps: int
    ) -> tuple[str, ...]:
        asked.append((model.tokens.decode(prompt.ids), vectors, at, steps))
        return (said[steps],) * len(vectors)

    monkeypatch.setattr(Patcher, "generate", generate)
    method = CrossFit(lambda: Inversion(offsets=2, decoder=str(folder)), bench.with_layers((2,)))
    scores = method.scores()
    assert scores.attempts == ("tokens=2", "tokens=1")
    for (text, vectors, at, steps), count in zip(asked, (2, 1), strict=True):
        assert f"Which {count} tokens end with this?" in text
        assert (steps, set(at.tolist())) == (count, {2})
        assert torch.equal(vectors, bench.residuals.at_layers((2,)).values[0])
    for place, text in enumerate(("I like , teams", "")):  # without the answers, which are words of their own
        expected = score_answers(model, [bench.question.replace("{subject}", text)], bench.answers).log_probs
        torch.testing.assert_close(scores.log_scores[0, place], expected.expand(len(bench.items), -1))
    with pytest.raises(NotApplicableError, match="trained to read layers 2, not 3: give --layers 2"):
        method.scores(layers=(3,))


def test_the_rival_takes_a_decoder_that_was_trained_to_be_one(bench: Bench, tmp_path: Path) -> None:
    model, two = bench.context.model, bench.with_layers((2,))
    folder = decoder_in(tmp_path / "decoder", model)
    (rival,) = find_function("inversion")(CrossFit(LogitLens, two), decoder=str(folder))
    own = CrossFit(lambda: Inversion(prompt=bench.question, decoder=str(folder)), two).scores()
    assert torch.equal(rival.scores.log_scores, own.log_scores)
    for i, settings in enumerate(({"inverts": False}, {"prose": 0.5})):
        other = decoder_in(tmp_path / str(i), model, **settings)
        with pytest.raises(UsageError, match="was not trained to write texts, and nothing else"):
            find_function("inversion")(CrossFit(LogitLens, two), decoder=str(other))


def test_a_decoder_trained_again_is_asked_again(tmp_path: Path) -> None:
    """What stands in a folder that a baseline's parameters name belongs to the digest of its cells."""
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "weights").write_text("1")
    mine = find_baselines()["inversion"].model_copy(update={"parameters": {"decoder": str(tmp_path / "decoder")}})
    assert mine.files() == [tmp_path / "decoder" / "weights"]
    assert find_baselines()["inversion"].files() == []


@pytest.mark.model
def test_smollm2_forgets_its_input_with_depth(smollm2_folder: Path) -> None:
    """The token read is there at layer 0, mostly there in the middle, and least at the end, where the next one is."""
    how = Loading("cpu", "float32")
    model = load_source(resolve(str(smollm2_folder)), how, how.torch_device())
    inversion = Inversion(offsets=2, tokens=1536).fit(Target(model), model, Training(corpus=Corpus(model)))
    held = Corpus(model, HELD_OUT)
    share = torch.stack([recovered(inversion, held, layer, tokens=256) for layer in (0, 6, 15, 30)])
    assert share[0, 0] == 1.0
    assert (share[:-1, 0] > share[1:, 0]).all(), share
    assert share[1, 0] > 0.4
    # A layer of attention brings the token before.
    assert share[1, 1] > share[0, 1], share
    countries = load_task("attribute_extraction/country_capital").facts[:40]
    ids = torch.tensor([model.tokens.encode(f"We talk about {fact.subject}").ids[-1] for fact in countries])
    assert torch.equal(inversion.decode(0, Target(model).embed(ids))[:, 0], ids)
