"""Text that strangers wrote, made unable to pass for a part of the scoring prompt.

A candidate could close its own frame and open another's, write a verdict, or end the user's turn. So every mark that
means something to the prompt is broken by a space: the template's delimiters around its placeholders (whatever number
they carry), `\\boxed`, and the tokenizer's special tokens.

A mark can be written so that only a tokenizer sees it: with invisible characters that a normaliser drops, or in
full-width letters that it folds. Invisible characters go, always; a text whose compatibility form (NFKC) holds a mark
that it does not hold itself is taken in that form.
"""

import re
import unicodedata
from collections.abc import Iterable

from megatron_urpo.config.reward import TemplateConfig

_PLACEHOLDER = re.compile(r"\{(?:question|responses|response)\}")
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
# Format characters, bidi marks among them. Joiners stay between letters of scripts that need them and inside emoji.
_FORMATS = (
    "\u00ad\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
_JOINERS = "\u200c\u200d"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_INVISIBLE = re.compile(f"[{_FORMATS}]|(?<![^\\x00-\\x7f])[{_JOINERS}]|[{_JOINERS}](?![^\\x00-\\x7f])")
_MAY_GO = re.compile(f"[{_CONTROLS}{_FORMATS}{_JOINERS}]")
# The first place where a space falls inside a word, never inside a number: "12." becomes "12 .", not "1 2.".
_INSIDE_WORD = re.compile(r"[^\s\d](?=\S)|\d(?=[^\s\d])")
_NO_DIGIT = re.compile(r"[^\s\d]")
_ANY = re.compile(r"\S")


class Neutraliser:
    """Breaks the marks of one template and one tokenizer. Idempotent."""

    def __init__(self, template: TemplateConfig, special_tokens: Iterable[str]) -> None:
        marks = [re.escape("\\boxed")]
        marks += [_pattern(line) for line in _delimiters(template)]
        tokens = [token for token in special_tokens if token.strip()]
        marks += [re.escape(form) for token in tokens for form in (token, unicodedata.normalize("NFKC", token))]
        # The longest first, so that a mark is not left standing inside another one.
        self._marks = re.compile("|".join(sorted(set(marks), key=len, reverse=True)), re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """`text` without control and format characters (tab and line feed stay) and with every mark broken.

        Each round splits a word or drops a character of every mark it finds, so the loop ends.
        """
        text = _visible(text)
        folded = unicodedata.normalize("NFKC", text)
        if folded != text and self._marks.search(folded := _visible(folded)):
            text = folded
        while self._marks.search(text):
            text = self._marks.sub(_break, text)
        return text


def _visible(text: str) -> str:
    """Until nothing goes any more: what stood around a joiner may have gone."""
    if not _MAY_GO.search(text):
        return text  # nearly always; five times as fast as looking at joiners' neighbours
    while (shorter := _INVISIBLE.sub("", _CONTROL.sub("", text))) != text:
        text = shorter
    return text


def _break(match: re.Match[str]) -> str:
    """A space inside the first word of the mark; a mark of single characters loses the first that is no digit."""
    mark = match[0]
    for place, replacement in ((_INSIDE_WORD, r"\g<0> "), (_NO_DIGIT, ""), (_ANY, "")):
        broken = place.sub(replacement, mark, count=1)
        if broken != mark:
            break
    return broken


def _delimiters(template: TemplateConfig) -> list[str]:
    """The lines of template text that border a placeholder, `{index}` still in them.

    Of a response's frame every line; of the prompt the line before and the line after each placeholder, since its
    instructions further off frame nothing.
    """
    lines = [line for piece in _PLACEHOLDER.split(template.response) for line in _lines(piece)]
    pieces = [_lines(piece) for piece in _PLACEHOLDER.split(template.prompt)]
    lines += [piece[-1] for piece in pieces[:-1] if piece]
    lines += [piece[0] for piece in pieces[1:] if piece]
    return [line for line in lines if _is_mark(line)]


def _lines(piece: str) -> list[str]:
    return [line.strip() for line in piece.splitlines() if line.strip()]


def _is_mark(line: str) -> bool:
    """Whether text can be told from a delimiter: it carries an index, or words and punctuation, or several words.

    Bare punctuation or a bare word occurs in any honest text, and breaking it there would harm more than it guards.
    """
    words = line.replace("{index}", " ")
    if "{index}" in line:
        return bool(words.strip())
    return bool(re.search(r"[^\W\d_]", words)) and bool(re.search(r"[^\w]", words))


def _pattern(line: str) -> str:
    """A regular expression for a delimiter: any number for the index, any white space between its words."""
    pattern = r"\d+".join(r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in line.split("{index}"))
    # `Q:` is no part of `FAQ:`.
    return rf"(?<!\w){pattern}" if re.match(r"\w|\{index\}", line) else pattern
