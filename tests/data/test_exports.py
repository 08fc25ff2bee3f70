import pytest

import plaudit.data
from plaudit.data import dataset_conversion, loading, published_layouts, rankings, splits


def test_what_a_user_types_from_plaudit_data():
    homes = {published_layouts: ["CONVERTERS", "arena", "hh", "helpsteer", "ranked", "ultrafeedback"]}
    homes |= {dataset_conversion: ["convert"], loading: ["load_source"], splits: ["split_by_prompt"]}
    homes |= {rankings: ["comparisons_of_ranking", "ties_of_ranking"]}
    for module, names in homes.items():
        for name in names:
            assert getattr(plaudit.data, name) is getattr(module, name)
            assert name in plaudit.data.__all__
            assert name in dir(plaudit.data)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'plaudit.data' has no attribute 'convertt'"):
        plaudit.data.convertt  # noqa: B018
