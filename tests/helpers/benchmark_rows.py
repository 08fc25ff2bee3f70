"""Small benchmarks in their published layouts, with rows of every subset, in files as they are published."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["CATEGORIES", "LANGUAGES", "PPE_SETS", "PRIOR", "SECTIONS", "SUBSETS", "WRITERS", "pairs", "put", "ties"]

SECTIONS = {
    "Chat": ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"],
    "Chat Hard": [
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ],
    "Safety": [
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ],
    "Reasoning": ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"],
}  # fmt: skip
SUBSETS = [subset for section in SECTIONS.values() for subset in section]
PRIOR = ["anthropic_helpful", "anthropic_hhh", "shp", "summarize"]
LANGUAGES = [
    "arb_Arab", "ces_Latn", "deu_Latn", "ell_Grek", "fra_Latn", "heb_Hebr", "hin_Deva", "ind_Latn", "ita_Latn",
    "jpn_Jpan", "kor_Hang", "nld_Latn", "pes_Arab", "pol_Latn", "por_Latn", "ron_Latn", "rus_Cyrl", "spa_Latn",
    "tur_Latn", "ukr_Cyrl", "vie_Latn", "zho_Hans", "zho_Hant",
]  # fmt: skip
PPE_SETS = ["MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"]
CATEGORIES = [
    "planning_single_easy", "planning_single_hard", "planning_multi_easy", "planning_multi_hard", "robust_recovery",
    "safety_refusal", "tool_irrelevance",
]  # fmt: skip


def put(path, rows):
    """Write rows in the form that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def pairs(subsets, **more):
    return [
        {"prompt": f"{s} {i}?", "chosen": "yes", "rejected": f"no {i}", "subset": s, "id": n * 2 + i, **more}
        for n, s in enumerate(subsets)
        for i in range(2)
    ]


def ties(number, kind, correct, wrong=2):
    """A row of the subset Ties of RewardBench 2."""
    return {
        "id": f"{kind}:{number}", "prompt": f"{kind} {number}?", "chosen": [f"right {i}" for i in range(correct)],
        "rejected": [f"wrong {i}" for i in range(wrong)], "num_correct": correct, "num_incorrect": wrong,
        "total_completions": correct + wrong, "subset": "Ties",
    }  # fmt: skip


def write_rewardbench(folder):
    put(folder / "data" / "filtered-00000-of-00001.parquet", pairs(SUBSETS))
    put(folder / "data" / "raw-00000-of-00001.parquet", pairs(SUBSETS))
    return 2 * len(SUBSETS)


def write_rewardbench_2(folder):
    rows = [
        {"id": str(n), "prompt": "q?", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1,
         "num_incorrect": 3, "total_completions": 4, "subset": subset}
        for n, subset in enumerate(["Factuality", "Precise IF", "Math", "Safety", "Focus"] * 2)
    ]  # fmt: skip
    rows += [ties(n, kind, correct) for n in range(2) for kind, correct in (("ref", 1), ("tied", 3))]
    put(folder / "test.jsonl.gz", rows)
    return len(rows)


def write_rm_bench(folder):
    rows = [
        {"id": f"{domain}_{i}", "prompt": "q?", "chosen": ["a", "aa", "**a**"], "rejected": ["b", "bb", "**b**"],
         "domain": domain}
        for domain in ("chat", "code", "math", "safety-refuse", "safety-response")
        for i in range(2)
    ]  # fmt: skip
    put(folder / "data" / "total_dataset.json", rows)
    put(folder / "data" / "chat_filtered.json", rows[:2])
    return len(rows)


def write_judgebench(folder):
    sources = ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
    for model in ("gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"):
        rows = [
            {"pair_id": f"{model}-{i}", "original_id": str(i), "source": source, "question": "q?",
             "response_model": model, "response_A": "one", "response_B": "two", "label": ("A>B", "B>A")[i % 2]}
            for i, source in enumerate(sources)
        ]  # fmt: skip
        put(folder / "data" / f"dataset=judgebench,response_model={model}.jsonl", rows)
        put(folder / "outputs" / f"dataset=judgebench,response_model={model},judge_name=vanilla.jsonl", rows)
    return 2 * len(sources)


def write_rmb(folder):
    """Both parts, two rows in each of three subsets."""
    chat = [
        {"role": "user", "content": "hi", "language": "English"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip
    for path in ("Helpfulness/Chat/Discussion", "Helpfulness/Code/Data Management", "Harmlessness/S1"):
        sides = {"conversation_input": chat}
        best, other = {"llm_name": "x", "answer": "good"}, {"llm_name": "y", "answer": "bad"}
        put(
            folder / "RMB_dataset" / "Pairwise_set" / f"{path}.json",
            [{"pair_uid": str(i), **sides, "chosen": best, "reject": other, "category_path": f"Pairwise_set/{path}"}
             for i in range(2)],
        )  # fmt: skip
        put(
            folder / "RMB_dataset" / "BoN_set" / f"{path}.json",
            [{**sides, "bon_best": best, "loser_list": [other] * (2 + i), "bon_uid": str(i),
              "category_path": f"BoN_set/{path}"} for i in range(2)],
        )  # fmt: skip
    put(folder / "eval" / "result" / "some_result.json", [{"is_correct": 1}])
    return 6


def write_ppe(folder):
    for name in PPE_SETS:
        rows = [
            {"question_id": str(i), "prompt": "q?", **{f"response_{k + 1}": f"answer {k}" for k in range(32)},
             "scores": [k % 2 == 0 for k in range(32)], "sampled_conflict_pairs": [[0, 1], [3, 2]],
             "model_name": "m"}
            for i in range(2)
        ]  # fmt: skip
        put(folder / f"PPE-{name}-Best-of-K" / "data" / "train-00000-of-00001.parquet", rows)
    return 10


def write_llmbar(folder):
    rows = [{"input": "q?", "output_1": "one", "output_2": f"two {i}", "label": i + 1} for i in range(2)]
    for place in ("Natural", "Adversarial/Neighbor", "Adversarial/GPTInst", "Adversarial/GPTOut", "Adversarial/Manual"):
        put(folder / "Dataset" / "LLMBar" / place / "dataset.json", rows)
        put(folder / "Dataset" / "LLMBar" / place / "evaluators" / "GPT-4" / "CoT" / "result.json", rows)
    put(folder / "Dataset" / "Processed" / "MT-Bench" / "dataset.json", rows)
    return 10


def write_rewardmath(folder):
    rows = [
        {"problem": f"{p}?", "answer": "1", "eval_solution": ["first", f"then {s}"], "solution_reference": "x",
         "solution_type": "rejected" if s else "chosen", "problem_id": p, "id": 10 * p + s}
        for p in range(3)
        for s in range(10)
    ]  # fmt: skip
    put(folder / "dataset" / "benchmark" / "RewardMATH_direct.json", rows)
    put(folder / "dataset" / "benchmark" / "RewardMATH_pairwise.json", [{"problem": "another layout"}])
    return 3


def write_evalbiasbench(folder):
    biases = [
        "length bias", "concreteness", "empty reference", "content_continuation", "nested_instruction",
        "familiar knowledge preference bias",
    ]  # fmt: skip
    rows = {
        bias: [{"bias": bias, "instruction": "q?", "response1": "one", "response2": "two", "label": 1}] * 2
        for bias in biases
    }
    put(folder / "data" / "evalbiasbench" / "biasbench.json", rows)
    return 12


def write_m_rewardbench(folder):
    for language in [*LANGUAGES, "eng_Latn"]:
        rows = pairs(SUBSETS, language=language[:3])
        put(folder / language / "filtered.json", rows)
        put(folder / language / "raw.json", rows)
    put(folder / "arb_Arab" / "test-00000-of-00001.parquet", pairs(SUBSETS, language="arb"))
    for language in LANGUAGES[1:]:
        put(folder / language / "test-00000-of-00001.parquet", pairs(SUBSETS, language=language[:3]))
    put(folder / "translation" / "test-00000-of-00001.parquet", pairs(["easy"]))
    return 2 * len(SUBSETS) * len(LANGUAGES)


def write_plan_rewardbench(folder):
    tool = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
    chosen = [
        {"role": "user", "content": "1+1?"}, {"role": "tool_call", "content": '{"name": "add"}'},
        {"role": "tool_response", "name": "add", "content": "2"}, {"role": "assistant", "content": "2"},
    ]  # fmt: skip
    rejected = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "3"}]
    for category in CATEGORIES:
        row = {"query": "1+1?", "tools": [tool], "chosen": {"messages": chosen}, "reject": {"messages": rejected}}
        put(folder / "benchmark" / f"{category}.jsonl", [{**row, "uuid": f"{category}-{i}"} for i in range(2)])
    return 2 * len(CATEGORIES)


def write_helpsteer3(folder):
    rows = [
        {"domain": domain, "language": "english", "context": [{"role": "user", "content": "q?"}], "response1": "one",
         "response2": "two", "overall_preference": preference, "individual_preference": []}
        for domain in ("general", "stem", "code", "multilingual")
        for preference in (-3, 0, 1)
    ]  # fmt: skip
    put(folder / "preference" / "validation.jsonl.gz", rows)
    put(folder / "preference" / "train.jsonl.gz", rows)
    put(folder / "edit" / "validation.jsonl.gz", [{"context": []}])
    return len(rows)


# Each writes a copy as it is published, with files that do not belong to the benchmark, and returns the number of rows.
WRITERS = {
    "rewardbench": write_rewardbench,
    "rewardbench-2": write_rewardbench_2,
    "rm-bench": write_rm_bench,
    "judgebench": write_judgebench,
    "rmb-pairs": write_rmb,
    "rmb-best-of-n": write_rmb,
    "ppe-correctness": write_ppe,
    "llmbar": write_llmbar,
    "rewardmath": write_rewardmath,
    "evalbiasbench": write_evalbiasbench,
    "m-rewardbench": write_m_rewardbench,
    "plan-rewardbench": write_plan_rewardbench,
    "helpsteer3": write_helpsteer3,
}
