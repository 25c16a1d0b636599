"""Names of units, and which of them are the same."""

_SPELLINGS = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "L": "l liter litre",
    "gal": "gallon",
    "s": "sec second",
    "min": "minute",
    "h": "hr hour",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "cent": "",
    "dollar": "usd buck",
    "euro": "eur",
    "degree": "deg",
    "mph": "",
    "F": "fahrenheit",
    "C": "celsius",
}
_CANONICAL = {
    spelling + plural: unit
    for unit, spellings in _SPELLINGS.items()
    for spelling in (unit, *spellings.split())
    for plural in ("", "s")
}
# Single letters stand for units only where a number and a space come before, and nothing else does.
LETTER_UNITS = frozenset("m s h g l L".split())
# Words that say how a quantity is meant, not which it is.
FILLERS = frozenset("unit units square cubic sq cu exactly total altogether each more left only old long away".split())


def canonical_unit(word: str) -> str:
    """One spelling for a unit: "hours" and "hr" are both "h"; an unknown word stays, less a plural s."""
    return _CANONICAL.get(word, word[:-1] if word.endswith("s") else word)


def is_unit(word: str) -> bool:
    """The word names a unit of the list."""
    return word in _CANONICAL
