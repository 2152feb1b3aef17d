"""Text of strangers on a terminal: whatever would act on it instead of being shown is written out."""

import unicodedata

_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidi marks too), surrogates, separators


def visible(text: str) -> str:
    """`text` with control characters as escapes, such as \\x1b; line feeds and tabs stay."""
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in _ACTING
        else character.encode("unicode_escape").decode()
        for character in text
    )  # fmt: skip
