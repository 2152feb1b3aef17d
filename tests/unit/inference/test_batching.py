import random

from hypothesis import given
from hypothesis import strategies as st

from megatron_urpo.inference.batching import FREE_PADDING_TOKENS, MAX_PADDING_SHARE, Row, plan_batch
from megatron_urpo.types import GenerationRequest


def rows(length: int, order: int, num: int = 1, max_new: int = 10) -> list[Row]:
    request = GenerationRequest((5,) * length, num, max_new, 1.0, order, (order,))
    return [Row(request, i) for i in range(num)]


def test_first_by_order_then_what_fits() -> None:
    a, b, c = rows(10, 2, 2), rows(10, 0, 2), rows(10, 1, 2)
    assert plan_batch([*a, *b, *c], 1000) == [*b, *c, *a]
    # 20 tokens a row: three rows fit into 60, so a request may be spread over batches.
    assert plan_batch([*a, *b, *c], 60) == [*b, c[0]]


def test_a_row_above_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batch(rows(500, 0, 2), 100) == rows(500, 0, 2)[:1]


def test_short_and_long_rows_are_kept_apart_and_the_first_by_order_decides() -> None:
    # One short row beside a long one is padded by 11990 tokens; of rows that are needed in full 50% may be added.
    assert plan_batch([*rows(10, 1, 8), *rows(12000, 0)], 10**6) == rows(12000, 0)
    assert plan_batch([*rows(10, 0, 8), *rows(12000, 1)], 10**6) == rows(10, 0, 8)
    assert plan_batch([*rows(12000, 0), *rows(9000, 1)], 10**6) == [*rows(12000, 0), *rows(9000, 1)]


def test_a_little_padding_is_cheaper_than_another_batch() -> None:
    assert plan_batch([*rows(10, 0, 8), *rows(400, 1)], 10**6) == [*rows(10, 0, 8), *rows(400, 1)]


requests = st.lists(
    st.tuples(st.sampled_from([1, 10, 60, 3000, 20000]), st.integers(0, 3), st.integers(1, 4), st.integers(1, 30)),
    min_size=1,
    max_size=12,
)


@given(requests, st.integers(1, 200_000), st.randoms())
def test_pure_bounded_and_complete(shapes: list[tuple[int, int, int, int]], budget: int, rng: random.Random) -> None:
    waiting = [row for shape in dict.fromkeys(shapes) for row in rows(*shape)]
    shuffled = rng.sample(waiting, len(waiting))
    batches = []
    while waiting:
        batch = plan_batch(waiting, budget)
        assert batch == plan_batch(shuffled, budget)
        prompt, answer = max(row.prompt_length for row in batch), max(row.max_new_tokens for row in batch)
        padded, own = len(batch) * (prompt + answer), sum(row.prompt_length + row.max_new_tokens for row in batch)
        assert len(batch) == 1 or (
            padded <= budget and padded - own <= max(FREE_PADDING_TOKENS, MAX_PADDING_SHARE * own)
        )
        assert batch[0].request.order == min(row.request.order for row in waiting)
        batches.append(batch)
        waiting = [row for row in waiting if row not in batch]
        shuffled = [row for row in shuffled if row not in batch]
    assert sum(map(len, batches)) == len({row for batch in batches for row in batch})
