import pytest
from chat_rows import reply, user
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from plaudit.data.formats import parse_row
from plaudit.data.render import render
from plaudit.errors import DataError


def by_hand(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def closing(tokenizer, *, bos=None):
    """Makes the post-processor write EOS after every text, and BOS before it."""
    parts = [token for token in (bos, "$A", "<eos>") if token]
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in parts if token != "$A"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(parts), special_tokens=named
    )
    return tokenizer


def encoder_tokenizer():
    """As BERT's: it encloses a text in [CLS] and [SEP], and has neither BOS nor EOS."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "sky", "is", "blue"]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


# the four shapes

PROMPT, CHOSEN, REJECTED = "What is two plus two?", "Four.", "Five, sorry."
CHATS = [
    f"<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    for answer in (CHOSEN, REJECTED)
]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
        {"chosen": PROMPT + CHOSEN, "rejected": PROMPT + REJECTED},
    ],
    ids=["explicit", "implicit"],
)
def test_standard_rows_give_the_ids_of_rendering_by_hand(tokenizer, row):
    pair = parse_row(row, 0)
    expected = [[*by_hand(tokenizer, PROMPT + answer), tokenizer.eos_token_id] for answer in (CHOSEN, REJECTED)]
    assert render(tokenizer, pair.sequences) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user(PROMPT)], "chosen": [reply(CHOSEN)], "rejected": [reply(REJECTED)]},
        {"chosen": [user(PROMPT), reply(CHOSEN)], "rejected": [user(PROMPT), reply(REJECTED)]},
    ],
    ids=["explicit", "implicit"],
)
def test_conversational_rows_give_the_ids_of_rendering_by_hand(tokenizer, row):
    pair = parse_row(row, 0)
    assert render(tokenizer, pair.sequences) == [by_hand(tokenizer, chat) for chat in CHATS]
    assert by_hand(tokenizer, CHATS[0])[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_mixed_batch_keeps_its_order(tokenizer):
    mixed = ["Yes", [user("dog"), reply("fox")], "No", [user("fox"), reply("dog")]]
    options = [{}, {"shout": True}, {}, {}]
    one_by_one = [render(tokenizer, [mixed[n]], [options[n]])[0] for n in range(4)]
    assert render(tokenizer, mixed, options) == one_by_one
    assert len({tuple(ids) for ids in one_by_one}) == 4
    assert render(tokenizer, []) == []


def test_tools_and_keyword_arguments_reach_the_template(tokenizer):
    chat, tools = [user("dog"), reply("fox")], [{"name": "sky"}]
    written = "<|im_start|>user\ndog<|im_end|>\n<|im_start|>assistant\nfox<|im_end|>\n"
    plain, with_tools, shouted = render(tokenizer, [chat] * 3, [{}, {"tools": tools}, {"shout": True}])
    assert plain == by_hand(tokenizer, written)
    assert with_tools == by_hand(tokenizer, '<|im_start|>tools\n[{"name": "sky"}]<|im_end|>\n' + written)
    assert shouted == by_hand(tokenizer, written + "!")


def test_a_conversation_needs_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    assert render(tokenizer, ["text is fine"])
    with pytest.raises(DataError, match=r"no chat template.*`chat_template_path`"):
        render(tokenizer, ["text", [user("a"), reply("b")]])


# BOS and EOS


@pytest.mark.parametrize("closes_itself", [False, True])
@pytest.mark.parametrize("end", ["", "<eos>", "<eos><eos>"])
def test_a_text_gets_one_eos(tokenizer, closes_itself, end):
    expected = [*by_hand(tokenizer, "The sky<eos> is"), tokenizer.eos_token_id]
    tokenizer = closing(tokenizer) if closes_itself else tokenizer
    assert render(tokenizer, ["The sky<eos> is" + end, "dog"])[0] == expected


@pytest.mark.parametrize("start", ["", "<bos>", "<bos><bos>"])
@pytest.mark.parametrize("closes_itself", [False, True])
def test_a_text_never_starts_with_two_bos(new_tokenizer, start, closes_itself):
    tokenizer = new_tokenizer(bos="<bos>")
    expected = [tokenizer.bos_token_id, *by_hand(tokenizer, "The sky"), tokenizer.eos_token_id]
    tokenizer = closing(tokenizer, bos="<bos>") if closes_itself else tokenizer
    assert render(tokenizer, [start + "The sky", "dog"])[0] == expected


@pytest.mark.parametrize("writes", ["", "<bos>", "<bos><bos>"])
def test_a_conversation_has_the_bos_that_its_template_writes(new_tokenizer, writes):
    tokenizer = new_tokenizer(bos="<bos>")
    expected = by_hand(tokenizer, CHATS[0])
    tokenizer.chat_template = writes + tokenizer.chat_template
    ids = render(tokenizer, [[user(PROMPT), reply(CHOSEN)]])[0]
    assert ids == ([tokenizer.bos_token_id] if writes else []) + expected


@pytest.mark.parametrize("text", ["", "<eos>"])
def test_a_text_without_a_token_is_its_eos(tokenizer, text):
    assert render(tokenizer, [text]) == [[tokenizer.eos_token_id]]


def test_one_token_that_is_both_bos_and_eos(tokenizer):
    tokenizer.bos_token = "<eos>"
    eos = tokenizer.eos_token_id
    assert render(tokenizer, ["dog", "<eos>dog<eos>"]) == [
        [*by_hand(tokenizer, "dog"), eos],
        [eos, *by_hand(tokenizer, "dog"), eos],
    ]


def test_a_tokenizer_without_eos_closes_a_text_its_own_way():
    tokenizer = encoder_tokenizer()
    assert render(tokenizer, ["the sky is blue"]) == [[2, 4, 5, 6, 7, 3]]


# the way to the ids


@pytest.fixture(scope="module")
def shared_tokenizer(new_tokenizer):
    return new_tokenizer(bos="<bos>")


@given(texts=st.lists(st.text(max_size=30) | st.sampled_from(["<eos>", "<bos>x", "<|im_start|>y"]), max_size=5))
def test_the_backend_gives_the_ids_that_transformers_gives(shared_tokenizer, texts):
    tokenizer = shared_tokenizer
    expected = [tokenizer(text)["input_ids"] for text in texts]
    for ids in expected:
        while ids[:2] == [tokenizer.bos_token_id] * 2:
            del ids[0]
        while ids[-1:] == [tokenizer.eos_token_id]:
            del ids[-1]
        ids.append(tokenizer.eos_token_id)
    assert render(tokenizer, texts) == expected


@pytest.mark.parametrize("split_special_tokens", [False, True])
def test_what_an_earlier_call_left_in_the_backend_does_not_matter(new_tokenizer, split_special_tokens):
    sequences = ["The quick brown fox jumps over the lazy dog", "dog", [user("fox"), reply("dog")], "<|im_end|>"]
    fresh = render(new_tokenizer(bos="<bos>"), sequences)
    used = new_tokenizer(bos="<bos>")
    used(
        sequences[:2],
        truncation=True,
        max_length=4,
        padding="max_length",
        split_special_tokens=split_special_tokens,
        return_tensors="np",
    )
    assert used.backend_tokenizer.truncation is not None
    assert used.backend_tokenizer.padding is not None
    assert render(used, sequences) == fresh
    assert render(used, sequences[:1]) == fresh[:1]


def test_a_tokenizer_class_may_encode_in_its_own_way(new_tokenizer):
    class Reversing(PreTrainedTokenizerFast):
        def _encode_plus(self, text, **options):
            return super()._encode_plus([each[::-1] for each in text], **options)

    plain = new_tokenizer()
    tokenizer = Reversing(tokenizer_object=plain.backend_tokenizer, eos_token="<eos>")
    assert render(tokenizer, ["abc", "sky"]) == render(plain, ["cba", "yks"])


def test_a_tokenizer_in_pure_python():
    tokenizer = ByT5Tokenizer()  # bytes plus three, and it writes EOS by itself
    assert render(tokenizer, ["ab", "c"]) == [[100, 101, 1], [102, 1]]


# what a template takes


def test_a_conversation_that_the_template_refuses_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('Only user and assistant roles are supported!') }}"
    chat = [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hello."}]
    with pytest.raises(
        DataError, match="row 7: .*refuses it: Only user and assistant.*from system, assistant.*chat_template_path"
    ):
        render(tokenizer, [chat], names=["row 7"])


PARTS = [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?"}]
OF_STRINGS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",  # prints a list as Python would
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] if m['content'] is string }}{% endfor %}",  # as Qwen3's
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] + '' }}{% endfor %}",  # fails
)
OF_PARTS = "{% for m in messages %}{% for p in m['content'] %}({{ p['text'] }}){% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "whole"), [*((each, "<user>Is it?") for each in OF_STRINGS), (OF_PARTS, "(Is )(it?)")]
)
def test_text_in_parts_is_joined_unless_the_template_writes_parts(tokenizer, template, whole):
    tokenizer.chat_template = template
    (ids,) = render(tokenizer, [[{"role": "user", "content": PARTS}]])
    assert tokenizer.decode(ids) == whole


def test_half_a_character_is_named(tokenizer):
    half = "cut in two: \ud83d"
    with pytest.raises(DataError, match=r"text 1: expected text, got half of a character \('.ud83d'\)"):
        render(tokenizer, ["whole", half])
    with pytest.raises(DataError, match=r"row 7: expected text, got half of a character"):
        render(tokenizer, [[{"role": "user", "content": half}]], names=["row 7"])
