"""Other people's files as tasks: `lre:FILE`, `patchscopes:FILE`, `hopping:FILE`, `personaqa:FILE`, `hf:NAME`, tables.

A reader turns a file into a draft (rows, and the texts that ask); what is common to all is done in `building`: one fact
a subject, choice sets, folds, and one logged line on what was left out. What becomes of each column: docs/readers.md.
"""

from collections.abc import Callable

from lensbench.tasks.facts import TaskFolder
from lensbench.tasks.formats.building import Draft, build
from lensbench.tasks.formats.hopping import read_hopping
from lensbench.tasks.formats.lre import read_lre
from lensbench.tasks.formats.mapped import read_mapped
from lensbench.tasks.formats.patchscopes import read_patchscopes
from lensbench.tasks.formats.personaqa import read_personaqa
from lensbench.tasks.formats.spec import Source, parse_spec
from lensbench.tasks.problems import Problems

__all__ = ["Source", "parse_spec", "read_source"]

_READERS: dict[str, Callable[[Source, Problems], Draft]] = {
    "lre": read_lre,
    "patchscopes": read_patchscopes,
    "hopping": read_hopping,
    "personaqa": read_personaqa,
    "hf": read_mapped,
    "table": read_mapped,
}


def read_source(source: Source) -> TaskFolder:
    """Read and check a file, or a data set, of another format.

    Args:
        source: What `parse_spec` made of a specification.

    Returns:
        The task's content.

    Raises:
        UsageError: An option that the file has no column for.
        TaskError: With one line for each problem of the file.
    """
    problems = Problems()
    draft = _READERS[source.scheme](source, problems)
    problems.stop_if_any()
    return build(draft, source)
