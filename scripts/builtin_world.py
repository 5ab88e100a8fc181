"""The small world of the built-in model: its words, and one scene drawn from them.

Both the pretraining corpus and the fine-tuning rows are written from scenes. Only `Random.random()` is used, whose
sequence Python promises to keep for a given integer seed, so that every machine draws the same text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


GIRLS = words(
    "Ada Alma Anna Bea Carla Clara Dora Edda Ella Emma Erin Eva Fay Flora Freya Gina Grace Hanna Hazel Ida Iris Ivy "
    "Jane June Kate Lara Lena Lily Lucy Mara Maya Mia Mina Nina Nora Olga Pia Rosa Ruth Sara Tara Una Vera Wanda Yara "
    "Zelda Zoe"
)
BOYS = words(
    "Adam Alan Ben Boris Carl Dan David Emil Eric Felix Finn Frank George Hans Henry Hugo Ivan Jack Jonas Karl Leo "
    "Leon Louis Luke Mark Max Milo Ned Nick Noah Oscar Otto Paul Peter Ralph Robin Sam Simon Theo Tim Tom Tony Victor "
    "Walter Will Yan Zeno"
)
COLOURS = words("red blue green yellow white black brown grey pink purple orange golden silver")
ITEMS = words(
    "apple bag ball basket bell blanket boat book bottle bowl box brush bucket button candle cap carpet chair clock "
    "coat cup curtain door drum flag flower flute glove hammer hat jar jug kettle key kite ladder lamp map mirror mug "
    "nail napkin oar pan pear pen pillow pipe plate pot puppet ribbon ring rope rug sack scarf shell shirt shoe spoon "
    "stamp stone stool table tent tile towel toy umbrella vase wheel"
)
PLACES = words(
    "airport bakery barn beach bridge café camp castle church farm field forest fountain garden garage gate hall "
    "harbour hill hotel island kitchen lake library lighthouse market mill museum office orchard palace park pier "
    "pond river school shop square stable station street theatre tower village well workshop"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = words("zero one two three four five six seven eight nine ten eleven twelve")
PETS = words("dog cat horse goat duck parrot rabbit donkey")
FIRST_SYLLABLES = words("Ba Bel Cor Da Dro Fen Ga Hal Jo Ka Kel Lo Mor Na Or Pel Ro Sil Ta Tor Ul Ve Wil Zan")
LAST_SYLLABLES = words("bo bin da den dor fa gan ka la lin mo na nor pa ra rin sa so ta tan va vin wen zo")

_INNERMOST_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


def pick(random: Random, choices: Sequence[T]) -> T:
    """One of the choices, each equally likely."""
    return choices[int(random.random() * len(choices))]


def plural(item: str) -> str:
    """The plural of one of `ITEMS`."""
    if item.endswith(("x", "sh", "ch", "s")):
        return item + "es"
    return item + "s"


def article(word: str) -> str:
    """`a` or `an`, as the word that follows wants it."""
    return "an" if word[0] in "aeiou" else "a"


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Scene:
    """Who wants how many of what, in which colour, when and where; fields ending in `2` are distractors."""

    person: str
    friend: str
    item: str
    item2: str
    colour: str
    colour2: str
    count: int
    count2: int
    day: str
    day2: str
    place: str
    place2: str

    @property
    def held_out(self) -> bool:
        """Whether this combination belongs to the held-out text; about one scene in sixteen does."""
        code = (GIRLS + BOYS).index(self.person) + 3 * ITEMS.index(self.item) + 5 * PLACES.index(self.place)
        return code % 16 == 0

    def slots(self) -> dict[str, str]:
        """The words that templates may name."""
        she, her, hers = ("she", "her", "her") if self.person in GIRLS else ("he", "him", "his")
        return {
            "P": self.person,
            "F": self.friend,
            "she": she,
            "She": capital(she),
            "her": her,
            "hers": hers,
            "it": self.item,
            "its": plural(self.item),
            "it2": self.item2,
            "its2": plural(self.item2),
            "c": self.colour,
            "C": capital(self.colour),
            "c2": self.colour2,
            "ac": article(self.colour) + " " + self.colour,
            "ait2": article(self.item2) + " " + self.item2,
            "ait": article(self.item) + " " + self.item,
            "n": NUMBERS[self.count],
            "N": capital(NUMBERS[self.count]),
            "n2": NUMBERS[self.count2],
            "k": str(self.count),
            "k2": str(self.count2),
            "day": self.day,
            "day2": self.day2,
            "place": self.place,
            "place2": self.place2,
        }


def two(random: Random, choices: Sequence[T]) -> tuple[T, T]:
    """Two different choices."""
    first = int(random.random() * len(choices))
    second = (first + 1 + int(random.random() * (len(choices) - 1))) % len(choices)
    return choices[first], choices[second]


def draw_scene(random: Random) -> Scene:
    """A scene with all fields drawn independently; the distractors differ from what they distract from."""
    pairs = (two(random, choices) for choices in (GIRLS + BOYS, ITEMS, COLOURS, range(2, 13), DAYS, PLACES))
    return Scene(*(word for pair in pairs for word in pair))


def made_up_name(random: Random) -> str:
    """A name that no word list holds: a reader can only know it by having seen it earlier in the text."""
    return pick(random, FIRST_SYLLABLES) + pick(random, LAST_SYLLABLES) + pick(random, ("", "", *LAST_SYLLABLES))


def render(random: Random, template: str, slots: dict[str, str]) -> str:
    """The template with one alternative of each `[a|b]` chosen, and then each `{slot}` filled."""
    while "[" in template:
        template = _INNERMOST_ALTERNATIVES.sub(lambda found: pick(random, found[1].split("|")), template)
    return template.format_map(slots)
