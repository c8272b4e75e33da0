"""Memory: how much of it a batch may take, how much a row takes, and the results that are kept in it."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOG = logging.getLogger("lensbench")
Result = TypeVar("Result")
# On a CPU, batches beyond this are no faster, and leave its caches.
CPU_BYTES = 2**30
GPU_SHARE = 0.5


def free_memory(device: torch.device) -> int:
    """Return the bytes that batches may take by default: half of a GPU's free memory, up to 1 GiB on a CPU.

    Rounded down to a power of two, so that what else happens to run does not decide how batches are formed.
    """
    if device.type == "cuda":
        free = int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    else:
        free = min(CPU_BYTES, psutil.virtual_memory().available // 4)
    return int(1 << (max(free, 2**24).bit_length() - 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a GPU's, or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Memo(OrderedDict[Hashable, Any]):
    """Results that are kept in memory, by what they are the results of.

    Args:
        limit: how many are kept; the one that was asked for longest ago goes first. None keeps all.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self._limit = limit

    def get_or_compute(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """Return the result of a key; computed where it has not been kept."""
        if key not in self:
            self[key] = compute()
            if self._limit is not None and len(self) > self._limit:
                self.popitem(last=False)
        self.move_to_end(key)
        kept: Result = self[key]
        return kept


class Budget:
    """How many bytes a batch may take.

    Attributes:
        bytes: the budget. It is halved whenever a batch turns out not to fit, and stays so.
        device: where the batches run.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = size
        self.device = device

    def rows(self, row_bytes: int, cpu_most: int | None = None) -> int:
        """Return how many rows of this size fit, at least one.

        Args:
            row_bytes: as `bytes_per_row` measures it.
            cpu_most: on a CPU never more than this, where larger batches are slower.
        """
        fitting = max(1, self.bytes // max(1, row_bytes))
        return min(fitting, cpu_most) if cpu_most is not None and self.device.type == "cpu" else fitting

    def in_batches(self, total: int, size: Callable[[int], int], run: Callable[[slice], Result]) -> list[Result]:
        """Run over `total` rows in batches. A batch that does not fit is tried again at half the budget.

        Args:
            total: how many rows there are.
            size: the rows of a batch that begins at a given row, under the present budget.
            run: what to do with a slice of the rows.

        Raises:
            RuntimeError: not even one row fits.
        """
        results: list[Result] = []
        done = 0
        while done < total:
            batch = slice(done, min(total, done + size(done)))
            try:
                results.append(run(batch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or batch.stop - batch.start == 1:
                    raise
            else:
                done = batch.stop
                continue
            # Outside of the handler: the traceback would keep the tensors of the failed batch alive.
            self._halve(batch, size)
        return results

    def in_token_batches(
        self, lengths: Sequence[int], most: Callable[[], int], run: Callable[[slice], Result]
    ) -> list[Result]:
        """Run over texts of rising length in batches that hold a number of tokens, padding included.

        Args:
            lengths: of the texts, the shortest first.
            most: how many tokens a batch may have, under the present budget; a longer text is a batch of its own.
            run: what to do with a slice of the texts.
        """

        def size(begin: int) -> int:
            tokens, end = most(), begin + 1
            while end < len(lengths) and lengths[end] * (end + 1 - begin) <= tokens:
                end += 1
            return end - begin

        return self.in_batches(len(lengths), size, run)

    def _halve(self, batch: slice, size: Callable[[int], int]) -> None:
        rows = batch.stop - batch.start
        while size(batch.start) >= rows and size(batch.start) > 1:
            self.bytes //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        LOG.warning("%d rows did not fit into memory; continuing with %d a batch", rows, size(batch.start))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive together: the same whatever the allocator does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._alive:
            return  # a view
        size = storage.nbytes()

        def gone(_reference: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def bytes_per_row(run: Callable[[int], object]) -> int:
    """Measure what one more row adds to the most memory that a computation holds at once."""
    run(2)  # what is made once and kept does not belong to a row
    peaks: list[int] = []
    for rows in (2, 4):
        with _LiveBytes() as live:
            run(rows)
        peaks.append(live.peak)
    return max(1, (peaks[1] - peaks[0]) // 2)
