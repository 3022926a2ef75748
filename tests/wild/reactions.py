"""Atom mapping between reactants and product of a reaction, by the attention of two networks.

Inputs are made as rxnmapper makes them (tokens of SMILES) and as chython does (atoms, neighbours, distances).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.fetch import located
from tests.wild.smiles import Molecule, read_smiles
from tests.wild.task import Run

RXNMAPPER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"

SAMPLES = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "c1ccccc1Br.OB(O)c1ccc(C)cc1>>Cc1ccc(-c2ccccc2)cc1",
    "O=C(Cl)c1ccccc1.NCC1CCCCC1>>O=C(NCC1CCCCC1)c1ccccc1",
    "CC(C)(C)OC(=O)N1CCC(O)CC1.CS(=O)(=O)Cl>>CC(C)(C)OC(=O)N1CCC(OS(C)(=O)=O)CC1",
    "Nc1ccc(F)cc1.O=C(O)CCc1ccccc1>>O=C(CCc1ccccc1)Nc1ccc(F)cc1",
    "OC(=O)C(=C)C=C.C=CC#N>>OC(=O)C1=CCCC(C1)C#N",
    "O=[N+]([O-])c1ccccc1C>>Nc1ccccc1C",
    "CCO.O=C(O)c1ccc([N+](=O)[O-])cc1>>CCOC(=O)c1ccc([N+](=O)[O-])cc1",
    "Clc1ccnc2ccccc12.NCCO>>OCCNc1ccnc2ccccc12",
    "COC(=O)c1ccc(CBr)cc1.CNC>>COC(=O)c1ccc(CN(C)C)cc1",
    "O=Cc1ccco1.NCc1ccccc1>>C(NCc1ccco1)c1ccccc1",
    "CC(C)=O.O=C(NN)c1ccncc1>>CC(C)=NNC(=O)c1ccncc1",
)
HELD_OUT = (
    "O=[N+]([O-])c1ccc(F)cc1.C1COCCN1>>O=[N+]([O-])c1ccc(N2CCOCC2)cc1",
    "CCOC(=O)c1cccnc1.NN>>NNC(=O)c1cccnc1",
    "CC(=O)c1ccc(O)cc1.BrCc1ccccc1>>CC(=O)c1ccc(OCc2ccccc2)cc1",
    "COc1ccc(C=O)cc1.CC(=O)c1ccccc1>>COc1ccc(C=CC(=O)c2ccccc2)cc1",
    "CN(C)CCO.O=C(Cl)C(c1ccccc1)c1ccccc1>>CN(C)CCOC(=O)C(c1ccccc1)c1ccccc1",
)


def attention() -> Any:
    """Return rxnmapper's network without weights, with the head that it reads as output, for `demi export --model`."""
    import torch
    from transformers import AlbertConfig, AlbertForMaskedLM, AlbertModel

    config = AlbertConfig.from_pretrained(located("rxnmapper", f"{RXNMAPPER}/config.json"))
    config._attn_implementation = "eager"

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.albert = AlbertModel(config)
            self.predictions = AlbertForMaskedLM(config).predictions  # of the task it was trained on, in the checkpoint

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            answer = self.albert(input_ids=input_ids, attention_mask=attention_mask, output_attentions=True)
            return answer.attentions[10][:, 5]

    return Attention()


_TOKEN = re.compile(
    r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]"
)
_ATOM = re.compile(r"\[|[A-Za-z]")


@cache
def _vocabulary() -> dict[str, int]:
    lines = located("rxnmapper", f"{RXNMAPPER}/vocab.txt").read_text().splitlines()
    return {token: number for number, token in enumerate(lines)}


def tokens(reaction: str) -> list[str]:
    """Return the tokens of a reaction, between the begin and end tokens."""
    return ["[CLS]", *_TOKEN.findall(reaction), "[SEP]"]


def token_feeds(*reactions: str) -> Feeds:
    """Return reactions as a batch, padded on the right."""
    rows = [[_vocabulary().get(token, _vocabulary()["[UNK]"]) for token in tokens(each)] for each in reactions]
    shape = (len(rows), max(map(len, rows)))
    feeds = {"input_ids": np.zeros(shape, np.int64), "attention_mask": np.zeros(shape, np.int64)}
    for index, row in enumerate(rows):
        feeds["input_ids"][index, : len(row)], feeds["attention_mask"][index, : len(row)] = row, 1
    return feeds


def token_samples(_: Run) -> list[Feeds]:
    """Return reactions in pairs, so that the shorter one is padded."""
    return [token_feeds(*SAMPLES[at : at + 2]) for at in range(0, len(SAMPLES), 2)]


def token_heldout(_: Run) -> list[Feeds]:
    """Return other reactions: one alone, then pairs."""
    return [token_feeds(HELD_OUT[0]), token_feeds(*HELD_OUT[1:3]), token_feeds(*HELD_OUT[3:])]


def token_map(run: Run) -> list[tuple[int, ...]]:
    """Return for each product atom of a held-out reaction the reactant atom of its element with the most attention."""
    found = []
    for reaction in HELD_OUT:
        names = tokens(reaction)
        scores = next(iter(run(token_feeds(reaction)).values()))[0]
        atoms = [at for at, token in enumerate(names) if _ATOM.match(token) and token not in ("[CLS]", "[SEP]")]
        arrow = names.index(">>")
        before, after = [at for at in atoms if at < arrow], [at for at in atoms if at > arrow]
        kinds = np.array([_element(token) for token in names])
        allowed = np.where(kinds[after][:, None] == kinds[before], scores[np.ix_(after, before)], -1)
        found.append(tuple(int(each) for each in allowed.argmax(axis=1)))
    return found


def _element(token: str) -> str:
    """Return the element of a token, without its charge and hydrogens."""
    return re.sub(r"^\[\d*|(?<=[A-Za-z])(@|H|[+-]|:|\d|\]).*$", "", token).capitalize()


ROW, MOLECULE, REACTANT, PRODUCT = 1, 0, 2, 3
"""Roles of chython's tokens: one for the reaction, one for each molecule, and the atoms."""


def graph_feeds(reaction: str) -> Feeds:
    """Return a reaction as one row: its own token, and for each molecule one before its atoms."""
    sides = [[read_smiles(each) for each in side.split(".")] for side in reaction.split(">>")]
    atoms, neighbours, roles, blocks = [0], [0], [ROW], []
    for molecules, role in zip(sides, (REACTANT, PRODUCT), strict=True):
        for molecule in molecules:
            atoms += [1, *(number + 2 for number in molecule.numbers)]
            neighbours += [0, *(min(14, count) + 2 for count in molecule.neighbours)]
            roles += [MOLECULE, *[role] * len(molecule.numbers)]
            blocks.append(_distances(molecule))
    rows = {"atoms": atoms, "neighbors": neighbours, "roles": roles}
    feeds = {name: np.array([row], np.int64) for name, row in rows.items()}
    return {**feeds, "distances": _joined(blocks, len(atoms))[None]}


def _distances(molecule: Molecule) -> Array:
    """Return the number of bonds between atoms, plus two; one to and from the molecule's own token."""
    apart = molecule.distances
    block = np.ones((len(apart) + 1,) * 2, np.int64)
    block[1:, 1:] = np.where(apart < 0, 1, np.minimum(apart, 10) + 2)
    return block


def _joined(blocks: list[Array], size: int) -> Array:
    joined = np.zeros((size, size), np.int64)
    joined[0, 0] = at = 1
    for block in blocks:
        joined[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return joined


def graph_samples(_: Run) -> list[Feeds]:
    """Return reactions one by one, because the network takes no batch."""
    return [graph_feeds(reaction) for reaction in SAMPLES]


def graph_heldout(_: Run) -> list[Feeds]:
    """Return other reactions."""
    return [graph_feeds(reaction) for reaction in HELD_OUT]


def graph_map(run: Run) -> list[tuple[int, ...]]:
    """Return for each product atom of a held-out reaction the likeliest reactant atom, by the sum of both attentions.

    The network cannot tell atoms apart that are alike by the molecule's symmetry: the first of them stands for all.
    """
    found = []
    for feeds in graph_heldout(run):
        scores = next(iter(run(feeds).values()))
        roles, atoms = feeds["roles"][0], feeds["atoms"][0]
        before, after = np.flatnonzero(roles == REACTANT), np.flatnonzero(roles == PRODUCT)
        both = scores[np.ix_(after, before)] + scores[np.ix_(before, after)].T
        alike = atoms[after][:, None] == atoms[before]
        twins = _twins(feeds)
        found.append(tuple(twins[before[each]] for each in np.where(alike, both, -1).argmax(axis=1)))
    return found


def _twins(feeds: Feeds) -> list[int]:
    """Return for each token the first one with the same surroundings, by atomic numbers and distances."""
    own = list(zip(*(feeds[name][0].tolist() for name in ("atoms", "neighbors", "roles")), strict=True))
    around = [tuple(sorted(zip(row, own, strict=True))) for row in feeds["distances"][0].tolist()]
    every = list(zip(own, around, strict=True))
    return [every.index(each) for each in every]
