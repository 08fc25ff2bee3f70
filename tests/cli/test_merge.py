from click.testing import CliRunner
from peft import LoraConfig

from plaudit.checkpoint import reload
from plaudit.checkpoint.verify import verify
from plaudit.cli import cli


def test_a_merge_writes_a_verified_model_and_shows_where(make_trainer, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("plaudit.checkpoint.verify.reload_and_score", lambda request: reload.score(**request))
    monkeypatch.setattr("plaudit.cli.display.show_log_messages", lambda: None)  # it takes over the root logger
    trainer = make_trainer(model=str(base_folder), peft_config=LoraConfig(init_lora_weights=False))
    trainer.save_model()
    output = str(tmp_path / "merged")
    arguments = ["merge", trainer.args.output_dir, "--output", output, "--dtype", "bfloat16"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    printed = " ".join(result.output.split())
    assert result.exit_code == 0
    assert "verified: transformers" in printed
    assert f"The merged reward model is in {output}" in printed
    assert verify(output).status == "verified"
