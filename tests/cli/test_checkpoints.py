"""`plaudit verify` and `plaudit merge`, as a person sees them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from peft import LoraConfig

from plaudit.checkpoint import reload
from plaudit.checkpoint import verify as verification
from plaudit.checkpoint.inspection import Finding
from plaudit.checkpoint.verify import Verification
from plaudit.cli import cli
from plaudit.cli.verify import show_verification


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(
        verification, "reload_and_score", lambda request: reload.score(**json.loads(json.dumps(request)))
    )
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger


@pytest.fixture
def adapter(make_trainer, base_folder):
    trainer = make_trainer(model=str(base_folder), max_steps=2, peft_config=LoraConfig(init_lora_weights=False))
    trainer.save_model()
    return trainer.args.output_dir


def run(*arguments):
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, " ".join(result.output.split())


def test_verify_shows_each_layer_and_the_verdict(adapter):
    code, output = run("verify", adapter)
    assert code == 0, output
    for layer in ("weights", "labels", "head", "tokenizer", "padding", "base tokenizer", "rendering", "rewards"):
        assert f"│ {layer} │ holds" in output
    assert "verified: transformers" in output
    assert "gives the same scores" in output


def test_verify_names_what_breaks_and_exits_with_1(adapter):
    Path(adapter, "chat_template.jinja").write_text("{{ messages }}")
    code, output = run("verify", adapter)
    assert code == 1
    assert "tokenizer │ BROKEN its chat template is not the one of training" in output
    assert output.endswith("failed: tokenizer, base tokenizer")


def test_what_looks_like_markup_is_printed_as_it_is(capsys):
    show_verification("runs/[best]", Verification([Finding("tokenizer", False, "eos was '[/INST]' and is '[s]'")]))
    printed = capsys.readouterr().out
    assert "runs/[best]" in printed
    assert "eos was '[/INST]' and is '[s]'" in printed


def test_verify_without_a_fingerprint_is_not_verified_and_exits_with_1(adapter):
    Path(adapter, "reward.json").unlink()
    code, output = run("verify", adapter)
    assert code == 1
    assert "NOT VERIFIED" in output


def test_merge_writes_a_verified_model_and_says_where(adapter, tmp_path):
    output = str(tmp_path / "merged")
    code, printed = run("merge", adapter, "--output", output, "--dtype", "bfloat16")
    assert code == 0, printed
    assert "verified: transformers" in printed
    assert f"The merged reward model is in {output}" in printed
    assert run("verify", output)[0] == 0
