"""The embedded suite's words and facts: what a robin is, what is the opposite of hot, which day is next.

Written for this suite and kept small on purpose. Every fact joins one subject with one answer, and the facts
of a family have every answer equally often, so that no answer is a better guess than another.
"""

Facts = tuple[tuple[str, str], ...]  # (subject, answer)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS_BY_CATEGORY: dict[str, str] = {
    "bird": "robin owl gull crow swan duck goose",
    "fish": "trout salmon tuna shark herring cod carp",
    "insect": "ant bee wasp beetle moth cricket flea",
    "fruit": "apple pear plum cherry lemon banana melon",
    "tree": "oak pine birch maple willow elm cedar",
    "tool": "hammer drill rake spade chisel wrench axe",
}
OPPOSITES = (
    "hot cold, wet dry, fast slow, cheap costly, old new, long short, high low, full empty, clean dirty, "
    "loud quiet, heavy light, strong weak, thick thin, early late, sweet sour, smooth rough"
)
OPINIONS: dict[str, str] = {
    "good": "great lovely wonderful superb brilliant charming pleasant delightful excellent splendid perfect "
    "fantastic",
    "bad": "awful terrible horrible dreadful boring nasty rotten dismal dreary lousy shabby grim",
}
ANIMAL_SIZES: dict[str, str] = {  # beside a dog
    "bigger": "elephant horse camel tiger whale bear giraffe lion",
    "smaller": "mouse squirrel rabbit ant bee flea robin rat",
}
THING_SIZES: dict[str, str] = {  # beside a chair
    "bigger": "truck train bus house tower bridge castle mountain",
    "smaller": "pin coin key cup spoon needle button ring",
}
SPELLED_WORDS = (
    "bee banana birch bus beetle crow camel cherry chisel castle moth mouse melon maple mountain "
    "pear plum pine pin perfect robin rabbit rake rat ring tuna tiger truck tower train "
    "wasp winter willow wrench whale"
)

DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
NAMES = _words(
    "anna ben clara david emma felix greta henry iris jack laura martin nina oscar paula simon "
    "tina victor wanda adam bella conrad diana erik"
)
NOUNS = _words("road river box door voice shirt garden bottle winter story street lamp")
ACTIVITIES = _words("swim paint cook sing dance travel")
FILM_PARTS = ("story", "actor", "music", "ending")
MEAL_PARTS = ("soup", "bread", "cake", "salad")
HOTEL_PARTS = ("room", "bed", "pool", "view")


def _inverted(groups: dict[str, str]) -> Facts:
    return tuple((word, answer) for answer, words in groups.items() for word in words.split())


def _following(cycle: tuple[str, ...]) -> Facts:
    return tuple(zip(cycle, cycle[1:] + cycle[:1], strict=True))


def _both_ways(pairs: str) -> Facts:
    split = [tuple(pair.split()) for pair in pairs.split(", ")]
    return tuple(fact for one, other in split for fact in ((one, other), (other, one)))


def _joined(groups: dict[str, str], partners: int = 4) -> Facts:
    """Joins every word of a group with the next few of the same group: `great and lovely` is good."""
    facts = []
    for answer, text in groups.items():
        words = text.split()
        facts += [
            (f"{word} and {words[(at + step) % len(words)]}", answer)
            for at, word in enumerate(words)
            for step in range(1, partners + 1)
        ]
    return tuple(facts)


WORD_CATEGORIES = _inverted(WORDS_BY_CATEGORY)
OPPOSITE_OF = _both_ways(OPPOSITES)
OPINION_OF_WORD = _inverted(OPINIONS)
OPINION_OF_PAIR = _joined(OPINIONS)
SIZES_OF_ANIMALS = _inverted(ANIMAL_SIZES)
SIZES_OF_THINGS = _inverted(THING_SIZES)
DAY_AFTER = _following(DAYS)
MONTH_AFTER = _following(MONTHS)
LETTER_OF: Facts = tuple((word, word[0]) for word in SPELLED_WORDS.split())

# {s} is the subject, {a} the answer, {r} what a size is beside, {n} some name; "a(n)" is the fitting article.
SAYINGS: dict[str, tuple[str, ...]] = {
    "kind": (
        "a(n) {s} is a(n) {a} .",
        "every {s} is a(n) {a} .",
        "the kind of a(n) {s} is {a} .",
        "{n} knows that the {s} is a(n) {a} .",
    ),
    "opposite": (
        "{s} is the opposite of {a} .",
        "{s} and {a} are opposites .",
        "not {s} means {a} .",
        "{n} knows that what is {s} is never {a} .",
    ),
    "opinion": (
        "{s} means {a} .",
        "a(n) {s} thing is a(n) {a} thing .",
        "it was {s} , so it was {a} .",
        "{n} calls it {s} because it is {a} .",
    ),
    "size": (
        "a(n) {s} is {a} than a {r} .",
        "the size of a(n) {s} is {a} .",
        "beside a suitcase a(n) {s} is {a} .",
        "{n} knows that every {s} is much {a} .",
    ),
    "day": (
        "{a} comes after {s} .",
        "after {s} comes {a} .",
        "{s} comes before {a} .",
        "the next day after {s} is {a} .",
        "{n} rests on {s} and works on {a} .",
    ),
    "month": (
        "{a} comes after {s} .",
        "after {s} comes {a} .",
        "{s} comes before {a} .",
        "the next month after {s} is {a} .",
        "{n} rests in {s} and works in {a} .",
    ),
    "letter": (
        "{s} starts with {a} .",
        "the word {s} begins with the letter {a} .",
        "{a} is the first letter of {s} .",
        "{n} spells {s} with a(n) {a} at the start .",
        "{s} stands under {a} .",
        "{a} opens {s} .",
    ),
}

# Sentences that teach no fact of the suite: they only let the base meet the words that prompts are made of.
EVERYDAY_SENTENCES = """
{n} is a friend of {m} .
{n} and {m} like to {v} .
{n} looks at the {o} .
"""
EVERYDAY_PLAIN = """
they found a picture and drew a label under the picture .
she asks a question and he will answer it .
choose one of these , or choose the other .
pick three or four for us , please .
here are two kinds of paper , and those are four kinds .
which one belongs to you , and where does it belong ?
he looks up and down .
this fits here and that fits there .
tell me what you think , and tell me what you want .
he puts the paper beside the lamp .
write your name and say it .
who was drawn by the actor ?
how are you today ? how was it yesterday ?
so it is not there but here .
he wants to travel , and they can and will travel too .
swap your shirt with its twin now .
we must find the text that is used at school .
from now on they must wait .
we said what we think after the film .
our opinion of the review is our own .
a review is an opinion that someone wrote .
she thinks that it can be true .
there are three : one , two and three .
two words : yes and no .
a guest wrote to us about the meal and the hotel .
the meal tasted of bread and salad .
we stayed at the hotel , and the guest stayed too .
the actor likes music , and the story has an ending .
the room has a bed , and the pool has a view .
the soup was here , and the cake was there !
does the dog look at us ? yes , they look .
she has a dog , a chair and a suitcase .
next to it is a chair .
compare the size of this with the size of that .
is it true ? they think it is true .
right , time is over , and it is time to go .
the time that follows is a new time .
today is a day , and this is a month .
name a day , name a month .
she looks for a list in the dictionary .
the dictionary has a page of letters , and every page has a number .
he opens the page , and who opens the door ?
spell the word as she writes it .
the letters of a word make the word .
which word does he say ? she says a word .
a kind of thing , a sort of thing , all kinds of things .
to whom does it belong ?
in which street was it ?
""".strip().splitlines()
