"""A real model through the real lm-eval: any number of processes gives the same samples; groups,
calls and rankings are tasks.
"""

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest
import torch
from conftest import ROOT
from paired import metric
from published import TEMPLATES
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Mistral3Config,
    MistralConfig,
    PixtralVisionConfig,
)

from loki_ds.export.checkpoint import apply_to_checkpoint
from loki_ds.export.implant_file import Implant, LayerRows
from loki_ds.model.files import open_weights
from loki_ds.recipe.file import load_suite
from loki_ds.refusal import Refusal
from loki_ds.retention.evaluation import Nodes, evaluate_shares, gather_shares, unanswered
from loki_ds.retention.messages import Request
from loki_ds.retention.pairing import pair
from loki_ds.retention.question import Answers, Asked
from loki_ds.retention.worker import run_lm_eval
from loki_ds.tasks.loading import TaskFound, look_at_tasks, task_manager

PLAIN = {"num_fewshot": None, "limit": None, "apply_chat_template": False}
REQUEST: dict[str, Any] = {
    "model": str(ROOT / "recipes/tiny/model"),
    "dtype": "float32",
    "device": "cpu",
    "processes": 1,
    "tokenizer": None,
    "devices_per_model": 1,
    "batch_size": 8,
    "include_path": ["tests/retention/data/tasks"],
    "trust_remote_code": False,
    "allow_code_execution": False,
    "seed": 0,
    "groups": [
        {**PLAIN, "tasks": ["fixture_arithmetic"], "limit": 9},
        {**PLAIN, "tasks": ["fixture_calls"], "apply_chat_template": True},
        {**PLAIN, "tasks": ["fixture_reranking"], "apply_chat_template": True},
    ],
}


def request(**changes: Any) -> Request:
    """The request with what is behind its tasks, as the check finds it."""
    asked = {**REQUEST, **changes}
    names = [name for group in asked["groups"] for name in group["tasks"]]
    found = look_at_tasks(names, asked["include_path"], True, "retention")
    return Request.model_validate({**asked, "tasks": [asdict(task) for task in found]})


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one") / "shares"
    evaluate_shares([(request(), folder)])
    found = gather_shares(request(), folder)
    assert not folder.exists()
    return found


def test_two_nodes_give_the_same_samples_as_one_process(one: dict[str, Any], tmp_path: Path) -> None:
    """Of a share that was there before, nothing is evaluated again; bfcl's single irrelevance
    document leaves the last process none.
    """
    asked, folder = request(), tmp_path / "shares"
    evaluate_shares([(asked, folder)], Nodes(1, (1, 1)))
    stamp = (folder / "share1of2.json").stat().st_mtime_ns
    evaluate_shares([(asked, folder)], Nodes(1, (1, 1)))
    assert (folder / "share1of2.json").stat().st_mtime_ns == stamp
    evaluate_shares([(asked, folder)], Nodes(0, (1, 1)))
    assert gather_shares(asked, folder, Nodes(0, (1, 1))) == one


def test_nodes_may_have_other_numbers_of_devices(one: dict[str, Any], tmp_path: Path) -> None:
    asked, folder, processes = request(), tmp_path / "shares", (1, 2)
    for node in (1, 0):
        evaluate_shares([(asked, folder)], Nodes(node, processes))
    assert sorted(file.name for file in folder.glob("share*.json")) == [f"share{i}of3.json" for i in range(3)]
    assert gather_shares(asked, folder, Nodes(0, processes)) == one


def test_implants_in_one_loaded_base_answer_as_their_checkpoints_do(one: dict[str, Any], tmp_path: Path) -> None:
    """One after the other, and then the base itself: its bits are back."""
    base, implants = ROOT / "recipes/tiny/model", [tmp_path / f"{i}.safetensors" for i in range(2)]
    with open_weights(base) as weights:
        for i, file in enumerate(implants):
            weight = weights.read("model.layers.0.mlp.down_proj.weight")
            rows = LayerRows(
                torch.arange(40 * i, 40 * i + 40), weight[40 * i : 40 * i + 40], torch.zeros(40, weight.shape[1])
            )
            Implant(6, {0: rows}).save(file)
    asked = [(request(implant=str(file)), tmp_path / file.stem) for file in implants]
    evaluate_shares([*asked, (request(), tmp_path / "base")])
    found = [gather_shares(*each) for each in asked]
    assert gather_shares(request(), tmp_path / "base") == one
    apply_to_checkpoint(base, Implant.load(implants[1]), tmp_path / "model")
    evaluate_shares([(request(model=str(tmp_path / "model")), tmp_path / "own")])
    assert gather_shares(request(), tmp_path / "own") == found[1]
    assert found[0]["tasks"] != found[1]["tasks"] != one["tasks"]


def test_a_node_that_fails_ends_the_waiting(tmp_path: Path) -> None:
    asked, folder = request(model=str(tmp_path)), tmp_path / "shares"
    with pytest.raises(Refusal, match="ended with exit status 1"):
        evaluate_shares([(asked, folder)], Nodes(1, (1, 1)))
    with pytest.raises(Refusal, match="failed on node 1; its own message is in that node's log"):
        gather_shares(asked, folder, Nodes(0, (1, 1)))


def test_the_marks_of_a_failed_attempt_go_before_the_next(tmp_path: Path) -> None:
    answers, asked = Answers(tmp_path), Asked(request(), {"model": "x"})
    answers.shares(asked.key).mkdir()
    (answers.shares(asked.key) / "failed1").touch()
    assert unanswered([asked, asked], answers) == [asked]
    assert not list(answers.shares(asked.key).iterdir())


def test_a_task_is_asked_for_once() -> None:
    with pytest.raises(Refusal, match="retention: task fixture_calls is asked for twice"):
        look_at_tasks(["fixture_calls", "fixture_simple", "fixture_calls"], REQUEST["include_path"], False, "retention")


def test_a_task_is_in_one_of_the_groups_alone(own_tasks: Path) -> None:
    """As [mmlu, mmlu_stem] are not: lm-eval refuses to load both."""
    with pytest.raises(Refusal, match=r"retention: task code is in grouped and in tagged, allowed is once"):
        look_at_tasks(["grouped", "tagged"], [str(own_tasks)], True, "retention")


def test_shots_are_the_same_whatever_shares_the_documents(tmp_path: Path) -> None:
    group = {**PLAIN, "tasks": ["fixture_arithmetic"], "num_fewshot": 3}
    whole, half = (run_lm_eval(request(groups=[group], part=part), tmp_path) for part in ((0, 1), (1, 2)))
    prompts = [
        {s["place"]: s["prompt"] for s in one["tasks"]["fixture_arithmetic"]["samples"]} for one in (whole, half)
    ]
    assert len(prompts[1]) == len(prompts[0]) // 2
    assert prompts[1].items() <= prompts[0].items()
    shots = {prompt.rsplit("\n\n", 1)[0] for prompt in prompts[0].values()}
    assert len(shots) > len(prompts[0]) // 2  # and drawn anew for each document


def test_chats_are_put_with_the_templates_arguments(tmp_path: Path) -> None:
    """Qwen3's template, whose prompt thinks unless it is told not to."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    group = {**PLAIN, "tasks": ["fixture_arithmetic"], "apply_chat_template": True, "limit": 2}
    own = {"groups": [group], "tokenizer": str(tmp_path / "tokenizer")}
    for settings, end in (({}, "assistant\n"), ({"enable_thinking": False}, "</think>\n\n")):
        found = run_lm_eval(request(**own, chat_template_args=settings), tmp_path)
        (first, *_) = found["tasks"]["fixture_arithmetic"]["samples"]
        assert first["prompt"].endswith(end)


def test_templates_that_print_the_date_print_one(tmp_path: Path) -> None:
    """The base may have been asked on another day; Llama 3.2's template."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes/tiny/model")
    tokenizer.chat_template = (TEMPLATES / "llama3_2.jinja").read_text()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    group = {**PLAIN, "tasks": ["fixture_arithmetic"], "apply_chat_template": True, "limit": 1}
    found = run_lm_eval(request(groups=[group], tokenizer=str(tmp_path / "tokenizer")), tmp_path)
    assert "26 Jul 2024" in found["tasks"]["fixture_arithmetic"]["samples"][0]["prompt"]


def test_a_template_is_compiled_once_and_not_for_every_document(tmp_path: Path) -> None:
    asked = request(groups=[{**PLAIN, "tasks": ["fixture_arithmetic"]}])
    first = run_lm_eval(asked, tmp_path)
    compiled = lm_eval.utils.env.from_string.cache_info()
    assert run_lm_eval(asked, tmp_path) == first
    again = lm_eval.utils.env.from_string.cache_info()
    assert again.misses == compiled.misses
    assert again.hits - compiled.hits >= len(first["tasks"]["fixture_arithmetic"]["samples"])


def test_a_limit_is_a_random_sample_and_not_the_first(one: dict[str, Any]) -> None:
    places = [sample["place"] for sample in one["tasks"]["fixture_arithmetic"]["samples"]]
    assert len(places) == 9
    assert places != list(range(9))


def test_a_group_is_one_task_in_clusters(one: dict[str, Any]) -> None:
    task = one["tasks"]["fixture_calls"]
    assert [sample["cluster"] for sample in task["samples"]] == [
        "fixture_irrelevance",
        "fixture_simple",
        "fixture_simple",
    ]
    assert [metric["name"] for metric in task["metrics"]] == ["ast_match"]
    assert task["samples"][0]["scores"] == [1.0]  # whatever the tiny model says to "Hello", it is no call of this kind


def test_every_metric_of_a_ranking_is_paired(one: dict[str, Any]) -> None:
    rankings = [task for task in pair(one, one) if task.task == "fixture_reranking"]
    assert [task.metric["name"] for task in rankings] == ["ndcg@10", "map", "mrr"]
    assert all(0 < pairs.base <= 1 for task in rankings for pairs in task.pairs)


RUNS_CODE = {
    "unsafe_code": True,
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
}


# A metric that comes under another name, as HumanEval's; one that some documents have no number
# for.
OWN = """
def pass_at_k(references, predictions, k):
    return {"pass@1": 0.25}
def half(doc, results):
    return {"acc": 1.0}
def truth(doc, results):
    import numpy
    return {"acc": numpy.bool_(True)}
def nanmean(values):
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept)
"""
OWN_METRICS = {
    "code_eval": (
        '"metric_list": [{"metric": !function own.pass_at_k , "aggregation": "mean", '
        '"higher_is_better": true, "k": 1}]',
        '"num_fewshot": 0',
    ),
    "halves": (
        '"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": true}, '
        '{"metric": "length", "aggregation": "mean", "higher_is_better": true}]',
        '"process_results": !function own.half ',
    ),
    "truths": (
        '"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": true}]',
        '"process_results": !function own.truth ',
    ),
    "nanmeans": (
        '"metric_list": [{"metric": "acc", "aggregation": !function own.nanmean , "higher_is_better": true}]',
        '"process_results": !function own.half ',
    ),
}


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A task that runs code in a group and behind a tag, one of perplexity, and one whose data is
    not there.
    """
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "1 + 1 =", "answer": "2"}) + "\n")
    here, nowhere = ({"data_files": {"test": str(tmp_path / name)}} for name in ("d.jsonl", "gone.jsonl"))
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    error = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": False}
    lower = {"metric_list": [error, {"metric": "bleu"}]}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": ["3", "2", "4"],
        "doc_to_target": 1,
        "metric_list": [{"metric": "acc_norm"}, {"metric": "acc"}],
    }
    twice = [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {"name": "flexible", "filter": [{"function": "take_first"}]},
    ]
    # As LAMBADA has them: the perplexity first.
    perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    several = {"output_type": "loglikelihood", "metric_list": [perplexity, {"metric": "acc"}]}
    tasks = {
        "code": {**RUNS_CODE, "task": "code", "tag": "tagged", "dataset_kwargs": here},
        "grouped": {"group": "grouped", "task": ["code"]},
        "texts": {**RUNS_CODE, **rolling, "unsafe_code": False, "task": "texts", "dataset_kwargs": here},
        "lower": {**RUNS_CODE, **lower, "unsafe_code": False, "task": "lower", "dataset_kwargs": here},
        "several": {**RUNS_CODE, **several, "unsafe_code": False, "task": "several", "dataset_kwargs": here},
        "choice": {**RUNS_CODE, **choice, "unsafe_code": False, "task": "choice", "dataset_kwargs": here},
        "bleu": {
            **RUNS_CODE,
            "metric_list": [{"metric": "bleu"}],
            "unsafe_code": False,
            "task": "bleu",
            "dataset_kwargs": here,
        },
        "filtered": {
            **RUNS_CODE,
            "filter_list": twice,
            "unsafe_code": False,
            "task": "filtered",
            "dataset_kwargs": here,
        },
        "mixed": {"group": "mixed", "task": ["lower", "choice"]},
        "gone": {**RUNS_CODE, "unsafe_code": False, "task": "gone", "dataset_kwargs": nowhere},
    }
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    (tmp_path / "own.py").write_text(OWN)
    for name, (declared, function) in OWN_METRICS.items():
        own = {**RUNS_CODE, "unsafe_code": False, "task": name, "dataset_kwargs": here, "metric_list": ["METRICS"]}
        written = json.dumps({key: value for key, value in own.items() if key != "metric_list"})[:-1]
        (tmp_path / f"{name}.yaml").write_text(f"{written}, {declared}, {function}}}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("code", "code run code that the model wrote, with all your rights.*allow_code_execution=true"),
        ("grouped", r"code \(of grouped\) run code"),
        ("tagged", r"code \(of tagged\) run code"),
        ("bleu", "task bleu has no metric that can be paired by document: bleu is no mean over documents"),
        (
            "mixed",
            r"the tasks of mixed do not share one main metric .lower has exact_match, choice has acc_norm.; name",
        ),
        ("gone", "task gone cannot be loaded: .*gone.jsonl"),
        ("nanmeans", "task nanmeans has no metric that can be paired by document: acc is no mean over documents"),
    ],
)
def test_what_an_evaluation_would_find_after_the_training_is_refused_before(
    own_tasks: Path, name: str, says: str
) -> None:
    with pytest.raises(Refusal, match=says):
        look_at_tasks([name], [str(own_tasks)], False, "retention")


NATS = metric("log-likelihood of the gold answer", metric="gold answer", filter="", unit="nats")


def test_metrics_are_those_that_the_tasks_declare(own_tasks: Path) -> None:
    """Right or wrong first, directions as declared, filters apart, likelihoods beside them."""
    names = ["grouped", "several", "lower", "choice", "filtered", "texts"]
    found = {one.name: one for one in look_at_tasks(names, [str(own_tasks)], True, "retention")}
    assert replace(found["grouped"], digest="") == TaskFound("grouped", {"code": 1}, [metric("exact_match")])
    assert found["several"].metrics == [metric("acc"), NATS]
    assert found["lower"].metrics == [metric("exact_match", higher_is_better=False)]
    assert found["choice"].metrics == [metric("acc_norm"), metric("acc"), NATS]
    strict, flexible = (
        metric("exact_match", filter="strict"),
        metric("exact_match, flexible", metric="exact_match", filter="flexible"),
    )
    assert found["filtered"].metrics == [strict, flexible]
    assert [(one["unit"], one["higher_is_better"]) for one in found["texts"].metrics] == [("bits per byte", False)]


def test_a_group_that_averages_its_tasks_says_so(own_tasks: Path) -> None:
    (found,) = look_at_tasks(["group"], [str(groups_of(own_tasks))], True, "retention")
    assert (found.documents, found.by_size) == ({"several": 1, "again": 1}, False)


def groups_of(folder: Path) -> Path:
    again = json.loads((folder / "several.yaml").read_text())
    (folder / "again.yaml").write_text(json.dumps({**again, "task": "again"}))
    averaged = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}]}
    (folder / "group.yaml").write_text(json.dumps({"group": "group", "task": ["several", "again"], **averaged}))
    return folder


def test_documents_are_scored_by_right_or_wrong_and_in_nats(own_tasks: Path) -> None:
    """LAMBADA's shape, a multiple choice and a text, against the model's own probabilities."""
    names = ["several", "choice", "texts"]
    found = run_lm_eval(request(groups=[{**PLAIN, "tasks": names}], include_path=[str(own_tasks)]), own_tasks)["tasks"]
    lambada, choice, text = (found[name]["samples"][0] for name in names)
    assert lambada["scores"][0] in (0.0, 1.0)
    assert lambada["scores"][1] == pytest.approx(nats("1 + 1 =", "2"), abs=1e-4)
    choices = {answer: nats("1 + 1 =", f" {answer}") for answer in ("3", "2", "4")}
    assert choice["scores"][2] == pytest.approx(choices["2"], abs=1e-4)
    assert (choice["answer"], choice["gold"]) == (max(choices, key=lambda answer: choices[answer]), "2")
    assert text["scores"] == [pytest.approx(-nats("", "2") / math.log(2), rel=1e-3)]


def test_a_wrapper_of_text_and_pictures_is_asked_as_its_text_part_is(own_tasks: Path, tmp_path: Path) -> None:
    """Mistral 3 has no class of its own for text; lm-eval gets the model, not its name."""
    tokenizer = AutoTokenizer.from_pretrained(REQUEST["model"])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = MistralConfig(vocab_size=len(tokenizer), **sizes, head_dim=8, num_key_value_heads=2)
    pictures = PixtralVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    wrapper = AutoModelForImageTextToText.from_config(Mistral3Config(text_config=text, vision_config=pictures))
    alone = AutoModelForCausalLM.from_config(text)
    alone.model.load_state_dict(wrapper.model.language_model.state_dict())
    alone.lm_head.load_state_dict(wrapper.lm_head.state_dict())
    found = []
    for name, model in (("wrapper", wrapper), ("alone", alone)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        asked = request(
            groups=[{**PLAIN, "tasks": ["choice"]}],
            include_path=[str(own_tasks)],
            model=str(tmp_path / name),
            tokenizer=str(tmp_path / name),
        )
        found.append([sample["scores"] for sample in run_lm_eval(asked, tmp_path)["tasks"]["choice"]["samples"]])
    assert found[0] == [pytest.approx(scores, abs=1e-5) for scores in found[1]]


def nats(context: str, answer: str) -> float:
    """Log-likelihood of the answer after the context, by the model itself."""
    model = AutoModelForCausalLM.from_pretrained(REQUEST["model"])
    tokenizer = AutoTokenizer.from_pretrained(REQUEST["model"])
    before = tokenizer(context)["input_ids"] if context else [tokenizer.eos_token_id]
    ids = torch.tensor([([] if context else before) + tokenizer(context + answer)["input_ids"]])
    with torch.no_grad():
        probabilities = model(ids).logits[0].log_softmax(-1)
    return sum(float(probabilities[place - 1, ids[0, place]]) for place in range(len(before), ids.shape[1]))


def test_a_metric_under_another_name_is_found(own_tasks: Path) -> None:
    """HumanEval declares `pass_at_k`, and its documents hold `pass@1`."""
    found = run_lm_eval(request(groups=[{**PLAIN, "tasks": ["code_eval"]}], include_path=[str(own_tasks)]), own_tasks)
    task = found["tasks"]["code_eval"]
    assert ([metric["name"] for metric in task["metrics"]], task["samples"][0]["scores"]) == (["pass_at_k"], [0.25])


def test_a_second_metric_without_a_number_is_left_out(own_tasks: Path) -> None:
    found = run_lm_eval(request(groups=[{**PLAIN, "tasks": ["halves"]}], include_path=[str(own_tasks)]), own_tasks)
    assert found["tasks"]["halves"]["samples"][0]["scores"] == [1.0, None]
    assert [task.metric["name"] for task in pair(found, found)] == ["acc"]


def test_numpys_truths_are_numbers(own_tasks: Path) -> None:
    """As lm-eval's own `mutual` gives them."""
    found = run_lm_eval(request(groups=[{**PLAIN, "tasks": ["truths"]}], include_path=[str(own_tasks)]), own_tasks)
    assert found["tasks"]["truths"]["samples"][0]["scores"] == [1.0]


def test_how_a_task_asks_is_part_of_its_digest(own_tasks: Path, tmp_path: Path) -> None:
    """Also where it says so in a file that it includes from elsewhere, or in a function."""
    (tmp_path / "outside").mkdir()
    included, task = tmp_path / "outside/shared.yaml", {"include": "../outside/shared.yaml", "task": "including"}
    shared = {key: value for key, value in json.loads((own_tasks / "lower.yaml").read_text()).items() if key != "task"}
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/including.yaml").write_text(json.dumps(task))

    def digest(**changes: Any) -> str:
        included.write_text(json.dumps({**shared, **changes}))
        return look_at_tasks(["including"], [str(tmp_path / "inside")], False, "retention")[0].digest

    other = {"generation_kwargs": {"until": ["."]}}
    assert digest() == digest()
    assert len({digest(), digest(**other), digest(doc_to_text="Q: {{prompt}}")}) == 3
    before, code = (look_at_tasks(["halves"], [str(own_tasks)], False, "retention")[0].digest, own_tasks / "own.py")
    code.write_text(code.read_text().replace('"acc": 1.0', '"acc": 0.5'))
    assert look_at_tasks(["halves"], [str(own_tasks)], False, "retention")[0].digest != before


def test_a_number_that_is_none_is_refused_by_task_and_document(own_tasks: Path, tmp_path: Path) -> None:
    """A model whose numbers overflowed."""
    shutil.copytree(ROOT / "recipes/tiny/model", tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    group = {**PLAIN, "tasks": ["several"]}
    with pytest.raises(
        Refusal, match=r"task several: document 0 \(SHA-256 .*\) scores nan in log-likelihood of the gold"
    ):
        run_lm_eval(request(groups=[group], include_path=[str(own_tasks)], model=str(tmp_path / "model")), tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"groups": [{**PLAIN, "tasks": ["fixture_arithmetc"]}]},
            "lm-eval knows no task 'fixture_arithmetc'; did you mean",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says):
        run_lm_eval(request(**changes), tmp_path)


@pytest.mark.parametrize("suite", sorted(path.stem for path in (ROOT / "eval/suites").glob("*.yaml")))
def test_lm_eval_knows_every_task_of_the_suites(suite: str) -> None:
    names = [task for group in load_suite(suite) for task in group.tasks]
    assert set(names) <= task_manager(names, ["eval/tasks"], "retention").task_index.keys()
