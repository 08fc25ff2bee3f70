import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from peft import LoraConfig

from plaudit.checkpoint import reload
from plaudit.checkpoint.inspection import Finding
from plaudit.checkpoint.verify import Verification
from plaudit.cli import cli
from plaudit.cli.verify import show_verification


@pytest.fixture
def adapter(make_trainer, base_folder, monkeypatch):
    """A saved adapter; its reload runs in this process."""
    monkeypatch.setattr("plaudit.checkpoint.verify.reload_and_score", lambda request: reload.score(**request))
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(init_lora_weights=False))
    trainer.save_model()
    return trainer.args.output_dir


def verify(folder):
    result = CliRunner().invoke(cli, ["verify", folder])
    return result.exit_code, " ".join(result.output.split())


def test_each_layer_and_the_verdict_are_shown(adapter):
    code, output = verify(adapter)
    assert code == 0, output
    for layer in ("weights", "labels", "head", "tokenizer", "padding", "base tokenizer", "rendering", "rewards"):
        assert f"│ {layer} │ holds" in output
    assert "verified: transformers" in output
    assert "gives the same scores" in output


def test_what_breaks_is_named_and_the_exit_code_is_1(adapter):
    Path(adapter, "chat_template.jinja").write_text("{{ messages }}")
    code, output = verify(adapter)
    assert code == 1
    assert "tokenizer │ BROKEN its chat template is not the one of training" in output
    assert output.endswith("failed: tokenizer, base tokenizer")


def test_without_a_fingerprint_the_exit_code_is_1(adapter):
    Path(adapter, "reward.json").unlink()
    code, output = verify(adapter)
    assert code == 1
    assert "NOT VERIFIED" in output


def test_what_looks_like_markup_is_printed_as_it_is(capsys):
    show_verification("runs/[best]", Verification([Finding("tokenizer", False, "eos was '[/INST]' and is '[s]'")]))
    printed = capsys.readouterr().out
    assert "runs/[best]" in printed
    assert "eos was '[/INST]' and is '[s]'" in printed


@pytest.mark.parametrize("command", ["verify", "merge"])
def test_help_imports_no_torch(command):
    code = (
        "import sys\n"
        "from plaudit.cli import cli\n"
        f"cli(['{command}', '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.endswith("[]\n")
