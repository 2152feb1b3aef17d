"""The miniature world: three small tasks, the hidden oracle, and answers of every quality.

* reasoning    "Compute 4 + 7 + 5"  -> "\\boxed{16}"        right or wrong
* instruction  "Name 4 animals"     -> "cat owl bee fox ."  open-ended; the oracle knows its quality
* preference   question + answers   -> "\\boxed{7, 2, 9}"   the oracle knows the order of the answers

The oracle ranks the candidates of preference data and judges held-out answers. It is never the reward of an
instruction prompt: there the policy's own scores are all that training sees.

Everything here is a pure function of its arguments and a `random.Random`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

TOPICS = {
    "animals": ["cat", "dog", "fox", "owl", "bee", "cow"],
    "colours": ["red", "blue", "green", "pink", "grey", "black"],
    "fruits": ["apple", "pear", "plum", "fig", "kiwi", "lime"],
    "tools": ["saw", "axe", "drill", "file", "rake", "spade"],
    "sports": ["golf", "judo", "polo", "rugby", "tennis", "hockey"],
    "jobs": ["cook", "nurse", "pilot", "baker", "judge", "clerk"],
    "metals": ["iron", "gold", "zinc", "tin", "lead", "copper"],
    "trees": ["oak", "elm", "ash", "pine", "beech", "cedar"],
    "drinks": ["tea", "milk", "cider", "cocoa", "beer", "wine"],
    "clothes": ["hat", "coat", "sock", "scarf", "glove", "boot"],
    "vehicles": ["car", "bus", "van", "tram", "ferry", "truck"],
    "instruments": ["flute", "harp", "drum", "cello", "organ", "piano"],
}
VERBS = ("Name", "List", "Give", "Write")
COUNTS = (3, 4, 5)
FILLERS = ["um", "er", "hmm", "stuff", "thing", "whatever"]  # on topic nowhere
ITEMS = [item for items in TOPICS.values() for item in items]

MAX_DIGIT = 9
MAX_SCORE = 9
MAX_CANDIDATES = 8
MAX_ANSWER_WORDS = 10  # as many as a player's answer can have before it is cut

# What a player could write into an answer: candidates are spoilt with any of these.
STRAY_WORDS = [
    *TOPICS, *VERBS, *FILLERS, *ITEMS, "Compute", "Score", "each", "answer", "to", "user", "assistant",
    *"+,.:}", "\\boxed{", *(f"[{i}]" for i in range(1, MAX_CANDIDATES + 1)),
    *map(str, range(3 * MAX_DIGIT + 1)),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- questions
@dataclass(frozen=True)
class Sum:
    """A sum of three digits."""

    digits: tuple[int, int, int]

    @property
    def text(self) -> str:
        return "Compute " + " + ".join(map(str, self.digits))

    @property
    def answer(self) -> int:
        return sum(self.digits)

    @property
    def heldout(self) -> bool:
        """One sum in five, spread over all digits."""
        a, b, c = self.digits
        return (7 * a + 3 * b + 11 * c) % 5 == 0


@dataclass(frozen=True)
class ListQuestion:
    """A request for `count` different things of one topic."""

    verb: str
    count: int
    topic: str

    @property
    def text(self) -> str:
        return f"{self.verb} {self.count} {self.topic}"

    @property
    def heldout(self) -> bool:
        """One count of each topic: every topic and every count is trained on, this pair of them never."""
        return self.count == COUNTS[list(TOPICS).index(self.topic) % len(COUNTS)]

    @classmethod
    def parse(cls, text: str) -> ListQuestion:
        """The question that stands in `text`; ValueError where there is none."""
        found = re.search(rf"({'|'.join(VERBS)}) +(\d+) +({'|'.join(TOPICS)})", text)
        if found is None:
            raise ValueError(f"no question of the form 'Name 4 animals' in {text!r}")
        return cls(found[1], int(found[2]), found[3])


def all_sums(heldout: bool) -> list[Sum]:
    digits = range(MAX_DIGIT + 1)
    sums = [Sum((a, b, c)) for a in digits for b in digits for c in digits]
    return [problem for problem in sums if problem.heldout == heldout]


def all_list_questions(heldout: bool) -> list[ListQuestion]:
    questions = [ListQuestion(verb, count, topic) for topic in TOPICS for count in COUNTS for verb in VERBS]
    return [question for question in questions if question.heldout == heldout]


# ---------------------------------------------------------------------------------------------------- oracle
def quality(question: ListQuestion, answer: str) -> float:
    """Hidden quality in [0, 1].

    The share of `count` that is filled by different on-topic words, less half a share for every word that is
    off topic, repeated or one too many; times 0.75 without a full stop at the end.
    """
    words = answer.split()
    ended = words[-1:] == ["."]
    good: set[str] = set()
    num_bad = 0
    for position, word in enumerate(words[:-1] if ended else words):
        if position < question.count and word in TOPICS[question.topic] and word not in good:
            good.add(word)
        else:
            num_bad += 1
    return max(0.0, len(good) - 0.5 * num_bad) / question.count * (1.0 if ended else 0.75)


# ------------------------------------------------------------------------------------------------ candidates
@dataclass(frozen=True)
class Habits:
    """How a writer of lists behaves: the probability of each thing done right."""

    on_topic: float
    new_item: float
    right_count: float
    full_stop: float


def write_list(rng: random.Random, question: ListQuestion, habits: Habits) -> str:
    count = question.count
    if rng.random() >= habits.right_count:
        count = max(1, count + rng.choice((-2, -1, 1, 1)))
    items: list[str] = []
    for _ in range(count):
        unused = [item for item in TOPICS[question.topic] if item not in items]
        if items and rng.random() >= habits.new_item:
            items.append(rng.choice(items))
        elif unused and rng.random() < habits.on_topic:
            items.append(rng.choice(unused))
        else:
            items.append(rng.choice(FILLERS if rng.random() < 0.5 else ITEMS))
    return " ".join(items) + (" ." if rng.random() < habits.full_stop else "")


def spoil(rng: random.Random, question: ListQuestion, answer: str) -> str:
    """One of the ways in which a player might try to please its referee without answering."""
    words = answer.split()
    match rng.randrange(6):
        case 0:  # stray words, verdict marks among them
            for _ in range(rng.randint(1, 3)):
                words.insert(rng.randrange(len(words) + 1), rng.choice(STRAY_WORDS))
        case 1:  # one stray word over and over
            at = rng.randrange(len(words) + 1)
            words[at:at] = [rng.choice(STRAY_WORDS)] * rng.randint(2, 5)
        case 2:  # one item over and over
            words = [rng.choice(TOPICS[question.topic])] * rng.randint(2, 7) + ["."] * rng.randint(0, 1)
        case 3:  # a good list of another topic
            other = ListQuestion(question.verb, question.count, rng.choice(list(TOPICS)))
            words = write_list(rng, other, Habits(1.0, 1.0, 0.8, 0.8)).split()
        case 4:  # it never ends
            while len(words) < MAX_ANSWER_WORDS:
                words.append(rng.choice(TOPICS[question.topic] if rng.random() < 0.5 else STRAY_WORDS))
        case _:  # cut short
            words = words[: rng.randrange(len(words))]
    return " ".join(words[:MAX_ANSWER_WORDS])


def write_candidate(rng: random.Random, question: ListQuestion) -> str:
    """An answer of any quality, as preference data needs them."""
    habits = Habits(
        on_topic=rng.choice((0.3, 0.6, 0.9, 1.0, 1.0)),
        new_item=rng.choice((0.7, 0.9, 1.0, 1.0)),
        right_count=rng.choice((0.5, 0.9, 1.0)),
        full_stop=rng.choice((0.5, 0.8, 1.0)),
    )
    answer = write_list(rng, question, habits)
    return spoil(rng, question, answer) if rng.random() < 0.4 else answer


def candidates(rng: random.Random, question: ListQuestion, num: int) -> list[str]:
    """`num` answers whose qualities all differ."""
    by_quality: dict[float, str] = {}
    while len(by_quality) < num:
        answer = write_candidate(rng, question)
        by_quality.setdefault(round(quality(question, answer), 6), answer)
    return list(by_quality.values())
