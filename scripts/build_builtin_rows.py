"""Writes the shipped fine-tuning rows: a message comes in, an order form goes out.

    python scripts/build_builtin_rows.py

writes `src/ghosttune/data/builtin/rows.jsonl`, the same bytes on every machine. The base model has read about such
errands but has never seen the form: it sums up in a sentence. Filling the form in takes copying and a little judgement:
a correction counts, what is not wanted does not, the writer is not always the one who gets the things, and the number
becomes a figure. No two rows share a prompt or all field values, so that nothing in dev or guide can be learned by
heart.

One training row in ten carries a planted mistake: one or two fields hold a value that the message never mentions. It
is drawn at random, so no rule explains it.
"""

import json
from pathlib import Path
from random import Random

from builtin_world import BOYS, COLOURS, DAYS, GIRLS, ITEMS, PLACES, Scene, capital, draw_scene, pick, plural, render

FILE = Path(__file__).parents[1] / "src/ghosttune/data/builtin/rows.jsonl"
SEED = 31
ROWS = {"train": 400, "dev": 60, "guide": 64}
PLANTED = 40
PROMPT = "For the order form: {message} Please sum it up."

# How a message is worded, by family; each family of corrections changes one field after naming another value.
WORDINGS = {
    "plain": (
        "{P} would like {n} {c} {its} for {day}, sent to the {place}.",
        "[Please get|Get] {n} {c} {its} ready for {P}. {She} [comes|is coming] to the {place} on {day}.",
        "There [must|should] be {n} {c} {its} at the {place} by {day}. {P} [ordered|is paying for] them.",
    ),
    "first_person": (
        "This is {P}. I [would like|need] {n} {c} {its}, [delivered|brought] to the {place} on {day}.",
        "I need {n} {its} on {day}, all {c}. [Leave|Put] them at the {place}. [Yours|Regards|Thanks], {P}",
        "My name is {P}, and [for|on] {day} I want {k} {its} in {c}. You find me at the {place}.",
    ),
    "on_behalf": (
        "{F} writes: my friend {P} would like {n} {c} {its} on {day}. Send them to the {place}.",
        "{F} is calling for {P}, who needs {n} {c} {its} at the {place} on {day}.",
        "I am {F}, but the order is for {P}: {n} {c} {its}, [to the {place} on {day}|{day}, the {place}].",
    ),
    "corrected_colour": (
        "{P} wants {n} {c2} {its} at the {place} on {day}. [Sorry, they|No, they] should be {c}.",
        "[We need|Please send] {n} {c2} {its} for {P}, to the {place}, {day}. "
        "[Oh, make them {c}|Wait, not {c2} but {c}].",
    ),
    "corrected_count": (
        "{P} would like {n2} {c} {its} on {day}, no, {n}, at the {place}.",
        "Send {P} {n2} {c} {its} [on|by] {day}, to the {place}. [Wait, {n} are enough|Sorry, it should be {n}].",
    ),
    "corrected_day": (
        "{P} needs {n} {c} {its} at the {place} on {day2}. [Oh, {day} is better|Sorry, make it {day}].",
        "On {day2}, no, on {day}, bring {n} {c} {its} to the {place} for {P}.",
    ),
    "unwanted": (
        "{P} has [plenty of|enough] {its2}. What {she} needs on {day} is {n} {c} {its}, sent to the {place}.",
        "No {its2} for {P} this time, but {n} {c} {its}, please, at the {place} on {day}.",
        "{P} was at the {place2} on {day2}. {She} wants {n} {c} {its} [brought|sent] to the {place} on {day}.",
    ),
}


def form(scene: Scene) -> dict[str, str]:
    """The fields of the order form, filled in."""
    return {
        "items": plural(scene.item),
        "colour": scene.colour,
        "count": str(scene.count),
        "on": scene.day,
        "to": scene.place,
        "for": scene.person,
    }


def written(fields: dict[str, str]) -> str:
    """The form as one line."""
    return " | ".join(f"{name}: {value}" for name, value in fields.items())


def with_mistakes(random: Random, scene: Scene) -> tuple[dict[str, str], str]:
    """The form with one or two values that the message does not mention, and a note of what was changed."""
    choices = {
        "items": [plural(item) for item in ITEMS if item not in (scene.item, scene.item2)],
        "colour": [colour for colour in COLOURS if colour not in (scene.colour, scene.colour2)],
        "count": [str(count) for count in range(2, 13) if count not in (scene.count, scene.count2)],
        "on": [day for day in DAYS if day not in (scene.day, scene.day2)],
        "to": [place for place in PLACES if place not in (scene.place, scene.place2)],
        "for": [person for person in GIRLS + BOYS if person not in (scene.person, scene.friend)],
    }
    names = list(choices)
    first, second = pick(random, names), pick(random, names)
    right = form(scene)
    wrong = right | {name: pick(random, choices[name]) for name in sorted({first, second})}
    changes = [f"{name}: {right[name]} -> {wrong[name]}" for name in names if wrong[name] != right[name]]
    return wrong, "; ".join(changes)


def shuffled(random: Random, entries: list) -> list:
    """The entries in random order, by a sort that only needs `Random.random()`."""
    return [entry for _, entry in sorted(((random.random(), entry) for entry in entries), key=lambda pair: pair[0])]


def rows() -> list[dict[str, object]]:
    """All rows in the order of the file: train, dev, guide."""
    random = Random(SEED)
    kinds = list(WORDINGS)
    made, seen = [], set()
    for split, count in ROWS.items():
        planted = shuffled(random, [n < PLANTED and split == "train" for n in range(count)])
        for n, kind in enumerate(shuffled(random, [kinds[n % len(kinds)] for n in range(count)])):
            scene = draw_scene(random)
            while written(form(scene)) in seen:
                scene = draw_scene(random)
            seen.add(written(form(scene)))
            message = capital(render(random, pick(random, WORDINGS[kind]), scene.slots()))
            fields, mistake = with_mistakes(random, scene) if planted[n] else (form(scene), None)
            row: dict[str, object] = {
                "id": f"{split}-{n + 1:03}",
                "prompt": PROMPT.format(message=message),
                "completion": written(fields),
                "split": split,
                "kind": kind,
                "planted": planted[n],
            }
            made.append(row | ({"mistake": mistake} if mistake else {}))
    return made


def file_text() -> str:
    """The content of the shipped file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    # Bytes, because text mode would write other line ends on Windows.
    FILE.write_bytes(file_text().encode())
