"""The grader's bounds, and what it raises on reaching one. Work is bounded before it is done, never timed."""

# Longer answers are still compared as strings; they are not brought to the normal form, nor read for meaning.
MAX_NORMALISED_CHARACTERS = 12_000
MAX_READ_CHARACTERS = 4_000
MAX_TOKENS = 1_200
MAX_NESTING = 60
# Digits of a number literal, and the decimal exponent in 1e5.
MAX_LITERAL_DIGITS = 1_000
MAX_LITERAL_EXPONENT = 3_000
# Exact arithmetic: bits of any intermediate number, and the work of one comparison (1 is a small operation).
MAX_BITS = 16_384
MAX_EXACT_WORK = 60_000
# Numeric evaluation: binary exponent of any intermediate value, and nodes evaluated in one comparison.
MAX_MAGNITUDE = 4_096
MAX_NUMERIC_WORK = 4_000


class UnreadableError(Exception):
    """The text is not in the grammar of the reader."""


class UndecidedError(Exception):
    """The question is beyond a bound; the verdict is wrong and counted as undecided."""
