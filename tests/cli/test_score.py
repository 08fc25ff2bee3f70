"""`plaudit score`, as a person sees it; killed runs are in tests/scoring/test_kills.py, Ray in test_ray.py."""

import csv
import errno
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForSequenceClassification, GPT2Config, set_seed

from plaudit import RewardModel
from plaudit.cli import cli
from plaudit.cli.score import _workers
from plaudit.data.reader import Source
from plaudit.errors import ConfigError
from plaudit.scoring import blocks
from plaudit.scoring.rows import Settings, Worker

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "score_kills.py"
EVERY_KIND = [
    {"text": "Is the sky blue? Yes."},
    {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "No."}]},
    {"prompt": "Is the dog?", "completion": " Yes, the dog.", "source": "a"},
    {
        "prompt": [{"role": "user", "content": "Is it?"}],
        "completion": [{"role": "assistant", "content": "Yes."}],
        "tools": [{"name": "add"}],
    },
    {"prompt": "Is the fox?", "chosen": " Yes.", "rejected": " No, it is green."},
    {"chosen": "Two plus two? Four.", "rejected": "Two plus two? Five."},
    {"prompt": "Is it?", "completions": [" Yes.", " No.", " Thank you."], "ranks": [0, 2, 1]},
    {"completions": ["Is it? Yes, the sky."]},
]


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def model(make_model, tokenizer, tmp_path):
    return save(make_model(), tokenizer, tmp_path / "model")


def save(model, tokenizer, folder):
    model.config.mean, model.config.std, model.config.pad_token_id = 1.5, 0.25, tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def score(started):
    """Run the command on rows, or on a file; its exit code and what it printed."""

    def run(source, *options, output="out.jsonl"):
        result = started(source, *options, output=output)
        return (0, " ".join(result.output.split())) if result.exit_code == 0 else (1, str(result.exception))

    return run


@pytest.fixture
def started(model, tmp_path):
    """Run the command on rows, or on a file; what click says of it."""

    def run(source, *options, output="out.jsonl"):
        if isinstance(source, list):
            source = write(tmp_path / "in.jsonl", source)
        arguments = [source, "--model", model, "--output", tmp_path / output, "--device", "cpu", *options]
        return CliRunner().invoke(cli, ["score", *map(str, arguments)])

    return run


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if not path.exists() or path.read_text() != text:  # a file that is written again counts as changed
        path.write_text(text)
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def texts(count, **more):
    return [{"text": f"Is it {number}? " + "Yes, the sky. " * (number % 5), **more} for number in range(count)]


def close(rewards):
    return pytest.approx(rewards, abs=3e-6)  # float32, in other company


# What is scored, and what comes out


def test_each_kind_of_row_keeps_its_columns_and_gets_its_rewards(score, model, tmp_path):
    assert score(EVERY_KIND)[0] == 0
    rows = read(tmp_path / "out.jsonl")
    rewards = [{name: row.pop(name) for name in list(row) if name.endswith("reward")} for row in rows]
    assert rows == EVERY_KIND
    chat = EVERY_KIND[3]["prompt"] + EVERY_KIND[3]["completion"]
    loaded = RewardModel.from_pretrained(model, device="cpu")
    expected = loaded.score(
        [
            "Is the sky blue? Yes.", EVERY_KIND[1]["messages"], "Is the dog? Yes, the dog.", chat,
            "Is the fox? Yes.", "Is the fox? No, it is green.", "Two plus two? Four.", "Two plus two? Five.",
            "Is it? Yes.", "Is it? No.", "Is it? Thank you.", "Is it? Yes, the sky.",
        ],
        options=[{}] * 3 + [{"tools": [{"name": "add"}]}] + [{}] * 8,
    ).tolist()  # fmt: skip
    assert len(set(np.round(expected, 4))) == 12
    assert rewards == [
        *({"reward": close(reward)} for reward in expected[:4]),
        {"chosen_reward": close(expected[4]), "rejected_reward": close(expected[5])},
        {"chosen_reward": close(expected[6]), "rejected_reward": close(expected[7])},
        {"reward": close(expected[8:11])},
        {"reward": close(expected[11:])},
    ]


def test_rewards_are_the_floats_that_the_model_gave_in_as_few_digits_as_tell_them(score, model, tmp_path):
    assert score(texts(6))[0] == 0
    loaded = RewardModel.from_pretrained(model, device="cpu")
    expected = loaded.score([row["text"] for row in texts(6)])
    written = [row["reward"] for row in read(tmp_path / "out.jsonl")]
    assert np.array_equal(np.float32(written), expected)
    assert max(len(str(reward)) for reward in written) <= 13


def test_completions_of_messages_may_be_strings_as_samplers_write_them(score, tmp_path):
    def say(role, text):
        return [{"role": role, "content": text}]

    prompt, texts = say("user", "Is it?"), [" Yes.", " No."]
    written = [
        {"prompt": prompt, "completions": texts},
        {"prompt": prompt, "completion": texts[1]},
        {"prompt": "Is it?", "completions": [say("assistant", texts[0]), texts[1]]},
    ]
    assert score(written)[0] == 0
    group, single, mixed = read(tmp_path / "out.jsonl")
    assert {name: value for name, value in group.items() if name != "reward"} == written[0]
    assert (
        score([{"prompt": prompt, "completions": [say("assistant", each) for each in texts]}], output="a.jsonl")[0] == 0
    )
    expected = read(tmp_path / "a.jsonl")[0]["reward"]
    assert group["reward"] == close(expected)
    assert mixed["reward"] == close(expected)
    assert single["reward"] == close(expected[1])
    assert score(written[:1], "--best_of", output="best.jsonl")[0] == 0
    assert read(tmp_path / "best.jsonl")[0]["completion"] == texts[expected.index(max(expected))]


def test_the_best_of_a_group_takes_its_place(score, tmp_path):
    group = {"id": 7, "prompt": "Is it?", "completions": [" Yes.", " No, it is green.", " Yes.", " Thank you."]}
    assert score([group])[0] == 0
    rewards = read(tmp_path / "out.jsonl")[0]["reward"]
    best = int(np.argmax(rewards))
    assert score([group], "--best_of", output="best.jsonl")[0] == 0
    expected = {"id": 7, "prompt": "Is it?", "completion": group["completions"][best], "reward": rewards[best]}
    assert read(tmp_path / "best.jsonl") == [expected]
    assert list(read(tmp_path / "best.jsonl")[0]) == list(expected)
    code, said = score([{"text": "Is it?"}], "--best_of", output="no.jsonl")
    assert code == 1
    assert "row 0: --best_of expected a group" in said


def test_rewards_are_normalized_by_what_the_model_was_saved_with(score, tmp_path):
    assert score(texts(3))[0] == score(texts(3), "--normalize", output="normal.jsonl")[0] == 0
    raw, normal = ([row["reward"] for row in read(tmp_path / name)] for name in ("out.jsonl", "normal.jsonl"))
    assert normal == close([(reward - 1.5) / 0.25 for reward in raw])


def test_a_row_that_could_be_read_in_two_ways_is_not_guessed_about(score, tmp_path):
    row = {"text": "Is it? Yes.", "prompt": "Is it?", "completion": " No."}
    code, said = score([row])
    assert code == 1
    assert "row 0: expected one thing to score, got completion, text. Choose with --kind completion" in said
    assert score([row], "--kind", "text", "--restart")[0] == score([{"text": "Is it? Yes."}], output="b.jsonl")[0] == 0
    assert read(tmp_path / "out.jsonl")[0]["reward"] == read(tmp_path / "b.jsonl")[0]["reward"]


def test_a_column_of_rewards_that_is_there_is_not_overwritten(score, tmp_path):
    code, said = score(texts(2, reward=1.0), "--on_error", "skip")
    assert code == 1
    assert "has a column 'reward' already" in said
    assert score(texts(2, reward=1.0), "--reward_column", "second", "--restart")[0] == 0
    assert read(tmp_path / "out.jsonl")[0].keys() == {"text", "reward", "second"}


# Formats

TYPED = [
    {"id": "007", "day": "2024-01-01", "text": 'Is it? Yes,\n"the sky".'},
    {"id": "1e5", "day": "2024-01-02", "text": "Is the fox blue? Ünïcode ☃."},
    {"id": "", "day": "", "text": "Is it? No."},
]


def write_as(path, rows):
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.startswith("in.csv"):
        with (gzip.open if name.endswith(".gz") else open)(path, "wt", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def read_as(path):
    if path.name.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    if path.name.endswith(".csv"):
        with open(path, newline="", encoding="utf-8") as file:
            return [row | {"reward": float(row["reward"])} for row in csv.DictReader(file)]
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv", "in.csv.gz", "in.parquet"])
def test_from_each_format_to_each_format_no_value_changes(score, tmp_path, name, output):
    code, said = score(write_as(tmp_path / name, TYPED), "--batch_rows", 2, output=output)
    assert code == 0, said
    rows = read_as(tmp_path / output)
    # CSV does not tell an empty text from no value: an empty cell is read as no value.
    empty = None if ".csv" in name and not output.endswith(".csv") else ""
    assert [{name: row[name] for name in TYPED[0]} for row in rows] == [
        *TYPED[:2],
        TYPED[2] | {"id": empty, "day": empty},
    ]
    assert len({row["reward"] for row in rows}) == 3
    assert not list(tmp_path.glob("_*"))


def test_csv_of_a_spreadsheet_is_read(score, tmp_path):
    """A byte order mark, carriage returns, line breaks and quotes inside a cell, empty lines, a suffix in capitals."""
    (tmp_path / "IN.CSV").write_bytes(b'\xef\xbb\xbftext,note\r\n"Is it? ""Yes"",\r\nsaid the fox.",a\r\n\r\nNo.,\r\n')
    assert score(tmp_path / "IN.CSV")[0] == 0
    rows = read(tmp_path / "out.jsonl")
    assert [(row["text"], row["note"]) for row in rows] == [('Is it? "Yes",\r\nsaid the fox.', "a"), ("No.", None)]


def test_parquet_keeps_its_types(score, tmp_path):
    schema = pa.schema(
        [
            ("text", pa.large_string()), ("n", pa.int16()), ("when", pa.timestamp("ms")), ("raw", pa.binary()),
            ("tags", pa.list_(pa.string())),
        ]
    )  # fmt: skip
    row = {"text": "Is it? Yes.", "n": 3, "when": datetime(2024, 5, 6, 7), "raw": b"\xff", "tags": []}
    pq.write_table(pa.Table.from_pylist([row, row], schema=schema), tmp_path / "in.parquet")
    assert score(tmp_path / "in.parquet", "--batch_rows", 1, output="out.parquet")[0] == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.remove(table.schema.get_field_index("reward")).equals(schema)
    assert [{name: each[name] for name in row} for each in table.to_pylist()] == [row, row]
    code, said = score(tmp_path / "in.parquet")
    assert code == 1
    assert "a value of type bytes has no form in JSON; write .parquet" in said


def test_rows_with_other_columns_far_apart_go_together_in_parquet_and_csv(score, tmp_path):
    rows = [{"text": "Is it?", "n": 1, "at": {"a": 1}}, {"text": "Is it not?", "n": 0.5, "at": {"b": "x"}, "z": "z"}]
    for output in ("out.parquet", "out.csv"):
        assert score(rows, "--batch_rows", 1, output=output)[0] == 0
    one, two = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (one["n"], one["at"], one["z"]) == (1.0, {"a": 1, "b": None}, None)
    assert (two["n"], two["at"], two["z"]) == (0.5, {"a": None, "b": "x"}, "z")
    assert [row["at"] for row in read_as(tmp_path / "out.csv")] == ['{"a": 1}', '{"b": "x"}']
    code, said = score([rows[0], rows[1] | {"n": "many"}], "--batch_rows", 1, output="no.parquet")
    assert code == 1
    assert "no common form in Parquet" in said


def test_a_folder_is_read_by_split(score, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", texts(2, of="train"))
    write(tmp_path / "data" / "test.jsonl", texts(3, of="test"))
    code, said = score(tmp_path / "data", "--split", "test")
    assert code == 0, said
    assert [row["of"] for row in read(tmp_path / "out.jsonl")] == ["test"] * 3
    write(tmp_path / "data" / "test.jsonl", texts(3, other="test"))
    assert "cannot read" in score(tmp_path / "data", "--split", "test", output="a.jsonl")[1]
    assert "expected a split 'dev'" in score(tmp_path / "data", "--split", "dev", output="b.jsonl")[1]


def test_what_cannot_be_read_or_written_is_said_before_anything_is_scored(score, tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "__init__", lambda *_: pytest.fail("the model was loaded"))
    assert "expected a name that ends in .jsonl" in score(texts(1), output="out.txt")[1]
    assert "there is no folder" in score(texts(1), output="missing/out.csv")[1]
    assert "expected a number such as 4" in score(texts(1), "--workers", "4:2")[1]
    assert "is a file: it has no --dataset_config" in score(texts(1), "--split", "dev")[1]


@pytest.mark.parametrize("cut", [1, 40])
def test_a_file_that_was_cut_short_is_an_error_and_no_short_output(score, tmp_path, cut):
    path = write_as(tmp_path / "in.jsonl.gz", texts(500))
    path.write_bytes(path.read_bytes()[:-cut])
    code, said = score(path, "--on_error", "skip")
    assert code == 1
    assert "cannot read" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_no_rows_is_an_error(score, tmp_path):
    assert "expected rows" in score([])[1]


def test_a_cell_with_a_lone_carriage_return_stays_one_cell_of_csv(score, tmp_path):
    assert score([{"text": "Is it?\rYes.", "id": 1}, {"text": "Is it?\r\nNo.", "id": 2}], output="out.csv")[0] == 0
    assert [row["text"] for row in read_as(tmp_path / "out.csv")] == ["Is it?\rYes.", "Is it?\r\nNo."]
    assert b"\n1" not in (tmp_path / "out.csv").read_bytes()
    assert (tmp_path / "out.csv").read_bytes().count(b"\r\n") == 1


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_quote_that_is_never_closed_swallows_no_rows_of_csv(score, tmp_path, end):
    (tmp_path / "in.csv").write_text(f'\ntext,id\n"Is it?",1\n"Is it,2\nYes.,3{end}')
    assert "a quote is opened and never closed, before 'Is it,2" in score(tmp_path / "in.csv", "--on_error", "skip")[1]
    (tmp_path / "in.csv").write_text(f'\ntext,id\n"Is it?",1\n"Is it",2\nYes.,3{end}')
    assert score(tmp_path / "in.csv")[0] == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl.gz", "in.parquet"])
def test_what_is_broken_is_said_of_the_file(score, tmp_path, name):
    data = b"te\xffxt,id\nIs it?,1\n"
    if name == "in.jsonl.gz":
        whole = gzip.compress(json.dumps({"text": "Yes."}).encode())
        data = whole[:10] + bytes([6]) + whole[11:]  # a kind of block that there is not
    (tmp_path / name).write_bytes(b"" if name == "in.parquet" else data)
    code, said = score(tmp_path / name)
    assert code == 1
    assert f"cannot read {tmp_path / name}" in said


def test_parquet_is_read_without_holding_a_row_group(tmp_path):
    draw = np.random.default_rng(0)
    pq.write_table(pa.table({"text": [draw.bytes(400).hex() for _ in range(40_000)]}), tmp_path / "in.parquet")
    pool = pa.default_memory_pool()
    size, before, most = (tmp_path / "in.parquet").stat().st_size, pool.bytes_allocated(), 0
    for block in Source(str(tmp_path / "in.parquet")).chunks(512):
        most = max(most, pool.bytes_allocated() - before)
        assert len(block.rows) in (512, 40_000 % 512)
    assert most < size / 4


def test_a_number_too_large_for_parquet_is_said(score, tmp_path):
    assert "have no form in Parquet" in score([{"text": "Yes.", "n": 2**70}], output="out.parquet")[1]
    assert score([{"text": "Yes.", "n": 2**70}])[0] == 0
    assert read(tmp_path / "out.jsonl")[0]["n"] == 2**70


def test_the_best_does_not_take_the_place_of_another_column(score):
    code, said = score([{"completions": ["Yes.", "No."], "completion": "mine"}], "--kind", "group", "--best_of")
    assert code == 1
    assert "row 0 has a column 'completion' already" in said


def test_an_output_in_the_input_is_refused(score, tmp_path):
    data = write(tmp_path / "data.jsonl", texts(2))
    before = data.read_bytes()
    for output in ("data.jsonl", "../" + tmp_path.name + "/data.jsonl"):
        assert "lies in INPUT" in score(data, "--restart", output=output)[1]
    assert data.read_bytes() == before
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "data.jsonl", texts(2))
    assert "lies in INPUT" in score(tmp_path / "folder", output="folder/out.jsonl")[1]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["data.jsonl"]


# Bad rows

BAD = [
    ('{"text": "Is it?", "text": "Yes."}', "line 2 is not valid JSON (it has the key 'text' twice)"),
    ({"input_ids": [1, 2]}, "'input_ids' may be token ids, which only training takes"),
    ('{"text": "half a', "line 2 is not valid JSON"),
    ("[1, 2]", "line 2: expected a JSON object, got list"),
    ({"chosen": "Is it?"}, "the row has values in 'chosen'"),
    ({"text": ""}, "expected some text"),
    ({"prompt": "Is it?", "chosen": [{"role": "assistant", "content": "No."}], "rejected": ""}, "all of one kind"),
    ({"prompt": [{"role": "user", "content": "Is it?"}], "completion": 5}, "expected a string or a list of messages"),
    ({"messages": [{"role": "user", "content": "Is it?"}]}, "the last message to be from the assistant"),
    ({"prompt": "Is it?", "completions": []}, "expected one or more in a list"),
    ({"text": "Is it? " + "Yes. " * 200}, "row 1, column 'text' has 806 tokens, more than 256"),
    ({"text": "half \ud800"}, "row 1"),
    (
        {"messages": [{"role": "ghost", "content": "Boo"}, {"role": "assistant", "content": "No."}]},
        "the tokenizer's chat template refuses it",
    ),
]


@pytest.fixture
def refusing(tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'ghost' %}{{ raise_exception('no ghosts') }}{% endif %}" + tokenizer.chat_template
    )


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_is_named_and_can_be_put_aside(score, tmp_path, bad, reason):
    rows = [texts(1)[0], bad, *texts(3)]
    code, said = score(rows, "--overlong", "error")
    assert code == 1
    assert said.startswith("row 1")
    assert reason in said
    assert "--on_error skip" in said
    assert not (tmp_path / "out.jsonl").exists()
    code, said = score(rows, "--overlong", "error", "--on_error", "skip")
    assert code == 0, said
    assert "Scored 4 rows" in said
    assert "1 rows could not be scored" in said
    (rejected,) = read(tmp_path / "out.jsonl.rejected.jsonl")
    assert rejected["row"] == 1
    assert reason in rejected["reason"]
    assert rejected["content"] == bad
    assert score([rows[0], *rows[2:]], output="good.jsonl")[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()


def test_a_block_that_is_given_up_runs_no_model(score, monkeypatch):
    monkeypatch.setattr(Worker, "_rewards", lambda *_: pytest.fail("the model ran"))
    assert score([*texts(3), "{"])[1].startswith("row 3: line 4 is not valid JSON")


def test_the_layout_is_settled_before_any_row_is_seen(model, monkeypatch):
    compared = []
    monkeypatch.setattr("plaudit.engine.compare_layouts", lambda *_, **__: compared.append(1) or "of a trial")
    worker = Worker(Settings(str(model), options={"overlong": "error", "max_length": 40}))
    assert compared == [1]
    assert worker._model.engine.layout == "padded"


def test_a_model_with_few_positions_is_asked_for_no_more_to_settle_its_layout(score, tokenizer, tmp_path):
    set_seed(0)
    config = GPT2Config(vocab_size=330, n_positions=24, n_embd=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0)
    small = save(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path / "small")
    assert score([{"text": "Is it? Yes."}], "--model", small)[0] == 0


def test_sequences_that_are_cut_are_counted_once(score, tmp_path):
    long = [{"text": "Is it? " + "Yes. " * 200}]
    rows = [*long, *texts(2), {"text": "half \ud800"}, *long]  # which has each row tried again alone
    code, said = score(rows, "--on_error", "skip")
    assert code == 0, said
    assert "2 sequences had more than the model has positions" in said
    code, said = score(rows, "--on_error", "skip", "--max_length", 20, output="short.jsonl")
    assert "2 sequences had more than 20 tokens" in said


def test_a_line_of_csv_with_too_many_fields_is_a_bad_row(score, tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n1,Is it?\n2,Is it, or not?\n3,Yes.\n")
    assert "row 1: expected 2 fields, as the header has, got 3" in score(tmp_path / "in.csv")[1]
    assert score(tmp_path / "in.csv", "--on_error", "skip")[0] == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["1", "3"]


def test_rewards_that_are_not_finite_are_no_rewards(score, make_model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "plaudit.engine.ScoringEngine.score",
        lambda _, ids, *__: np.float32([1.5 if len(each) < 12 else np.nan for each in ids]),
    )
    assert score(texts(3), "--on_error", "skip")[0] == 0
    assert [row["reward"] for row in read(tmp_path / "out.jsonl")] == [1.5]
    assert [row["row"] for row in read(tmp_path / "out.jsonl.rejected.jsonl")] == [1, 2]


def test_rows_that_are_put_aside_stay_in_order_whatever_is_wrong_with_them(score, tmp_path, monkeypatch):
    plain = Worker._rewards

    def spoilt(worker, ids):
        rewards = plain(worker, ids)
        return [*rewards[:-1], np.inf]

    monkeypatch.setattr(Worker, "_rewards", spoilt)
    rows = [{"text": "half \ud800"}, *texts(2), "{", {"text": "half \ud800"}, {"text": ""}, *texts(1), "["]
    assert score(rows, "--on_error", "skip")[0] == 0
    assert [row["row"] for row in read(tmp_path / "out.jsonl.rejected.jsonl")] == [0, 3, 4, 5, 6, 7]
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_a_bad_row_with_values_that_json_has_not_can_be_put_aside(score, tmp_path):
    rows = [{"text": "Yes.", "raw": b"\xff", "day": date(2024, 5, 6)}, {"text": "", "raw": b"a", "day": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert score(tmp_path / "in.parquet", "--on_error", "skip", output="out.parquet")[0] == 0
    (rejected,) = read(tmp_path / "out.parquet.rejected.jsonl")
    assert rejected["content"] == {"text": "", "raw": "b'a'", "day": None}


def test_if_no_row_can_be_scored_there_is_no_output_but_the_reasons(score, tmp_path):
    code, said = score([{"chosen": "a"}, {"rejected": "b"}], "--on_error", "skip")
    assert code == 1
    assert "none of the 2 rows could be scored" in said
    assert len(read(tmp_path / "out.jsonl.rejected.jsonl")) == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_progress_is_told_within_a_block(score, tmp_path, monkeypatch):
    lines, now = [], iter(range(0, 10_000, 11))  # each look at the clock is eleven seconds later
    monkeypatch.setattr("plaudit.cli.score.time.monotonic", lambda: next(now))
    monkeypatch.setattr("plaudit.cli.display.console.print", lambda text, **_: lines.append(text))
    data = write_as(tmp_path / "in.parquet", texts(30))
    assert score(data, "--batch_rows", 20, "--max_tokens_per_batch", 64)[0] == 0
    told = [line for line in lines if "rows/s" in line]
    rows, shares = ([int(line.split("%")[place].split()[0]) for line in told] for place in (1, 0))
    assert shares == pytest.approx([number * 100 / 30 for number in rows], abs=4)
    assert rows == sorted(rows)
    assert rows[-1] == 30
    assert sum(number < 20 for number in rows) > 2
    assert "tokens/s" not in told[0]
    assert "tokens/s" in told[-1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_terminal_shows_a_bar_and_is_put_right_again(score, monkeypatch, fails):
    screen = Console(force_terminal=True, file=io.StringIO(), width=120)
    monkeypatch.setattr("plaudit.cli.display.console", screen)
    rows = [*texts(9), "{", *texts(9)]
    assert score(rows, "--batch_rows", 5, *([] if fails else ["--on_error", "skip"]))[0] == fails
    shown = screen.file.getvalue()
    assert " rows/s " in shown
    assert " tokens/s" in shown
    assert ("1 rejected" in shown) == (not fails)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor, hidden and shown again
    if not fails:
        assert "0:00:00" in shown  # nothing remains


@pytest.mark.parametrize(
    ("text", "range_"), [("1", (1, 1)), ("4", (4, 4)), ("2:", (2, None)), ("2:8", (2, 8)), ("3:3", (3, 3))]
)
def test_workers_are_a_number_or_a_range(text, range_):
    assert _workers(text) == range_


@pytest.mark.parametrize("text", ["0", "0:4", "4:3", ":4", "", "two", "1:2:3", "-1"])
def test_workers_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--workers: expected a number such as 4, or a range such as 1:8, got"):
        _workers(text)


def test_the_command_runs_in_a_thread_that_may_not_ask_for_signals(score):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(score, texts(2)).result()[0] == 0


# Going on


@pytest.fixture
def scored(monkeypatch):
    """The numbers of the blocks that were scored; a block in `scored.deadly` ends the run."""

    class Scored(list):
        deadly = ()

    numbers, score = Scored(), Worker.score

    def noted(worker, block):
        if block.number in numbers.deadly:
            raise KeyboardInterrupt
        numbers.append(block.number)
        return score(worker, block)

    monkeypatch.setattr(Worker, "score", noted)
    return numbers


def stop_at(score, scored, number, rows, *options, output="out.jsonl"):
    scored.deadly = (number,)
    code, _ = score(rows, *options, "--batch_rows", 3, output=output)
    assert code == 1
    scored.deadly = ()
    scored.clear()


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(score, scored, tmp_path, output):
    rows = [*texts(10), "{", *texts(7)]
    assert score(rows, "--batch_rows", 3, "--on_error", "skip", output="whole-" + output)[0] == 0
    assert scored == [0, 1, 2, 3, 4, 5]
    stop_at(score, scored, 4, rows, "--on_error", "skip", output=output)
    code, said = score(rows, "--batch_rows", 3, "--on_error", "skip", output=output)
    assert code == 0
    assert "Going on after 11 rows" in said
    assert scored == [4, 5]
    for suffix in ("", ".rejected.jsonl"):
        assert (tmp_path / (output + suffix)).read_bytes() == (tmp_path / f"whole-{output}{suffix}").read_bytes()


def test_skipping_can_be_asked_for_at_the_row_that_is_bad(score, scored, tmp_path):
    rows = [*texts(7), "{", *texts(4)]
    assert score(rows, "--batch_rows", 3)[0] == 1
    assert score(rows, "--batch_rows", 3, "--on_error", "skip", "--trust_remote_code")[0] == 0  # no score hangs on it
    assert scored == [0, 1, 2, 2, 3]
    assert len(read(tmp_path / "out.jsonl")) == 11


def test_what_ends_a_run_after_its_output_is_there_costs_nothing(score, scored, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "remove_folder", lambda _: None)  # as if killed just before
        assert score(texts(5), "--batch_rows", 3)[0] == 0
    assert (tmp_path / "_scoring-out.jsonl").is_dir()
    before = (tmp_path / "out.jsonl").read_bytes()
    assert score(texts(5), "--batch_rows", 3)[0] == 0
    assert scored == [0, 1]
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("_*"))


def test_the_options_of_the_machine_are_taken_from_the_start_before(score, scored, tmp_path):
    stop_at(score, scored, 2, texts(8), "--threads", 1)
    torch.set_num_threads(2)
    try:
        assert score(texts(8), "--batch_rows", 3)[0] == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_run_goes_on_where_it_ran_though_another_device_is_there_now(score, scored, monkeypatch):
    stop_at(score, scored, 1, texts(5))
    monkeypatch.setattr("plaudit.cli.score._device", lambda _: "cuda:7")
    assert score(texts(5), "--batch_rows", 3, "--device", "")[0] == 0  # as if not given
    assert scored == [1]


CHANGES = {
    "input: bytes was": lambda rows, folder: ([*rows, {"text": "One more."}], []),
    "model: files was": lambda rows, folder: (rows, os.utime(folder / "config.json", (1, 1)) or []),
    "options: max_length was None, is 9": lambda rows, folder: (rows, ["--max_length", 9]),
    "options: batch_rows was 3, is 4": lambda rows, folder: (rows, ["--batch_rows", 4]),
    "options: normalize was False, is True": lambda rows, folder: (rows, ["--normalize"]),
    "options: reward_column was reward, is r": lambda rows, folder: (rows, ["--reward_column", "r"]),
    "options: dtype was auto, is bfloat16": lambda rows, folder: (rows, ["--dtype", "bfloat16"]),
    "options: threads was 1, is 2": lambda rows, folder: (rows, ["--threads", 2]),
    "input: files was": None,
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_run_of_something_else_is_not_gone_on_with(score, scored, model, tmp_path, named):
    data = write(tmp_path / "data.jsonl", texts(8))
    stop_at(score, scored, 1, data, "--threads", 1)
    if CHANGES[named] is None:  # as long as before
        os.utime(data, (1, 1))
        rows, options = texts(8), []
    else:
        rows, options = CHANGES[named](texts(8), model)
    write(data, rows)
    common = [] if "--threads" in options else ["--threads", 1]
    size = [] if "--batch_rows" in options else ["--batch_rows", 3]
    code, said = score(data, *common, *size, *options)
    assert code == 1
    assert named in said
    assert "--restart" in said
    assert scored == []
    assert score(data, *common, *size, *options, "--restart")[0] == 0
    assert scored[0] == 0


def test_an_input_that_changes_on_the_way_is_noticed(score, tmp_path, monkeypatch):
    data, plain = write(tmp_path / "data.jsonl", texts(3)), Worker.score

    def changing(worker, block):
        with open(data, "a") as file:
            file.write("\n")
        return plain(worker, block)

    monkeypatch.setattr(Worker, "score", changing)
    code, said = score(data)
    assert code == 1
    assert "input: bytes was" in said
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_is_there_is_not_replaced_unasked(score, tmp_path):
    assert score(texts(2))[0] == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    code, said = score(texts(3))
    assert code == 1
    assert "is there already" in said
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert score(texts(3), "--restart")[0] == 0
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_a_new_start_that_fails_at_once_leaves_the_output_to_be_asked_for(score, scored, model, tmp_path):
    assert score(texts(2))[0] == 0
    scored.deadly = (0,)
    assert score(texts(3), "--restart")[0] == 1
    (tmp_path / "_scoring-out.jsonl").mkdir()  # as if killed
    assert "is there already" in score(texts(3))[1]
    assert len(read(tmp_path / "out.jsonl")) == 2
    assert not list(tmp_path.glob("_*"))


def test_a_start_over_that_is_stopped_says_how_to_go_on(score, started, scored):
    assert score(texts(8))[0] == 0
    scored.deadly = (1,)
    result = started(texts(8), "--restart", "--batch_rows", 3).output
    assert "Stopped after 3 rows. The same command without --restart goes on." in result
    scored.deadly = ()
    scored.clear()
    assert score(texts(8), "--batch_rows", 3)[0] == 0
    assert scored == [1, 2]


def test_what_a_kill_left_half_written_is_taken_away(score, scored, tmp_path):
    stop_at(score, scored, 1, texts(5))
    (tmp_path / "_scoring-out.jsonl" / "_rows-1").write_text("half of the output")
    (tmp_path / "_removed-_scoring-out.jsonl").mkdir()
    stop_at(score, scored, 1, texts(5))
    assert not (tmp_path / "_scoring-out.jsonl" / "_rows-1").exists()
    assert score(texts(5), "--batch_rows", 3)[0] == 0
    assert not list(tmp_path.glob("_*"))


def test_all_that_is_renamed_is_on_the_disk_first(score, tmp_path, monkeypatch):
    synced, replace = set(), os.replace

    def noted(one, other):
        assert os.stat(one).st_ino in synced, other
        replace(one, other)

    monkeypatch.setattr("os.fsync", lambda file: synced.add(os.fstat(file).st_ino))
    monkeypatch.setattr("os.replace", noted)
    assert score([*texts(4), "{"], "--on_error", "skip")[0] == 0
    assert len(synced) >= 5


@pytest.mark.parametrize("whole", [0, 1])
def test_a_full_disk_is_said_and_gone_on_from(score, scored, tmp_path, monkeypatch, whole):
    def full(*_):
        if whole == 0 or len(scored) > whole:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        code, said = score(texts(8), "--batch_rows", 3)
    assert code == 1
    assert "there is no room beside" in said
    assert f"goes on after the {3 * whole} rows" in said
    scored.clear()
    assert score(texts(8), "--batch_rows", 3)[0] == 0
    assert scored == [0, 1, 2][whole:]


def test_another_failure_of_the_disk_is_not_taken_for_a_full_one(started, scored, monkeypatch):
    def broken(*_):
        if scored:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", broken)
    assert started(texts(2)).exception.errno == errno.EIO


def test_a_path_may_be_written_in_another_way(score, scored, model, tmp_path, monkeypatch):
    stop_at(score, scored, 1, texts(5))
    monkeypatch.chdir(tmp_path)
    assert score(Path("in.jsonl"), "--model", "./model", "--batch_rows", 3)[0] == 0
    assert scored == [1]


def test_the_base_of_an_adapter_is_a_part_of_the_model(model, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    before = blocks.fingerprint_of_model(str(tmp_path / "adapter"))
    assert blocks.fingerprint_of_model(str(tmp_path / "adapter")) == before
    os.utime(model / "config.json", (1, 1))
    assert blocks.fingerprint_of_model(str(tmp_path / "adapter")) != before


def test_sigterm_ends_a_run_as_ctrl_c_does_with_its_own_code(started, monkeypatch):
    plain = Worker.score

    def terminated(worker, block):
        if block.number == 1:
            signal.raise_signal(signal.SIGTERM)
        return plain(worker, block)

    monkeypatch.setattr(Worker, "score", terminated)
    before = signal.getsignal(signal.SIGTERM)
    result = started(texts(5), "--batch_rows", 3)
    assert result.exit_code == 143
    assert "Stopped after 3 rows. The same command goes on." in result.output
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_runs_at_a_time_do_not_write_the_same_output(score, tmp_path, monkeypatch):
    plain, seen = Worker.score, []

    def meanwhile(worker, block):
        monkeypatch.setattr(Worker, "score", plain)
        seen.append(score(texts(5)))
        return plain(worker, block)

    monkeypatch.setattr(Worker, "score", meanwhile)
    assert score(texts(5))[0] == 0
    ((code, said),) = seen
    assert code == 1
    assert "another run is writing" in said
    assert len(read(tmp_path / "out.jsonl")) == 5
    assert not list(tmp_path.glob("_*"))


def test_what_failed_before_any_row_was_scored_leaves_nothing_and_may_be_mended(score, model, tmp_path):
    assert score(texts(3), "--model", model.with_name("modle"))[0] == 1
    assert not list(tmp_path.glob("_*"))
    assert score(texts(3), "--model", model)[0] == 0


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is here")
def test_ray_that_is_missing_is_named_with_the_command_that_installs_it(score):
    assert "pip install 'plaudit[ray]'" in score(texts(1), "--engine", "ray")[1]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_been_left_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--rows", "5000", "--kills", "3", "--folder", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("of those again: 0") == 4
    assert done.stdout.count("the same bytes") == 2
