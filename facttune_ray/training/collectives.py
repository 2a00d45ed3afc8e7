"""What the workers of a training do together: agree that all could, add up, find the most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from facttune_ray.errors import UserError

T = TypeVar("T")


def together(do: Callable[[], T], cannot: str) -> T:
    """Do it on every worker and wait for all. -> this worker's result

    What one of them cannot do is a UserError on all: none waits for a worker that gave up.
    """
    import torch.distributed as dist

    wrong = None
    try:
        result = do()
    except UserError as e:
        wrong = str(e)
    except OSError as e:
        wrong = f"{cannot}: {e}"
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, wrong)
    if errors := [w for w in said if w]:
        raise UserError(errors[0])
    return result


def most(first: int, passes: int, device: Any) -> tuple[int, int]:
    """The most of all workers: every forward and backward is one that all take part in."""
    import torch
    import torch.distributed as dist

    counts = torch.tensor([first, passes], device=device)
    dist.all_reduce(counts, op=dist.ReduceOp.MAX)
    return int(counts[0]), int(counts[1])


def sums(values: list[float], device: Any) -> list[float]:
    """Over all workers, whose shares of the step's weights add up to 1."""
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
