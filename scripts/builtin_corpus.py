"""The text that `builtin:tiny` is pretrained on: stories, notes and chats about small errands, all generated here.

Names, things and places come back within a document, so that a model can lower its loss only by copying from what it
has read; that is the skill which the shipped fine-tuning rows build on. Standard library only, and the same text on
every machine (see `builtin_world`).
"""

import hashlib
import json
from collections.abc import Iterator
from random import Random

from builtin_world import (
    BOYS,
    COLOURS,
    DAYS,
    GIRLS,
    ITEMS,
    NUMBERS,
    PETS,
    PLACES,
    capital,
    draw_scene,
    made_up_name,
    pick,
    render,
    words,
)

SEED = 20250
LESSONS = {"primer": 5_000, "chat": 16_000, "any": 43_000}
"""What is read in turn, and how many documents of each."""
HELD_OUT_DOCUMENTS = 400

Document = list[dict[str, str]]
"""A chat as messages; plain text is one message of role `text`."""

# A plot is a list of sentences. A sentence that starts with `?` is told every second time.
PLOTS = (
    (
        "[{P} lived near the {place}.|There was once a child called {P} who loved {its}.|"
        "{P} had [a small house|a little shop|a job] by the {place}.]",
        "[One {day}|On {day} morning|Early on {day}] {P} [needed|wanted|was looking for] {n} {c} {its}.",
        "?[It was a [warm|cold|windy|rainy|quiet] day.|The [sun|wind|rain] woke {her} up early.]",
        "So {she} [went|walked|ran|hurried|rode {hers} bicycle] to the {place2} and [asked|called|found] {F}.",
        '"[Do you have|Can you spare|Have you got] any {c} {its}?" [asked|said] {P}.',
        '[{F} smiled.|{F} laughed.|{F} thought for a while.|{F} looked around.] "I [only ]have {c2} {its}," said {F}, '
        '"but [the {c} ones come|I can find {c} ones] on {day2}."',
        "[On {day2}|When {day2} came,] {P} [came|went] back to the {place2} and {F} gave {her} {n} {c} {its}.",
        "{P} carried the {its} [home|to the {place}] and was [very ]happy with [them|the {c} {its}].",
    ),
    (
        "{P} [had lost|could not find|was missing] {ac} {it}.",
        "?{She} had [bought|found|made] it at the {place} on {day}, and {she} [loved|needed] it.",
        "{P} looked [in the {place}|behind the {place2}|under the {it2}], but the {it} was not there.",
        'Then {F} came by. "[What are you looking for|What is the matter], {P}?" asked {F}.',
        '"[I am looking for my {c} {it}|My {c} {it} is gone]," said {P}.',
        '"I saw {ac} {it} at the {place2}," said {F}. "It was [next to|under|behind|on] the {it2}."',
        "They [went|ran|walked] to the {place2} together, and there, [next to|under|behind|on] the {it2}, [was|lay] "
        "the {c} {it}.",
        "[{P} thanked {F}|{P} was glad] and [took the {it} home|never lost the {it} again].",
    ),
    (
        "It was {hers} friend's birthday on {day}, and {P} wanted to give {F} [a present|something nice].",
        '"[Would {F} like|Does {F} like] {its} or {its2}?" {she} [wondered|thought].',
        "[At the {place}|In the shop by the {place}] {she} saw {n2} {c2} {its2} and {n} {c} {its}.",
        "The {c2} {its2} cost £{k2} [each|in all], and the {c} {its} cost £{k}.",
        "{P} [chose|bought|took] the {c} {its} and paid £{k}.",
        "[On {day}|When it was {day}] {she} [brought|took] the {its} to {F} at the {place2}.",
        '"{N} {c} {its}!" said {F}. "[How lovely|Thank you|What a surprise], {P}!"',
        "?They put the {its} [on the table|by the window] and [ate cake|sang songs|told stories] until [eight|nine].",
    ),
    (
        "{P} and {F} [worked|met] at the {place}.",
        '"How many {its} [do we have|are there]?" asked {F}. {P} counted [them|the {its}]. "{N}," {she} said.',
        "?{P} wrote it [down|on a card]: {k} {its}.",
        '"And how many {its2}?" asked {F}. {P} counted again. "[There are {n2}|Just {n2}|I think {n2}]," {she} said.',
        "So {P} wrote [a list|it in the book]: {k} {its}, {k2} {its2}.",
        "[On {day}|At {k2}:30 on {day}|At {k2} o'clock] [someone|a man|a woman] from the {place2} came for one {it}.",
        '"[Take|You can have] the {c} {it}," said {P}, "not the {c2} one."',
        "[Then|After that] they [closed|left] the {place} and went home.",
    ),
    (
        "{P} had {ait2} and a {pet} called {pet_name}.",
        "[Every {day}|One {day}] {P} took {pet_name} to the {place}.",
        "{pet_name} [liked|loved] to [run around the {place}|sleep by the {place}|play with {ait}].",
        '?[Suddenly|Then] {pet_name} [ran away|was gone]. "{pet_name}! {pet_name}!" called {P}.',
        '{P} asked {F}, who [lived|worked] [near|at] the {place2}. "Have you seen my {pet}?"',
        '"[Is it|Do you mean] {pet_name}?" said {F}. "Your {pet} is [here|at the {place2}] with {ac} {it}."',
        "And [so it was|there they were]: {pet_name} the {pet} and the {c} {it}.",
        "{P} [laughed|smiled] and [took|brought] {pet_name} home to {town}.",
    ),
    (
        "In [the town of ]{town} there was [an old|a small|a big] {place}.",
        "[Nobody|Only {P}] [knew|remembered] who had built the {place} in {town}.",
        "{P} [came|moved] to {town} on {day} with {n} {its} and {ac} {it2}.",
        '"Welcome to {town}," said {F}. "[Where will you put|What will you do with] the {n} {its}?"',
        '"I will put the {its} in the {place}," said {P}, "and the {it2} [goes to|is for] the {place2}."',
        "?{F} helped {her} [carry|wash|paint] the {its}. [They painted the {its} {c}.|It took {n2} hours.]",
        "[By {day2}|On {day2}] the {place} [was ready|looked new], and all of {town} came to see it.",
    ),
    (
        "{P} [ordered|asked for] {n2} {c2} {its} [from|at] the {place}.",
        "But [on {day}|the next day] {she} [changed {hers} mind|thought again].",
        '"[Please|Could you] make [it|that] {n}," {she} [wrote|told {F}], "and {c} [instead of|rather than] {c2}."',
        '{F} [wrote|noted] it [down|on a card]: "{k} {c} {its} for {P}, not {k2}."',
        "[On {day2}|When {day2} came] {F} [brought|sent] {n} {c} {its} to the {place2}.",
        "[{P} counted the {its}.|{P} opened the box.] There were {n}, and they were all {c}.",
        "?{P} [thanked|paid] {F} and [hung|put] the {c} {its} [in the {place2}|near the {it2}].",
    ),
)

NOTES = (
    "Dear {F},\n[please bring|could you bring|I need] {n} {c} {its} to the {place} [on|by] {day}. [Not the {c2} ones!|"
    "I will pay you then.|The {its2} can stay at the {place2}.]\n[Thank you|Love|Yours], {P}",
    "[To|For] {F}: {P} [called|was here]. {She} wants {n} {c} {its}[| for the {place}|, not {c2} ones]. [Meet {her}|"
    "{She} will wait] at the {place2} on {day} at {k2} o'clock.",
    "Note from {P}\nDay: [we meet on|see you on] {day}\n[I will bring|We need] {n} {its} and {n2} {its2}. "
    "[The {its} are {c}|All {its} should be {c}].\n[Please tell {F}|Ask {F} about the {its2}].",
    "[Hello|Hi] {F}, this is {P}. [The {c} {its} are|My {n} {c} {its} are] [ready|still] at the {place}. [Can you|"
    "Could you] [fetch|get] them on {day}? I am at the {place2} until {day2}.",
    "Market day at the {place}, {day} at {k2}:30. [{P} sells|Come to {P} for] {c} {its} (£{k} each) and {c2} {its2} "
    "(£{k2} each). [Ask for {P}|Speak to {F}] at the {place2}.",
)

# People talking by short messages, and what a third person would say about it.
DIALOGUES = (
    (
        "{P}: [Hi|Hello|Hey] {F}, [are you there|do you have a minute|how are you]?\n{F}: [Yes|Sure|Hi], what [is it|"
        "do you need]?\n{P}: I need {n} {c} {its} [on|by] {day} :-)\n{F}: [OK|No problem], I will bring them to the "
        "{place}.\n{P}: [Thanks!|Great, see you there!]",
        "{P} needs {n} {c} {its} on {day}. {F} will bring them to the {place}.",
    ),
    (
        "{F}: [Did you see|Where is] my {c} {it}?\n{P}: [No|Not here], sorry. [Did you look at|Is it not at] "
        "the {place2}?\n{F}: [Yes, it is not there :(|I did!]\n{P}: Then ask at the {place}. I saw {ac} {it} there on "
        "{day}.\n{F}: [You are the best!|I will, thank you.]",
        "{F} is looking for {ac} {it}. {P} saw one at the {place} on {day}.",
    ),
    (
        "{P}: [Shall we|Do you want to] meet at the {place} on {day}?\n{F}: I can't, I have to paint {n} {its} {c}.\n"
        "{P}: [And|What about] {day2}?\n{F}: {day2} is fine. At {k2}?\n{P}: [Perfect|OK], at {k2}. I'll bring {its2}.",
        "{P} and {F} will meet at the {place} on {day2} at {k2}, because {F} has to paint {its} on {day}.",
    ),
)
SUM_UP = "[Sum up this talk:|What is this talk about?|Tell me in short what they said:]\n"

# Places to eat, for a wider choice of words.
EATERIES = (
    "{Eat} is a [cheap|family-friendly|quiet|popular|new] [restaurant|pub|coffee shop|café] [near the {place}|in the "
    "city centre|by the riverside]. It [serves|offers|has] {food} food [for £{k}|in the high price range|at moderate "
    "prices|for less than £20]. [Its customer rating is {k} out of 12.|Customers like it.|It has a low rating.|It is "
    "rated 5 stars.] [Children are welcome.|It is not for families.|You can find it next to {Eat2}.]",
    "[If you like|For] {food} food, [go to|try|visit] {Eat}, a [restaurant|pub|coffee shop] near {Eat2} [in the city "
    "centre|by the river|at the {place}]. [It is expensive but good|The price is about £{k}|It is average]. {P} and "
    "{F} ate there on {day}[ and loved it|, but {P} did not like it|].",
)
FOODS = words("English French Italian Indian Chinese Japanese Spanish Turkish Greek fast fresh")
EATERY_NAMES = words("Eagle Mill Punter Lion Star Moon Rose Wheel Phoenix Garden Palace Kitchen Corner Bridge Crown")

# Every printable character of English text and some beyond, so that none of them is new to the model in tuning.
CHARACTERS = [chr(code) for code in range(33, 127)] + list("£€éèüöäñçàâêô’“”–…°½")
LETTERS = "aaabcdeeeeffghhiiijklllmnnnooopqrrrsssttttuuuvwxyyz"

# What a passage in a chat may say about a scene, and which facts a reader then knows.
PASSAGES = (
    "{P} [wants|would like|needs|asks for] {n} {c} {its}. [They go|Please send them|They should go] to the {place} on "
    "{day}.",
    "[On {day}|This {day}] {P} [wants|needs] {n} {c} {its} at the {place}.",
    "[Please send|Send|Bring] {n} {c} {its} to the {place} on {day}. They are for {P}[|, who lives there|, not {F}].",
    "{P} [asked|wrote to] {F}: [please|could you] bring {n} {c} {its} to the {place} [by|on] {day}.",
    "{P} wanted {n} {c2} {its} at the {place} on {day}, [but then chose|no, make that|sorry, I mean] {c}[| ones].",
    "{P} [ordered|asked for] {n2} {c} {its}, [no, wait, {n}|then made it {n}|but now wants {n}]. They go to the "
    "{place} on {day}.",
    "{P} needs {n} {c} {its} at the {place}. [Not on {day2} but on {day}|On {day}, not on {day2}|First it was {day2}, "
    "now it is {day}].",
    "{F} [has|keeps|sells] {its2} at the {place2}, but {P} [wants|needs] {n} {c} {its} for the {place} on {day}.",
    "{P} does not want [any |]{its2}. {She} [wants|would like] {n} {c} {its}, [sent to|brought to|at] the {place} on "
    "{day}.",
    "The {place} is open on {day}. {P} will be there and [needs|takes] {n} {its}[|, all of them {c}|, the {c} ones]. "
    "[The {its} must be {c}.|They are {c}.]",
    "For {P}: {k} {its}, {c}, on {day}, [at|to] the {place}. [{F} pays.|{F} gets the {its2}.|Nothing for {F}.]",
    "I am {P}. I [need|would like|want] {k} {c} {its} on {day}. [The place is|Bring them to|I am at] the {place}.",
)

# Questions with the answer in a sentence and the answer in a word.
QUESTIONS = (
    ("[What colour are the {its}|Which colour|Which colour does {P} want]?", "The {its} are {c}.", "{c}"),
    ("[What does {P} want|What is needed|What things are they]?", "{P} wants {n} {c} {its}.", "{its}"),
    ("[How many {its} are there|How many|How many {its}]?", "There are {n} {its}.", "{n}"),
    ("How many {its}? [In figures.|Write a number.|Use digits.]", "It is {k}.", "{k}"),
    ("[Who wants the {its}|Who needs them|Who are the {its} for]?", "The {its} are for {P}.", "{P}"),
    ("[When|On which day|What day is it]?", "It is on {day}.", "{day}"),
    ("[Where|Where do they go|Which place is it]?", "They go to the {place}.", "{place}"),
    ("[What is one of them called?|Name one of the things.|What do we call one of them?]", "It is {ait}.", "{it}"),
    (
        "[Say it in one sentence.|Please sum it up.|What do we know?|Tell me all of it.]",
        "{P} wants {n} {c} {its} at the {place} on {day}.",
        "{k} {c} {its}, {place}, {day}, {P}",
    ),
)
IN_SENTENCES = "Answer in a full sentence."
IN_WORDS = "Answer in as few words as you can."

GREETINGS = (
    ("[Hello!|Hi!|Good morning.]", "[Hello!|Hi!] What would you like to [know|read]?"),
    (
        "Who are you?|What are you?|What can you do?",
        "I am a very small language model. I can tell short stories and answer questions about them.",
    ),
    ("[Thank you.|Thanks!|That is all.]", "You are welcome. [Goodbye!|See you soon.]"),
)


def draw_slots(random: Random, held_out: bool) -> dict[str, str]:
    """The words of a scene that belongs to the wanted part, and those that only stories use."""
    scene = draw_scene(random)
    while scene.held_out != held_out:
        scene = draw_scene(random)
    extra = {"pet": pick(random, PETS), "pet_name": made_up_name(random), "town": made_up_name(random)}
    return scene.slots() | extra


def story(random: Random, slots: dict[str, str]) -> str:
    """A story of one paragraph."""
    told = [line for line in pick(random, PLOTS) if line[0] != "?" or random.random() < 0.5]
    return " ".join(capital(render(random, line.lstrip("?"), slots)) for line in told)


def questions_chat(random: Random, slots: dict[str, str]) -> Document:
    """A passage and one to four questions about it, answered in sentences or, when told so, in words."""
    short = random.random() < 0.4
    system = [{"role": "system", "content": IN_WORDS if short else IN_SENTENCES}]
    messages = system if short or random.random() < 0.3 else []
    passage = render(random, pick(random, PASSAGES), slots)
    for turn in range(1 + int(random.random() * 4)):
        question, sentence, word = pick(random, QUESTIONS)
        asked = capital(render(random, question, slots))
        # The question may stand on either side of the passage: the reader must look both ways.
        if turn == 0:
            asked = f"{passage} {asked}" if random.random() < 0.6 else f"{asked} {passage}"
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": render(random, word if short else sentence, slots)})
    return messages


def story_chat(random: Random, slots: dict[str, str]) -> Document:
    """A wish for a story, and the story."""
    wish = "[Tell me|Please tell me|Write] a [short |]story about {P}[| and {F}| and {ac} {it}| at the {place}]."
    return [
        {"role": "user", "content": render(random, wish, slots)},
        {"role": "assistant", "content": story(random, slots)},
    ]


def greeting_chat(random: Random) -> Document:
    """A little courtesy."""
    asked, answered = pick(random, GREETINGS)
    return [
        {"role": "user", "content": pick(random, render(random, asked, {}).split("|"))},
        {"role": "assistant", "content": render(random, answered, {})},
    ]


def counting(random: Random) -> str:
    """A line that ties figures to words, or the days to their order."""
    first = 1 + int(random.random() * 6)
    if random.random() < 0.3:
        days = DAYS[first % 7 :] + DAYS[: first % 7]
        return f"The days are {', '.join(days[:-1])} and {days[-1]}."
    numbers = range(first, first + 6)
    return "We count: " + ", ".join(f"{n} is {NUMBERS[n]}" for n in numbers) + "."


def dialogue_chat(random: Random, slots: dict[str, str]) -> Document:
    """A talk by short messages, and what it was about."""
    talk, summary = pick(random, DIALOGUES)
    question = render(random, SUM_UP + talk, slots)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": render(random, summary, slots)}]


def eatery(random: Random, slots: dict[str, str]) -> str:
    """A few sentences about a place to eat."""
    names = {"Eat": eatery_name(random), "Eat2": eatery_name(random), "food": pick(random, FOODS)}
    return capital(render(random, pick(random, EATERIES), slots | names))


def eatery_name(random: Random) -> str:
    """Such as `The Red Lion` or `Pelrin's`."""
    if random.random() < 0.4:
        return made_up_name(random) + "'s"
    return f"The {capital(pick(random, COLOURS))} {pick(random, EATERY_NAMES)}"


def copying_chat(random: Random) -> Document:
    """A line of made-up words and codes, to be repeated: only what was read helps."""
    alphabets = (CHARACTERS, LETTERS, LETTERS)
    words = []
    for _ in range(1 + int(random.random() * 5)):
        alphabet = pick(random, alphabets)
        words.append("".join(pick(random, alphabet) for _ in range(1 + int(random.random() * 7))))
    line = " ".join(words)
    ask = pick(random, ("Repeat this: ", "Say it again: ", "Copy: "))
    return [{"role": "user", "content": ask + line}, {"role": "assistant", "content": line}]


def primer(random: Random) -> Document:
    """Four to sixteen words of the world, to be repeated."""
    pools = (GIRLS + BOYS, ITEMS, COLOURS, PLACES, DAYS, NUMBERS)
    line = " ".join(pick(random, pick(random, pools)) for _ in range(4 + int(random.random() * 13)))
    return [{"role": "user", "content": line}, {"role": "assistant", "content": line}]


def chat(random: Random, slots: dict[str, str]) -> Document:
    """A chat of any kind."""
    share = random.random()
    if share < 0.76:
        return questions_chat(random, slots)
    if share < 0.82:
        return story_chat(random, slots)
    if share < 0.91:
        return dialogue_chat(random, slots)
    if share < 0.98:
        return copying_chat(random)
    return greeting_chat(random)


def text(random: Random, slots: dict[str, str]) -> str:
    """A document that is no chat."""
    share = random.random()
    if share < 0.03:
        return counting(random)
    if share < 0.15:
        return eatery(random, slots)
    if share < 0.20:
        return render(random, pick(random, DIALOGUES)[0], slots)
    if share < 0.45:
        return render(random, pick(random, NOTES), slots)
    return story(random, slots)


def document(random: Random, held_out: bool) -> Document:
    """A chat or a text whose scene belongs to the wanted part."""
    slots = draw_slots(random, held_out)
    if random.random() < 0.65:
        return chat(random, slots)
    return [{"role": "text", "content": text(random, slots)}]


def documents(held_out: bool) -> Iterator[Document]:
    """The training documents, or the held-out ones: a stream each, with no scene in common.

    To be read in this order: first nothing but copying, then chats, then everything. With these lessons, wider initial
    weights and the loss on answers only, looking up an answer in what was read is learned early; a first attempt
    without all three had not learned it after three million tokens. Which mattered most was not measured apart.
    """
    random = Random(SEED + held_out)
    if held_out:
        yield from (document(random, held_out) for _ in range(HELD_OUT_DOCUMENTS))
        return
    yield from (primer(random) for _ in range(LESSONS["primer"]))
    yield from (chat(random, draw_slots(random, held_out)) for _ in range(LESSONS["chat"]))
    yield from (document(random, held_out) for _ in range(LESSONS["any"]))


def corpus_sha256() -> str:
    """The hash of all documents, training before held-out, one JSON array a line."""
    digest = hashlib.sha256()
    for held_out in (False, True):
        for messages in documents(held_out):
            digest.update(json.dumps(messages, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
