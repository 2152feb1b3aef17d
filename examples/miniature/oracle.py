#!/usr/bin/env python3
"""Hidden quality of answers to list questions, one JSON object a line.

    oracle.py < answers.jsonl     {"prompt": "Name 4 animals", "completion": "cat owl bee fox ."}
                              ->  {"quality": 1.0}

`prompt` is the text of the user's turn: topic and count are read from it.
"""

import json
import sys

from world import ListQuestion, quality


def main() -> None:
    for line in sys.stdin:
        if line.strip():
            row = json.loads(line)
            question = ListQuestion.parse(row["prompt"])
            print(json.dumps({"quality": quality(question, row["completion"])}), flush=True)


if __name__ == "__main__":
    main()
