"""The built-in preference world: prompts, responses and preferences whose true reward is known.

A prompt is one question (a fact, a sum, a word to repeat, a choice of two) and, most often, one instruction on the form
of the answer. Responses vary independently in four things: whether the answer is right, whether the instruction is
followed, how long they are, and how polite. The true reward reads all four off the text, so it works for any text a
policy may write, and preferences are drawn from it by the Bradley-Terry model:

    P(a beats b) = sigmoid(reward(a) - reward(b))

Each pair carries that probability, so the best accuracy that any model can have on the drawn labels is known exactly:
`ceiling`. Hardly any of it is within reach of a model that reads the responses alone: an answer that is right here is
wrong there, and what one instruction asks for, the next does not want.

Training and held-out draws never share a prompt: a prompt belongs to the split that a checksum of its text says,
whatever the seed. The questions and the instructions of held-out prompts are all familiar; their combinations are new.
"""

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from plaudit.errors import DataError

__all__ = ["PreferenceWorld", "ScoredResponse", "SyntheticPair", "ceiling", "true_reward"]

Split = Literal["train", "test"]
T = TypeVar("T")

# What each quality is worth. All else equal, a right answer beats a wrong one 998 times in 1000, following the
# instruction beats not following it 98 times in 100, and being polite wins 62 times in 100; 25 words cost as much.
CORRECT, FOLLOWS, POLITE, WORD = 3.0, 2.0, 0.5, -0.02
CONTRAST = 0.75  # the share of pairs that differ in correctness; the others are about form
MOST_WORDS = 60  # longer text costs no more, which bounds the reward

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo",
    "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo", "Greece": "Athens",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "young", "wet": "dry", "light": "dark",
}  # fmt: skip
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}
CATEGORIES = {
    "an animal": ["tiger", "horse", "rabbit", "eagle"],
    "a fruit": ["lemon", "apple", "cherry", "mango"],
    "a tool": ["hammer", "shovel", "chisel", "ladder"],
}
NUMBERS = ["one", "two", "three", "four", "five", "six"]
THINGS = list(itertools.chain.from_iterable(CATEGORIES.values()))

TOPICS = ["river", "candle", "winter", "garden", "music", "silver"]
OPENERS = ["Thank you for asking.", "Gladly.", "With pleasure."]
CLOSERS = ["Please ask again.", "You are welcome.", "Thanks for asking."]
COURTESIES = frozenset({"thank", "thanks", "gladly", "pleasure", "please", "welcome"})
FRAMES = ["{}.", "It is {}.", "I would say {}."]
FILLERS = ["Many people wonder.", "That much is known.", "Books say so."]
REMARKS = ["Think of the {}.", "I like the {}."]


@dataclass(frozen=True)
class _Question:
    """A question with its answer, and the words that make a response wrong wherever they stand."""

    text: str
    answer: str
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class _Reading:
    """What the true reward sees of a response."""

    words: list[str]
    sentences: int
    ending: str

    @classmethod
    def of(cls, response: str) -> "_Reading":
        """Read any text at all; case and spacing do not matter."""
        sentences = [part for part in re.split(r"[.!?]+", response) if re.search(r"\w", part)]
        return cls(re.findall(r"\w+", response.lower()), len(sentences), response.rstrip()[-1:])

    @property
    def polite(self) -> bool:
        return not COURTESIES.isdisjoint(self.words)


@dataclass(frozen=True)
class _Instruction:
    """A demand on the form of a response; `topic` is the word it is about, if any."""

    text: str
    follows: Callable[[_Reading], bool]
    topic: str | None = None


def _questions() -> dict[str, list[_Question]]:
    """Every question of the world, by kind."""

    def ask(text: str, answer: str, pool: Iterable[str], *given: str) -> _Question:
        # What a fact's question itself names may be said again ("two plus three is five"); an option of a choice not.
        return _Question(text, answer, tuple(word for word in dict.fromkeys(pool) if word not in {answer, *given}))

    sizes = [(small, large) for i, small in enumerate(NUMBERS) for large in NUMBERS[i + 1 :]]
    return {
        "capital": [ask(f"What is the capital of {k}?", v, CAPITALS.values()) for k, v in CAPITALS.items()],
        "opposite": [ask(f"What is the opposite of {k}?", v, OPPOSITES, k) for k, v in OPPOSITES.items()],
        "sum": [
            ask(f"What is {NUMBERS[i]} plus {NUMBERS[j]}?", NUMBERS[i + j + 1], NUMBERS, NUMBERS[i], NUMBERS[j])
            for i, j in itertools.product(range(3), repeat=2)
        ],
        "copy": [ask(f"Repeat the word {word}.", word, THINGS) for word in THINGS],
        "kind": [
            ask(f"Which one is {category}, {' or '.join(pair)}?", thing, THINGS)
            for category, things in CATEGORIES.items()
            for thing, other in itertools.product(things, [word for word in THINGS if word not in things])
            for pair in [(thing, other), (other, thing)]
        ],
        "size": [
            ask(f"Which is {adjective}, {' or '.join(pair)}?", answer, NUMBERS)
            for small, large in sizes
            for adjective, answer in [("larger", large), ("smaller", small)]
            for pair in [(small, large), (large, small)]
        ],
    }


def _instructions() -> list[list[_Instruction]]:
    """Every instruction, by family."""

    def mention(topic: str) -> _Instruction:
        return _Instruction(f"Mention the {topic}.", lambda r: topic in r.words, topic)

    return [
        [_Instruction("Answer in one word.", lambda r: len(r.words) == 1)],
        [_Instruction("Use at least two sentences.", lambda r: r.sentences >= 2)],
        [_Instruction("Be polite.", lambda r: r.polite)],
        [_Instruction("End with an exclamation mark.", lambda r: r.ending == "!")],
        [mention(topic) for topic in TOPICS],
    ]


_QUESTIONS = _questions()
_INSTRUCTIONS = _instructions()
_ANSWERS = sorted({question.answer for question in itertools.chain.from_iterable(_QUESTIONS.values())})
_QUESTION_OF = {question.text: question for question in itertools.chain.from_iterable(_QUESTIONS.values())}
_INSTRUCTION_OF = {instruction.text: instruction for instruction in itertools.chain.from_iterable(_INSTRUCTIONS)}


def _parse(prompt: str) -> tuple[_Question, _Instruction | None]:
    """The question and the instruction that a prompt is made of."""
    match = re.fullmatch(r"\s*(.*?[.?])(?:\s+(.*?))?\s*", prompt)
    question = _QUESTION_OF.get(match[1]) if match else None
    instruction = _INSTRUCTION_OF.get(match[2]) if match and match[2] else None
    if match is None or question is None or (match[2] and instruction is None):
        raise DataError(
            f"expected a prompt of the built-in preference world, such as {next(iter(_QUESTION_OF))!r} with at most "
            f"one instruction after it, but got {prompt!r}; take prompts from PreferenceWorld.prompts()"
        )
    return question, instruction


def true_reward(prompt: str, response: str) -> float:
    """The true reward of any text as a response to a prompt of the world, between -6.2 and 5.5.

    A right answer counts `CORRECT` and everything else `-CORRECT`: no answer, a wrong one, or several at once, since
    naming a rival spoils the response. Following the instruction counts `FOLLOWS` in the same way. Politeness adds
    `POLITE`, and every word costs a little. A response without a single word gets neither question nor form right.

    Raises:
        DataError: The prompt is not one of this world's.
    """
    question, instruction = _parse(prompt)
    reading = _Reading.of(response)
    words = set(reading.words)
    correct = question.answer.lower() in words and words.isdisjoint(map(str.lower, question.rivals))
    reward = CORRECT if correct else -CORRECT
    if instruction is not None:
        reward += FOLLOWS if words and instruction.follows(reading) else -FOLLOWS
    return reward + POLITE * reading.polite + WORD * min(len(reading.words), MOST_WORDS)


@dataclass(frozen=True)
class SyntheticPair:
    """Two responses to one prompt, and the Bradley-Terry probability that they are preferred as labelled."""

    prompt: str
    chosen: str
    rejected: str
    probability: float

    def row(self) -> dict[str, list[dict[str, str]]]:
        """The pair as a conversational training row."""
        return {
            "prompt": [{"role": "user", "content": self.prompt}],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }


@dataclass(frozen=True)
class ScoredResponse:
    """One response to a prompt, with its true reward."""

    prompt: str
    response: str
    reward: float


def ceiling(pairs: Sequence[SyntheticPair]) -> float:
    """The expected accuracy on these pairs of a model that knows the true reward: mean of max(p, 1 - p).

    No model does better on average, since the labels themselves were drawn with probability p.
    """
    if not pairs:
        raise DataError("expected at least one pair to take the ceiling of, but got none")
    return float(np.mean([max(pair.probability, 1 - pair.probability) for pair in pairs]))


@dataclass(frozen=True)
class PreferenceWorld:
    """An endless source of preferences whose true reward is known.

    The same seed gives the same draws, call after call, and fewer are a prefix of more. Neither the seed nor the split
    changes what is true: facts, instructions and rewards are those of this module.

    Attributes:
        seed: Any non-negative integer.
    """

    seed: int = 0

    def prompts(self, n: int, split: Split = "train") -> list[str]:
        """The first n prompts of a split; a prompt may come again."""
        rng = self._rng("prompts", split)
        return [_draw_prompt(rng, split) for _ in range(n)]

    def pairs(self, n: int, split: Split = "train") -> list[SyntheticPair]:
        """The first n labelled pairs of a split; the prompts of the two splits are disjoint."""
        rng = self._rng("pairs", split)
        return [_draw_pair(rng, split) for _ in range(n)]

    def responses(self, n: int, split: Split = "test") -> list[ScoredResponse]:
        """The first n single responses of a split, to compare learnt with true rewards."""
        rng = self._rng("responses", split)
        prompts = (_draw_prompt(rng, split) for _ in range(n))
        texts = ((prompt, _draw_response(rng, prompt, rng.random() < 0.5)) for prompt in prompts)
        return [ScoredResponse(prompt, text, true_reward(prompt, text)) for prompt, text in texts]

    def _rng(self, purpose: str, split: Split) -> np.random.Generator:
        """A generator of its own for every kind of draw, so that none shifts another."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{purpose} {split}".encode())])


def _split_of(prompt: str) -> Split:
    """One prompt in five is held out, by its text alone: no seed and no count can move it."""
    return "test" if zlib.crc32(prompt.encode()) % 5 == 0 else "train"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _draw_prompt(rng: np.random.Generator, split: Split) -> str:
    """A question of any kind, five times in six with an instruction."""
    while True:
        prompt = _pick(rng, _pick(rng, list(_QUESTIONS.values()))).text
        if rng.random() < 5 / 6:
            prompt += " " + _pick(rng, _pick(rng, _INSTRUCTIONS)).text
        if _split_of(prompt) == split:
            return prompt


def _draw_pair(rng: np.random.Generator, split: Split) -> SyntheticPair:
    """Two different responses to one prompt, labelled by Bradley-Terry; mostly one is right and the other wrong."""
    prompt = _draw_prompt(rng, split)
    first_right, contrast = rng.random() < 0.5, rng.random() < CONTRAST
    first = second = _draw_response(rng, prompt, first_right)
    while second == first:
        second = _draw_response(rng, prompt, first_right ^ contrast)
    probability = 1 / (1 + math.exp(true_reward(prompt, second) - true_reward(prompt, first)))
    if rng.random() < probability:
        return SyntheticPair(prompt, first, second, probability)
    return SyntheticPair(prompt, second, first, 1 - probability)


def _draw_response(rng: np.random.Generator, prompt: str, right: bool) -> str:
    """A right or a wrong response; whether it follows the instruction is another coin's affair."""
    question, instruction = _parse(prompt)
    claim = question.answer if right else _wrong_answer(rng, question)
    follow = rng.random() < 0.5
    while True:
        response = _compose(rng, claim, instruction.topic if instruction else None)
        if instruction is None or instruction.follows(_Reading.of(response)) == follow:
            return response


def _wrong_answer(rng: np.random.Generator, question: _Question) -> str:
    """A mistake, from the tempting to the absurd: the other option of a choice, a rival, or the answer to anything."""
    offered = [rival for rival in question.rivals if rival in re.findall(r"\w+", question.text)]
    pools = [offered or question.rivals, question.rivals, [text for text in _ANSWERS if text != question.answer]]
    return _pick(rng, _pick(rng, pools))


def _compose(rng: np.random.Generator, answer: str, topic: str | None) -> str:
    """An answer in words drawn at random: terse one time in four, else framed, padded, polite and remarked on."""
    sentences = [FRAMES[0].format(answer)]
    if rng.random() > 0.25:
        sentences = [_pick(rng, FRAMES).format(answer), *_padding(rng, topic)]
        if rng.random() < 0.5:
            opening = rng.random() < 0.5
            sentences = [_pick(rng, OPENERS), *sentences] if opening else [*sentences, _pick(rng, CLOSERS)]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return text[:-1] + "!" if rng.random() < 0.5 else text


def _padding(rng: np.random.Generator, topic: str | None) -> Iterator[str]:
    """Perhaps a filler sentence and perhaps a remark, on the topic that the instruction names or on any."""
    if rng.random() < 0.5:
        yield _pick(rng, FILLERS)
    if rng.random() < 0.5:
        named = topic is not None and rng.random() < 0.7
        yield _pick(rng, REMARKS).format(topic if named else _pick(rng, TOPICS))
