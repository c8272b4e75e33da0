"""What the items of a task give away without reading any model: leaks, imbalance, and answers that names betray.

Nothing in here imports torch; with a tokenizer, what begins with the same token is found too.
"""

from lensbench.tasks.audit.answers import Guess, character_accuracy, guess_from_characters
from lensbench.tasks.audit.auditing import audit_task, with_thresholds
from lensbench.tasks.audit.findings import (
    ALL,
    DEFAULT_THRESHOLDS,
    MODEL_CHECKS,
    AuditFinding,
    AuditRow,
    Stated,
    Thresholds,
    markdown,
    proposed,
    read_table,
    table_rows,
)

__all__ = [
    "ALL",
    "DEFAULT_THRESHOLDS",
    "MODEL_CHECKS",
    "AuditFinding",
    "AuditRow",
    "Guess",
    "Stated",
    "Thresholds",
    "audit_task",
    "character_accuracy",
    "guess_from_characters",
    "markdown",
    "proposed",
    "read_table",
    "table_rows",
    "with_thresholds",
]
