import logging

import pytest
from chat_rows import reply, user

from plaudit.data.render import render
from plaudit.data.special_tokens import choose_pad_token, set_chat_template, set_eos_token
from plaudit.errors import ConfigError


def by_hand(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_set_eos_token(tokenizer):
    set_eos_token(tokenizer, "<|im_end|>")
    ids = render(tokenizer, ["dog", "dog<|im_end|>"])
    assert ids == [by_hand(tokenizer, "dog<|im_end|>")] * 2
    with pytest.raises(ConfigError, match=r"`eos_token` \('<end>'\) is not found in the vocabulary"):
        set_eos_token(tokenizer, "<end>")


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


def test_a_pad_that_the_template_writes_is_not_used(new_tokenizer):
    tokenizer = new_tokenizer(pad="<pad>")
    tokenizer.pad_token = "<|im_end|>"
    choose_pad_token(tokenizer, 1000)
    assert tokenizer.pad_token == "<pad>"


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
