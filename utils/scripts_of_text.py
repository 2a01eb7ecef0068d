"""Scripts whose words stand without blanks between them, so that their characters count as words."""

from __future__ import annotations

# names of the Unicode property Script; East Asian, Southeast Asian, Tibetan
UNSPACED_SCRIPTS = (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Tangut", "Nushu",
    "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom",
    "Javanese", "Balinese", "Cham",
)  # fmt: skip
# their characters, as the inside of a character class of a regular expression; the marks of a long vowel have no script
UNSPACED = "".join(rf"\p{{{script}}}" for script in UNSPACED_SCRIPTS) + "\u30fc\uff70"
