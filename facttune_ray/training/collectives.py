"""Operations across the workers of a training: fail together, sums, maxima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from facttune_ray.errors import UserError

T = TypeVar("T")


def together(do: Callable[[], T], cannot: str) -> T:
    """Call `do` on every worker, wait for all, and return this worker's result.

    If it fails with a UserError or OSError on one worker, all workers raise UserError, so that no
    worker waits for a worker that failed. `cannot`: the start of the message for an OSError.
    """
    import torch.distributed as dist

    error = None
    try:
        result = do()
    except UserError as e:
        error = str(e)
    except OSError as e:
        error = f"{cannot}: {e}"
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if first := next(filter(None, errors), None):
        raise UserError(first)
    return result


def maxima(counts: list[int], device: Any) -> list[int]:
    """The maximum of each count over all workers: all must take part in every forward."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(counts, device=device)
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total.tolist()


def sums(values: list[float], device: Any) -> list[float]:
    """The sum of each value over all workers."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
