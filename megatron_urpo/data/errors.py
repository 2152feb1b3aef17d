"""What every module here raises when the user's files are not what they should be."""


class DataError(ValueError):
    """A store, a row, a tokenizer folder or a saved position is wrong: one line with place, value, rule and way out."""
