"""The same reward through every dialect, in the running server: that of the reward model in process."""

import random
from concurrent.futures import ThreadPoolExecutor

import cohere
import numpy as np
import openai
import pytest
import requests
from huggingface_hub import InferenceClient

TEXTS = [
    "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nYes, it is.<|im_end|>\n",
    "The quick brown fox jumps over the lazy dog.<eos>\n",
    "Two plus two is four, not five. " * 4,
    "!",
]
QUERY, DOCUMENTS = "Is the sky blue? ", ["No!", "Yes, the sky is blue.", "Thank you very much.", "Yes, it is."]
CHAT = [[{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": text}] for text in DOCUMENTS]


def each_alone(path, body, reward):
    """One request for each text."""
    return lambda url, texts: [reward(post(url, path, body(text))) for text in texts]


def all_at_once(path, body, rewards):
    """One request for all texts."""
    return lambda url, texts: rewards(post(url, path, body(texts)))


def post(url, path, body):
    answer = requests.post(url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


# By name: how texts are sent and rewards are read, and whether the tokenizer adds its special tokens.
OF_TEXTS = {
    "vllm classify": all_at_once(
        "/vllm/classify", lambda x: {"input": x}, lambda a: [d["probs"][0] for d in a["data"]]
    ),
    "vllm pooling": all_at_once("/pooling", lambda x: {"input": x}, lambda a: [d["data"][0] for d in a["data"]]),
    "verl on vllm": each_alone(
        "/classify", lambda x: {"model": "a/b", "input": x, "use_activation": False},
        lambda a: a["data"][-1]["probs"][-1],
    ),
    "verl on sglang": each_alone(
        "/sglang/v1/embeddings", lambda x: {"model": "m", "input": x}, lambda a: a["data"][-1]["embedding"][-1]
    ),
    "sglang": all_at_once("/sglang/classify", lambda x: {"text": x}, lambda a: [each["embedding"][0] for each in a]),
    "sglang alone": each_alone("/sglang/classify", lambda x: {"text": x}, lambda a: a["embedding"][0]),
    "tei": all_at_once(
        "/predict", lambda x: {"inputs": [[each] for each in x], "raw_scores": True},
        lambda a: [each[0]["score"] for each in a],
    ),
    "infinity": all_at_once(
        "/infinity/classify", lambda x: {"input": x, "raw_scores": True}, lambda a: [e[0]["score"] for e in a["data"]]
    ),
    "openrlhf": all_at_once(
        "/get_reward", lambda x: {"query": x, "prompts": x, "labels": x}, lambda a: a["rewards"]
    ),
    "openrlhf scores": each_alone(
        "/get_reward", lambda x: {"query": [x], "prompts": [""], "labels": [""]}, lambda a: a["scores"][0]
    ),
    "slime": each_alone("/slime", lambda x: {"prompt": x[:9], "response": x[9:], "label": None}, float),
    "llama_factory": all_at_once(
        "/v1/score/evaluation", lambda x: {"model": "m", "messages": x}, lambda a: a["scores"]
    ),
    "huggingface": each_alone(
        "/huggingface", lambda x: {"inputs": x, "parameters": {"function_to_apply": "none"}}, lambda a: a[0][0]["score"]
    ),
}  # fmt: skip


def sorted_scores(results, name):
    return [each[name] for each in sorted(results, key=lambda each: each["index"])]


OF_PAIRS = {
    "vllm rerank": ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score"),
    "vllm score": ("/score", {"queries": QUERY, "documents": DOCUMENTS}, "data", "score"),
    "sglang": ("/sglang/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}, None, "score"),
    "tei": ("/tei/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}, None, "score"),
    "infinity": (
        "/infinity/rerank", {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True}, "results", "relevance_score",
    ),
    "cohere": (
        "/cohere/v2/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score",
    ),
    "jina": ("/jina/v1/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score"),
}  # fmt: skip


@pytest.fixture(scope="module")
def as_written(server):
    """Rewards of texts with the ids of the tokenizer alone: no EOS is added."""
    ids = server.reward_model.tokenizer(TEXTS)["input_ids"]
    return dict(zip(TEXTS, server.reward_model.engine.score(ids).tolist(), strict=True))


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_text_has_the_reward_of_its_ids_as_written(server, as_written, name):
    np.testing.assert_allclose(OF_TEXTS[name](server.url, TEXTS), list(as_written.values()), atol=1e-5)


def test_all_dialects_at_once_in_any_order_give_the_same_rewards(server, as_written):
    order = random.Random(1)
    calls = [(name, order.sample(TEXTS, len(TEXTS))) for name in OF_TEXTS for _ in range(3)]
    order.shuffle(calls)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda call: OF_TEXTS[call[0]](server.url, call[1]), calls))
    for (_, texts), rewards in zip(calls, answers, strict=True):
        np.testing.assert_allclose(rewards, [as_written[text] for text in texts], atol=1e-5)


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_pair_has_the_reward_of_the_reward_model(server, name):
    path, body, key, score = OF_PAIRS[name]
    answer = post(server.url, path, body)
    expected = server.reward_model.score([QUERY] * len(DOCUMENTS), DOCUMENTS)
    np.testing.assert_allclose(sorted_scores(answer if key is None else answer[key], score), expected, atol=1e-5)


def test_conversations_and_ids_have_the_reward_of_the_reward_model(server):
    model = server.reward_model
    expected = model.score(CHAT)
    for messages, reward in zip(CHAT, expected, strict=True):
        chat = post(server.url, "/vllm/classify", {"messages": messages})["data"][0]["probs"][0]
        slime = post(server.url, "/slime", {"prompt": messages[:1], "response": messages[1]["content"]})
        np.testing.assert_allclose([chat, slime], reward, atol=1e-5)
    ids = model.token_ids(CHAT)
    by_ids = post(server.url, "/vllm/classify", {"input": ids})["data"]
    np.testing.assert_allclose([each["probs"][0] for each in by_ids], expected, atol=1e-5)
    by_ids = post(server.url, "/sglang/classify", {"input_ids": ids})
    np.testing.assert_allclose([each["embedding"][0] for each in by_ids], expected, atol=1e-5)


def test_an_activation_is_applied_only_where_it_is_asked_for_and_said(server, as_written):
    for use, name in ((None, "identity"), (False, "identity"), (True, "sigmoid")):
        answer = requests.post(server.url + "/classify", json={"input": TEXTS, "use_activation": use}, timeout=60)
        assert answer.headers["X-Plaudit-Activation"] == name
        rewards = np.array(list(as_written.values()))
        expected = 1 / (1 + np.exp(-rewards)) if name == "sigmoid" else rewards
        np.testing.assert_allclose([each["probs"][0] for each in answer.json()["data"]], expected, atol=1e-5)


def test_cohere_s_client_reranks(server):
    ranked = server.reward_model.rank(QUERY, DOCUMENTS)
    client = cohere.ClientV2("a-key", base_url=server.url + "/cohere")
    results = client.rerank(model="any", query=QUERY, documents=DOCUMENTS, top_n=3).results
    assert [each.index for each in results] == [each.index for each in ranked][:3]
    np.testing.assert_allclose([each.relevance_score for each in results], [r.reward for r in ranked][:3], atol=1e-5)


def test_openai_s_client_lists_the_model_and_reads_rewards(server, as_written):
    for prefix in ("", "/vllm"):
        client = openai.OpenAI(base_url=f"{server.url}{prefix}/v1", api_key="a-key")
        assert [each.id for each in client.models.list()] == ["tiny"]
    client = openai.OpenAI(base_url=f"{server.url}/sglang/v1", api_key="a-key")
    rewards = [each.embedding[-1] for each in client.embeddings.create(model="any", input=TEXTS).data]
    np.testing.assert_allclose(rewards, list(as_written.values()), atol=1e-5)


def test_huggingface_hub_s_client_classifies(server, as_written, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it speaks to this machine alone
    client = InferenceClient(base_url=server.url + "/huggingface")
    for text, reward in as_written.items():
        (found,) = client.text_classification(text, function_to_apply="none")
        np.testing.assert_allclose(found.score, reward, atol=1e-5)
