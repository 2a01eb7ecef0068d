"""The grammar of the synthetic stories, as data: words of each slot, sentence frames, and agreement of pronouns.

A story has four sentences. Each sentence has two frames with the same meaning, so that a story has a paraphrase: the
same words, with the other frame of every sentence. Slots are written {slot}. Frames are in lower case; sentences start
with a capital. There are few words, so that a small model learns them in a minute, but many stories (see
`synthetic_stories.num_stories`).
"""

from __future__ import annotations

# The topic is the class of a story; it determines the possible places and the things found there.
TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "garden": {"place": ("garden", "orchard", "meadow"), "thing": ("rose", "pear", "pumpkin", "basket")},
    "sea": {"place": ("beach", "harbor", "lighthouse"), "thing": ("shell", "fish", "boat", "pearl")},
    "forest": {"place": ("forest", "river", "cabin"), "thing": ("feather", "mushroom", "stone", "pinecone")},
    "town": {"place": ("market", "library", "station"), "thing": ("book", "kite", "hat", "cake")},
}

HEROES = {  # name -> gender
    "Anna": "f", "Clara": "f", "Emma": "f", "Julia": "f", "Lucy": "f", "Rosa": "f",
    "Ben": "m", "David": "m", "Felix": "m", "Hugo": "m", "Leo": "m", "Paul": "m",
}  # fmt: skip
KIN = {"sister": "f", "mother": "f", "grandmother": "f", "brother": "m", "father": "m", "grandfather": "m"}

# Content words, which a paraphrase keeps. "" is an empty slot. No word after "a" begins with a vowel sound, so that the
# article never changes.
CONTENT: dict[str, tuple[str, ...]] = {
    "weather": ("", "cold", "warm", "rainy", "windy", "foggy"),
    "time": ("morning", "afternoon", "evening", "night"),
    "name": tuple(HEROES),
    "went": ("went", "walked", "ran", "hurried"),
    "place": tuple(place for topic in TOPICS.values() for place in topic["place"]),
    "found": ("found", "spotted", "noticed"),
    "look": ("", "red", "blue", "green", "yellow", "white", "tiny", "big", "shiny", "strange", "lovely"),
    "thing": tuple(thing for topic in TOPICS.values() for thing in topic["thing"]),
    "how": ("later", "gladly", "proudly", "quickly"),
    "gave": ("gave", "showed", "brought", "sent"),
    "kin": tuple(KIN),
    "smiled": ("smiled", "laughed", "danced", "cheered"),
    "thanked": ("thanked", "hugged", "kissed", "praised"),
}
OPTIONAL = frozenset(slot for slot, words in CONTENT.items() if "" in words)

# Slot of a pronoun -> slot of the person that it refers to, and its (feminine, masculine) forms.
SUBJECT, POSSESSIVE, OBJECT = ("she", "he"), ("her", "his"), ("her", "him")
PRONOUNS: dict[str, tuple[str, tuple[str, str]]] = {
    "finder": ("name", SUBJECT),
    "giver": ("name", SUBJECT),
    "own": ("name", POSSESSIVE),
    "taker": ("kin", SUBJECT),
    "hero": ("name", OBJECT),
}

FRAMES: tuple[tuple[str, str], ...] = (
    ("one {weather} {time} {name} {went} to the {place}.", "{name} {went} to the {place} one {weather} {time}."),
    ("there {finder} {found} a {look} {thing}.", "{finder} {found} a {look} {thing} there."),
    ("{how} {giver} {gave} it to {own} {kin}.", "{giver} {how} {gave} it to {own} {kin}."),
    ("{taker} {smiled} and {thanked} {hero}.", "{taker} {thanked} {hero} and {smiled}."),
)
