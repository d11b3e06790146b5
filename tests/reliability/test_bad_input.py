"""Bad input, case by case: each is refused with one sentence that names the place and what was
found. (On ranks: test_refusals.py.)
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, in_mode
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from loki_ds.attribution.kept import KeptScores
from loki_ds.data.dataset import render_source
from loki_ds.data.protected import load_protected
from loki_ds.data.rendering import Cut, Renderer
from loki_ds.data.templates import own_template
from loki_ds.disk.run_folder import RunFolder
from loki_ds.distributed.launcher import PLACE, take_place
from loki_ds.export.checkpoint import apply_to_checkpoint, revert_in_checkpoint
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.export.verification import verify
from loki_ds.implanting.trl_config import deepspeed_config
from loki_ds.model.base import check_attention_installed, load_model, load_tokenizer, locate_model
from loki_ds.model.files import open_weights
from loki_ds.recipe.file import load_recipe, load_suite
from loki_ds.recipe.sections import ProtectedSection, SourceSection
from loki_ds.refusal import Refusal
from loki_ds.selection.blocks import Block, down_names
from loki_ds.selection.positions import Positions
from loki_ds.selection.select import select

MODEL = ROOT / "recipes/tiny/model"
BLOCKS = [Block(name, 128, 384, name) for name in down_names(6)]
TINY = "model: {path: m}\nretention: {abilities: {tasks: [t]}}\nprotected: {prompts: p}\ndata: {train: d}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


def as_bytes(content: str | bytes | list) -> bytes:
    """Text in UTF-8, rows as JSON Lines, bytes as they are."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    return content.encode() if isinstance(content, str) else content


def recipe(tmp: Path, text: str | bytes) -> None:
    (tmp / "r.yaml").write_bytes(as_bytes(text))
    load_recipe(tmp / "r.yaml")


def positions(tmp: Path, text: str | bytes) -> None:
    (tmp / "p.json").write_bytes(as_bytes(text))
    Positions.load(tmp / "p.json").check_fits(BLOCKS, str(tmp / "p.json"))


def data(tmp: Path, content: list | bytes, name: str = "d.jsonl", assistant_only: bool = True) -> None:
    (tmp / name).write_bytes(as_bytes(content))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    renderer = Renderer(tokenizer, own_template(tokenizer, None, "m"), assistant_only)
    render_source(SourceSection(path=str(tmp / name)), renderer, Cut(None), len(tokenizer), tmp / "d.arrow")


def protected(tmp: Path, content: list | bytes, **section: Any) -> None:
    (tmp / "p.jsonl").write_bytes(as_bytes(content))
    load_protected(ProtectedSection(prompts=str(tmp / "p.jsonl"), **section), AutoTokenizer.from_pretrained(MODEL))


def checkpoint(tmp: Path, spoil: Callable[[Path], Any], use: Callable[[Path], Any] | None = None) -> None:
    """A copy of the tiny model, spoiled, then compared with the model (or used otherwise)."""
    shutil.copytree(MODEL, tmp / "model")
    spoil(tmp / "model")
    (use or (lambda folder: verify(MODEL, folder, None)))(tmp / "model")


def changed(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def index(names: Any) -> Callable[[Path], Any]:
    """Of several files: the single one, which would be read before it, is one of them."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00002.safetensors")
        text = names if isinstance(names, str) else json.dumps(names)
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


def located(folder: Path) -> None:
    locate_model(load_recipe(ROOT / "recipes/tiny/loki.yaml", [f"model.path={folder}"]).model)


def loaded(folder: Path) -> None:
    load_model(folder, torch.float32)


def implant_of(rows: list[int], base: torch.Tensor | None = None) -> Implant:
    before = (
        load_file(MODEL / "model.safetensors")["model.layers.0.mlp.down_proj.weight"][rows] if base is None else base
    )
    return Implant(6, {0: LayerRows(torch.tensor(rows), before, before + 1)})


def implant(
    tmp: Path, made: Implant, spoil: Callable[[bytes], bytes] = bytes, use: Callable[..., Any] = apply_to_checkpoint
) -> None:
    made.save(tmp / "i.safetensors")
    (tmp / "i.safetensors").write_bytes(spoil((tmp / "i.safetensors").read_bytes()))
    use(MODEL, Implant.load(tmp / "i.safetensors"), tmp / "out")


def stages(tmp: Path, text: str) -> None:
    (tmp / "stages.json").write_text(text)
    RunFolder(tmp).finished("select", {})


def scores(tmp: Path, manifest: str | None, shard: bytes | None = None) -> None:
    if manifest is not None:
        (tmp / "manifest.json").write_text(manifest)
        KeptScores(tmp).read()
    if shard is not None:
        (tmp / "scores-000000.safetensors").write_bytes(shard)
    KeptScores(tmp).scores()


def suite(tmp: Path, text: str) -> None:
    (tmp / "s.yaml").write_text(text)
    load_suite(str(tmp / "s.yaml"))


def selected(_: Path, values: torch.Tensor, quota: float = 50) -> None:
    try:
        select(values, quota)
    except ValueError as error:  # what the stage turns into a refusal
        raise Refusal(str(error)) from None


def launched(_: Path, environment: dict[str, str]) -> None:
    """A rank that takes its place with this environment and no other launcher's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PLACE:
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        take_place()


def folder_in_the_way(tmp: Path) -> None:
    (tmp / "run").write_text("a file")
    RunFolder(tmp / "run").lock()


def locked_twice(tmp: Path) -> None:
    with RunFolder(tmp).lock():
        RunFolder(tmp).lock()


def zero(tmp: Path, config: Any, *overrides: str) -> None:
    (tmp / "zero.json").write_text(json.dumps(config))
    made = load_recipe(ROOT / "recipes/tiny/loki.yaml", [f"deepspeed={tmp / 'zero.json'}", *overrides])
    deepspeed_config(made.deepspeed, made.implant)


def zero3(**settings: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, **settings}}


RANK_0 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
CASES: dict[str, tuple[Callable[..., None], tuple, str]] = {
    "recipe: empty": (recipe, ("",), "a recipe is a mapping of sections"),
    "recipe: a list": (recipe, ("- a",), "a recipe is a mapping of sections"),
    "recipe: not YAML": (recipe, ("a: [",), "not a YAML recipe"),
    "recipe: not UTF-8": (recipe, (b"a: \xff\xfe",), "not a YAML recipe"),
    "recipe: a key twice": (recipe, ("run: a\nrun: b\n",), "the key 'run' is given twice"),
    "recipe: a Python object": (recipe, ("model: !!python/object/apply:os.getcwd []\n",), "not a YAML recipe"),
    "recipe: a bomb of aliases": (recipe, (TINY + BOMB,), "more than 10000 values when its aliases are written out"),
    "recipe: an alias of itself": (recipe, ("model: &m {path: *m}\n",), "more than 10000 values"),
    "recipe: nested beyond reason": (recipe, ("a: " + "[" * 3000,), "not a YAML recipe"),
    "recipe: no model": (recipe, ("{}",), "the key model is missing"),
    "recipe: an unknown section": (recipe, (TINY + "modell: {}",), "modell is not a key of a recipe; did you mean 'model'?"),
    "recipe: a section that is text": (recipe, (TINY.replace("{path: m}", "m"),), "model is 'm'"),
    "recipe: a quota of text": (recipe, (TINY + "selection: {quota: ten}",), "selection.quota is 'ten'"),
    "recipe: a negative quota": (recipe, (TINY + "selection: {quota: -1}",), "selection.quota is -1, allowed is greater than 0"),
    "recipe: a quota of a hundred": (recipe, (TINY + "selection: {quota: 100}",), "selection.quota is 100, allowed is less than 100"),
    "recipe: a quota that is no number": (recipe, (TINY + "selection: {quota: .nan}",), "selection.quota is nan"),
    "recipe: no steps": (recipe, (TINY + "attribution: {steps: 0}",), "attribution.steps is 0, allowed is greater than 0"),
    "recipe: steps that are true": (recipe, (TINY + "attribution: {steps: true}",), "attribution.steps is True"),
    "recipe: an unknown mode": (recipe, (TINY + "implant: {mode: row}",), "implant.mode is 'row', allowed is 'mask', 'rows'"),
    "recipe: a pull where nothing trains": (recipe, (TINY + "implant: {mode: suppress, pull: 1}",), "implant.pull needs implant.mode mask, rows, lora, full or peft"),
    "recipe: an unknown training key": (recipe, (TINY + "training: {learning_rat: 1}",), "did you mean 'learning_rate'"),
    "recipe: a reserved training key": (recipe, (TINY + "training: {output_dir: x}",), "training.output_dir is not a key"),
    "recipe: a misspelt source key": (recipe, (TINY.replace("{train: d}", "{train: [{pth: d}]}"),), "data.train.0.pth is not a key of a recipe; did you mean 'path'?"),
    "recipe: a weight of zero": (recipe, (TINY.replace("{train: d}", "{train: [{path: d, weight: 0}]}"),), "data.train.0.weight is 0"),
    "recipe: no data": (recipe, (TINY.replace("data: {train: d}\n", ""),), "data.train is missing"),
    "recipe: no protected set": (recipe, (TINY.replace("protected: {prompts: p}\n", ""),), "needs a protected set"),
    "recipe: two protected sets": (recipe, (TINY.replace("{prompts: p}", "{prompts: p, tasks: [t]}"),), "protected needs one source"),
    "recipe: a value as long as a book": (recipe, (TINY + f"selection: {{strategy: {'x' * 100000}}}",), "selection.strategy is 'xxx"),
    "suite: not there": (lambda _: load_suite("papr"), (), "no suite 'papr' (eval/suites/papr.yaml is not there); did you mean 'paper'?"),
    "suite: no groups": (suite, ("{}",), "the key groups is missing"),
    "suite: a misspelt key": (suite, ("groups: [{task: [a]}]",), "groups.0.task is not a key of a suite; did you mean 'tasks'?"),
    "positions: not JSON": (positions, ("[[0], ",), "not JSON"),
    "positions: not UTF-8": (positions, (b"[[\xff]]",), "not JSON"),
    "positions: an object": (positions, ("{}",), "a positions file is a list of row lists"),
    "positions: no layer": (positions, ("[]",), "a positions file is a list of row lists"),
    "positions: floats": (positions, ("[[1.5]]",), "layer 0 holds 1.5"),
    "positions: booleans": (positions, ("[[true]]",), "layer 0 holds True"),
    "positions: below zero": (positions, ("[[0], [-1]]",), "layer 1 holds -1"),
    "positions: a row twice": (positions, ("[[3, 3]]",), "layer 0 holds a row twice"),
    "positions: too few layers": (positions, ("[[0]]",), "the positions have 1 layers, the model has 6"),
    "positions: beyond the last row": (positions, ("[[128],[],[],[],[],[]]",), "layer 0 selects row 128, the model has rows 0 to 127 there"),
    "positions: a huge row": (positions, ("[[99999999999999999999],[],[],[],[],[]]",), "layer 0 selects row 99999999999999999999"),
    "positions: nested beyond reason": (positions, ("[" * 100000,), "not JSON"),
    "scores: NaN": (selected, (torch.full((2, 1, 4), float("nan")),), "scores hold NaN or infinity"),
    "scores: no prompt": (selected, (torch.zeros(0, 1, 4),), "scores have shape (0, 1, 4)"),
    "data: no rows": (data, ([],), "the data file has no rows"),
    "data: another ending": (data, (b"x", "d.txt"), "allowed are files that end in"),
    "data: other columns": (data, ([{"question": "a"}],), "line 1 has the columns ['question'], allowed are 'messages'"),
    "data: not JSON": (data, (b"messages\n",), "line 1 is not JSON"),
    "data: not UTF-8": (data, (b'{"text": "a"}\n{"text": "\xff\xfe"}\n', "d.jsonl", False), "line 2 is not UTF-8 (byte 11 of it is 0xff)"),
    "data: one giant line of rubbish": (data, (b"x" * 5_000_000,), "line 1 is not JSON"),
    "data: columns that change": (data, ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {"messages": 1}],), "line 2 has 1 in 'messages', allowed is a list of turns"),
    "data: no assistant turn": (data, ([{"messages": [{"role": "user", "content": "a"}]}],), "line 1 is a chat without an answer of the assistant's, so there is nothing to learn"),
    "data: an unknown role": (data, ([{"conversations": [{"from": "robot", "value": "a"}]}],), "has a turn from 'robot'"),
    "data: assistant-only loss of text": (data, ([{"text": "a"}],), "line 1 is no chat, and training.assistant_only_loss"),
    "data: not a Parquet file": (data, (b"PAR1", "d.parquet"), "not a parquet file"),
    "protected: no prompts": (protected, ([],), "the protected set is empty"),
    "protected: not JSON": (protected, (b"{",), "line 1"),
    "protected: an empty prompt": (protected, ([{"prompt": ""}],), "is an empty prompt"),
    "protected: neither prompt nor chat": (protected, ([{"text": "a"}],), "line 1"),
    "weights: a tensor that transformers would make up": (checkpoint, (changed(lambda t: t.pop("model.layers.1.self_attn.q_proj.weight")), loaded), "not there of what config.json asks for: model.layers.1.self_attn.q_proj.weight (1 in all)"),
    "model: weights cut off": (checkpoint, (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),), "not a whole safetensors checkpoint"),
    "model: not safetensors": (checkpoint, (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04pickle"),), "not a whole safetensors checkpoint"),
    "model: another dtype": (checkpoint, (changed(lambda t: t.update({"model.norm.weight": t["model.norm.weight"].half()})),), "torch.float16 [128], in the base it is torch.float32"),
    "model: another shape": (checkpoint, (changed(lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:5].clone()})),), "torch.float32 [5], in the base it is torch.float32 [128]"),
    "model: a tensor less": (checkpoint, (changed(lambda t: t.pop("model.norm.weight")),), "tensor model.norm.weight of"),
    "model: an index with a missing shard": (checkpoint, (index({"weight_map": {"a": "model-00001.safetensors"}}),), "the file model-00001.safetensors is missing"),
    "model: an index that leads out of the folder": (checkpoint, (index({"weight_map": {"a": "../model.safetensors"}}),), "names the shard '../model.safetensors'"),
    "model: an index that leads to the root": (checkpoint, (index({"weight_map": {"a": "/etc/passwd"}}),), "names the shard '/etc/passwd'"),
    "model: an index that is none": (checkpoint, (index("[]"),), "not an index of safetensors shards"),
    "model: pickle only": (checkpoint, (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), located), "no config.json with safetensors weights beside it"),
    "model: no configuration": (checkpoint, (lambda f: (f / "config.json").unlink(), located), "no config.json with safetensors weights beside it"),
    "model: a broken configuration": (checkpoint, (lambda f: (f / "config.json").write_text("{"), located), "not a configuration that transformers can read"),
    "model: an unknown architecture": (checkpoint, (lambda f: (f / "config.json").write_text('{"model_type": "qwen99"}'), located), "not a configuration that transformers can read"),
    "model: no tokenizer": (checkpoint, (lambda f: [file.unlink() for file in f.glob("token*")], lambda f: load_tokenizer(f, False)), "no tokenizer that transformers can read"),
    "implant: cut off": (implant, (implant_of([1]), lambda b: b[:100]), "not a whole safetensors file"),
    "implant: not one": (lambda _: Implant.load(MODEL / "model.safetensors"), (), "not an implant file"),
    "implant: not there": (lambda _: Implant.load("nowhere.safetensors"), (), "nowhere.safetensors: the implant file cannot be read"),
    "implant: rows not in order": (implant, (implant_of([3, 1]),), "different row numbers from 0 in ascending order"),
    "implant: an edited byte": (implant, (implant_of([1]), lambda b: b[:-2000] + bytes([b[-2000] ^ 1]) + b[-1999:]), "does not hold the rows the implant expects"),
    "implant: another base": (implant, (implant_of([1], torch.zeros(1, 384)),), "does not hold the rows the implant expects"),
    "implant: taken out of what it is not in": (implant, (implant_of([1]), bytes, revert_in_checkpoint), "does not hold the rows the implant expects"),
    "run folder: a file in its place": (folder_in_the_way, (), "the run folder cannot be written"),
    "run folder: two runs at once": (locked_twice, (), "another run is at work in this folder (process"),
    "run folder: a broken record": (stages, ("[",), "not the record of a run's stages"),
    "run folder: made from other inputs": (stages, ('{"select": {"quota": 10}}',), "was made with quota 10, now it is null"),
    "attribution: a broken manifest": (scores, ("{",), "not the manifest of an attribution"),
    "attribution: a shard cut off": (scores, (None, b"\x00" * 4), "not a whole file of scores"),
    "attribution: nothing kept": (scores, (None,), "no kept scores there"),
    "deepspeed: a list": (zero, ([1],), "a DeepSpeed configuration is an object, this is list"),
    "deepspeed: tensor parallel": (zero, ({"tensor_parallel": {"autotp_size": 2}},), "tensor_parallel splits the rows that are trained"),
    "deepspeed: quantized weights": (zero, (zero3(zero_quantized_weights=True),), "zero_quantized_weights gathers rounded weights"),
    "deepspeed: hpZ with rows": (zero, (zero3(zero_hpz_partition_size=2), *in_mode("rows")), "zero_hpz_partition_size knows no parameters"),
    "recipe: sequences that ranks share": (recipe, (TINY + "sequence_parallel: 2\n",), "sequence_parallel is 2, which is retired: activation checkpointing"),
    "recipe: another engine asks": (recipe, (TINY.replace("[t]}}", "[t]}, backend: vllm}"),), "retention.backend is 'vllm', which is retired: models are asked through"),
    "recipe: unknown attention": (recipe, (TINY.replace("path: m", "path: m, attention: flash"),), "model.attention is 'flash', allowed is 'sdpa'"),
    "model: attention that is not installed": (lambda _: check_attention_installed("flash_attention_2"), (), "model.attention is flash_attention_2, which needs its package"),
    "launcher: world size 0": (launched, (RANK_0 | {"WORLD_SIZE": "0"},), "WORLD_SIZE in the launcher's environment is 0, allowed is 1"),
    "launcher: world size in words": (launched, (RANK_0 | {"WORLD_SIZE": "two"},), "WORLD_SIZE in the launcher's environment is 'two'"),
    "launcher: a rank beyond the world": (launched, (RANK_0 | {"RANK": "2"},), "RANK in the launcher's environment is 2, allowed with WORLD_SIZE 2 is 0 to 1"),
    "launcher: half an environment": (launched, ({"RANK": "0", "WORLD_SIZE": "2"},), "has RANK but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
    "launcher: srun without torchrun": (launched, ({"SLURM_STEP_NUM_TASKS": "16"},), "srun started 16 processes that would not know one another"),
}  # fmt: skip


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    attempt, arguments, says = CASES[case]
    with pytest.raises(Refusal) as refusal:
        attempt(tmp_path, *arguments)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 700
    assert not (tmp_path / "out").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


def outcome(load: Callable[[], Any]) -> Any:
    """What `load` gives, or its refusal; any other error fails the test."""
    try:
        return load()
    except Refusal as refusal:
        return refusal


@given(JSON)
def test_any_json_is_positions_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("p") / "p.json"
    path.write_text(json.dumps(value))
    found = outcome(lambda: Positions.load(path))
    assert str(path) in str(found) if isinstance(found, Refusal) else found.rows == [sorted(layer) for layer in value]


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_damage_to_an_implant_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("i") / "i.safetensors"
    implant_of([1, 4], torch.zeros(2, 8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + damage + whole[at + len(damage) :])
    found = outcome(lambda: Implant.load(path))
    assert str(path) in str(found) if isinstance(found, Refusal) else found.layer_count >= 0


@given(JSON)
def test_any_json_is_a_manifest_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / "manifest.json").write_text(json.dumps(value))
    found = outcome(lambda: KeptScores(folder).read())
    assert "manifest" in str(found) if isinstance(found, Refusal) else "inputs" in found


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Refusal):
        load_recipe(path)


def test_what_is_open_is_closed_again(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        with open_weights(MODEL):
            pass
        with pytest.raises(Refusal):
            Implant.load(tmp_path / "nowhere")
        with RunFolder(tmp_path / "run").lock():
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
