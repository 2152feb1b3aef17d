"""Which request goes to which server, and when: by priority, by place in the batch, by the room that servers have.

A server's room is a number of tokens, prompts and longest answers together. Requests of one group go to one server, the
least busy when the group's first came, since its prefix cache holds what they share; where that has no room now and
another has, to the other: waiting for the cache would cost more than it saves. Requests wait in the order of
`GenerationRequest.order`, so judging, which completes groups, goes before new questions. One that does not fit yet is
not overtaken on its server by smaller ones behind it.
"""

import asyncio
import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_urpo.inference.fleet.member import Member, State
from megatron_urpo.protocols import EngineError, WeightsLost
from megatron_urpo.types import GenerationRequest


@dataclass(order=True)
class _Ticket:
    order: tuple[int, ...]
    number: int
    group: int | None = field(compare=False)
    tokens: int = field(compare=False)
    turn: "asyncio.Future[Member]" = field(compare=False)


class Admission:
    """Belongs to one event loop."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._waiting: list[_Ticket] = []
        self._homes: dict[int, Member] = {}
        self._count = 0

    async def enter(self, request: GenerationRequest) -> Member:
        """Waits for the request's turn; `leave` gives the room back.

        Raises WeightsLost where no server serves and one waits for weights, EngineError where none will come back.
        """
        self._count += 1
        turn: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(request.order, self._count, request.group, _tokens(request), turn)
        bisect.insort(self._waiting, ticket)
        self.dispatch()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result(), request)  # admitted and cancelled in the same moment
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            raise

    def leave(self, member: Member, request: GenerationRequest) -> None:
        member.tokens -= _tokens(request)
        self.dispatch()

    def forget_groups(self) -> None:
        """New weights: no prefix of the old ones is cached any more."""
        self._homes.clear()

    def dispatch(self) -> None:
        """Admits whom there is room for; called after everything that may have made room, or taken the last away."""
        serving = [member for member in self._members if member.state is State.HEALTHY]
        if not serving:
            self._give_up_if_hopeless()
            return
        open_members = {id(member): member for member in serving if member.tokens < member.capacity}
        waiting, self._waiting = self._waiting, []
        for place, ticket in enumerate(waiting):
            if ticket.turn.done():  # cancelled, and not yet told
                continue
            if not open_members:
                self._waiting += waiting[place:]
                break
            home = self._home(ticket, serving)
            member = home if id(home) in open_members else min(open_members.values(), key=lambda one: one.tokens)
            if member.tokens and member.tokens + ticket.tokens > member.capacity:
                del open_members[id(member)]
                self._waiting.append(ticket)
            else:
                member.tokens += ticket.tokens
                ticket.turn.set_result(member)

    def _home(self, ticket: _Ticket, serving: Sequence[Member]) -> Member:
        if ticket.group is not None:
            home = self._homes.get(ticket.group)
            if home is not None and home.state is State.HEALTHY:
                return home
        member = min(serving, key=lambda one: one.tokens)
        if ticket.group is not None:
            self._homes[ticket.group] = member
        return member

    def _give_up_if_hopeless(self) -> None:
        states = [member.state for member in self._members]
        error: Exception
        if State.STALE in states or State.RELEASED in states:
            error = WeightsLost("no server has weights; one that came back or released them waits for new ones")
        elif all(state is State.GONE for state in states):
            error = EngineError(f"none of the {len(states)} servers is left")
        else:
            return
        waiting, self._waiting = self._waiting, []
        for ticket in waiting:
            if not ticket.turn.done():
                ticket.turn.set_exception(error)


def _tokens(request: GenerationRequest) -> int:
    return len(request.prompt_ids) + request.max_new_tokens
