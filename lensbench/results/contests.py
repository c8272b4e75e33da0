"""A method beside its rivals: whose scores are compared, under which rule, on which items."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lensbench.errors import LensbenchError
from lensbench.results.arrays import CONTROL_TASK, FIXED, NO_LAYER, ORACLE, SELECTED, CellScores, Items, Scored
from lensbench.results.bands import Floats, Ints
from lensbench.results.frames import ALL
from lensbench.results.records import NO_BASELINE
from lensbench.results.samples import Sample, SummarySettings


@dataclass(frozen=True)
class PairedMethod:
    """A method at one task and site with its rivals, and the items that all methods there scored."""

    table: Items
    cells: Mapping[str, CellScores]
    common: Ints

    @property
    def layers(self) -> tuple[int, ...]:
        """The method's layers."""
        own = self.cells.get(NO_BASELINE)
        return own.layers if own else max((cell.layers for cell in self.cells.values()), key=len)

    @property
    def rules(self) -> tuple[str, ...]:
        """Those that its scores are reported under."""
        own = self.cells.get(NO_BASELINE)
        return (FIXED, SELECTED, ORACLE) if own and len(own.attempts) > 1 else (FIXED,)

    def rule_of(self, baseline: str, rule: str) -> str:
        """A rival with attempts of its own kind has no default among them: selected where the method is fixed."""
        own, cell = self.cells.get(NO_BASELINE), self.cells[baseline]
        foreign = own is None or not set(cell.attempts) <= set(own.attempts)
        return SELECTED if rule == FIXED and baseline != NO_BASELINE and foreign else rule


def methods_of(table: Items, cells: Iterable[CellScores]) -> Iterator[PairedMethod]:
    """Put the cells of each method and of its rivals together."""
    places: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, CellScores]]] = {}
    for cell in cells:
        key = cell.key
        place = places.setdefault((key["model"], key["task"], key["site"]), {})
        place.setdefault((key["verbalizer"], key["inspector"]), {})[key["baseline"]] = cell
    for methods in places.values():
        scored = [group[NO_BASELINE].items for group in methods.values() if NO_BASELINE in group]
        common = scored[0] if scored else np.empty(0, np.int64)
        for items in scored[1:]:
            common = np.intersect1d(common, items, assume_unique=True)
        for group in methods.values():
            yield PairedMethod(table, group, common)


def samples_under(
    method: PairedMethod, rule: str, settings: SummarySettings
) -> Iterator[tuple[Sample, dict[str, Scored]]]:
    """Each relation, then the total over the items that all methods scored, with the scores of method and rivals."""
    scores = {
        name: by_relation(method, cell, method.rule_of(name, rule), settings)
        for name, cell in method.cells.items()
        if name != CONTROL_TASK
    }
    yield from samples_of(method, scores, settings)


def by_relation(
    method: PairedMethod,
    cell: CellScores,
    rule: str,
    settings: SummarySettings,
    attempts: tuple[str, ...] | None = None,
) -> dict[int, Scored]:
    """The scores of a cell under a rule, relation by relation: attempts are chosen within each."""
    result = {}
    for relation in np.unique(method.table.relation[cell.items]):
        part = cell.part(method.table.of_relation(cell.items, int(relation)), attempts)
        if part is not None:
            default = settings.defaults.get(cell.key["inspector"], cell.attempts[0])
            result[int(relation)] = part.scored(rule, default, method.table.fold)
    return result


def samples_of(
    method: PairedMethod, scores: Mapping[str, Mapping[int, Scored]], settings: SummarySettings
) -> Iterator[tuple[Sample, dict[str, Scored]]]:
    """Each relation, then the total, with the scores there."""
    table = method.table
    for relation in sorted({number for of_cell in scores.values() for number in of_cell}):
        here = {name: of_cell[relation] for name, of_cell in scores.items() if relation in of_cell}
        yield Sample(table.relations[relation], table, settings), here
    task = next(iter(method.cells.values())).key["task"]
    chosen = [i for i, name in enumerate(table.relations) if (task, name) not in settings.selected | settings.apart]
    totals = {
        name: _joined([part for relation, part in of_cell.items() if relation in chosen], method.common)
        for name, of_cell in scores.items()
    }
    yield Sample(ALL, table, settings), {name: part for name, part in totals.items() if part is not None}


def _joined(parts: Iterable[Scored], items: Ints) -> Scored | None:
    kept = [part for part in (part.only(items) for part in parts) if len(part.items)]
    if not kept:
        return None
    return Scored(*(np.concatenate([getattr(part, name) for part in kept]) for name in ("items", "raw", "corrected")))


@dataclass(frozen=True)
class PairedDifferences:
    """Method minus rival over the items that both scored: items [item], raw and corrected differences [item, layer]."""

    items: Ints
    raw: Floats
    corrected: Floats

    @property
    def alike(self) -> bool:
        """Whether raw and corrected differences are the same."""
        return np.array_equal(self.raw, self.corrected)


def paired(method: PairedMethod, name: str, own: Scored, rival: Scored) -> PairedDifferences | None:
    """The paired differences to a rival, or None where no item was scored by both.

    Raises:
        LensbenchError: the rival was scored at other layers.
    """
    theirs = method.cells[name].layers
    if theirs not in ((NO_LAYER,), method.layers):
        key = method.cells[name].key
        raise LensbenchError(
            f"baseline {name} of {key['inspector']} was scored at other layers than the method (task {key['task']}, "
            f"site {key['site']}): run `lensbench evaluate` for both with the same --layers"
        )
    items, ours, others = np.intersect1d(own.items, rival.items, assume_unique=True, return_indices=True)
    if not len(items):
        return None
    return PairedDifferences(items, own.raw[ours] - rival.raw[others], own.corrected[ours] - rival.corrected[others])
