"""Messages to a customer service, written for the example: phrases by intent, filled in with products and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PHRASES = {
    "track order": (
        "where is my order {order}", "has my {product} been sent yet", "when will the {product} arrive",
        "I am still waiting for my parcel to {city}", "can you tell me the delivery date of {order}",
        "the tracking page for {order} shows nothing", "my delivery is late", "is the {product} on its way",
        "it has been ten days and the box has not come", "what is taking my shipment so long",
        "could you look up the status of {order}", "the courier never came by with my {product}",
    ),
    "return item": (
        "I want to send the {product} back", "how do I return {order}", "the {product} does not fit, can I return it",
        "please give me a label for a return", "can I bring the {product} back to the shop in {city}",
        "I changed my mind about the {product}", "how long do I have for a return", "this is not what I ordered, take it back",
        "I would rather not keep the {product}", "where do I post an item that I do not like",
        "what is your policy for items sent back", "I bought the wrong size and need to swap it",
    ),
    "refund": (
        "when do I get my money back for {order}", "my refund has not arrived", "you still owe me the money for the {product}",
        "I returned the {product} and nothing was credited", "please refund {order}", "how long does a refund take",
        "the amount that came back is too small", "I want my money back", "the reimbursement for {order} is missing",
        "no sign of the credit on my card after the return", "I was promised a repayment last week",
        "will I be paid back in full for the {product}",
    ),
    "broken item": (
        "the {product} does not switch on", "my {product} arrived broken", "there is a crack in the {product}",
        "the {product} stopped working after two days", "a part of the {product} is missing", "the {product} makes a strange noise",
        "it came with a scratch all over", "the battery of my {product} is dead", "smoke came out of the {product}",
        "the screen of the {product} stays black", "my new {product} is faulty", "the handle fell off as I opened the box",
    ),
    "change address": (
        "I have moved to {city}, please change my address", "send {order} to another address", "my street is spelled wrong",
        "can the parcel go to my office in {city} instead", "update the delivery address of {order}",
        "I gave you the wrong house number", "please use my new address from now on", "I will be in {city}, deliver it there",
        "the postcode on {order} is not right", "we are relocating next month, correct our details",
        "is it possible to redirect {order} to my neighbour", "I typed the old flat by mistake",
    ),
    "payment": (
        "my card was declined", "can I pay for the {product} by invoice", "I was charged twice for {order}",
        "which cards do you take", "the payment page does not load", "can I pay in three instalments",
        "there is a charge from you that I do not recognize", "my voucher is not accepted", "do you take bank transfers",
        "the checkout rejects my credit card", "I see the same amount two times on my statement",
        "how can I settle the bill for {order}",
    ),
    "account": (
        "I forgot my password", "I cannot log in", "please delete my account", "how do I change my e-mail address",
        "the link to reset my password does not work", "my account is locked", "I do not get the code for signing in",
        "close my profile and remove my data", "the login page says that I do not exist", "I lost access to my user name",
        "someone else has signed in as me", "how can I set a new passphrase",
    ),
    "cancel order": (
        "please cancel {order}", "I do not need the {product} any more, stop the order", "can I still cancel",
        "I ordered the {product} twice, cancel one of them", "do not send {order}", "I want to withdraw my order of the {product}",
        "stop {order} before it ships", "I made a mistake, please drop the order", "call off my purchase of the {product}",
        "it is cheaper elsewhere, so scrap {order}", "is it too late to undo what I just bought",
        "never mind the {product}, I no longer want it sent",
    ),
}  # fmt: skip
INTENTS = tuple(PHRASES)
HELD_OUT = 4
"""Phrases of each intent, the last ones, that are not trained on."""

PRODUCTS = (
    "kettle",
    "headphones",
    "lamp",
    "blue jacket",
    "coffee machine",
    "phone case",
    "vacuum cleaner",
    "desk",
    "camera",
)
CITIES = ("Leeds", "Porto", "Austin", "Graz", "Lyon", "Osaka")
BEFORE = ("", "", "", "hi, ", "hello, ", "good morning, ", "sorry to bother you, but ", "urgent: ")
AFTER = ("", "", "?", ".", "!!", " please", ", thanks", " thank you", " - it is the third time that I write")


@dataclass(frozen=True, slots=True)
class Message:
    """A message, and the number of its intent."""

    text: str
    intent: int


def messages(count: int, seed: int, *, heldout: bool) -> list[Message]:
    """Return messages made of the phrases held out, or of the others; the same ones for the same seed."""
    random = np.random.default_rng(seed)
    return [_message(int(random.integers(len(INTENTS))), random, heldout=heldout) for _ in range(count)]


def _message(intent: int, random: np.random.Generator, *, heldout: bool) -> Message:
    phrases = PHRASES[INTENTS[intent]]
    phrase = _one_of(phrases[-HELD_OUT:] if heldout else phrases[:-HELD_OUT], random)
    text = phrase.format(
        order=f"order {random.integers(10_000, 99_999)}",
        product=_one_of(PRODUCTS, random),
        city=_one_of(CITIES, random),
    )
    text = _one_of(BEFORE, random) + text + _one_of(AFTER, random)
    return Message(_with_slip(text, random) if random.random() < 0.3 else text, intent)


def _one_of(values: Sequence[str], random: np.random.Generator) -> str:
    return values[int(random.integers(len(values)))]


def _with_slip(text: str, random: np.random.Generator) -> str:
    """Return a text with two neighbouring letters swapped, as one types in a hurry."""
    place = int(random.integers(0, len(text) - 1))
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
