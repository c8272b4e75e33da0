"""One page of HTML that holds all of a run: figures, items, what rivals explain. Needs no network and no model."""

from lensbench.report.content import ItemText, MethodText, PageRun
from lensbench.report.page.render import render

__all__ = ["ItemText", "MethodText", "PageRun", "render"]
