"""Who is admitted where, and when. Members stand still here: their states are set by hand."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from megatron_urpo.inference.fleet.admission import Admission
from megatron_urpo.inference.fleet.member import Member, Patience, State
from megatron_urpo.protocols import EngineError, WeightsLost
from megatron_urpo.rollout.session import ORDER_JUDGE, ORDER_PLAY
from megatron_urpo.types import GenerationRequest


class Silent:
    """A client that is only told apart by its address."""

    def __init__(self, url: str) -> None:
        self.url = url


def members(*capacities: int) -> list[Member]:
    made = []
    for index, capacity in enumerate(capacities):
        client: Any = Silent(f"http://server{index}")
        member = Member(client, None, Path("unused"), Patience(1), 0, lambda member, reason: None)
        member.state, member.capacity = State.HEALTHY, capacity
        made.append(member)
    return made


def request(tokens: int, order: tuple[int, ...] = (ORDER_PLAY, 0), group: int | None = None) -> GenerationRequest:
    return GenerationRequest((1,) * (tokens - 1), 1, 1, 1.0, 0, order, group)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


def test_tokens_in_flight_stay_below_the_capacity() -> None:
    async def scenario() -> None:
        (member,) = fleet = members(100)
        admission = Admission(fleet)
        tasks = [asyncio.create_task(admission.enter(request(40))) for _ in range(5)]
        await turns()
        assert [task.done() for task in tasks] == [True, True, False, False, False]
        assert member.tokens == 80
        admission.leave(member, request(40))
        await turns()
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        for task in tasks[3:]:
            task.cancel()
        await turns()
        admission.leave(member, request(40))
        admission.leave(member, request(40))
        assert member.tokens == 0

    run(scenario())


def test_a_request_above_the_capacity_is_served_alone() -> None:
    async def scenario() -> None:
        (member,) = fleet = members(100)
        admission = Admission(fleet)
        small = await admission.enter(request(10))
        large = asyncio.create_task(admission.enter(request(500, (ORDER_PLAY, 1))))
        late = asyncio.create_task(admission.enter(request(10, (ORDER_PLAY, 2))))
        await turns()
        # The small one behind it would fit, but must not overtake: the large one would never come.
        assert (large.done(), late.done()) == (False, False)
        admission.leave(small, request(10))
        await turns()
        assert (large.done(), late.done(), member.tokens) == (True, False, 500)
        admission.leave(member, request(500))
        assert await late is member

    run(scenario())


def test_judging_goes_before_questions_and_questions_by_their_place() -> None:
    async def scenario() -> None:
        (member,) = fleet = members(10)
        admission = Admission(fleet)
        await admission.enter(request(10))
        admitted: list[tuple[int, ...]] = []

        async def ask(order: tuple[int, ...]) -> None:
            place = await admission.enter(request(10, order))
            admitted.append(order)
            admission.leave(place, request(10, order))

        orders = [(ORDER_PLAY, 7), (ORDER_PLAY, 3), (ORDER_JUDGE, 9, 0), (ORDER_JUDGE, 2, 0)]
        tasks = [asyncio.create_task(ask(order)) for order in orders]
        await turns()
        admission.leave(member, request(10))
        await asyncio.gather(*tasks)
        assert admitted == sorted(orders)

    run(scenario())


def test_a_group_stays_on_its_server_and_groups_spread() -> None:
    async def scenario() -> None:
        fleet = members(100, 100, 100)
        admission = Admission(fleet)
        homes = [await admission.enter(request(10, group=group)) for group in range(3)]
        assert {member.name for member in homes} == {member.name for member in fleet}
        for group, home in enumerate(homes):
            assert await admission.enter(request(10, (ORDER_JUDGE, group, 0), group)) is home
        homes[1].state = State.DEAD
        moved = await admission.enter(request(10, (ORDER_JUDGE, 1, 1), 1))
        assert moved is not homes[1]
        homes[1].state = State.HEALTHY
        assert await admission.enter(request(10, (ORDER_JUDGE, 1, 2), 1)) is moved

    run(scenario())


def test_a_group_whose_server_is_full_goes_where_there_is_room() -> None:
    async def scenario() -> None:
        first, second = fleet = members(20, 20)
        admission = Admission(fleet)
        assert await admission.enter(request(20, group=0)) is first
        assert await admission.enter(request(20, (ORDER_JUDGE, 0, 0), 0)) is second
        waiting = asyncio.create_task(admission.enter(request(20, (ORDER_JUDGE, 0, 1), 0)))
        await turns()
        admission.leave(first, request(20))
        assert await waiting is first

    run(scenario())


@pytest.mark.parametrize("state", [State.SUSPECT, State.DEAD, State.RESTARTING, State.STALE, State.GONE])
def test_only_a_healthy_server_is_asked(state: State) -> None:
    async def scenario() -> None:
        fleet = members(100, 100)
        fleet[0].state = state
        admission = Admission(fleet)
        assert {await admission.enter(request(20, group=group)) for group in range(5)} == {fleet[1]}

    run(scenario())


def test_requests_wait_while_a_server_is_on_its_way_back() -> None:
    async def scenario() -> None:
        (member,) = fleet = members(100)
        member.state = State.RESTARTING
        admission = Admission(fleet)
        waiting = asyncio.create_task(admission.enter(request(20)))
        await turns()
        assert not waiting.done()
        member.state = State.STALE
        admission.dispatch()
        with pytest.raises(WeightsLost):
            await waiting

    run(scenario())


def test_requests_end_with_the_last_server() -> None:
    async def scenario() -> None:
        fleet = members(100, 100)
        fleet[0].state = fleet[1].state = State.GONE
        with pytest.raises(EngineError, match="none of the 2 servers is left"):
            await Admission(fleet).enter(request(20))

    run(scenario())


def test_a_request_that_is_cancelled_as_it_is_admitted_gives_its_room_back() -> None:
    async def scenario() -> None:
        (member,) = fleet = members(20)
        admission = Admission(fleet)
        await admission.enter(request(20))
        second = asyncio.create_task(admission.enter(request(20)))
        await turns()
        admission.leave(member, request(20))  # admits the second, which has not run yet
        second.cancel()
        await turns()
        assert second.cancelled()
        assert member.tokens == 0
        assert await admission.enter(request(20)) is member

    run(scenario())
