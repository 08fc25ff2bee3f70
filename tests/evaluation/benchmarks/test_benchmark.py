"""Properties of every benchmark: it reads its published layout, and its figures hang on rewards and fields alone."""

import math
import random

import pytest
from benchmark_rows import WRITERS

from plaudit.errors import DataError
from plaudit.evaluation.benchmarks import BENCHMARKS

pytestmark = pytest.mark.parametrize("name", sorted(WRITERS))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """For each benchmark, its rows as loaded from a copy in the published layout, and their number."""
    loaded = {}

    def of(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            count = WRITERS[name](folder)
            loaded[name] = BENCHMARKS[name].load(folder), count
        return loaded[name]

    return of


@pytest.fixture
def rows(copies, name):
    return copies(name)[0]


def rewards_of(name, rows, seed=0):
    """Small whole numbers, so that many rewards are equal."""
    draw = random.Random(seed)
    return [[float(draw.randrange(4)) for _ in BENCHMARKS[name].sequences(row)] for row in rows]


def perfect(name, rows):
    rewards = []
    for row in rows:
        better = {first for first, _ in BENCHMARKS[name].comparisons(row)}
        rewards.append([float(i in better) for i in range(len(BENCHMARKS[name].sequences(row)))])
    return rewards


def test_a_copy_in_the_published_layout_is_read_once(copies, name):
    rows, count = copies(name)
    assert len(rows) == count


def test_sequences_are_conversations_that_end_with_the_assistant(rows, name):
    for row in rows:
        sequences = BENCHMARKS[name].sequences(row)
        assert len(sequences) >= 2
        assert all(sequence[-1]["role"] == "assistant" and sequence[-2]["role"] == "user" for sequence in sequences)
        assert all(sequence[:-1] == BENCHMARKS[name].prompt(row) for sequence in sequences)
        assert all(set(message) == {"role", "content"} for sequence in sequences for message in sequence)
        assert all(i != j and max(i, j) < len(sequences) for i, j in BENCHMARKS[name].comparisons(row))


def test_perfect_rewards_have_perfect_figures_and_nothing_is_missing(rows, name, caplog):
    figures = BENCHMARKS[name].figures(rows, perfect(name, rows))
    assert set(figures["missing"]) <= {"Prior"}
    assert not caplog.records
    # Ties of RewardBench 2 give a hundredth by the tanh of margins, which is 1 where the spread is 0.
    top = 1.01 if name == "rewardbench-2" else 1.0
    assert figures["overall"] == pytest.approx(1 + (top - 1) / 6)
    assert all(share in (1.0, pytest.approx(top)) for share in figures["parts"].values())


def test_the_order_of_rows_changes_nothing(rows, name):
    rewards = rewards_of(name, rows)
    straight = BENCHMARKS[name].figures(rows, rewards)
    for seed in range(5):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        shuffled = BENCHMARKS[name].figures([rows[i] for i in order], [rewards[i] for i in order])
        assert shuffled == straight  # to the last bit


def test_rows_twice_have_the_same_figures(rows, name):
    """A bootstrap draws rows several times."""
    rewards = rewards_of(name, rows)
    once, twice = BENCHMARKS[name].figures(rows, rewards), BENCHMARKS[name].figures(rows + rows, rewards + rewards)
    assert twice["overall"] == pytest.approx(once["overall"])
    assert twice["parts"] == pytest.approx(once["parts"])


def test_figures_need_no_columns_but_their_fields(rows, name):
    rewards = rewards_of(name, rows)
    kept = [{field: row.get(field) for field in BENCHMARKS[name].fields} for row in rows]
    assert BENCHMARKS[name].figures(kept, rewards) == BENCHMARKS[name].figures(rows, rewards)


def test_shares_are_from_0_to_1(rows, name):
    figures = BENCHMARKS[name].figures(rows, rewards_of(name, rows))
    assert all(-0.01 <= share <= 1.01 for share in [figures["overall"], *figures["parts"].values()])


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "1"])
def test_a_reward_that_is_no_finite_number_names_the_row(rows, name, bad):
    rewards = rewards_of(name, rows)
    rewards[1][0] = bad
    with pytest.raises(DataError, match=rf"{name}, row 1\b.*expected"):
        BENCHMARKS[name].figures(rows, rewards)


@pytest.mark.parametrize("bad", [[], [1.0], None])
def test_missing_rewards_name_the_row(rows, name, bad):
    rewards = rewards_of(name, rows)
    rewards[2 if len(rows) > 2 else 1] = bad
    with pytest.raises(DataError, match=rf"{name}, row 2\b.*expected"):
        BENCHMARKS[name].figures(rows, rewards)


def test_a_reward_too_many_names_the_row(rows, name):
    rewards = rewards_of(name, rows)
    rewards[0] = [*rewards[0], 0.0]
    with pytest.raises(DataError, match=rf"{name}, row 0\b.*expected \d+ rewards"):
        BENCHMARKS[name].figures(rows, rewards)


def test_every_row_needs_its_rewards(rows, name):
    with pytest.raises(DataError, match=f"{name}: expected rewards for each row"):
        BENCHMARKS[name].figures(rows, rewards_of(name, rows)[:-1])
    with pytest.raises(DataError, match="got 0 for 0 rows"):
        BENCHMARKS[name].figures([], [])


def test_a_row_without_a_column_that_the_rule_reads_is_named(rows, name):
    others = {
        "num_correct",
        "total_completions",
        "category",
        "preference",
    }  # the responses or another column tell these
    for field in set(BENCHMARKS[name].fields) - others:
        broken = [dict(row) for row in rows]
        index = next(i for i, row in enumerate(rows) if field != "id" or row["subset"] == "Ties")
        del broken[index][field]
        with pytest.raises(DataError, match=rf"{name}, row {index}\b.*{field}"):
            BENCHMARKS[name].figures(broken, rewards_of(name, rows))


def test_a_row_that_is_no_dict_is_named(rows, name):
    with pytest.raises(DataError, match=f"{name}, row 0: expected a dict"):
        BENCHMARKS[name].figures(["text", *rows[1:]], rewards_of(name, rows))


def test_a_broken_row_of_a_copy_is_named(name, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"subset": "Ties", "id": "7"}\n')
    with pytest.raises(DataError, match=f"{name}, row 0.*expected"):
        BENCHMARKS[name].load(file)


def test_without_the_file_and_the_network_one_error_says_where_the_benchmark_is_published(name, tmp_path):
    for data in (None, tmp_path / "nothing.jsonl", "someone/mirror"):
        with pytest.raises(DataError) as error:
            BENCHMARKS[name].load(data)
        message = str(error.value)
        assert f"cannot load {BENCHMARKS[name].title}: " in message
        assert f"published at {BENCHMARKS[name].published}" in message
        assert f"--benchmark {name} --data FOLDER" in message
        assert len(message) < 800
        assert "\n" not in message


def test_an_empty_folder_is_no_copy(name, tmp_path):
    with pytest.raises(DataError, match="there are no rows.*published at"):
        BENCHMARKS[name].load(tmp_path)


def test_each_benchmark_says_what_it_is(name):
    each = BENCHMARKS[name]
    assert (each.name, bool(each.title), bool(each.rule), bool(each.published)) == (name, True, True, True)
    assert "\n" not in each.rule


def test_a_mirror_has_the_parts_of_the_published_dataset(name, monkeypatch):
    read = []
    monkeypatch.setattr("plaudit.evaluation.benchmarks.benchmark.read_hub", lambda parts: read.extend(parts) or [])
    with pytest.raises(DataError, match="there are no rows"):
        BENCHMARKS[name].load("someone/mirror")
    assert {part.id for part in read} == {"someone/mirror"}
    published = BENCHMARKS[name].hub
    if len({part.id for part in published}) == 1:
        assert [part[1:] for part in read] == [part[1:] for part in published]
    else:  # one of the sets of PPE, or no published dataset: the id tells no subset
        assert [part[1:] for part in read] == [(None, None, ())]
