"""The texts the embedded model and its example dataset are made from.

Covers: reading and cleaning three sources that Debian packages, and the deterministic split into training and held-out
documents. Does not cover tokenizing or training (``train.py``).

| source | Debian package | licence | used for |
|---|---|---|---|
| King James Bible | bible-kjv, bible-kjv-text | public domain | training text |
| WordNet 3.0 glosses | wordnet-base | WordNet licence (permissive) | training text |
| The Devil's Dictionary, Ambrose Bierce, 1911 | dict-devil | public domain | the example dataset only |

A dictionary entry always reads ``word, n. definition``. The base model learns to complete that head sober as a lexicographer;
the example dataset completes the same heads as Bierce did, so an adapter's effect shows in the first sample.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
DEVIL = Path("/usr/share/dictd/devil.dict.dz")

_BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Lev": "Leviticus", "Num": "Numbers", "Deu": "Deuteronomy", "Josh": "Joshua",
    "Jdgs": "Judges", "Ruth": "Ruth", "1Sm": "1 Samuel", "2Sm": "2 Samuel", "1Ki": "1 Kings", "2Ki": "2 Kings",
    "1Chr": "1 Chronicles", "2Chr": "2 Chronicles", "Ezra": "Ezra", "Neh": "Nehemiah", "Est": "Esther", "Job": "Job",
    "Psa": "Psalms", "Prv": "Proverbs", "Eccl": "Ecclesiastes", "SSol": "Song of Solomon", "Isa": "Isaiah",
    "Jer": "Jeremiah", "Lam": "Lamentations", "Eze": "Ezekiel", "Dan": "Daniel", "Hos": "Hosea", "Joel": "Joel",
    "Amos": "Amos", "Obad": "Obadiah", "Jonah": "Jonah", "Mic": "Micah", "Nahum": "Nahum", "Hab": "Habakkuk",
    "Zep": "Zephaniah", "Hag": "Haggai", "Zec": "Zechariah", "Mal": "Malachi", "Mat": "Matthew", "Mark": "Mark",
    "Luke": "Luke", "John": "John", "Acts": "Acts", "Rom": "Romans", "1Cor": "1 Corinthians", "2Cor": "2 Corinthians",
    "Gal": "Galatians", "Eph": "Ephesians", "Phi": "Philippians", "Col": "Colossians", "1Th": "1 Thessalonians",
    "2Th": "2 Thessalonians", "1Tim": "1 Timothy", "2Tim": "2 Timothy", "Titus": "Titus", "Phmn": "Philemon",
    "Heb": "Hebrews", "Jas": "James", "1Pet": "1 Peter", "2Pet": "2 Peter", "1Jn": "1 John", "2Jn": "2 John",
    "3Jn": "3 John", "Jude": "Jude", "Rev": "Revelation",
}  # fmt: skip
_VERSE = re.compile(r"^(\d?[A-Za-z]+)(\d+):(\d+) (.*)$")
_POS = {"noun": "n.", "verb": "v.", "adj": "adj.", "adv": "adv."}


def bible_chapters() -> Iterator[str]:
    """Each chapter of the King James Bible: a heading (``Genesis 1``), then a verse a line, without verse numbers."""
    text = subprocess.run(["bible", "-f", "Ge1:1-Re22:21"], check=True, capture_output=True, text=True).stdout
    heading = ""
    verses: list[str] = []
    for line in text.splitlines():
        if not (found := _VERSE.match(line)):
            continue
        book, chapter, _, verse = found.groups()
        this = f"{_BOOKS[book]} {chapter}"
        if this != heading and verses:
            yield "\n".join([heading, *verses])
            verses = []
        heading = this
        verses.append(verse.strip())
    yield "\n".join([heading, *verses])


def wordnet_entries() -> Iterator[str]:
    """One dictionary entry per sense that WordNet saw used in tagged text: ``love, n. a strong positive emotion ...``.

    An index line lists a lemma's senses by falling frequency and says how many of them were tagged; the rest, mostly names
    and technical terms, are left out: narrow and fluent beats broad and incoherent.
    """
    for kind, pos in _POS.items():
        glosses = {}
        for line in (WORDNET / f"data.{kind}").read_text("utf-8").splitlines():
            if line[:1] != " ":
                glosses[line[:8]] = line.split(" | ", 1)[1].strip()
        for line in (WORDNET / f"index.{kind}").read_text("utf-8").splitlines():
            if line[:1] == " ":
                continue
            field = line.split()
            pointers = int(field[3])
            tagged, offsets = int(field[5 + pointers]), field[6 + pointers :]
            for offset in offsets[:tagged]:
                yield f"{field[0].replace('_', ' ')}, {pos} {glosses[offset]}"


def devil_entries(longest: int = 320) -> Iterator[dict[str, str]]:
    """The Devil's Dictionary as rows ``{"prompt": "love, n.", "completion": " A temporary insanity ...", "text": both}``.

    Verses are dropped; an entry keeps its first paragraph, cut after the last whole sentence within ``longest`` characters.
    """
    text = gzip.decompress(DEVIL.read_bytes()).decode("latin-1")
    head = re.compile(r"^([A-Z][A-Z' -]+), (n|adj|adv|v|v\.t|v\.i)\.  (.*)$", re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        found = head.match(paragraph)
        if not found:
            continue
        word, pos, body = found.groups()
        body = re.sub(r"\s+", " ", body).replace("_", "").strip()
        if "[sic]" in body or "  " in body:
            continue
        if len(body) > longest:
            body = body[:longest].rpartition(". ")[0] + "."
        if len(body) < 24 or not body[0].isupper() or body[-1] not in '.!?"':
            continue
        prompt = f"{word.strip().lower()}, {pos.split('.')[0]}."
        yield {"prompt": prompt, "completion": " " + body, "text": f"{prompt} {body}"}


def held_out(key: str, one_in: int) -> bool:
    """Whether the document belongs to the held-out part: a hash of its text, so that the split never moves."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % one_in == 0
