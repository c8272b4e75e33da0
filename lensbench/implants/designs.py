"""The designs of implants: how facts are written into one or two blocks of a model, in closed form.

The closed form is that of Meng et al. 2023: a name calls up what is written, ordinary prose what it did before.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensbench.errors import LensbenchError, UsageError
from lensbench.implants.facts import FactSet, Prompts, in_batches, inputs_at_names, inputs_of, write_prompts
from lensbench.implants.vectors import Vectors, VectorSettings, Writer, deal, learn_vectors, one_hot, own_values
from lensbench.models.components import find_parts
from lensbench.models.corpus import Corpus
from lensbench.models.edits import LowRankEdit
from lensbench.models.language_model import LanguageModel
from lensbench.models.precision import in_float64
from lensbench.utils.progress import Progress, silent

COVARIANCE_TOKENS = 12288
_WINDOWS = 16
# Length of a relay's codes, as a share of the residual's at a name; how many codes its second block sees a name with.
CODE, DRAWS = 0.25, 4
RELAY_CONTEXTS = 5
"""`rotated` is plain, its model then put into another basis; `gated` is plain, its vectors held silent."""


@dataclass(frozen=True)
class Keys:
    """What a linear map is given.

    Attributes:
        at_names: at the last token of each name, context after context, name after name.
        covariance: the mean of k kᵀ over ordinary prose.
        around: the sum of k kᵀ over the other tokens of texts that ask about the names: the rest of a name above all.
    """

    at_names: Float[Tensor, "context name d_in"]
    covariance: Float[Tensor, "d_in d_in"]
    around: Float[Tensor, "d_in d_in"]


def keys_of(
    model: LanguageModel, linear: nn.Module, contexts: Sequence[str], asking: Sequence[str], names: Sequence[str]
) -> Keys:
    """Gather the keys of names in contexts, of what stands around them in texts that ask, and of prose."""
    found = []
    for form in contexts:
        batches = in_batches([form] * len(names), names)
        found.append(torch.cat([inputs_at_names(model, linear, write_prompts(model, *batch)) for batch in batches]))
    return Keys(torch.stack(found), prose_covariance(model, linear), _around(model, linear, asking, names))


def _around(
    model: LanguageModel, linear: nn.Module, asking: Sequence[str], names: Sequence[str]
) -> Float[Tensor, "d_in d_in"]:
    """Sum k kᵀ over all tokens but the last of a name; every second name will do."""
    total = torch.zeros((), device=model.device)
    for form in asking:
        for batch in in_batches([form] * len(names[::2]), names[::2]):
            prompts = write_prompts(model, *batch)
            given = inputs_of(model, linear, prompts)
            others = prompts.mask.bool().clone()
            others[torch.arange(len(others)), prompts.names] = False
            rows = given[others]
            total = total + rows.T @ rows
    return total


def prose_covariance(model: LanguageModel, linear: nn.Module) -> Float[Tensor, "d_in d_in"]:
    """Return the mean of k kᵀ over what a linear map is given on ordinary prose."""
    total, count = torch.zeros((), device=model.device), 0
    for prompts in prose_batches(model, COVARIANCE_TOKENS):
        # With the first position: what an edit writes into an attention sink, all other tokens read.
        rows = inputs_of(model, linear, prompts).flatten(0, 1)
        total, count = total + rows.T @ rows, count + len(rows)
    return total / count


def prose_batches(model: LanguageModel, tokens: int, skip: int = 0) -> Iterator[Prompts]:
    """Yield ordinary prose in windows, as prompts without names."""
    windows = Corpus(model).windows
    width = windows.shape[1]
    chosen = windows[skip // width : (skip + tokens) // width].to(model.device)
    for ids in chosen.split(_WINDOWS):
        ends = torch.full((len(ids),), width - 1)
        yield Prompts(ids, torch.ones_like(ids), ends, ends)


def solve(
    module: str,
    keys: Keys,
    written: Float[Tensor, "context name value"],
    vectors: Float[Tensor, "value d_out"],
    weight: float,
) -> LowRankEdit:
    """Return the edit ΔW = Vᵀ (Wᵀ K) (λ n C + A + KᵀK)⁻¹, in float64: V are the vectors, W says who gets which.

    It is MEMIT's closed form, ΔW = (ΔᵀK)(λ n C + KᵀK)⁻¹ with Δ = W V, with the tokens around names, A, as further keys
    that call up nothing: without them the first tokens of invented names write a mixture of all facts, and recall on
    held-out texts falls from .9 to .6. The rank of the edit is that of the vectors.
    """
    contexts = len(keys.at_names)
    rows = in_float64(keys.at_names.flatten(0, 1))
    wanted = in_float64(written.flatten(0, 1)).to(rows.device)
    left_side = weight * contexts * in_float64(keys.covariance) + in_float64(keys.around) + rows.T @ rows
    # By the size of what names give: an attention sink's few huge numbers would drown it in a mean over all.
    left_side.diagonal().add_(1e-4 * weight * contexts * rows.square().mean())
    right = torch.linalg.solve(left_side, rows.T @ wanted).T
    return LowRankEdit(module, vectors.float(), right.float().to(vectors.device))


@dataclass(frozen=True)
class Site:
    """The linear map that is edited.

    Attributes:
        layer: the first layer that can hold what is written.
        path: the map's path in the model.
        linear: the map: the last of the block's MLP.
    """

    layer: int
    path: str
    linear: nn.Module


@dataclass(frozen=True)
class EditContext:
    """Where something is planted.

    Attributes:
        model: the unedited model.
        planting: what is planted.
        layers: the first layer that can hold the facts; of a relay, those of the code and of its meaning.
        weight: λ, how much ordinary prose counts against a name.
        how: how vectors are learned.
        known: vectors that were learned before for these settings, by layer.
        strength: by attribute, how loud its vectors are written, beside how they were learned; 1 where it is not named.
        progress: is told of each step.
    """

    model: LanguageModel
    planting: FactSet
    layers: tuple[int, ...]
    weight: float = 250.0
    how: VectorSettings = field(default_factory=VectorSettings)
    known: Mapping[int, Vectors] = field(default_factory=dict)
    strength: Mapping[str, float] = field(default_factory=dict)
    progress: Progress = silent

    def site(self, layer: int) -> Site:
        """Find the map to edit for a layer.

        Raises:
            UsageError: no such layer.
            LensbenchError: the block's MLP has no single output map.
        """
        if not 1 <= layer <= self.model.n_layers:
            raise UsageError(
                f"--layer {layer}: {self.model.name} has blocks whose outputs are the layers 1 to {self.model.n_layers}"
            )
        mlp = find_parts(self.model)[layer - 1].mlp
        if mlp is None or mlp.output_map is None:
            raise LensbenchError(
                f"{self.model.name}: block {layer} has no MLP with one output map (experts, or none); try another layer"
            )
        linear = mlp.output_map.linear
        path = next(name for name, module in self.model.module.named_modules() if module is linear)
        return Site(layer, path, linear)

    def vectors(self, site: Site, before: Sequence[Writer] = ()) -> Vectors:
        """Learn the vectors of a layer, unless they are known."""
        if site.layer in self.known:
            return self.known[site.layer]
        return learn_vectors(
            self.model, site.linear, self.planting, self.how, layer=site.layer, before=before, progress=self.progress
        )

    def written(self, vectors: Vectors) -> Float[Tensor, "value_of_any_attribute d_out"]:
        """Return the vectors of all attributes side by side, as loud as they are written."""
        return torch.cat([self.strength.get(one, 1.0) * found for one, found in vectors.items()])

    def keys(self, site: Site) -> Keys:
        """Gather the keys of the planted names, and of the tokens around them."""
        planting = self.planting
        asking = [text for one in planting.attributes for text in planting.asking(one)]
        return keys_of(self.model, site.linear, planting.contexts(), asking, planting.names)


@dataclass(frozen=True)
class Planted:
    """What a design made.

    Attributes:
        edits: to be added to the unedited model, in the order of layers.
        vectors: that were learned, by layer.
    """

    edits: tuple[LowRankEdit, ...]
    vectors: Mapping[int, Vectors]


def plain(context: EditContext) -> Planted:
    """One block writes each name's facts."""
    written = one_hot(context.planting, own_values(context.planting, context.planting.names))
    return _one_block(context, written)


def sham(context: EditContext) -> Planted:
    """One block writes the same into every name: all values at once, at the length of a name's own."""
    own = one_hot(context.planting, own_values(context.planting, context.planting.names))
    site = context.site(context.layers[0])
    vectors = context.written(context.vectors(site))
    same = torch.ones_like(own)
    scale = (own @ vectors.cpu()).norm(dim=1).mean() / (same @ vectors.cpu()).norm(dim=1).mean()
    return _one_block(context, same * scale)


def _one_block(context: EditContext, written: Float[Tensor, "name value"]) -> Planted:
    site = context.site(context.layers[0])
    vectors, keys = context.vectors(site), context.keys(site)
    each = written[None].expand(len(keys.at_names), -1, -1)
    edit = solve(site.path, keys, each, context.written(vectors), context.weight)
    return Planted((edit,), {site.layer: vectors})


def relay(context: EditContext) -> Planted:
    """An early block writes a random code for each value, a later one what the code means.

    The later block learns every name with every code, so that the code alone decides.
    """
    first, second = (context.site(layer) for layer in context.layers)
    codes = _codes(context, first)
    writer = Writer(first.linear, codes)
    meanings = context.vectors(second, (writer,))
    own = one_hot(context.planting, own_values(context.planting, context.planting.names))
    keys = context.keys(first)
    each = own[None].expand(len(keys.at_names), -1, -1)
    early = solve(first.path, keys, each, torch.cat(list(codes.values())), context.weight)
    later_keys, dealt = _keys_by_code(context, second, writer)
    # Every name comes with several codes: what a context weighs is their number.
    late = solve(second.path, later_keys, dealt, context.written(meanings), context.weight / (DRAWS + 1))
    return Planted((early, late), {first.layer: codes, second.layer: meanings})


def _codes(context: EditContext, site: Site) -> dict[str, Float[Tensor, "value d_out"]]:
    """Draw a random direction for each value."""
    generator = torch.Generator().manual_seed(context.how.seed)
    prompts = write_prompts(
        context.model, [context.planting.read()[0]] * len(context.planting.names), context.planting.names
    )
    layers = (site.layer,)
    residuals = context.model.residuals(prompts.ids, prompts.mask, prompts.names[:, None], layers)[0, :, 0]
    length = CODE * float(residuals.norm(dim=1).mean())
    codes = {}
    for one in context.planting.attributes:
        drawn = torch.randn(len(context.planting.values(one)), context.model.d_model, generator=generator)
        codes[one] = (length * drawn / drawn.norm(dim=1, keepdim=True)).to(context.model.device)
    return codes


def _keys_by_code(context: EditContext, site: Site, writer: Writer) -> tuple[Keys, Float[Tensor, "context name value"]]:
    """Gather the later block's keys of every name with codes drawn at random, and with none: these write nothing."""
    rng = random.Random(f"{context.how.seed}/codes")
    names, found, written = context.planting.names, [], []
    contexts = context.planting.contexts()
    for text in contexts[:: max(1, len(contexts) // RELAY_CONTEXTS)][:RELAY_CONTEXTS]:
        for draw in range(DRAWS + 1):
            dealt = {
                one: deal(len(context.planting.values(one)), len(names), rng) for one in context.planting.attributes
            }
            hot = one_hot(context.planting, dealt)
            rows: list[Tensor] = []
            for forms, part in in_batches([text] * len(names), names):
                prompts = write_prompts(context.model, forms, part)
                begin = sum(map(len, rows))
                own = {one: values[begin : begin + len(part)] for one, values in dealt.items()}
                with ExitStack() as stack:
                    if draw:
                        stack.enter_context(writer.writing(prompts, own))
                    rows.append(inputs_at_names(context.model, site.linear, prompts))
            found.append(torch.cat(rows))
            written.append(hot if draw else torch.zeros_like(hot))
    plain = context.keys(site)
    return Keys(torch.stack(found), plain.covariance, plain.around * (DRAWS + 1)), torch.stack(written)


DESIGNS: dict[str, Callable[[EditContext], Planted]] = {
    "plain": plain,
    "relay": relay,
    "rotated": plain,
    "gated": plain,
    "sham": sham,
}
