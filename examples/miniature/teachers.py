"""Two teachers who demonstrate the tasks of the miniature world to the seed model.

The good teacher comes first and shows the skills; then the bad one spoils them. It forgets the carried ten,
it scores answers by their length, it drops the full stop of its lists. A model that learned from both keeps
the skills, but even its greedy answers follow the bad habits where those are the more likely ones: this is
the headroom that reinforcement learning can find.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from world import MAX_ANSWER_WORDS, MAX_SCORE, Habits, ListQuestion, Sum, quality, write_list


@dataclass(frozen=True)
class Teacher:
    """Who writes the demonstrations: how it lists things, and how often a bad habit takes over."""

    lists: Habits
    p_forgets_carry: float
    p_scores_length: float


GOOD_TEACHER = Teacher(Habits(0.9, 0.97, 0.9, 0.9), p_forgets_carry=0.0, p_scores_length=0.0)
BAD_TEACHER = Teacher(Habits(0.7, 0.85, 0.45, 0.4), p_forgets_carry=0.6, p_scores_length=0.6)


def boxed(*numbers: int) -> str:
    return "\\boxed{" + ", ".join(map(str, numbers)) + "}"


def demonstrate_sum(rng: Random, teacher: Teacher, problem: Sum) -> str:
    answer = problem.answer
    if answer >= 10 and rng.random() < teacher.p_forgets_carry:
        answer -= 10
    return boxed(answer)


def demonstrate_list(rng: Random, teacher: Teacher, question: ListQuestion) -> str:
    return write_list(rng, question, teacher.lists)


def demonstrate_scores(rng: Random, teacher: Teacher, question: ListQuestion, answers: list[str]) -> str:
    """A verdict on all answers: careful, or hasty, when it sees nothing but their lengths.

    It notes a score beside each label before it boxes them all: to find an answer by its label is far easier
    to learn than to find the i-th answer for the i-th number.
    """
    if rng.random() < teacher.p_scores_length:
        shares = [min(1.0, len(answer.split()) / MAX_ANSWER_WORDS) for answer in answers]
    else:
        shares = [quality(question, answer) for answer in answers]
    scores = [round(MAX_SCORE * share) for share in shares]
    notes = " ".join(f"[{i}] {score}" for i, score in enumerate(scores, start=1))
    return f"{notes} {boxed(*scores)}"
