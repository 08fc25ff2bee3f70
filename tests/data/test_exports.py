import pkgutil
import subprocess
import sys

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


def test_importing_the_modules_of_data_imports_neither_torch_nor_transformers_nor_datasets():
    names = ", ".join(module.name for module in pkgutil.iter_modules(plaudit.data.__path__, "plaudit.data."))
    code = f"import sys, {names}; print({{'torch', 'transformers', 'datasets'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
