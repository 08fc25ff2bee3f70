import numpy as np
import pytest

from plaudit import RewardModel
from plaudit.data.render import render
from plaudit.serving.item_rendering import ItemRenderer
from plaudit.serving.scoring_request import Conversation, Pair, Text, TokenIds
from plaudit.serving.serving_errors import ServingError

QUESTION = [{"role": "user", "content": "Is the sky blue?"}]
ANSWER = [{"role": "assistant", "content": "Yes, it is."}]
SECRET = "xyzzy-secret"


def renderer_of(tokenizer, *, trained_on=None, max_length=None, vocabulary_size=None):
    return ItemRenderer(tokenizer, trained_on=trained_on, max_length=max_length, vocabulary_size=vocabulary_size)


def ids_of(tokenizer, item, **options):
    (ids,) = renderer_of(tokenizer, **options).render([item], ["items[0]"])
    return ids


def test_texts_and_conversations_are_rendered_as_the_reward_model_renders_them(tokenizer):
    items = [
        Text("The sky is blue."),
        Conversation(QUESTION + ANSWER),
        Conversation(QUESTION + ANSWER, {"tools": [{"name": "clock"}]}),
        Pair("Is it? ", "Yes."),
        Pair(QUESTION, "Yes, it is."),
    ]
    expected = render(
        tokenizer,
        ["The sky is blue.", QUESTION + ANSWER, QUESTION + ANSWER, "Is it? Yes.", QUESTION + ANSWER],
        [{}, {}, {"tools": [{"name": "clock"}]}, {}, {}],
    )
    assert renderer_of(tokenizer).render(items, list("abcde")) == expected


@pytest.mark.parametrize("end", ["<eos>\n", "<eos>", "\n", ""])
def test_a_text_as_written_gains_no_eos(tokenizer, end):
    text = "<|im_start|>user\nIs it?<|im_end|>\n" + end
    for kind, added in (("added", True), ("none", False)):
        expected = tokenizer(text, add_special_tokens=added)["input_ids"]
        assert ids_of(tokenizer, Text(text, special_tokens=kind)) == expected


def test_a_text_that_holds_its_bos_does_not_get_a_second_one(new_tokenizer):
    tokenizer = new_tokenizer(bos="<bos>")
    written = tokenizer("<bos>The sky", add_special_tokens=False)["input_ids"]
    assert written[0] == tokenizer.bos_token_id != written[1]
    for kind in ("added", "none"):
        assert ids_of(tokenizer, Text("<bos>The sky", special_tokens=kind)) == written
    assert ids_of(tokenizer, Text("The sky", special_tokens="added")) == written
    assert ids_of(tokenizer, Text("The sky", special_tokens="none")) == written[1:]


@pytest.mark.parametrize(("trained_on", "is_chat"), [("conversations", True), ("texts", False), (None, False)])
def test_a_pair_of_strings_becomes_a_conversation_only_for_a_model_of_conversations(tokenizer, trained_on, is_chat):
    ids = ids_of(tokenizer, Pair("Is it?", "Yes.", as_conversation=True), trained_on=trained_on)
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]
    assert ids == render(tokenizer, [chat if is_chat else "Is it?Yes."])[0]


@pytest.mark.parametrize("text", ["The sky is blue.", "The sky<eos>", "<bos>The sky\n"])
def test_a_text_of_a_model_of_texts_ends_as_in_training_unless_no_special_tokens_are_asked_for(new_tokenizer, text):
    tokenizer = new_tokenizer(bos="<bos>")
    (rendered,) = render(tokenizer, [text])
    for kind in ("added", "none", "rendered"):
        assert ids_of(tokenizer, Text(text, special_tokens=kind), trained_on="texts") == rendered
    exact = ids_of(tokenizer, Text(text, special_tokens="exact"), trained_on="texts")
    assert exact == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_token_ids_are_taken_as_they_are_within_the_vocabulary(tokenizer):
    assert ids_of(tokenizer, TokenIds([3, 1, 2]), vocabulary_size=4) == [3, 1, 2]
    with pytest.raises(ServingError, match=r"items\[0\]: expected token ids from 0 to 3") as caught:
        ids_of(tokenizer, TokenIds([3, 4]), vocabulary_size=4)
    assert caught.value.param == "items[0]"


@pytest.mark.parametrize("bos", [None, "<bos>"])
def test_a_cut_on_the_left_is_that_of_the_reward_model(new_tokenizer, make_model, bos):
    tokenizer = new_tokenizer(bos=bos)
    text = "The quick brown fox jumps over the lazy dog. " * 3
    expected = RewardModel(make_model(), tokenizer, max_length=12).token_ids([text])[0]
    renderer = renderer_of(tokenizer, max_length=12)
    (whole,) = renderer.render([Text(text)], ["items[0]"])
    assert renderer.cut(whole, "items[0]", truncation="left", max_length=None).tolist() == expected
    right = renderer.cut(whole, "items[0]", truncation="right", max_length=5)
    assert right.tolist() == whole[:5]


def test_a_sequence_that_is_too_long_is_an_error_that_says_how_long_it_may_be(tokenizer):
    with pytest.raises(ServingError, match=r"items\[3\]: the sequence has 9 tokens, more than 8") as caught:
        renderer_of(tokenizer, max_length=8).cut([1] * 9, "items[3]", truncation="error", max_length=None)
    assert caught.value.failure == "too_long"


def test_a_sequence_without_tokens_is_an_error(tokenizer):
    with pytest.raises(ServingError, match="without tokens"):
        renderer_of(tokenizer).cut([], "inputs", truncation="error", max_length=None)


@pytest.mark.parametrize("text", ["The sky is blue.", "Grüße 🙂🙂 an alle", "日本語のテキスト"])
@pytest.mark.parametrize("step", [1, 3])
def test_the_pieces_of_the_prefixes_are_the_text(tokenizer, text, step):
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    positions = [*range(step, len(ids), step), len(ids)]
    pieces = renderer_of(tokenizer).pieces(ids, positions)
    assert len(pieces) == len(positions)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Conversation([{"role": "user", "content": SECRET}]), "the last message to be from the assistant"),
        (Pair("", ""), "one or more characters"),
        (Text(""), "one or more characters"),
        (Conversation([{"role": "user", "content": None}, {"role": "assistant", "content": {SECRET: 1}}]), "refuses"),
    ],
)
def test_an_error_names_the_field_and_quotes_nothing(tokenizer, item, reason):
    good = Text("The sky")
    with pytest.raises(ServingError) as caught:
        renderer_of(tokenizer).render([good, item], ["items[0]", "items[1]"])
    assert caught.value.failure == "invalid"
    assert caught.value.param == "items[1]"
    assert reason in caught.value.message
    assert SECRET not in caught.value.message


def test_a_conversation_for_a_model_without_a_template_is_an_error(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ServingError, match="no chat template"):
        ids_of(tokenizer, Conversation(QUESTION + ANSWER))
