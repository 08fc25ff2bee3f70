"""A saved reward model and a saved adapter, trained once; each test gets a copy, which it may damage."""

import json
import shutil

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of the models that tests have trained so far."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def train_once(trained, make_trainer, base_folder):
    """Train and save a model under a name, unless that was done; return its folder. The base is the same each time."""

    def train(name, **options):
        folder = trained / name
        if not folder.is_dir():
            trainer = make_trainer.func(folder, model=str(base_folder), max_steps=2, learning_rate=2e-2, **options)
            trainer.train()
            trainer.save_model()
        return folder

    return train


@pytest.fixture
def full(train_once, chat_rows, tmp_path):
    """A saved reward model, trained on conversations."""
    return shutil.copytree(train_once("full", train_dataset=chat_rows), tmp_path / "full")


@pytest.fixture
def adapter(train_once, base_folder, change_json, tmp_path):
    """A saved reward adapter on `base_folder`, trained on texts."""
    folder = train_once("adapter", peft_config=LoraConfig(init_lora_weights=False))
    folder = shutil.copytree(folder, tmp_path / "adapter")
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(base_folder))
    return folder


@pytest.fixture
def change_json():
    """Change entries of a JSON file; those set to `None` are removed."""

    def change(path, **changes):
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


@pytest.fixture
def change_weights():
    """Change the dict of tensors in a safetensors file."""

    def change(path, act):
        weights = load_file(path)
        act(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return change
