"""The built-in preference world: prompts, responses and preferences whose true reward is known.

A prompt is one question (a fact, a sum, a word to repeat, a choice of two) and, in most cases, one instruction on the
form of the answer. Responses vary independently in four qualities: correctness, whether the instruction is followed,
length, and politeness. The true reward is computed from the text by these four, so it is defined for any text that a
policy may write. Preferences are drawn from it by the Bradley-Terry model:

    P(a beats b) = sigmoid(reward(a) - reward(b))

Each pair has that probability, so the best accuracy that any model can have on the drawn labels is known: `ceiling`. A
model that sees the responses alone stays far below it, since an answer is right for one question and wrong for others,
and instructions contradict each other.

Training and held-out draws never share a prompt: a checksum of the prompt's text decides its split, whatever the seed.
The questions and instructions of held-out prompts occur in training too, but not their combinations.
"""

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np

from plaudit.errors import DataError

__all__ = ["PreferenceWorld", "ResponseFeatures", "ScoredResponse", "SyntheticPair", "ceiling", "true_reward"]

Split = Literal["train", "test"]
T = TypeVar("T")

# The reward of each quality. All else equal, a right answer beats a wrong one 998 times in 1000, following the
# instruction beats not following it 98 times in 100, and a polite response wins 62 times in 100; 25 words cost as much.
CORRECT, FOLLOWS, POLITE, WORD = 3.0, 2.0, 0.5, -0.02
CONTRAST = 0.75  # the share of pairs that differ in correctness; the others differ in form
MOST_WORDS = 60  # further words cost nothing, so that the reward is bounded

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

_WORD = re.compile(r"\w+")
_END_OF_SENTENCE = re.compile(r"[.!?]+")


@dataclass(frozen=True)
class _Question:
    """A question with its answer, and the words that make a response wrong wherever they occur."""

    text: str
    answer: str
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class ResponseFeatures:
    """The features of a response that the true reward depends on."""

    words: list[str]
    sentences: int
    ending: str

    @classmethod
    def of(cls, response: str) -> "ResponseFeatures":
        """Extract the features of any text; case and spacing do not matter."""
        sentences = sum(_WORD.search(part) is not None for part in _END_OF_SENTENCE.split(response))
        return cls(_WORD.findall(response.lower()), sentences, response.rstrip()[-1:])

    @property
    def polite(self) -> bool:
        """Return whether the response has a word of courtesy."""
        return not COURTESIES.isdisjoint(self.words)


@dataclass(frozen=True)
class _Instruction:
    """An instruction on the form of a response; `topic` is the word that it asks for, if any."""

    text: str
    follows: Callable[[ResponseFeatures], bool]
    topic: str | None = None


def _questions() -> dict[str, list[_Question]]:
    """Build every question of the world, by kind."""

    def ask(text: str, answer: str, pool: Iterable[str], *given: str) -> _Question:
        # A word of the question may be repeated in the response ("two plus three is five"), but no option of a choice.
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
    """Build every instruction, by family."""

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
_KINDS = list(_QUESTIONS.values())
_INSTRUCTIONS = _instructions()
ANSWERS = sorted({question.answer for question in itertools.chain.from_iterable(_QUESTIONS.values())})
_QUESTION_OF = {question.text: question for question in itertools.chain.from_iterable(_QUESTIONS.values())}
_INSTRUCTION_OF = {instruction.text: instruction for instruction in itertools.chain.from_iterable(_INSTRUCTIONS)}


@lru_cache(maxsize=4096)  # the world has fewer prompts, and each draw parses its prompt several times
def _parse(prompt: str) -> tuple[_Question, _Instruction | None]:
    """Return the question and the instruction of a prompt."""
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
    """Return the true reward of any text as a response to a prompt of the world, between -6.2 and 5.5.

    A right answer counts `CORRECT`, and anything else `-CORRECT`: no answer, a wrong one, or several at once. Following
    the instruction counts `FOLLOWS`, not following it `-FOLLOWS`. Politeness adds `POLITE`, and every word costs
    `-WORD`. A response without a word is neither right nor follows an instruction.

    Raises:
        DataError: The prompt is not one of this world.
    """
    question, instruction = _parse(prompt)
    reading = ResponseFeatures.of(response)
    words = set(reading.words)
    correct = question.answer.lower() in words and words.isdisjoint(map(str.lower, question.rivals))
    reward = CORRECT if correct else -CORRECT
    if instruction is not None:
        reward += FOLLOWS if words and instruction.follows(reading) else -FOLLOWS
    return reward + POLITE * reading.polite + WORD * min(len(reading.words), MOST_WORDS)


@dataclass(frozen=True)
class SyntheticPair:
    """Two responses to one prompt, and the Bradley-Terry probability that `chosen` is preferred."""

    prompt: str
    chosen: str
    rejected: str
    probability: float

    def row(self) -> dict[str, list[dict[str, str]]]:
        """Return the pair as a conversational training row."""
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
    """Return the expected accuracy of a model that knows the true reward: the mean of max(p, 1 - p) over the pairs.

    No model has a higher one, since the labels are drawn with probability p.
    """
    if not pairs:
        raise DataError("expected at least one pair to take the ceiling of, but got none")
    return float(np.mean([max(pair.probability, 1 - pair.probability) for pair in pairs]))


@dataclass(frozen=True)
class PreferenceWorld:
    """An endless source of preferences whose true reward is known.

    The same seed gives the same draws in every call, and n draws are the first n of any larger number. Facts,
    instructions and rewards depend neither on the seed nor on the split.

    Attributes:
        seed: Any non-negative integer.
    """

    seed: int = 0

    def prompts(self, n: int, split: Split = "train") -> list[str]:
        """Return the first n prompts of a split; a prompt may occur more than once."""
        rng = self._rng("prompts", split)
        return [_draw_prompt(rng, split) for _ in range(n)]

    def pairs(self, n: int, split: Split = "train") -> list[SyntheticPair]:
        """Return the first n labelled pairs of a split; the prompts of the two splits are disjoint."""
        rng = self._rng("pairs", split)
        return [_draw_pair(rng, split) for _ in range(n)]

    def responses(self, n: int, split: Split = "test") -> list[ScoredResponse]:
        """Return the first n single responses of a split, to compare learnt with true rewards."""
        rng = self._rng("responses", split)
        prompts = (_draw_prompt(rng, split) for _ in range(n))
        texts = ((prompt, _draw_response(rng, prompt, rng.random() < 0.5)) for prompt in prompts)
        return [ScoredResponse(prompt, text, true_reward(prompt, text)) for prompt, text in texts]

    def candidates(self, prompt: str, n: int) -> list[ScoredResponse]:
        """Return n single responses to one prompt, half of them right on average, to choose the best of."""
        rng = self._rng(f"candidates {prompt}", _split_of(prompt))
        texts = (_draw_response(rng, prompt, rng.random() < 0.5) for _ in range(n))
        return [ScoredResponse(prompt, text, true_reward(prompt, text)) for text in texts]

    def _rng(self, purpose: str, split: Split) -> np.random.Generator:
        """Return the generator of one kind of draw, so that the kinds are independent."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{purpose} {split}".encode())])


def _split_of(prompt: str) -> Split:
    """Return the split of a prompt by a checksum of its text; one prompt in five is held out."""
    return "test" if zlib.crc32(prompt.encode()) % 5 == 0 else "train"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _draw_prompt(rng: np.random.Generator, split: Split) -> str:
    """Draw a question of any kind, five times in six with an instruction."""
    while True:
        prompt = _pick(rng, _pick(rng, _KINDS)).text
        if rng.random() < 5 / 6:
            prompt += " " + _pick(rng, _pick(rng, _INSTRUCTIONS)).text
        if _split_of(prompt) == split:
            return prompt


def _draw_pair(rng: np.random.Generator, split: Split) -> SyntheticPair:
    """Draw two different responses to one prompt, and label them by Bradley-Terry."""
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
    """Draw a right or a wrong response; it follows the instruction with probability one half."""
    question, instruction = _parse(prompt)
    claim = question.answer if right else _wrong_answer(rng, question)
    follow = rng.random() < 0.5
    while True:
        response = _compose(rng, claim, instruction.topic if instruction else None)
        if instruction is None or instruction.follows(ResponseFeatures.of(response)) == follow:
            return response


def _wrong_answer(rng: np.random.Generator, question: _Question) -> str:
    """Draw a wrong answer: the other option of a choice, a rival, or the answer to any other question."""
    offered = [rival for rival in question.rivals if rival in _WORD.findall(question.text)]
    pools = [offered or question.rivals, question.rivals, [text for text in ANSWERS if text != question.answer]]
    return _pick(rng, _pick(rng, pools))


def _compose(rng: np.random.Generator, answer: str, topic: str | None) -> str:
    """Draw the wording of an answer: one word one time in four, else a sentence with padding and courtesies."""
    sentences = [FRAMES[0].format(answer)]
    if rng.random() > 0.25:
        sentences = [_pick(rng, FRAMES).format(answer), *_padding(rng, topic)]
        if rng.random() < 0.5:
            opening = rng.random() < 0.5
            sentences = [_pick(rng, OPENERS), *sentences] if opening else [*sentences, _pick(rng, CLOSERS)]
    text = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
    return text[:-1] + "!" if rng.random() < 0.5 else text


def _padding(rng: np.random.Generator, topic: str | None) -> Iterator[str]:
    """Draw at most one filler sentence and at most one remark, on the topic of the instruction or on any."""
    if rng.random() < 0.5:
        yield _pick(rng, FILLERS)
    if rng.random() < 0.5:
        named = topic is not None and rng.random() < 0.7
        yield _pick(rng, REMARKS).format(topic if named else _pick(rng, TOPICS))
