"""Whole runs on a GPU: layouts, memory, offloading, quantised adapters. What needs none is tested on the CPU."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, TrainerCallback

from plaudit import RewardConfig, RewardModel
from plaudit.errors import ConfigError, TrainingError
from plaudit.forest import attention
from plaudit.training.activation_offloading import offload_activations
from plaudit.training.layout_choice import confirm_layout

pytestmark = pytest.mark.gpu  # run on an H200, but for those in the form marked UNVERIFIED

SGD = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05}), "max_grad_norm": 0.0}
ON_GPU = {"use_cpu": False, "max_steps": 2} | SGD
FIGURES = ("loss", "accuracy", "margin", "mean_reward", "num_tokens", "grad_norm")
WIDE = {  # activations of some hundred MB, of a model of a few
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
ON_LONG_ROWS = {"max_length": 4096, "per_device_train_batch_size": 4, "max_steps": 1}


@pytest.fixture
def make_gpu_trainer(make_trainer, make_model, tokenizer):
    """`make_trainer`, on the GPU, with heads wide enough for FlexAttention."""

    def make(*, sizes=(), **options):
        own = {"model": make_model(**{"head_dim": 16} | dict(sizes)), "processing_class": tokenizer}
        return make_trainer(**own | ON_GPU | options)

    return make


@pytest.fixture
def long_rows():
    """Four pairs of 3,000 tokens each, of which they share 1,000."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(10, 300, (count,), generator=draw).tolist()

    prompts = [tokens(1000) for _ in range(4)]
    return [{"chosen_ids": prompt + tokens(1000), "rejected_ids": prompt + tokens(1000)} for prompt in prompts]


def weights_of(trainer):
    return {name: parameter.detach().cpu().clone() for name, parameter in trainer.model.named_parameters()}


def log_of(trainer):
    return [{name: e[name] for name in FIGURES} for e in trainer.state.log_history if "loss" in e]


def assert_same_run(first, second, tolerance):
    for entry, expected in zip(log_of(first), log_of(second), strict=True):
        assert entry == pytest.approx(expected, rel=tolerance, abs=tolerance)
    others = weights_of(second)
    for name, weight in weights_of(first).items():
        torch.testing.assert_close(weight, others[name], rtol=tolerance, atol=tolerance, msg=name)


def compare_layouts(trainer):
    """Before memory is measured: of sequences of one length, in float32, the stock attention makes all scores."""
    confirm_layout(trainer, trainer.model)


def peak_of(trainer):
    """Bytes on the device at the peak of a training, above what the trainer held before."""
    compare_layouts(trainer)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.train()
    return torch.cuda.max_memory_allocated() - before


@pytest.fixture
def short_of_memory():
    """Lets the process have so many bytes more than it holds now."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(more):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


# UNVERIFIED: corrected since, and not run on a GPU after that.
def test_a_run_on_the_gpu_is_that_on_the_cpu_in_either_layout(make_gpu_trainer, monkeypatch):
    called = []
    flex = attention.attend_flex
    monkeypatch.setattr(attention, "attend_flex", lambda *a: called.append(1) or flex(*a))
    runs = []
    # One after the other: accelerate keeps one device for the process, that of the arguments made last.
    for options in ({"batch_layout": "forest"}, {"batch_layout": "padded"}, {"use_cpu": True}):
        runs.append(make_gpu_trainer(**options))
        runs[-1].train()
        assert runs[-1].args.device.type == ("cpu" if "use_cpu" in options else "cuda")
        assert len(called) == 6  # two layers, in the first comparison of layouts and in two steps of the first run
    for trainer in runs[:2]:
        assert_same_run(trainer, runs[2], 1e-4)


# UNVERIFIED: corrected since, and not run on a GPU after that.
def test_in_bf16_the_layouts_lose_alike(make_gpu_trainer):
    assert RewardConfig().bf16  # the default where there is one
    runs = [make_gpu_trainer(batch_layout=layout, bf16=True, max_steps=4) for layout in ("forest", "padded")]
    for trainer in runs:
        trainer.train()
    for entry, expected in zip(*map(log_of, runs), strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=2**-6)  # four roundings of bf16


# UNVERIFIED: new, and not run on a GPU yet.
def test_the_gpu_leaves_out_a_step_that_is_not_finite_before_the_host_knows(make_gpu_trainer):
    trainer = make_gpu_trainer(optimizer_cls_and_kwargs=None, max_steps=4)
    assert trainer.guard.reads_late
    after = []

    class Weights(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            after.append(weights_of(trainer))

    trainer.add_callback(Weights())
    divisors = iter([1, 1, 0])
    trainer.model.score.weight.register_hook(lambda gradient: gradient / next(divisors, 1))
    with pytest.raises(TrainingError, match="step 3: the gradient is not finite"):
        trainer.train()
    assert len(after) == 3  # the answer for the third step was read in the fourth
    for name, weight in weights_of(trainer).items():
        assert torch.equal(weight, after[1][name])


# UNVERIFIED: new, and not run on a GPU yet.
def test_between_two_logs_the_trainer_does_not_wait_for_the_gpu(make_gpu_trainer):
    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            torch.cuda.set_sync_debug_mode("warn" if 2 <= state.global_step < 5 else "default")

    trainer = make_gpu_trainer(optimizer_cls_and_kwargs=None, max_steps=6, logging_steps=6, num_train_epochs=9)
    trainer.add_callback(Watch())
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing CUDA" in str(each.message)]
    assert not [each for each in waits if "plaudit/training" in each or "transformers/trainer.py" in each]


# UNVERIFIED: new, and not run on a GPU yet.
def test_a_real_lack_of_memory_says_what_to_lower(make_gpu_trainer, long_rows, short_of_memory):
    def make():
        return make_gpu_trainer(sizes=WIDE, train_dataset=long_rows, **ON_LONG_ROWS)

    whole, short = make(), make()
    peak = peak_of(whole)
    weights = sum(parameter.numel() * 4 for parameter in short.model.parameters())
    compare_layouts(short)
    short_of_memory(weights + (peak - weights) * 2 // 3)
    with pytest.raises(ConfigError, match=r"a batch of \d+ tokens does not fit into memory. Lower"):
        short.train()


# UNVERIFIED: corrected since, and not run on a GPU after that.
def test_a_budget_beyond_the_memory_is_refused_with_one_that_fits(make_gpu_trainer, long_rows, short_of_memory):
    options = {"sizes": WIDE, "train_dataset": long_rows} | ON_LONG_ROWS
    peak = peak_of(make_gpu_trainer(**options))
    trainer = make_gpu_trainer(**options, max_tokens_per_batch=12_000)
    compare_layouts(trainer)
    short_of_memory(peak * 2 // 3)
    with pytest.raises(ConfigError, match=r"max_tokens_per_batch=12000 does not fit .* \d+ fits. Set it") as error:
        trainer.train()
    fits = int(re.search(r"(\d+) fits", str(error.value)).group(1))
    assert 3000 <= fits < 12_000
    smaller = make_gpu_trainer(**options, max_tokens_per_batch=fits)
    smaller.layout_is_confirmed = True
    smaller.train()


# UNVERIFIED: corrected since, and not run on a GPU after that.
def test_offloading_and_checkpointing_save_memory_and_change_no_weight(make_gpu_trainer, long_rows):
    def run(**options):
        trainer = make_gpu_trainer(sizes=WIDE, train_dataset=long_rows, **ON_LONG_ROWS | options)
        return peak_of(trainer), weights_of(trainer)

    peak, weights = run()
    for options in ({"activation_offloading": True}, {"gradient_checkpointing": True}):
        lower, others = run(**options)
        assert lower < 0.6 * peak, options
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=1e-6, atol=1e-7, msg=name)


def test_offloaded_tensors_leave_the_device(make_gpu_trainer, long_rows):
    trainer = make_gpu_trainer(sizes=WIDE, train_dataset=long_rows, **ON_LONG_ROWS)
    model = trainer.model.train()
    batch = trainer.data_collator(list(trainer.train_dataset)).to("cuda")

    def held(enabled):
        before = torch.cuda.memory_allocated()
        with offload_activations(model, enabled):
            loss = trainer.compute_loss(model, batch)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() - before, loss

    kept, _ = held(enabled=False)
    left, loss = held(enabled=True)
    assert left < 0.1 * kept
    loss.backward()


def test_a_resumed_run_is_the_uninterrupted_one(make_gpu_trainer, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    options["optimizer_cls_and_kwargs"] = None
    whole = make_gpu_trainer(**options)
    whole.train()
    resumed = make_gpu_trainer(**options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    others = weights_of(resumed)
    for name, weight in weights_of(whole).items():
        torch.testing.assert_close(others[name], weight, rtol=1e-6, atol=1e-7, msg=name)


def test_a_saved_model_scores_alike_on_the_gpu_and_on_the_cpu(make_gpu_trainer, tmp_path):
    trainer = make_gpu_trainer()
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    rows = [{"prompt": f"Is it {n}?", "completion": " Yes, the sky is blue"} for n in range(5)]
    texts = [row["prompt"] + row["completion"] for row in rows]
    scores = [RewardModel.from_pretrained(tmp_path / "saved", device=device).score(texts) for device in ("cuda", "cpu")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_a_quantised_base_trains_in_forests_and_reloads(
    base_folder, tiny_config, make_trainer, tmp_path, bits
):
    pytest.importorskip("bitsandbytes")
    wide = AutoModelForCausalLM.from_config(
        tiny_config(hidden_size=64, intermediate_size=64, head_dim=16), dtype=torch.bfloat16
    )
    wide.save_pretrained(base_folder)
    quantized = (
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16} if bits == 4 else {"load_in_8bit": True}
    )
    trainer = make_trainer(
        model=str(base_folder),
        quantization_config=BitsAndBytesConfig(**quantized),
        peft_config=LoraConfig(target_modules="all-linear", init_lora_weights=False),
        use_cpu=False, bf16=True, max_steps=3, gradient_checkpointing=True, learning_rate=1e-3,
    )  # fmt: skip
    trainer.train()
    assert trainer.layout == "forest"
    head = [p for name, p in trainer.model.named_parameters() if "score" in name and p.requires_grad]
    assert [p.dtype for p in head] == [torch.float32]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad)
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_trainers_own_fsdp2_shards_and_trains_as_one_process(make_gpu_trainer, tmp_path):
    """Launched as several processes would be; on a CPU accelerate gives DDP instead."""
    script = Path(__file__).with_name("fsdp_on_gpu.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", script, tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]
    alone = make_gpu_trainer(max_steps=3)
    alone.train()
    expected = weights_of(alone)
    for layout in ("forest", "padded"):
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / layout)
        for name, weight in saved.named_parameters():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        losses = [entry["loss"] for entry in json.loads((tmp_path / f"{layout}.json").read_text())]
        assert losses == pytest.approx([entry["loss"] for entry in log_of(alone)], abs=1e-5)
