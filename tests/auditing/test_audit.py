"""What an audit finds of problems that are planted in clean rows, and the form of its result."""

import gzip
import json

import pytest
from chat_rows import reply, user
from datasets import Dataset
from made_pairs import made_pairs, near_copy
from row_files import write

from plaudit.auditing.audit import audit, cheap_findings
from plaudit.auditing.findings import KINDS
from plaudit.errors import DataError
from plaudit.quickstart.synthetic import PreferenceWorld


def swapped(row):
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


def groups(result, kind):
    findings = result if isinstance(result, list) else result.findings
    return next((finding.rows for finding in findings if finding.kind == kind), [])


def chat(*contents, **columns):
    """A conversation: the user speaks first."""
    return [(reply if number % 2 else user)(content) for number, content in enumerate(contents)]


def test_there_is_nothing_to_find_in_clean_rows():
    assert audit(made_pairs(300), made_pairs(50, seed=1)).findings == []


def test_every_planted_problem_of_whole_rows_is_found_and_nothing_else():
    rows = made_pairs(100)
    extra = made_pairs(10, seed=1)
    a, b, c = (row["chosen"] for row in extra[:3])
    rows += [rows[7], rows[7], swapped(rows[8])]  # 100, 101, 102
    rows += [{"prompt": "Which?", "chosen": x, "rejected": y} for x, y in ((a, b), (b, c), (c, a))]  # 103 to 105
    rows += [extra[4] | {"rejected": extra[4]["chosen"]}, extra[5] | {"rejected": " \n"}]  # 106, 107
    rows += [near_copy(rows[9], 0.03)]  # 108
    result = audit(rows)
    assert {finding.kind: finding.rows for finding in result.findings} == {
        "duplicate_exact": [[7, 100, 101]],
        "contradiction": [[8, 102]],
        "cycle": [[103, 104, 105]],
        "identical": [[106]],
        "empty": [[107]],
        "duplicate_near": [[9, 108]],
    }
    assert all(finding.count == len(finding.rows) for finding in result.findings)


def test_two_contradictions_that_share_a_response_are_no_cycle():
    pairs = [("one", "two"), ("two", "one"), ("two", "three"), ("three", "two")]
    result = audit([{"prompt": "Q", "chosen": a, "rejected": b} for a, b in pairs])
    assert groups(result, "contradiction") == [[0, 1], [2, 3]]
    assert groups(result, "cycle") == []


def test_a_cycle_through_a_contradiction_is_a_cycle_too():
    pairs = [("one", "two"), ("two", "one"), ("two", "three"), ("three", "one")]
    result = audit([{"prompt": "Q", "chosen": a, "rejected": b} for a, b in pairs])
    assert groups(result, "contradiction") == [[0, 1]]
    assert groups(result, "cycle") == [[0, 1, 2, 3]]


def test_a_label_below_one_half_and_ranks_turn_the_preference_round():
    rows = [
        {"prompt": "Q", "chosen": "one", "rejected": "two"},
        {"prompt": "Q", "chosen": "one", "rejected": "two", "label": 0.1},
        {"prompt": "R", "chosen": "one", "rejected": "two"},
        {"prompt": "R", "completions": ["one", "two", "three"], "ranks": [1, 0, 0]},
        {"prompt": "S", "chosen": "one", "rejected": "two", "tie": True},
        {"prompt": "S", "chosen": "two", "rejected": "one"},
    ]
    assert groups(audit(rows), "contradiction") == [[0, 1], [2, 3]]


def test_the_same_pair_with_another_preference_is_no_duplicate():
    row = made_pairs(1)[0]
    result = audit([row, swapped(row), row | {"tie": True}, row | {"label": 0.7}])
    assert groups(result, "duplicate_exact") == groups(result, "duplicate_near") == []


def test_several_comparisons_on_a_long_prompt_are_no_near_duplicates():
    prompt = made_pairs(1)[0]["prompt"] * 20
    answers = [row["chosen"] for row in made_pairs(10, seed=2)]
    rows = [{"prompt": prompt, "chosen": answers[n], "rejected": answers[n + 1]} for n in range(0, 10, 2)]
    assert groups(audit(rows), "duplicate_near") == []


def test_a_conversation_and_its_continuation_are_no_near_duplicates():
    texts = [row["chosen"] for row in made_pairs(8, seed=3)]
    start = chat(made_pairs(1)[0]["prompt"] * 8, "well")
    rows = [
        {"prompt": [*start, user(more)], "chosen": [reply(good)], "rejected": [reply(bad)]}
        for more, good, bad in (texts[:3], texts[3:6])
    ]
    assert groups(audit(rows), "duplicate_near") == []


def test_short_prompts_that_differ_make_different_rows_of_equal_responses():
    rows = [{"prompt": f"{subject}?", "chosen": "Yes.", "rejected": "No."} for subject in ("Snow", "Rain", "Ice cream")]
    assert audit(rows).findings == []


def test_test_prompts_are_found_exactly_normalised_and_nearly():
    rows, tests = made_pairs(50), made_pairs(20, seed=1)
    for number in range(5):
        tests[number]["prompt"] = rows[number]["prompt"]
        tests[5 + number]["prompt"] = "\n" + rows[10 + number]["prompt"].upper().replace(" ", " , ") + "?!"
        tests[10 + number]["prompt"] = rows[20 + number]["prompt"] + " too"
    rows[20]["prompt"] = tests[10]["prompt"] = "short one"
    result = audit(rows, tests)
    exact = [[n, n] for n in range(5)] + [[10 + n, 5 + n] for n in range(5)] + [[20, 10]]
    assert groups(result, "leaked_exact") == exact
    near = groups(result, "leaked_near")
    assert [pair for pair in near if pair not in [[20 + n, 10 + n] for n in range(1, 5)]] == []
    assert len(near) >= 3  # of prompts of very few words, one more word is much
    leak = result.findings[0]
    assert (leak.kind, leak.grave) == ("leaked_exact", True)
    assert leak.example == [
        {"row": 0, "prompt": leak.example[0]["prompt"]}, {"test_row": 0, "prompt": leak.example[0]["prompt"]}
    ]  # fmt: skip


def test_other_arithmetic_is_another_prompt():
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("What is 12 + 3?", "Well-known to you?")]
    tests = [{"prompt": p} for p in ("What is 1 + 23?", "What is 12 - 3?", "what is 12+3", "well known to you")]
    assert groups(audit(rows, tests), "leaked_exact") == [[0, 2], [1, 3]]


def test_a_transcript_and_its_messages_have_the_same_prompt():
    text = {"chosen": "\n\nHuman: hi\n\nAssistant: A", "rejected": "\n\nHuman: hi\n\nAssistant: B"}
    messages = {"prompt": chat("hi"), "chosen": [reply("A")], "rejected": [reply("B")]}
    assert groups(audit([text], [messages, {"question": "Hi."}]), "leaked_exact") == [[0, 0], [0, 1]]


def test_what_is_wrong_with_single_conversations_is_found():
    fine = {"prompt": chat("q"), "chosen": [reply("a")], "rejected": [reply("b")]}
    early = {"chosen": chat("q", "a", "more", "x"), "rejected": chat("q", "b", "more", "y")}
    agent = {
        "prompt": chat("q"),
        "chosen": [{"role": "assistant", "content": "look"}, {"role": "tool", "content": "1"}],
    }
    rows = [
        fine,
        early,
        fine | {"prompt": [user("q"), user("r")]},
        fine | {"prompt": [user("q"), {"role": "system", "content": "s"}]},
        fine | {"prompt": [{"role": "robot", "content": "s"}, user("q")]},
        fine | {"chosen": [reply("a"), user("thanks")]},
        fine | {"chosen": [reply("a <|im_end|>")]},
        fine | {"chosen": [reply("a\n\nHuman: b")]},
        agent | {"rejected": [reply("no")]},
        fine | {"rejected": []},
        fine | {"rejected": [reply(None)]},
        fine | {"rejected": None},
    ]
    result = audit(rows)
    assert groups(result, "early_divergence") == [[1], [5]]
    assert groups(result, "broken_roles") == [[2], [3], [4], [5]]
    assert groups(result, "template_tokens") == [[6], [7]]
    assert groups(result, "empty") == [[9], [10], [11]]


def test_transcripts_have_turns_and_no_template_tokens():
    def pair(*sides):
        return {"chosen": sides[0], "rejected": sides[1]}

    start = "\n\nHuman: hi\n\nAssistant:"
    rows = [
        pair(f"{start} A", f"{start} B"),
        pair(f"{start} A\n\nHuman: so?\n\nAssistant: C", f"{start} B\n\nHuman: so?\n\nAssistant: C"),
        pair(f"{start} A", start),
        pair(f"{start} A </s>", f"{start} B"),
    ]
    result = audit(rows)
    assert groups(result, "early_divergence") == [[1]]
    assert groups(result, "empty") == [[2]]
    assert groups(result, "template_tokens") == [[3]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "a"}, "row 1"),
        ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "row 1, column 'chosen'"),
        ({"prompt": "Q", "chosen": "a", "rejected": [reply("b")]}, "row 1"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "label": 7}, "row 1, column 'label'"),
        ("text", "row 1"),
    ],
)
def test_a_row_that_training_refuses_is_an_error_that_names_it(row, words):
    with pytest.raises(DataError, match=words):
        audit([{"prompt": "Q", "chosen": "a", "rejected": "b"}, row])


def test_no_rows_are_an_error():
    with pytest.raises(DataError, match="expected rows"):
        audit([])


def test_one_prompt_with_a_fifth_of_the_rows_dominates():
    rows = made_pairs(100)
    for row in rows[:20]:
        row["prompt"] = "Tell me a joke"
    assert groups(audit(rows), "dominant_prompt") == [list(range(20))]


def test_length_and_form_that_go_with_the_label_are_found_with_their_figures():
    rows = made_pairs(400)
    for number, row in enumerate(rows):
        if number % 4:
            row["chosen"] = row["rejected"] + " " + row["chosen"]
        if number % 5 == 0:
            row["chosen"] = f"Sure! {row['chosen']}"
    findings = {finding.kind: finding for finding in audit(rows).findings}
    assert findings["length_bias"].grave
    assert findings["length_bias"].rows == []
    assert findings["length_bias"].count == pytest.approx(350, abs=20)
    features = {each["feature"]: each for each in findings["format_bias"].figures["features"]}
    assert features.keys() == {"exclamation", '"Sure" as opener'}
    assert features["exclamation"]["odds_ratio"] is None  # never on the rejected side
    assert features["exclamation"]["low"] > 10
    assert findings["format_bias"].count == 80


def test_three_rows_raise_no_alarm_about_length():
    rows = [row | {"chosen": row["chosen"] * 9} for row in made_pairs(3)]
    assert audit(rows).findings == []


def test_the_share_of_longer_responses_is_that_of_the_baseline():
    rows = [row | {"chosen": row["chosen"] * (1 + number % 3)} for number, row in enumerate(made_pairs(300))]
    rows += [{"prompt": f"Q{number}", "chosen": "ab", "rejected": "cd"} for number in range(50)]  # ties
    result = audit(rows)
    (finding,) = (each for each in result.findings if each.kind == "length_bias")
    assert finding.figures["accuracy"] == result.baselines["longer"]


def test_raters_who_do_not_agree_are_found():
    rows = made_pairs(40)
    for number, row in enumerate(rows):
        row["votes"] = ["chosen", "chosen", "rejected"] if number % 2 else [1, 2, 3]
    result = audit(rows)
    assert result.agreement["rows"] == 40
    assert result.agreement["alpha"] == pytest.approx(1 - (20 * 2 / 3) / 40 / 0.5, abs=0.01)
    assert groups(result, "low_agreement") == [[number] for number in range(1, 40, 2)]
    assert audit(made_pairs(40)).agreement is None


def test_soft_labels_stand_for_raters():
    rows = [row | {"label": 0.6 if number % 2 else 1.0} for number, row in enumerate(made_pairs(40))]
    result = audit(rows)
    assert result.agreement["alpha"] == pytest.approx(1 - 2 * 0.6 * 0.4, abs=1e-3)
    assert groups(result, "low_agreement") == []
    assert groups(audit([row | {"label": 0.6} for row in rows]), "low_agreement")[:2] == [[0], [1]]


def test_rows_that_training_would_cut_are_counted(tokenizer):
    rows = [{"prompt": "Q ", "chosen": "word " * 50, "rejected": "b"}, {"prompt": "Q ", "chosen": "a", "rejected": "b"}]
    result = audit([*rows, {"prompt": "Q", "chosen": "", "rejected": "b"}], tokenizer=tokenizer, max_length=20)
    assert groups(result, "truncated") == [[0]]
    assert result.truncation["20"] == pytest.approx(1 / 3)
    assert result.truncation["8192"] == 0


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet", ".csv"])
def test_files_and_datasets_give_what_their_rows_give(tmp_path, suffix):
    rows = [row | {"label": 0.9} for row in made_pairs(60)]  # a number in every format
    rows += [rows[3], swapped(rows[4])]
    path = tmp_path / f"rows{suffix}"
    if suffix in (".parquet", ".csv"):
        getattr(Dataset.from_list(rows), f"to_{suffix[1:]}")(path)
    else:
        with (gzip.open if suffix == ".jsonl.gz" else open)(path, "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    expected = audit(rows, rows[:2]).to_dict()
    assert audit(Dataset.from_list(rows), rows[:2]).to_dict() == expected
    assert audit(path, rows[:2]).to_dict() == expected | {"dataset": str(path)}


def test_published_layouts_are_converted(tmp_path):
    rows = [{"prompt": f"Q{n}", "response_1": "yes", "response_2": "no", "preference_strength": -n} for n in range(3)]
    expected = audit(rows, dataset_format="helpsteer").to_dict()
    assert expected["comparisons"] == 2  # one is a tie
    path = write(tmp_path / "rows.jsonl", rows)
    assert audit(path, dataset_format="helpsteer").to_dict() == expected | {"dataset": str(path)}
    with pytest.raises(DataError, match="row 0, read as 'arena'"):
        audit(path, dataset_format="arena")


def test_the_result_is_json_with_the_keys_that_readers_rely_on():
    rows = made_pairs(30)
    content = json.loads(json.dumps(audit([*rows, rows[0]]).to_dict(), allow_nan=False))
    assert content["rows"] == 31
    assert content["baselines"].keys() == {"longer", "style", "bag_of_words"}
    (finding,) = content["findings"]
    assert {"kind", "count", "rows", "grave", "why", "advice"} <= finding.keys()
    assert finding["rows"] == [[0, 30]]
    assert finding["example"][0]["row"] == 0


def test_grave_findings_come_first_and_then_the_harm_decides():
    rows = made_pairs(40)
    rows += [rows[0], rows[1] | {"rejected": ""}, near_copy(rows[2], 0.02)]
    findings = audit(rows, rows[3:4]).findings
    assert [finding.kind for finding in findings if finding.grave] == ["leaked_exact", "empty"]
    order = [(not finding.grave, list(KINDS).index(finding.kind)) for finding in findings]
    assert order == sorted(order)


def test_the_cheap_part_finds_exact_things_without_a_search():
    rows = made_pairs(30)
    rows += [rows[0], swapped(rows[1]), near_copy(rows[2], 0.02)]
    findings = cheap_findings(rows, rows[5:6])
    assert groups(findings, "duplicate_exact") == [[0, 30]]
    assert groups(findings, "contradiction") == [[1, 31]]
    assert groups(findings, "leaked_exact") == [[5, 0]]
    assert groups(findings, "duplicate_near") == []


def test_the_order_of_the_rows_changes_no_count():
    rows = [each.row() for each in PreferenceWorld(0).pairs(400)]
    rows += rows[:5]
    there, back = audit(rows), audit(rows[::-1])
    assert {each.kind: each.count for each in there.findings} == {each.kind: each.count for each in back.findings}
    assert there.baselines["longer"] == back.baselines["longer"]


def test_two_equal_responses_in_a_group_do_not_make_the_row_wrong():
    rows = [
        {"prompt": "Q", "completions": ["first words", "other words", "other words ", "last"], "ranks": [0, 1, 2, 3]}
    ]
    rows.append({"prompt": "R", "chosen": "the same", "rejected": "the same"})
    found = {each.kind: each.rows for each in audit(rows).findings}
    assert found["identical"] == [[1]]


def test_the_result_has_the_entries_of_its_json():
    result = audit([{"prompt": "R", "chosen": "the same", "rejected": "the same"}] * 2)
    written = json.loads(json.dumps(result.to_dict()))
    assert result["rows"] == written["rows"] == 2
    assert [each["kind"] for each in result["findings"]] == [each["kind"] for each in written["findings"]]
