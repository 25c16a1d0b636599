"""The embedded task: grade-school word problems made from templates, in GSM8K's schema.

Every problem is a short story of two or three steps with whole numbers. Level 1 has two steps and small numbers,
level 2 two steps and two-digit numbers, level 3 three steps. The committed files hold `splits()`:

    python scripts/make_arithmetic.py

Read them with `tasks.gsm8k.load_problems`; the schema is the same. Only `random.Random(seed)` and tuples decide what
comes out, so a seed gives the same bytes on every machine.
"""

import json
import operator
import random
from collections.abc import Collection
from dataclasses import asdict, dataclass
from itertools import islice

SPLIT_SIZES = {"train": 6000, "dev": 500, "test": 1000}
SPLIT_SEED = 336


@dataclass(frozen=True)
class Example:
    """One row of a split: GSM8K's two fields and the level."""

    question: str
    answer: str
    level: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class Template:
    """A story and its solution.

    Attributes:
        story: the question. One-letter fields are numbers: a-d amounts, k and m small factors, z a total. The longer
            fields are words, see `_draw_words`.
        steps: pairs of an equation such as "t = a + b" and a sentence in which {eq} stands for it, with numbers. The
            last one gives the answer.
    """

    story: str
    steps: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Level:
    """Which templates a level draws from, and the inclusive ranges of its numbers."""

    templates: tuple[Template, ...]
    amount: tuple[int, int]
    factor: tuple[int, int]
    total: tuple[int, int]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Ada Amara Aisha Beth Chloe Clara Daria Elif Emma Freya Grace Hana Ines Jana Keiko Lena "
    "Lucia Maya Mei Nadia Nina Olga Priya Rosa Sara Sofia Tara Uma Vera Wanda Yara Zoe"
)
BOYS = _words(
    "Adam Ahmed Ben Bruno Carlos Dan Diego Emil Felix George Hugo Ivan Jack Jonas Kofi Leo "
    "Liam Marco Max Nico Noah Omar Otto Paul Quentin Ravi Sam Theo Tom Victor Wei Yusuf"
)
THINGS = _words(
    "apples badges balloons beads blocks books buttons candles cards coins cookies crayons cups erasers feathers figs "
    "flowers keys lemons marbles muffins nuts oranges paintings peaches pears pencils pens pins plums postcards "
    "puzzles ribbons rings shells spoons stamps stickers stones toys"
)
GETS = ("buys", "collects", "finds", "gets", "receives", "wins")
LOSES = ("drops", "gives away", "loses", "sells", "swaps away", "uses up")
GOODS = ("ball", "bowl", "brush", "cap", "game", "kite", "lamp", "mug", "plant", "scarf", "shirt", "towel")
JOBS = ("babysitting", "delivering papers", "gardening", "painting fences", "walking dogs", "washing cars")
PLACES = ("circus tent", "cinema", "concert hall", "lecture hall", "school hall", "theatre")
VEHICLES = ("bus", "ferry", "night train", "train", "tram")
BOXES = ("bags", "baskets", "boxes", "crates", "jars", "trays")

TWO_STEPS = (
    Template(
        "{name} has {a} {things}. {He} {gets} {b} more and then {loses} {c}. How many {things} does {name} have now?",
        (("t = a + b", "First {name} has {eq} {things}."), ("r = t - c", "Now {he} has {eq} {things}.")),
    ),
    Template(
        "{name} starts the week with {a} {things}. {He} {loses} {b} of them and later {gets} {c}. "
        "How many {things} does {he} have at the end?",
        (("t = a - b", "First {name} has {eq} {things} left."), ("r = t + c", "At the end {he} has {eq} {things}.")),
    ),
    Template(
        "There are {k} {boxes} with {a} {things} in each. {name} takes out {b} {things}. "
        "How many {things} are left in the {boxes}?",
        (("t = k * a", "The {boxes} hold {eq} {things}."), ("r = t - b", "After that {eq} {things} are left.")),
    ),
    Template(
        "{name} fills {k} {boxes} with {a} {things} each and has {b} {things} left over. "
        "How many {things} did {he} have to begin with?",
        (("t = k * a", "The {boxes} hold {eq} {things}."), ("r = t + b", "In all {he} had {eq} {things}.")),
    ),
    Template(
        "{name} brings {a} {things} and {friend} brings {b}. They share all of them equally among {k} children. "
        "How many {things} does each child get?",
        (("t = a + b", "Together they bring {eq} {things}."), ("r = t / k", "Each child gets {eq} {things}.")),
    ),
    Template(
        "{friend} has {a} {things}. {name} has {b} more than {friend}. How many {things} do they have together?",
        (("t = a + b", "{name} has {eq} {things}."), ("r = a + t", "Together they have {eq} {things}.")),
    ),
    Template(
        "{friend} has {a} {things}. {name} has {b} fewer than {friend}. How many {things} do the two have in all?",
        (("t = a - b", "{name} has {eq} {things}."), ("r = a + t", "In all they have {eq} {things}.")),
    ),
    Template(
        "{friend} has {a} {things}, and {name} has {k} times as many. How many {things} do they have together?",
        (("t = k * a", "{name} has {eq} {things}."), ("r = a + t", "Together they have {eq} {things}.")),
    ),
    Template(
        "{name} earns ${a} an hour for {job}. {He} works {k} hours and then spends ${b}. "
        "How many dollars does {he} have left?",
        (("t = k * a", "{name} earns {eq} dollars."), ("r = t - b", "After that {he} has {eq} dollars left.")),
    ),
    Template(
        "A {good} costs ${a}. {name} buys {k} of them and pays with ${z}. How many dollars of change does {he} get?",
        (("t = k * a", "{name} has to pay {eq} dollars."), ("r = z - t", "The change is {eq} dollars.")),
    ),
    Template(
        "{name} runs {a} laps a day for {k} days and {b} laps on the day after. How many laps does {he} run in all?",
        (("t = k * a", "First {name} runs {eq} laps."), ("r = t + b", "In all {he} runs {eq} laps.")),
    ),
    Template(
        "The {place} has {k} rows of {a} seats. Tonight {b} seats are empty. How many seats are taken?",
        (("t = k * a", "The {place} has {eq} seats."), ("r = t - b", "Of these {eq} seats are taken.")),
    ),
    Template(
        "A {vehicle} leaves with {a} passengers. At the first stop {b} get off and {c} get on. "
        "How many passengers are on the {vehicle} then?",
        (("t = a - b", "First {eq} passengers stay on."), ("r = t + c", "Then there are {eq} passengers.")),
    ),
    Template(
        "{name} reads {a} pages on Monday and {b} pages on Tuesday. The book has {z} pages. "
        "How many pages are left to read?",
        (("t = a + b", "{name} reads {eq} pages."), ("r = z - t", "After that {eq} pages are left.")),
    ),
    Template(
        "{name} had {a} {things} and {friend} took {b} of them. {name} puts the rest into {boxes} of {k}. "
        "How many {boxes} does {he} fill?",
        (("t = a - b", "{name} has {eq} {things} left."), ("r = t / k", "They fill {eq} {boxes}.")),
    ),
)

THREE_STEPS = (
    Template(
        "{name} has {a} {things}. {He} {gets} {k} {boxes} with {b} {things} each and then {loses} {c} {things}. "
        "How many {things} does {name} have now?",
        (
            ("t = k * b", "The {boxes} hold {eq} {things}."),
            ("u = a + t", "Then {name} has {eq} {things}."),
            ("r = u - c", "Now {he} has {eq} {things}."),
        ),
    ),
    Template(
        "{name} buys {k} {things} for ${a} each and a {good} for ${b}. {He} pays with ${z}. "
        "How many dollars of change does {he} get?",
        (
            ("t = k * a", "The {things} cost {eq} dollars."),
            ("u = t + b", "In all {name} has to pay {eq} dollars."),
            ("r = z - u", "The change is {eq} dollars."),
        ),
    ),
    Template(
        "A shop sells {k} {things} at ${a} each and {m} candles at ${b} each. How many dollars does the shop take?",
        (
            ("t = k * a", "The {things} bring {eq} dollars."),
            ("u = m * b", "The candles bring {eq} dollars."),
            ("r = t + u", "In all the shop takes {eq} dollars."),
        ),
    ),
    Template(
        "{friend} has {a} {things}, and {name} has {b} more than {friend}. Together they lose {c}. "
        "How many {things} do the two have left?",
        (
            ("t = a + b", "{name} has {eq} {things}."),
            ("u = a + t", "Together they have {eq} {things}."),
            ("r = u - c", "After that they have {eq} {things} left."),
        ),
    ),
    Template(
        "{name} picks {a} {things} in the morning and {b} in the afternoon. {c} of them are spoilt. "
        "{He} puts the others equally into {k} {boxes}. How many {things} are in each?",
        (
            ("t = a + b", "{name} picks {eq} {things}."),
            ("u = t - c", "Of these {eq} {things} are good."),
            ("r = u / k", "Each holds {eq} {things}."),
        ),
    ),
    Template(
        "{name} saves ${a} a week for {k} weeks. Then {he} earns ${b} for {job} and buys a {good} for ${c}. "
        "How many dollars does {he} have left?",
        (
            ("t = k * a", "{name} saves {eq} dollars."),
            ("u = t + b", "Then {he} has {eq} dollars."),
            ("r = u - c", "After that {he} has {eq} dollars left."),
        ),
    ),
    Template(
        "A {vehicle} leaves with {a} passengers. At the first stop {b} get off and {c} get on. "
        "At the second stop {d} get on. How many passengers are on the {vehicle} then?",
        (
            ("t = a - b", "First {eq} passengers stay on."),
            ("u = t + c", "Then there are {eq} passengers."),
            ("r = u + d", "After the second stop there are {eq} passengers."),
        ),
    ),
    Template(
        "{name} reads {a} pages a day for {k} days and {b} pages on Sunday. The book has {z} pages. "
        "How many pages are left to read?",
        (
            ("t = k * a", "First {name} reads {eq} pages."),
            ("u = t + b", "In all {he} reads {eq} pages."),
            ("r = z - u", "After that {eq} pages are left."),
        ),
    ),
    Template(
        "{friend} has {a} {things}. {name} has {k} times as many as {friend}, and {third} has {b} fewer than {name}. "
        "How many {things} do {friend} and {third} have together?",
        (
            ("t = k * a", "{name} has {eq} {things}."),
            ("u = t - b", "{third} has {eq} {things}."),
            ("r = a + u", "Together they have {eq} {things}."),
        ),
    ),
    Template(
        "A school has {a} girls and {b} boys in its club. Today {c} of them are away. The others form teams of {k}. "
        "How many teams are there?",
        (
            ("t = a + b", "The club has {eq} children."),
            ("u = t - c", "Today {eq} children are there."),
            ("r = u / k", "They form {eq} teams."),
        ),
    ),
)

LEVELS = (
    Level(TWO_STEPS, amount=(2, 12), factor=(2, 4), total=(15, 40)),
    Level(TWO_STEPS, amount=(5, 30), factor=(2, 5), total=(60, 120)),
    Level(THREE_STEPS, amount=(3, 20), factor=(2, 4), total=(50, 120)),
)

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
_LARGEST = 200


def generate(count: int, seed: int, exclude: Collection[str] = ()) -> list[Example]:
    """`count` examples, levels in turn, without a repeated question and without any question in `exclude`."""
    rng = random.Random(seed)
    seen = set(exclude)
    examples: list[Example] = []
    while len(examples) < count:
        example = _draw_example(rng, number=len(examples) % len(LEVELS) + 1)
        if example.question not in seen:
            seen.add(example.question)
            examples.append(example)
    return examples


def splits() -> dict[str, list[Example]]:
    """The committed train, dev and test splits: one stream of distinct questions, cut in three."""
    examples = iter(generate(sum(SPLIT_SIZES.values()), SPLIT_SEED))
    return {name: list(islice(examples, size)) for name, size in SPLIT_SIZES.items()}


def _draw_example(rng: random.Random, number: int) -> Example:
    level = LEVELS[number - 1]
    template = rng.choice(level.templates)
    words = _draw_words(rng)
    values = _draw_numbers(rng, level, template)
    lines = [sentence.format(eq=_marked(equation, values), **words) for equation, sentence in template.steps]
    lines.append(f"#### {values['r']}")
    return Example(template.story.format(**words, **values), "\n".join(lines), number)


def _draw_words(rng: random.Random) -> dict[str, str]:
    name, friend, third = rng.sample(GIRLS + BOYS, 3)
    pronoun = "she" if name in GIRLS else "he"
    return {
        "name": name,
        "friend": friend,
        "third": third,
        "he": pronoun,
        "He": pronoun.capitalize(),
        "things": rng.choice(THINGS),
        "gets": rng.choice(GETS),
        "loses": rng.choice(LOSES),
        "good": rng.choice(GOODS),
        "job": rng.choice(JOBS),
        "place": rng.choice(PLACES),
        "vehicle": rng.choice(VEHICLES),
        "boxes": rng.choice(BOXES),
    }


def _draw_numbers(rng: random.Random, level: Level, template: Template) -> dict[str, int]:
    """Draw until every step comes out as a whole number of at least 2, so that the plurals of the stories hold."""
    while True:
        values = {letter: rng.randint(*level.amount) for letter in "abcd"}
        values |= {letter: rng.randint(*level.factor) for letter in "km"}
        values["z"] = rng.randint(*level.total)
        if _solve(template, values):
            return values


def _solve(template: Template, values: dict[str, int]) -> bool:
    """Add each step's result to `values`; False where one is out of range or a division leaves a remainder."""
    for equation, _ in template.steps:
        result, _, left, sign, right = equation.split()
        values[result] = _OPERATIONS[sign](values[left], values[right])
        if not 2 <= values[result] <= _LARGEST or (sign == "/" and values[left] % values[right]):
            return False
    return True


def _marked(equation: str, values: dict[str, int]) -> str:
    """An equation in numbers with GSM8K's calculator mark: "3 + 4 = <<3+4=7>>7"."""
    result, _, left, sign, right = equation.split()
    left, right, result = (str(values[letter]) for letter in (left, right, result))
    return f"{left} {sign} {right} = <<{left}{sign}{right}={result}>>{result}"
