"""The first stage: what would fail later is one sentence here, before anything is made."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from conftest import ROOT, in_mode
from safetensors.torch import load_file, save_file

from loki_ds.checking.findings import Findings
from loki_ds.checking.tasks import in_words
from loki_ds.disk.run_folder import RunFolder
from loki_ds.recipe.file import load_recipe
from loki_ds.refusal import Refusal
from loki_ds.retention.statistics import least_margin
from loki_ds.stages.check import Checked, check
from loki_ds.stages.questions import _tokenizer
from loki_ds.stages.retain import check_retention
from loki_ds.stages.run import Run

MODEL = ROOT / "recipes/tiny/model"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHAT = {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}
DOWN = "model.layers.{}.mlp.down_proj.weight"
Spoiled = Callable[[Path], Any]


def started(tmp_path: Path, *overrides: str, rows: list[dict] | None = None) -> Run:
    """A run of the tiny recipe, on a few chats, on a copy of its model."""
    if not (tmp_path / "model").exists():
        shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or [CHAT]))
    own = [f"data.train={tmp_path / 'd.jsonl'}", "data.heldout=null", f"model.path={tmp_path / 'model'}"]
    return Run(load_recipe(ROOT / "recipes/tiny/loki.yaml", [*own, f"run={tmp_path / 'run'}", *overrides]))


def checked(tmp_path: Path, *overrides: str, rows: list[dict] | None = None) -> Checked:
    return check(started(tmp_path, *overrides, rows=rows))


def tasks_checked(run: Run) -> Findings:
    return check_retention(run, check(run))


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Spoiled:
    def spoil(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        edit(stored)
        save_file(stored, folder / "model.safetensors", {"format": "pt"})

    return spoil


def config(**changes: Any) -> Spoiled:
    def spoil(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**found, **changes}))

    return spoil


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n")


def shards(folder: Path) -> None:
    """An index that names a shard whose download did not end."""
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names[DOWN.format(5)] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny-Q8_0.gguf")


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
BASES: dict[str, tuple[Spoiled, str]] = {
    "FP8": (config(quantization_config=FP8), r"the weights are quantized \(fp8\).*dequantize\(\)"),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"the weights are quantized \(gptq\)"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"the weights are quantized \(bitsandbytes\)",
    ),
    "eight-bit tensors and no word of them": (
        tensors(lambda t: t.update({DOWN.format(0): t[DOWN.format(0)].to(torch.float8_e4m3fn)})),
        r"tensor model.layers.0.mlp.down_proj.weight is stored in",
    ),
    "int8": (
        tensors(lambda t: t.update({DOWN.format(0): t[DOWN.format(0)].to(torch.int8)})),
        "model.layers.0.mlp.down_proj.weight is stored in int8, allowed are float64, float32, float16, bfloat16",
    ),
    "more layers than it has": (config(num_hidden_layers=7), r"config.json: not a configuration .*num_hidden_layers"),
    "a vocabulary that does not hold its own padding": (config(vocab_size=9), "no causal language model can be built"),
    "quantized in a part": (
        config(text_config={"quantization_config": {"quant_method": "awq"}}),
        "config.json: no causal language model can be built from it",
    ),
    "only GGUF": (only_gguf, r"tiny-Q8_0.gguf can be made a plain model: python -c"),
    "git-lfs pointer": (pointer, r"model.safetensors: a pointer of git-lfs"),
    "missing shard": (shards, r"model-00002-of-00002.safetensors"),
    "another shape": (
        tensors(lambda t: t.update({DOWN.format(2): t[DOWN.format(2)][:, :-1].contiguous()})),
        r"tensor model.layers.2.mlp.down_proj.weight is \[128, 383\], config.json asks for \[128, 384\]",
    ),
    "a tensor that is not there": (
        tensors(lambda t: t.pop("model.layers.1.self_attn.q_proj.weight")),
        r"tensor model.layers.1.self_attn.q_proj.weight, which the model's class has, is not stored",
    ),
    "rows rounded": (
        tensors(lambda t: t.update({DOWN.format(3): t[DOWN.format(3)].bfloat16()})),
        r"stores model.layers.3.mlp.down_proj.weight in bfloat16",
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_a_base_that_cannot_be_trained_or_written_again_is_refused(case: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    spoil, says = BASES[case]
    spoil(tmp_path / "model")
    with pytest.raises(Refusal, match=says):
        checked(tmp_path)
    assert not (tmp_path / "run/examples").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("selection.quota=0.1", r"selection\.quota 0\.1 selects no row of 128; it must select at least one per layer"),
        ("selection.positions={folder}/none.json", r"none\.json selects no row of 128; it must select at least one"),
        ("selection.exclude=[nowhere.safetensors]", "nowhere.safetensors: the implant file cannot be read"),
        ("protected.prompts={folder}/p.jsonl", "p.jsonl: line 1 has neither 'prompt' nor 'messages'"),
    ],
)
def test_what_the_attribution_is_for_is_looked_at_before_it(override: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"promt": "a"}')
    (tmp_path / "none.json").write_text("[[], [], [], [], [], []]")
    with pytest.raises(Refusal, match=says):
        checked(tmp_path, override.format(folder=tmp_path))


def test_prompts_longer_than_the_model_was_made_for_are_said(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "copy a b " * 200}))
    findings = dict(checked(tmp_path, f"protected.prompts={tmp_path / 'p.jsonl'}", "protected.per_subject=1").findings)
    assert findings["protected"].endswith("tokens; the model was made for 256")


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    """transformers would load it, too, and no file of the result would have it."""
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model/adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(Refusal, match=r"adapter_config\.json lies beside the weights"):
        checked(tmp_path)


def zero3(**changes: Any) -> dict[str, Any]:
    plain = json.loads((ROOT / "launch/zero3.json").read_text())
    inside = {key: value for key, value in changes.items() if key.startswith("stage")}
    return {**plain, **changes, "zero_optimization": {**plain["zero_optimization"], **inside}}


GATHER = {"stage3_gather_16bit_weights_on_model_save": False}
OFF = {"enabled": False}
DEEPSPEED: dict[str, tuple[Any, str]] = {
    "no gather on save": (zero3(**GATHER), "gather_16bit_weights_on_model_save must be true in implant.mode mask"),
    "stage as text": (zero3(stage="3"), "zero_optimization.stage is '3', allowed is 0, 1, 2 or 3"),
    "stage 4": (zero3(stage=4), "zero_optimization.stage is 4"),
    "stage true": (zero3(stage=True), "zero_optimization.stage is True"),
    "null": ({"zero_optimization": None}, "zero_optimization is None, allowed is an object"),
    "no ZeRO": ({"train_batch_size": "auto"}, "zero_optimization is missing"),
    "offload as text": (
        zero3(stage3_x=1) | {"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}},
        "zero_optimization.offload_optimizer is 'cpu'",
    ),
    "a bucket as text": (
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}},
        "zero_optimization.reduce_bucket_size is 'big'",
    ),
    "a key that ZeRO does not know": (
        {"zero_optimization": {"stage": 2, "stage3_gather": True}},
        "zero_optimization.stage3_gather",
    ),
    "a list": ({**zero3(), "bf16": []}, r"bf16 is \[\], allowed is an object"),
    "another rate": (
        {**zero3(), "optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}},
        r"optimizer.params.lr is 3e-05, the recipe's training.learning_rate makes it 0.002; say auto there",
    ),
    "another decay": (
        {**zero3(), "optimizer": {"type": "AdamW", "params": {"weight_decay": 0.3}}},
        "optimizer.params.weight_decay is 0.3, the recipe's training.weight_decay makes it 0.1",
    ),
    "another batch": ({**zero3(), "train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu is 8, .* 16"),
    "a batch as text": ({**zero3(), "train_micro_batch_size_per_gpu": "16"}, "per_gpu is '16', .* makes it 16"),
    "accumulation": ({**zero3(), "gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4, .* makes it 1"),
    "clipping": ({**zero3(), "gradient_clipping": 0.5}, "gradient_clipping is 0.5, .* makes it 1.0"),
    "bfloat16": (
        {**zero3(), "bf16": {"enabled": True}},
        "bf16.enabled is True, the recipe's model.dtype makes it False",
    ),
    "a rate left out": (
        {**zero3(), "optimizer": {"type": "AdamW", "params": {"weight_decay": "auto"}}},
        "optimizer.params.lr is missing, so DeepSpeed would take a value of its own; say auto there",
    ),
    "a decay left out": (
        {**zero3(), "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}},
        "optimizer.params.weight_decay is missing",
    ),
    "a schedule's rate left out": (
        {**zero3(), "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}},
        "scheduler.params.warmup_max_lr is missing",
    ),
    "steps of a schedule": (
        {**zero3(), "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}},
        "scheduler.params.warmup_num_steps is 5, allowed is auto",
    ),
    "float16 as text": ({**zero3(), "fp16": {"enabled": "true"}}, "fp16.enabled is 'true'"),
}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_deepspeeds_file_is_held_against_the_recipe(case: str, tmp_path: Path) -> None:
    values, says = DEEPSPEED[case]
    (tmp_path / "z.json").write_text(json.dumps(values))
    with pytest.raises(Refusal, match=f"z.json: .*{says}"):
        checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}")


def test_what_the_file_leaves_out_is_the_recipes(tmp_path: Path) -> None:
    plain = zero3()
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_clipping",
        "gradient_accumulation_steps",
    ):
        plain.pop(key)
    (tmp_path / "z.json").write_text(json.dumps(plain))
    config = checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}").arguments.deepspeed
    assert config["gradient_clipping"] == config["train_micro_batch_size_per_gpu"] == "auto"


def test_16_bit_numbers_train_with_a_copy_in_full_precision(tmp_path: Path) -> None:
    (tmp_path / "z.json").write_text(json.dumps({**zero3(), "zero_optimization": {"stage": 0}}))
    for mode in ("rows", "full"):
        with pytest.raises(Refusal, match=r"model\.dtype is bfloat16 and the recipe names no deepspeed file, .*zero2"):
            checked(tmp_path, "deepspeed=null", "model.dtype=bfloat16", *in_mode(mode))
    with pytest.raises(Refusal, match=r"model\.dtype is float16 and deepspeed's zero_optimization\.stage is 0"):
        checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}", "model.dtype=float16", *in_mode("peft"))
    assert checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}", *in_mode("rows")).examples


def test_what_fades_needs_rates_that_are_known_beforehand(tmp_path: Path) -> None:
    scheduler = {"type": "WarmupLR", "params": {"warmup_max_lr": "auto", "warmup_num_steps": 5}}
    (tmp_path / "z.json").write_text(json.dumps({**zero3(), "scheduler": scheduler}))
    with pytest.raises(Refusal, match=r"z.json: with a scheduler of DeepSpeed's .* give implant.pull"):
        checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}", "implant.fade=0.5")
    with pytest.raises(Refusal, match=r"lr_scheduler_type is greedy, .* implant.fade has to; give implant.pull"):
        checked(tmp_path, "training.lr_scheduler_type=greedy", "implant.fade=0.5")


def test_values_that_say_the_same_as_the_recipe_are_taken(tmp_path: Path) -> None:
    """How many ranks will share the whole batch, a check by hand does not know."""
    same = {
        "train_batch_size": 128,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_clipping": 1.0,
        "bf16": OFF,
        "fp16": OFF,
    }
    (tmp_path / "z.json").write_text(json.dumps({**zero3(), **same}))
    assert checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}").arguments.gradient_accumulation_steps == 1


def test_a_mode_that_leaves_no_whole_model_needs_no_gather(tmp_path: Path) -> None:
    (tmp_path / "z.json").write_text(json.dumps(zero3(**GATHER)))
    assert checked(tmp_path, f"deepspeed={tmp_path / 'z.json'}", *in_mode("rows")).examples


@pytest.mark.parametrize(
    ("tracker", "says"),
    [
        ("wandb", "training.report_to names wandb, whose package is not installed"),
        ("[none, mlflow]", "training.report_to names mlflow, whose package is not installed"),
        ("wandbb", "training.report_to names wandbb, which transformers does not know; did you mean 'wandb'"),
        ("[tensorbord]", "training.report_to names tensorbord, .* did you mean 'tensorboard'"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(tracker: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        checked(tmp_path, f"training.report_to={tracker}")


def test_nobodys_environment_decides_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert not checked(tmp_path).arguments.bf16
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_a_template_that_shows_no_text_is_refused(tmp_path: Path) -> None:
    """LLaVA's, Idefics' and SmolVLM's want parts of text and pictures."""
    template = TEMPLATES / "smolvlm.jinja"
    with pytest.raises(
        Refusal, match=r"smolvlm\.jinja: the chat template shows no turns of text: their content is dropped"
    ):
        checked(tmp_path, f"training.chat_template_path={template}")


SETTINGS = {
    "training.learning_rat=1": "training.learning_rat is not a key of TRL's SFTConfig .* did you mean 'learning_rate'?",
    "training.max_length=abc": "training.max_length is 'abc', allowed is a whole number or null",
    "training.max_length=0": "training.max_length is 0, allowed is more than 0",
    "training.max_length=-5": "training.max_length is -5, allowed is more than 0",
    "training.max_length=12.5": "training.max_length is 12.5",
    "training.packing=maybe": "training.packing is 'maybe', allowed is true or false",
    "training.learning_rate=fast": "training.learning_rate is 'fast', allowed is a number",
    "training.per_device_train_batch_size=0": "training.per_device_train_batch_size is 0, allowed is more than 0",
    "training.seed=x": "training.seed is 'x', allowed is a whole number",
    "training.report_to=3": "training.report_to is 3, allowed is null or text",
    "training.optim=adamm": "adamm is not a valid OptimizerNames",
    "training.save_steps=0": "training.save_steps is 0",
    "training.fsdp=full_shard": "training.fsdp is 'full_shard', allowed is nothing; DeepSpeed's file says",
    "training.use_liger_kernel=true": "the package liger-kernel is not installed",
    "training.eval_strategy=steps": "training.eval_strategy is steps, and there is no data.heldout",
    "training.load_best_model_at_end=true": "training.load_best_model_at_end needs training.eval_strategy",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_are_what_trl_declares(setting: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=SETTINGS[setting]):
        checked(tmp_path, setting)


@pytest.mark.parametrize(("text", "says"), [("{% for %}", "Expected an expression"), ("", "their content is dropped")])
def test_a_file_that_is_no_template_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(text)
    with pytest.raises(Refusal, match=rf"t.jinja: the chat template shows no turns of text: {says}"):
        checked(tmp_path, f"training.chat_template_path={tmp_path / 't.jinja'}")


def test_a_template_by_path_serves_a_base_without_one(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").rename(tmp_path / "t.jinja")
    rendering = checked(tmp_path, f"training.chat_template_path={tmp_path / 't.jinja'}").rendering
    assert rendering is not None
    assert rendering.exported_template == (tmp_path / "t.jinja").read_text()


DATA: dict[str, tuple[list[dict], list[str], str]] = {
    "no assistant turn": ([CHAT, {"messages": CHAT["messages"][:1]}], [], "line 2 is a chat without an answer"),
    "null content": ([{"messages": [CHAT["messages"][0], {"role": "assistant", "content": None}]}], [], "line 1"),
    "a number as content": ([{"messages": [CHAT["messages"][0], {"role": "assistant", "content": 4}]}], [], "line 1"),
    "all cut away": ([CHAT], ["training.max_length=2"], "after the cut at training.max_length 2 no example"),
    "no such role": ([{"messages": [{"role": "critic", "content": "x"}]}], [], "line 1 .*critic"),
    "half a surrogate pair": ([{"text": "\ud800"}], ["training.assistant_only_loss=false"], "line 1 holds half of a"),
    "nothing known": ([{"question": "2 + 2", "reply": "4"}], [], "line 1"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_is_refused_by_line(case: str, tmp_path: Path) -> None:
    rows, overrides, says = DATA[case]
    with pytest.raises(Refusal, match=says):
        checked(tmp_path, *overrides, rows=rows)
    assert not (tmp_path / "run/examples/counts.json").exists()


def test_what_it_found_and_made(tmp_path: Path) -> None:
    looked_at = checked(tmp_path, rows=[CHAT, CHAT])
    findings = dict(looked_at.findings)
    assert findings["base"].startswith(f"{tmp_path / 'model'}: qwen2, ")
    assert "2 rows" in findings["data"]
    assert len(looked_at.examples) == 2
    assert not (tmp_path / "run/recipe.yaml").exists()  # a check by hand does not say how many ranks will train


def test_texts_to_rehearse_are_looked_at(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    own = ["implant.mode=mask", f"implant.rehearse.prompts={{{texts}: 0.1}}"]
    with pytest.raises(Refusal, match=r"texts\.jsonl"):
        checked(tmp_path, *own)
    texts.write_text('{"prompt": "2 + 2 is 4"}\n' + json.dumps(CHAT) + "\n")
    assert ("rehearsal", f"{texts}: 2 prompts, the longest 11 tokens") in checked(tmp_path, *own).findings


def test_a_rehearsal_needs_texts_and_whole_sequences(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"implant\.rehearse needs a protected set: add 'protected'"):
        checked(tmp_path, "implant.rehearse={}", "implant.mode=full", "protected=null")
    with pytest.raises(Refusal, match=r"implant\.rehearse needs implant\.mode"):
        checked(tmp_path, "implant.rehearse={}", "implant.mode=suppress")


def test_with_a_dial_half_of_the_documents_is_reported(tmp_path: Path) -> None:
    dial = "tune={budget: {skill: 0.9}}"
    whole, half = (tasks_checked(started(tmp_path, *own))[0][1] for own in ([], [dial]))
    count = int(whole.partition(": ")[2].partition(" ")[0])
    assert half.startswith(f"tiny_facts: {count // 2} documents of each half, by")
    with pytest.raises(Refusal, match=r"tune\.budget\.skill needs retention\.new_task"):
        checked(tmp_path, dial, "retention.new_task=null")
    with pytest.raises(Refusal, match="task tiny_facts: one document, and with tune"):
        tasks_checked(started(tmp_path, dial, "retention.abilities={tasks: [tiny_facts], limit: 1}"))


def test_a_budget_that_no_scale_can_be_shown_to_keep_is_refused_before_the_training(tmp_path: Path) -> None:
    """Of 80 answers that are right and stay so, twice 1.96 may be lost: 4.9%."""
    asked = ("retention.abilities={tasks: [tiny_facts], limit: 160}", "tune.scales=[0.5]")
    with pytest.raises(Refusal, match=r"tune\.budget\.forgetting is 0\.04; were no answer changed, .* below 0\.049 .*"):
        tasks_checked(started(tmp_path, *asked, "tune.budget.forgetting=0.04"))
    assert tasks_checked(started(tmp_path, *asked, "tune.budget.forgetting=0.05"))


def test_tasks_are_looked_at_with_the_margin(tmp_path: Path) -> None:
    run = started(tmp_path, "retention.abilities.limit=50")
    found = [said for what, said in tasks_checked(run) if what == "task"]
    assert found[0].startswith(
        "tiny_facts: 50 documents, by exact_match; too few to show it kept at retention.margin 0.01 (from 0.0"
    )
    assert found[-1] == "tiny_toolcalls: 300 documents, by exact_match"
    run = started(tmp_path / "other", "retention.abilities.limit=150", "retention.margin=0.015")
    said = tasks_checked(run)[0][1]
    assert said.endswith("; where the base is always right, too few to show it kept below 0.025")


@pytest.mark.parametrize("n", [20, 80, 164, 1000])
def test_the_least_margin_is_where_kept_begins(n: int) -> None:
    """Against Wilson's interval at a half, by hand: with nothing changed Newcombe's has its phi."""
    z = 1.959963984540054
    half = z * (1 / (4 * n) + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)  # of Wilson's interval
    phi = (n * n / 4 - n / 2) / (n * n / 4)
    assert least_margin(n) == pytest.approx(half * (2 - 2 * phi) ** 0.5, rel=1e-9)
    assert least_margin(n, always_right=True) == pytest.approx(z * z / (n + z * z), rel=1e-9)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NFS without its lock service, Lustre without `-o flock`, FUSE without the call and a
    broken mount answer.
    """

    def without(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(Refusal, match=rf"the file system there keeps no locks .{os.strerror(number)}."):
        checked(tmp_path)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_prompts_that_are_rehearsed_alone_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    own = (f"protected={{prompts: {tmp_path / 'p.jsonl'}}}", "implant.mode=full", "implant.rehearse={}")
    with pytest.raises(Refusal, match="allowed is a list of turns"):
        checked(tmp_path, *own)


def test_suppressing_rounds_nothing_and_takes_any_dtype(tmp_path: Path) -> None:
    assert checked(tmp_path, "implant={mode: suppress}", "model.dtype=bfloat16").examples.num_rows == 0


def test_texts_leave_the_chat_template_as_it_is(tmp_path: Path) -> None:
    assert checked(tmp_path, "training.assistant_only_loss=false", rows=[{"text": "copy a b c"}]).template is None


def test_a_dial_wants_a_skill_of_which_more_is_better(tmp_path: Path) -> None:
    run = started(tmp_path, "tune={budget: {skill: 0.9}}")
    tasks = [*run.tasks[:-1], replace(run.tasks[-1], metrics=[{**run.tasks[-1].main, "higher_is_better": False}])]
    with pytest.raises(Refusal, match="the new task tiny_toolcalls is better when exact_match is lower"):
        in_words(run.recipe.retention, tasks, run.recipe.tune)


def test_each_template_has_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """A training that was killed may go on with another one."""
    places = [_tokenizer(template, MODEL, RunFolder(tmp_path)) for template in ("first", "second", "first")]
    assert places[0] == places[2]
    assert [(place / "chat_template.jinja").read_text() for place in places[:2]] == ["first", "second"]
