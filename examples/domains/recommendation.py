"""Recommendation: the next film of a user, by two towers with large tables; real ratings.

    python -m examples.domains.recommendation

MovieLens 100k (GroupLens, for research; in the package `recbole`): 100,000 ratings of 1,682 films by 943 users. Liked
films (4 or 5 stars) in order of time: the last of each user is held out, and is to be found among 500 films that he has
not liked before. Ids are hashed into tables with 65,536 rows, as for catalogs that grow; nearly all of the model is these
two tables, so that half precision halves it. The model takes ids, and there is no raw input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from examples.batches import draws
from examples.demo import DemoError
from examples.domains.asking import ask_json
from examples.domains.domain import Domain, Measure
from examples.domains.steps import main

INSTALL = "pip install --no-deps recbole"
LIKED = 4
"""The fewest stars of a film that was liked."""
HISTORY, CANDIDATES, SHOWN = 20, 501, 10
"""Films of a user's history, films to choose from, and films that are shown."""
BUCKETS, SIZE, BATCH = 65_536, 64, 128


class Likes:
    """The films that each user liked, oldest first."""

    def __init__(self) -> None:
        rows = _rows("ml-100k.inter")
        liked = sorted((float(row[3]), int(row[0]), int(row[1])) for row in rows if float(row[2]) >= LIKED)
        by_user: dict[int, list[int]] = {}
        for _, user, film in liked:
            by_user.setdefault(user, []).append(film)
        self.by_user = {user: films for user, films in sorted(by_user.items()) if len(films) >= 3}
        self.titles = {int(row[0]): row[1] for row in _rows("ml-100k.item")}
        self.films = np.array(sorted({int(row[1]) for row in rows}))

    def negatives(self, user: int, random: np.random.Generator, count: int) -> np.ndarray:
        """Return films that a user has not liked, int64[count]."""
        return random.choice(np.setdiff1d(self.films, self.by_user[user]), count, replace=False)


def _rows(name: str) -> list[list[str]]:
    """Return the rows of one of the package's files. Raises DemoError without the package."""
    spec = find_spec("recbole")
    if spec is None or spec.origin is None:
        raise DemoError(f"this example needs recbole: {INSTALL}")
    path = Path(spec.origin).parent / "dataset_example" / "ml-100k" / name
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def bucket(ids: np.ndarray, table: int) -> np.ndarray:
    """Return ids as rows of a table, int64: hashed by a multiplication, with row 0 for padding, the id 0."""
    with np.errstate(over="ignore"):
        mixed = ((ids.astype(np.uint64) + np.uint64(table << 32)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
    return np.where(ids == 0, 0, 1 + mixed % np.uint64(BUCKETS - 1)).astype(np.int64)


def features(user: int, films: list[int], candidates: np.ndarray) -> dict[str, np.ndarray]:
    """Return one row of the model's inputs: `user` int64[], `history` int64[20] and `candidates` int64[n], hashed."""
    recent = np.zeros(HISTORY, np.int64)
    if films:
        recent[: len(films[-HISTORY:])] = films[-HISTORY:]
    return {"user": bucket(np.array(user), 1), "history": bucket(recent, 2), "candidates": bucket(candidates, 2)}


def stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return rows as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class Films:
    """The task for `demi train`: a user and films in, scores out."""

    def __init__(self) -> None:
        self.likes = Likes()
        films, counts = np.unique([film for films in self.likes.by_user.values() for film in films], return_counts=True)
        self.share = np.zeros(films.max() + 1, np.float32)
        self.share[films] = counts / counts.sum()
        self.places = [(user, at) for user, films in self.likes.by_user.items() for at in range(1, len(films) - 1)]

    def model(self) -> Any:
        """Return the two towers."""
        return build()

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield users with their history, and the films that they liked next; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            chosen = [self.places[row] for row in draw.integers(0, len(self.places), BATCH)]
            films = self.likes.by_user
            own = np.array([films[user][at] for user, at in chosen])
            batch = stacked([features(user, films[user][:at], own) for user, at in chosen])
            same = torch.from_numpy((own[:, None] == own[None]) & ~np.eye(BATCH, dtype=bool))
            expected = torch.from_numpy(np.log(self.share[own]))
            yield {name: torch.from_numpy(array) for name, array in batch.items()} | {
                "same": same,
                "log_share": expected,
            }

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the served model takes."""
        return {name: batch[name][:16] for name in ("user", "history", "candidates")}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the cross-entropy of each user's next film among the next films of the batch.

        Popular films are more often in a batch; the logarithm of their share corrects for that.
        """
        import torch
        from torch.nn import functional

        scores = model(batch["user"], batch["history"], batch["candidates"])["scores"].float()
        scores = scores - batch["log_share"]
        scores = scores.masked_fill(batch["same"], -1e4)  # the same film, liked by another user of the batch
        return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def build() -> Any:
    """Return the untrained towers: `user` int64[batch], `history` int64[batch, 20] and `candidates` int64[batch, films]
    in, `scores` float32[batch, films] out.
    """
    import torch
    from torch import nn

    def tower(incoming: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(incoming, 2 * SIZE), nn.ReLU(), nn.Linear(2 * SIZE, SIZE))

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.films = nn.Embedding(BUCKETS, SIZE, 0), nn.Embedding(BUCKETS, SIZE, 0)
            self.of_user, self.of_film = tower(2 * SIZE), tower(SIZE)
            for table in (self.users, self.films):
                nn.init.normal_(table.weight, std=0.1)

        def forward(
            self, user: torch.Tensor, history: torch.Tensor, candidates: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            seen = (history > 0).unsqueeze(2).float()
            liked = (self.films(history) * seen).sum(1) / seen.sum(1).clamp(min=1)
            asked = self.of_user(torch.cat([self.users(user), liked], 1))
            offered = self.of_film(self.films(candidates))
            return {"scores": torch.matmul(offered, asked.unsqueeze(2)).squeeze(2) / SIZE**0.5}

    return Towers()


def hits(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return 1 for each user whose film is among the ten best of all, float64[n]: the metric for `demi check`.

    `labels` are the places of the films among the candidates. A tie counts against the film.
    """
    scores = outputs["scores"]
    own = np.take_along_axis(scores, labels[:, None], 1)
    return ((scores >= own).sum(1) <= SHOWN).astype(np.float64)


def prepare(folder: Path) -> None:
    """Write the users with the candidates held out, and the first one's as a request."""
    likes, random = Likes(), np.random.default_rng(3)
    rows, places = [], []
    for user, films in likes.by_user.items():
        candidates = likes.negatives(user, random, CANDIDATES)
        place = int(random.integers(CANDIDATES))
        candidates[place] = films[-1]
        rows.append(features(user, films[:-1], candidates))
        places.append(place)
    batch = stacked(rows)
    np.savez(folder / "heldout.npz", allow_pickle=False, place=np.array(places), **batch)


def ask(address: str, model: str, folder: Path) -> str:
    """Ask for the films of the first user."""
    likes = Likes()
    user, films = next(iter(likes.by_user.items()))
    unseen = np.setdiff1d(likes.films, films[:-1])
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, *array.shape], "data": array.reshape(-1).tolist()}
        for name, array in features(user, films[:-1], unseen).items()
    ]
    scores = ask_json(address, model, {"inputs": inputs})["scores"][0]
    best = [likes.titles[int(film)] for film in unseen[np.argsort(-scores)[:3]]]
    return f"for a user who liked {likes.titles[films[-2]]} and {likes.titles[films[-3]]}: {', '.join(best)}"


DOMAIN = Domain(
    name="recommendation",
    data="real: MovieLens 100k (recbole)",
    task="examples.domains.recommendation:Films",
    steps=200,
    prepare=prepare,
    measures=(Measure("hit rate at 10 of 501", "examples.domains.recommendation:hits", "heldout.npz", "place"),),
    ask=ask,
    train=("--lr", "3e-3"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
