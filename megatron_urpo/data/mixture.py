"""Which task the next prompt belongs to, so that tasks are mixed in exact ratios.

Largest residual: the next prompt goes to the task that lags its share most, share * (n + 1) - count. With at most
three tasks every prefix then differs from the asked ratio by less than one prompt of any task:

- above: the residuals sum to 1, so the largest is positive, and a task's lead after it is given a prompt is
  1 - residual < 1;
- below: were a task to stay 1 or more behind, the chosen one was too, and the third led by 1 or more: see above.
"""

from collections.abc import Mapping
from fractions import Fraction

from megatron_urpo.types import TASKS, Task


def next_task(counts: Mapping[Task, int], weights: Mapping[Task, float]) -> Task:
    """The task of prompt number `sum(counts.values())`; ties go by the order of TASKS.

    `counts` are the prompts given to each task so far, `weights` the asked ratio (any scale, sum above 0).
    """
    shares = exact_shares(weights)
    drawn = sum(counts.get(task, 0) for task in shares)
    return max(shares, key=lambda task: shares[task] * (drawn + 1) - counts.get(task, 0))


def exact_shares(weights: Mapping[Task, float]) -> dict[Task, Fraction]:
    """Positive weights as fractions of their sum, in the order of TASKS.

    A weight means the decimal that the user wrote: 0.1 is one tenth and not the binary number nearest to it, which
    would break ties that the user sees as ties.
    """
    exact = {task: Fraction(str(weights[task])) for task in TASKS if weights.get(task, 0) > 0}
    if not exact:
        raise ValueError(f"weights {dict(weights)} have no positive one; give at least one task a positive weight")
    total = sum(exact.values())
    return {task: weight / total for task, weight in exact.items()}


def next_source(counts: Mapping[str, int], shares: Mapping[str, Fraction]) -> str:
    """The source of the next prompt of a task, for any number of sources; `shares` sum to 1.

    With more than three of them the largest residual can leave one a whole prompt behind. Tijdeman's rule ("The
    chairman assignment problem", 1980) cannot: of those that have waited for 1 / (2m - 2) of a prompt, it takes the one
    that would first fall behind too far. Every count then stays within 1 - 1 / (2m - 2) of its share.
    """
    if len(shares) == 1:
        return next(iter(shares))
    drawn = sum(counts.get(name, 0) for name in shares)
    slack = 1 - Fraction(1, 2 * len(shares) - 2)
    behind = {name: share * (drawn + 1) - counts.get(name, 0) for name, share in shares.items()}
    waiting = [name for name in shares if behind[name] >= 1 - slack]
    return min(waiting, key=lambda name: (slack - behind[name]) / shares[name])
