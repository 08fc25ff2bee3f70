import pytest

from plaudit.checkpoint.member_agreement import SavedMember, check_agreement
from plaudit.errors import ModelError


def member(name, tokenizer, **rendering):
    return SavedMember(name, tokenizer, {"rendering": {"bos": None, "eos": "<eos>"} | rendering} if rendering else {})


def refuse(one, other, problem):
    with pytest.raises(ModelError, match=rf"^one and other cannot be members.*{problem}"):
        check_agreement([one, member("between", one.tokenizer), other])


def test_members_that_read_text_alike_agree(new_tokenizer):
    said = {"sequences": "texts", "max_length": 64}
    check_agreement([member("a", new_tokenizer(), **said), member("b", new_tokenizer(), **said)])


def test_what_a_member_does_not_record_is_no_difference(tokenizer):
    check_agreement([member("a", tokenizer, sequences="texts"), member("b", tokenizer, max_length=64)])


def test_another_pad_token_is_none_since_no_reward_reads_it(new_tokenizer):
    other = new_tokenizer()
    other.pad_token = "<|im_end|>"
    check_agreement([member("a", new_tokenizer()), member("b", other)])


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("sequences", "texts", "conversations"), ("max_length", 64, 128), ("eos", "<eos>", None), ("bos", None, "<s>")],
)
def test_another_form_of_the_training_data_is_refused(tokenizer, name, first, second):
    refuse(member("one", tokenizer, **{name: first}), member("other", tokenizer, **{name: second}), f"`{name}`")


def test_another_chat_template_is_refused(new_tokenizer):
    other = new_tokenizer()
    other.chat_template += "!"
    refuse(member("one", new_tokenizer()), member("other", other), "chat templates are not the same")


def test_another_special_token_is_refused(new_tokenizer):
    refuse(member("one", new_tokenizer()), member("other", new_tokenizer(bos="<bos>")), "the bos_token is None for")


def test_other_token_ids_of_the_same_text_are_refused(new_tokenizer):
    refuse(member("one", new_tokenizer()), member("other", new_tokenizer(extra=("<x>",))), "'What is .* becomes")
