from plaudit.data.source_hash import source_hash


def test_the_hash_changes_with_the_code_and_with_nothing_else(tmp_path):
    assert source_hash() == source_hash()
    for name, code in (("one", "x = 1"), ("two", "x = 1"), ("three", "x = 2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text(code)
        (tmp_path / name / "notes.txt").write_text(name)
    assert source_hash(tmp_path / "one") == source_hash(tmp_path / "two") != source_hash(tmp_path / "three")
