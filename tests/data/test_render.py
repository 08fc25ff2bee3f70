import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from plaudit.data.formats import parse_row
from plaudit.data.render import choose_pad_token, render, set_chat_template, set_eos_token
from plaudit.errors import ConfigError, DataError


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


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
    assert render(tokenizer, [pair.chosen, pair.rejected]) == expected


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
    assert render(tokenizer, [pair.chosen, pair.rejected]) == [by_hand(tokenizer, chat) for chat in CHATS]
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


def test_set_eos_token(tokenizer):
    set_eos_token(tokenizer, "<|im_end|>")
    ids = render(tokenizer, ["dog", "dog<|im_end|>"])
    assert ids == [by_hand(tokenizer, "dog<|im_end|>")] * 2
    with pytest.raises(ConfigError, match=r"`eos_token` \('<end>'\) is not found in the vocabulary"):
        set_eos_token(tokenizer, "<end>")


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


# padding


def test_the_pad_token_asked_for(tokenizer, caplog):
    choose_pad_token(tokenizer, 400, "<|im_start|>")
    assert tokenizer.pad_token == "<|im_start|>"
    assert not caplog.records


def test_a_pad_token_outside_the_vocabulary(tokenizer):
    with pytest.raises(ConfigError, match=r"`pad_token` \('<nope>'\) is not found in the vocabulary") as error:
        choose_pad_token(tokenizer, 400, "<nope>")
    assert "leave `pad_token` unset" in str(error.value)
    assert tokenizer.pad_token == "<pad>"


def test_asking_for_eos_as_pad_token_warns(tokenizer, caplog):
    choose_pad_token(tokenizer, 400, "<eos>")
    assert tokenizer.pad_token == "<eos>"
    assert "'<eos>' is also the EOS token" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_tokenizers_own_pad_token(tokenizer, caplog):
    with caplog.at_level(logging.INFO, logger="plaudit"):
        choose_pad_token(tokenizer, 400)
    assert tokenizer.pad_token == "<pad>"
    assert not caplog.records


@pytest.mark.parametrize("own", [None, "<eos>"])
@pytest.mark.parametrize(
    ("extra", "chosen"),
    [
        (("<|vision|>", "<|reserved_1|>", "<|reserved_2|>"), "<|reserved_1|>"),
        (("<|reserved_1|>", "<|finetune_right_pad_id|>"), "<|finetune_right_pad_id|>"),
        (("<unused0>", "<unused1>"), "<unused0>"),
    ],
)
def test_an_unused_special_token(new_tokenizer, caplog, own, extra, chosen):
    tokenizer = new_tokenizer(pad=None, extra=extra)
    tokenizer.pad_token = own
    size = len(tokenizer)
    with caplog.at_level(logging.INFO, logger="plaudit"):
        choose_pad_token(tokenizer, size)
    assert tokenizer.pad_token == chosen
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert len(tokenizer) == size
    assert f"padding with '{chosen}'" in caplog.text


@pytest.mark.parametrize(("spare_rows", "needs_a_row"), [(8, False), (1, False), (0, True)])
@pytest.mark.parametrize("own", [None, "<eos>"])
def test_a_new_pad_token_in_a_spare_row_or_a_new_one(new_tokenizer, spare_rows, needs_a_row, own):
    tokenizer = new_tokenizer(pad=None)
    tokenizer.pad_token = own
    size = len(tokenizer)
    choose_pad_token(tokenizer, size + spare_rows)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|pad|>", size, size + 1)
    assert (tokenizer.pad_token_id >= size + spare_rows) == needs_a_row
    assert tokenizer.eos_token == "<eos>"


def test_a_pad_token_never_comes_from_what_is_in_use(new_tokenizer):
    extra = ("<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>", "<|reserved_4|>")
    tokenizer = new_tokenizer(pad=None, extra=extra)
    tokenizer.chat_template += "<|reserved_1|>"
    tokenizer.sep_token = "<|reserved_2|>"
    choose_pad_token(tokenizer, len(tokenizer))
    assert tokenizer.pad_token == "<|reserved_3|>"


def test_a_pad_token_lies_within_the_embedding(new_tokenizer):
    tokenizer = new_tokenizer(pad=None, extra=("<|reserved_1|>",))
    assert tokenizer.convert_tokens_to_ids("<|reserved_1|>") < len(tokenizer)
    rows = tokenizer.convert_tokens_to_ids("<|reserved_1|>")  # the embedding ends just before it
    choose_pad_token(tokenizer, rows)
    assert tokenizer.pad_token == "<|pad|>"
    own = new_tokenizer(pad=None)
    own.add_special_tokens({"pad_token": "<added>"})
    choose_pad_token(own, own.pad_token_id + 1)
    assert own.pad_token == "<added>"


def test_rendering_is_the_same_whatever_pads(new_tokenizer):
    tokenizer = new_tokenizer(pad=None)
    sequences = ["The sky", [user("dog"), reply("fox")]]
    before = render(tokenizer, sequences)
    choose_pad_token(tokenizer, len(tokenizer))
    assert render(tokenizer, sequences) == before


# chat templates


def test_the_chat_template_of_a_file(tokenizer, tmp_path):
    path = tmp_path / "short.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}", encoding="utf-8")
    set_chat_template(tokenizer, str(path))
    assert render(tokenizer, [[user("dog"), reply("fox")]]) == [by_hand(tokenizer, "[dog][fox]")]
    assert tokenizer.eos_token == "<eos>"


def test_the_chat_template_of_another_tokenizer(new_tokenizer, tmp_path):
    source = new_tokenizer(extra=("<turn>", "</turn>"))
    source.chat_template = "{% for m in messages %}<turn>{{ m.content }}</turn>{% endfor %}"
    source.eos_token = "</turn>"
    source.save_pretrained(tmp_path)
    tokenizer = new_tokenizer()
    size = len(tokenizer)
    set_chat_template(tokenizer, str(tmp_path))
    assert (tokenizer.chat_template, tokenizer.eos_token) == (source.chat_template, "</turn>")
    assert len(tokenizer) == size + 2
    turn = tokenizer.convert_tokens_to_ids(["<turn>", "</turn>"])
    (ids,) = render(tokenizer, [[user("dog")]])
    assert ids == [turn[0], *by_hand(tokenizer, "dog"), turn[1]]


def test_chat_templates_that_cannot_be_had(new_tokenizer, tmp_path):
    tokenizer = new_tokenizer()
    with pytest.raises(ConfigError, match=r"chat_template_path='.*none\.jinja': there is no such file"):
        set_chat_template(tokenizer, str(tmp_path / "none.jinja"))
    with pytest.raises(ConfigError, match="expected a Jinja file, a tokenizer folder or a hub id") as error:
        set_chat_template(tokenizer, str(tmp_path / "nowhere"))
    assert "nowhere" in str(error.value)
    bare = new_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"bare': that tokenizer has no chat template"):
        set_chat_template(tokenizer, str(tmp_path / "bare"))
    assert tokenizer.chat_template == new_tokenizer().chat_template


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


def test_a_pad_that_the_template_writes_is_not_used(new_tokenizer):
    tokenizer = new_tokenizer(pad="<pad>")
    tokenizer.pad_token = "<|im_end|>"
    choose_pad_token(tokenizer, 1000)
    assert tokenizer.pad_token == "<pad>"
