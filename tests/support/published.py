"""Rows as the publishers of the recipe's datasets ship them: small, by the schemas of their cards."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

Row = dict[str, Any]


def turns(*contents: str) -> list[Row]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def skywork(source: str, question: str, truth: Any) -> Row:
    return {
        "data_source": source,
        "prompt": [{"content": question, "role": "user"}],
        "ability": "code" if "code" in source else "math",
        "reward_model": {"ground_truth": truth if isinstance(truth, str) else json.dumps(truth), "style": "rule"},
        "extra_info": {"index": 0, "model_difficulty": {"DeepSeek-R1-Distill-Qwen-1.5B": 3}},
    }


SKYWORK = [
    skywork("train-math-numinamath1.5_amc_aime", "What is 6 times 7? Give it within \\boxed{}.", ["42"]),
    skywork("train-math-deepscaler", "Which fraction is half of one third? Give it within \\boxed{}.", "\\frac16"),
    skywork("train-code-leetcode", "Write add(a, b) that adds two numbers. Use ```python```.",
            {"import_prefix": "import math\n", "test_code": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
             "entry_point": "Solution().add"}),
    skywork("train-code-taco", "Read two numbers, print their sum.", {"inputs": ["1 2\n"], "outputs": ["3\n"]}),
    skywork("train-code-taco", "Write twice(n) that doubles a number.",
            {"inputs": ["4", "5"], "outputs": ["8", "10"], "fn_name": "twice"}),
]  # fmt: skip
HELPSTEER3 = [
    {"domain": "general", "language": "english", "context": turns("Name a fruit.", "Apple.", "Another one?"),
     "response1": "Pear.", "response2": "Carrot.", "overall_preference": -2, "individual_preference": []},
    {"domain": "code", "language": "python", "context": turns("How do I sort a list?"), "response1": "sorted(x)",
     "response2": "x.sort() sorts in place, sorted(x) makes a new list.", "overall_preference": 3,
     "individual_preference": []},
    {"domain": "general", "language": "english", "context": turns("Say hello in two languages."),
     "response1": "Hello, hola.", "response2": "Hello, bonjour.", "overall_preference": 0, "individual_preference": []},
]  # fmt: skip


def completion(response: str, overall: float, fine: float) -> Row:
    return {
        "model": "m", "response": response, "overall_score": overall, "fine-grained_score": fine, "critique": "",
        "annotations": {"helpfulness": {"Rating": "4"}}, "custom_system_prompt": "", "principle": "honesty",
    }  # fmt: skip


ULTRAFEEDBACK = [
    {"source": "sharegpt", "instruction": "Explain rain in one sentence.", "models": ["a", "b", "c", "d"],
     "completions": [completion("Water falls from clouds.", 8.5, 4.5), completion("Rain.", 10, 2.0),
                     completion("It is wet.", 6, 3.25), completion("Clouds cool and shed water.", 10, 4.75)],
     "correct_answers": ["None"], "incorrect_answers": ["None"]},
]  # fmt: skip
SKYWORK_PREFERENCE = [
    {"chosen": turns("Is the earth flat?", "No, it is round."), "rejected": turns("Is the earth flat?", "Yes."),
     "source": "magpie"},
]  # fmt: skip
NECTAR = [
    {"prompt": "\n\nHuman: Tell me a joke about cats. \n\nAssistant: Why? \n\nHuman: Just do it. \n\nAssistant: ",
     "answers": [{"answer": f"Joke number {i}", "model": f"m{i}", "rank": rank}
                 for i, rank in enumerate([3.0, 1.0, 2.0, 5.5, 5.5, 4.0, 7.0])],
     "turns": 2, "num_responses": 7, "source": ["lmsys-chat-1m"], "good_natured": True},
]  # fmt: skip
OFFSETBIAS = [
    {"instruction": "Translate to French.", "input": "good morning", "output_1": "bonjour", "output_2": "good morning!",
     "label": 1},
    {"instruction": "Name the capital of Italy.", "input": "", "output_1": "Milan, a very beautiful city in the north.",
     "output_2": "Rome.", "label": 2},
]  # fmt: skip
PROMPT_COLLECTION = [
    {"dataset": "flan", "context": "", "id": "1", "context_messages": turns("Write a poem about the sea at night.")},
    {"dataset": "ultra", "context": "", "id": "2",
     "context_messages": [{"role": "system", "content": "Be brief."}, *turns("Plan a trip to the mountains.")]},
]  # fmt: skip
ALPACA = [{"instruction": "How did the states get their names?", "output": "In many ways.", "generator": "example",
           "dataset": "helpful_base", "datasplit": "eval"}]  # fmt: skip
ANNOTATIONS = [{"instruction": "Why is the sky blue?", "output_1": "It is not.", "output_2": "Air scatters blue light.",
                "generator_1": "a", "generator_2": "b", "annotator": "gpt4", "preference": 1.75}]  # fmt: skip
GSM8K = [
    {"question": "A box has 1,200 pens and another 34. How many pens?", "answer": "Add.\n1200+34=1234\n#### 1,234"}
]
MATH500 = [{"problem": "Evaluate $\\lfloor\\pi\\rfloor$ for the usual number.", "solution": "It is $\\boxed{3}$.",
            "answer": "3", "subject": "Algebra", "level": 1, "unique_id": "x"}]  # fmt: skip
HUMANEVAL = [{"task_id": "HumanEval/0", "prompt": "from typing import List\n\n\ndef first(x: List[int]) -> int:\n"
              '    """ The first of a list. """\n', "entry_point": "first", "canonical_solution": "    return x[0]\n",
              "test": "def check(candidate):\n    assert candidate([3]) == 3\n"}]  # fmt: skip
REWARD_BENCH = [{"id": 0, "prompt": "How do magnets work, in plain words?", "chosen": "a", "rejected": "b",
                 "chosen_model": "x", "rejected_model": "y", "subset": "alpacaeval-easy"}]  # fmt: skip
RMB = [{"conversation_input": [{"role": "user", "content": "Give me three names for a dog.", "language": "en"}],
        "bon_best": {"llm_name": "a", "answer": "Rex"}, "loser_list": [{"llm_name": "b", "answer": "no"}]}]  # fmt: skip
TULU = [{"id": "t", "messages": turns("What is a noun in grammar?", "A naming word."), "source": "flan"}]


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    """Also gzipped, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
    return path
