"""What a page is made of: one run with all that is said about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class ItemText:
    """The source text of an item.

    Attributes:
        source: what the target model read.
        start: first character of what is marked.
        end: the one after its last; the token read is the last one before it.
        note: what is read, in words.
        question: the inspection prompt of the relation.
    """

    source: str
    start: int
    end: int
    note: str
    question: str


@dataclass(frozen=True)
class MethodText:
    """A method in words.

    Attributes:
        summary: the first line of its docstring.
        reads: the sources that it declares.
        learns_from: the supervision that it declares.
    """

    summary: str
    reads: tuple[str, ...]
    learns_from: str


@dataclass(frozen=True)
class PageRun:
    """One run, as far as it could be read.

    Attributes:
        name: of its folder.
        info: `run.json`.
        summary: as `Run.summary`; empty where there is none.
        records: of all shards that could be read.
        problems: what is missing or damaged, a sentence each.
        unanswered: what a method could not answer, and why.
        calibrations: what calibration found of each method, in words; None where it was not made.
        methods: in words, by name, those that are installed.
        relations: what leads to what, by task and relation.
        texts: source texts by task and item.
        shares: as `whose.shares`, where target and verbalizer were told different facts.
        metrics: as `Run.metrics`; empty where there are none.
    """

    name: str
    info: Mapping[str, Any]
    summary: pd.DataFrame
    records: pd.DataFrame
    problems: tuple[str, ...] = ()
    unanswered: Mapping[str, str] = field(default_factory=dict)
    calibrations: Mapping[str, str | None] = field(default_factory=dict)
    methods: Mapping[str, MethodText] = field(default_factory=dict)
    relations: Mapping[tuple[str, str], str] = field(default_factory=dict)
    texts: Mapping[tuple[str, str], ItemText] = field(default_factory=dict)
    shares: pd.DataFrame | None = None
    metrics: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def model(self) -> str:
        """The target's name."""
        return str(self.info.get("setting", {}).get("model") or self.info.get("config", {}).get("model") or "?")

    @property
    def verbalizer(self) -> str:
        """The verbalizer's name."""
        return str(self.info.get("setting", {}).get("verbalizer") or self.model)
