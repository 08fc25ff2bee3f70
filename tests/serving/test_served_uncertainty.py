"""Uncertainty over HTTP: what the server says of an ensemble is what the model in process says."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch
from running_server import running

from plaudit import RewardFunction, RewardModel, evaluate
from plaudit.checkpoint.laplace_file import SavedLaplace
from plaudit.errors import ConfigError, ServerError
from plaudit.models.load import load_model
from plaudit.scoring.remote_model import RemoteRewardModel
from plaudit.serving.application import create_application
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.served_model import ServedModel
from plaudit.serving.server_limits import ServerLimits
from plaudit.uncertainty import PosteriorUncertainty

TEXTS = [f"Is the {noun} {colour}? {end}" for noun in ("sky", "dog") for colour in ("blue", "green") for end in "abc"]
PROMPT, RESPONSES = "Is the sky blue?", [" Yes, the sky is blue.", " No.", " It is green!", " Thank you very much."]
OPTIONS = [{}, {"aggregate": "min"}, {"aggregate": "mean-std", "k": 2.5}, {"aggregate": "mean-var", "k": 0.5}]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def local(ensemble_folder):
    return RewardModel.from_pretrained(ensemble_folder)


@pytest.fixture(scope="module")
def posterior_folder(tmp_path_factory, model_folder):
    """The model of `model_folder` with a posterior of its head."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("models") / "posterior")
    head = load_model(str(folder)).score.weight.detach()[0]
    factor = torch.randn(len(head), len(head), generator=torch.Generator().manual_seed(0)) / 10
    constants = PosteriorUncertainty(reward_mean=0.25, reward_std=1.5)
    SavedLaplace(factor + factor.T, torch.zeros(len(head)), head, constants, 1.0, "a test").write(folder)
    return folder


@pytest.fixture(scope="module")
def service(ensemble_folder, posterior_folder, unmeasured_folder, model_folder, rendering_pool):
    service = ScoringService(ServerLimits())
    folders = {"ensemble": ensemble_folder, "single": model_folder, "posterior": posterior_folder}
    folders["unmeasured"] = unmeasured_folder
    service.serve(
        ServedModel(name, RewardModel.from_pretrained(folder), pool=rendering_pool) for name, folder in folders.items()
    )
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service):
    with running(create_application(service, allowed_hosts=["127.0.0.1"])) as url:
        yield url


def post(url, path, **body):
    return requests.post(f"{url}{path}", json=body, timeout=30)


def answer(url, path, **body):
    response = post(url, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def items(texts):
    return [{"text": text} for text in texts]


def close(values):
    return pytest.approx(np.asarray(values), abs=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.get("aggregate", "mean"))
def test_rewards_and_their_deviations_are_those_of_the_model_alone_together_and_shuffled(url, local, options):
    rewards, stds = local.score(TEXTS, return_std=True, **options)
    whole = answer(url, "/v1/rewards", items=items(TEXTS), **options)
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    shuffled = answer(url, "/v1/rewards", items=items(TEXTS[n] for n in order), **options)
    with ThreadPoolExecutor(4) as pool:  # at the same time, so that they run in one step
        alone = list(pool.map(lambda text: answer(url, "/v1/rewards", items=items([text]), **options), TEXTS))
    for name, expected in (("rewards", rewards), ("reward_stds", stds)):
        assert whole[name] == close(expected)
        assert shuffled[name] == close(expected[order])
        assert [each[name][0] for each in alone] == close(expected)
    assert "members" not in whole
    assert "columns" not in whole


def test_deviations_have_the_unit_of_the_rewards_beside_them(url, local):
    raw = local.score(TEXTS, return_std=True)
    normalized = local.score(TEXTS, return_std=True, normalize=True)
    body = {"items": items(TEXTS)}
    there = answer(url, "/v1/rewards", normalize=True, **body)
    assert (there["rewards"], there["reward_stds"]) == (close(normalized[0]), close(normalized[1]))
    assert normalized[1] == close(raw[1] / local.scale[1])
    client = remote(url, model="ensemble").score(TEXTS, return_std=True, normalize=True)
    assert client[1] == close(normalized[1])
    ranked = answer(url, "/v1/rank", prompt=PROMPT, responses=RESPONSES, aggregate="min")["results"]
    plain = {each.index: each.reward_std for each in local.rank(PROMPT, RESPONSES)}
    assert [each["reward_std"] for each in ranked] == close(
        [plain[each["index"]] / local.uncertainty.reward_std for each in ranked]
    )


def test_members_are_given_where_they_are_asked_for(url, local):
    assert answer(url, "/v1/rewards", items=items(TEXTS), members=True)["members"] == close(
        local.score(TEXTS, return_members=True)
    )


def test_members_that_were_never_measured_give_rewards_and_no_deviations(url, unmeasured_folder):
    model = RewardModel.from_pretrained(unmeasured_folder)
    there = answer(url, "/v1/rewards", model="unmeasured", items=items(TEXTS), members=True)
    assert (there["rewards"], there["members"]) == (
        close(model.score(TEXTS)),
        close(model.score(TEXTS, return_members=True)),
    )
    assert "reward_stds" not in there
    refused = post(url, "/v1/rewards", model="unmeasured", items=items(TEXTS), aggregate="min")
    assert (refused.status_code, "saved without them" in refused.text) == (422, True)
    client = remote(url, model="unmeasured")
    assert client.score(TEXTS, return_members=True) == close(model.score(TEXTS, return_members=True))
    assert {each.reward_std for each in client.rank(PROMPT, RESPONSES)} == {None}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.get("aggregate", "mean"))
def test_ranks_are_those_of_the_model_with_deviations(url, local, options):
    there = answer(url, "/v1/rank", prompt=PROMPT, responses=RESPONSES, **options)["results"]
    here = local.rank(PROMPT, RESPONSES, **options)
    assert [each["index"] for each in there] == [each.index for each in here]
    for name in ("reward", "reward_std", "win_probability"):
        assert [each[name] for each in there] == close([getattr(each, name) for each in here])


def test_each_prefix_has_its_deviation(url, local):
    curve = answer(url, "/v1/prefix-rewards", item={"text": TEXTS[0]}, every=3)
    assert len(curve["reward_stds"]) == len(curve["rewards"])
    _, (std,) = local.score(TEXTS[:1], return_std=True)
    assert curve["reward_stds"][-1] == pytest.approx(std, abs=1e-5)


def test_the_server_describes_the_uncertainty(url, local):
    ensemble, single, *_ = requests.get(f"{url}/info", timeout=30).json()["models"]
    assert ensemble["uncertainty"] == local.uncertainty.to_dict()
    assert single["uncertainty"] is None


def test_other_dialects_answer_the_mean(url, local):
    data = answer(url, "/score", model="ensemble", queries=PROMPT, documents=RESPONSES)["data"]
    assert [each["score"] for each in data] == close(local.score([PROMPT] * len(RESPONSES), RESPONSES))


def test_a_single_model_answers_as_before(url):
    for path, body in (("/v1/rewards", {"items": items(TEXTS)}), ("/v1/prefix-rewards", {"item": items(TEXTS)[0]})):
        plain = answer(url, path, model="single", **body)
        assert not {"reward_stds", "members", "columns"} & plain.keys()
    results = answer(url, "/v1/rank", model="single", prompt=PROMPT, responses=RESPONSES)["results"]
    assert all(set(each) == {"index", "reward", "win_probability"} for each in results)


@pytest.mark.parametrize(
    ("model", "body", "param", "said"),
    [
        ("single", {"aggregate": "min"}, "aggregate", "aggregate='min': single is a single model"),
        ("single", {"members": True}, "members", "members: single is a single model"),
        ("posterior", {"aggregate": "min"}, "aggregate", "a posterior has no least member"),
        ("ensemble", {"aggregate": "min", "normalize": True}, "normalize", "in standard deviations"),
        ("ensemble", {"aggregate": "min", "calibrated": True}, "calibrated", "its own unit"),
        ("ensemble", {"aggregate": "worst"}, "aggregate", "'mean', 'min', 'mean-std' or 'mean-var'"),
        ("ensemble", {"aggregate": "mean-std", "k": -1}, "k", "greater than or equal to 0"),
        ("ensemble", {"aggregate": "mean-std", "k": 1e300}, "k", "too large for float32"),
    ],
)
def test_what_a_model_cannot_give_is_refused_with_the_reason(url, model, body, param, said):
    response = post(url, "/v1/rewards", model=model, items=items(TEXTS), **body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert said in response.json()["error"]["message"]


# The client


def remote(url, **options):
    return RemoteRewardModel(url, batch_items=4, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.get("aggregate", "mean"))
def test_the_client_gives_what_the_model_gives(url, local, options):
    client = remote(url, model="ensemble")
    for there, here in zip(*(each.score(TEXTS, return_std=True, **options) for each in (client, local)), strict=True):
        assert there == close(here)
    assert client.score(TEXTS, return_members=True) == close(local.score(TEXTS, return_members=True))
    details = client.score(TEXTS, normalize=True, return_details=True)
    assert details.rewards == close(local.score(TEXTS, normalize=True))
    assert details.columns == close(local.score(TEXTS, return_details=True).columns)
    assert client.uncertainty == local.uncertainty
    there, here = (each.rank(PROMPT, RESPONSES, **options) for each in (client, local))
    assert [(each.index, each.reward_std) for each in there] == [
        (each.index, pytest.approx(each.reward_std, abs=1e-5)) for each in here
    ]
    assert client.best_of(PROMPT, RESPONSES, **options) == local.best_of(PROMPT, RESPONSES, **options)
    assert client.score([], return_members=True).shape == (0, 3)


@pytest.mark.parametrize("options", [{}, {"aggregate": "mean-std"}, {"aggregate": "mean-var", "k": 0.5}])
def test_a_posterior_is_served_as_an_ensemble_is(url, posterior_folder, options):
    here, there = RewardModel.from_pretrained(posterior_folder), remote(url, model="posterior")
    rewards, stds = here.score(TEXTS, return_std=True, **options)
    whole = answer(url, "/v1/rewards", model="posterior", items=items(TEXTS), members=True, **options)
    assert (whole["rewards"], whole["reward_stds"]) == (close(rewards), close(stds))
    assert whole["members"] == close(here.score(TEXTS, return_members=True))
    assert there.uncertainty == here.uncertainty
    assert there.score(TEXTS, **options) == close(rewards)
    assert there.score(TEXTS, return_members=True) == close(whole["members"])


def test_an_evaluation_of_the_address_is_that_of_the_model(url, local, text_rows):
    there, here = (evaluate(model, text_rows) for model in (remote(url, model="ensemble"), local))
    for name, value in here.overall.items():
        assert there.overall[name] == pytest.approx(value, abs=1e-4, nan_ok=True), name
    members = [np.array([row.members for row in each.scores.rows]) for each in (there, here)]
    assert members[0] == pytest.approx(members[1], abs=1e-4)


def test_the_client_of_a_single_model_says_how_to_get_an_ensemble(url):
    client = remote(url, model="single")
    with pytest.raises(ConfigError, match="aggregate='min': single is a single model"):
        client.score(TEXTS, aggregate="min")
    assert client.score(TEXTS, return_details=True).columns.shape == (len(TEXTS), 1)
    assert client.rank(PROMPT, RESPONSES)[0].reward_std is None


# Other weights


@pytest.fixture
def swapping(new_service, rendering_pool, ensemble_folder, model_folder):
    """The address of a server of an ensemble, and a function that gives it the weights of the kind that it names."""
    folders = {"ensemble": ensemble_folder, "single": model_folder}
    service = new_service({"policy": RewardModel.from_pretrained(ensemble_folder)})
    replaced = []

    def swap(kind):
        replaced.extend(service.models)
        service.serve([ServedModel("policy", RewardModel.from_pretrained(folders[kind]), pool=rendering_pool)])

    with running(create_application(service)) as url:
        yield url, swap
    for model in replaced:
        model.close()


def test_each_answer_is_of_one_version_while_an_ensemble_and_a_single_model_take_turns(swapping, local, model_folder):
    url, swap = swapping
    single = RewardModel.from_pretrained(model_folder).score(TEXTS)
    rewards, stds = local.score(TEXTS, return_std=True)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [answer(url, "/v1/rewards", items=items(TEXTS), columns=True) for _ in range(60)])
        while not asking.done():
            for kind in ("single", "ensemble"):
                swap(kind)
    answers = asking.result()
    assert {"reward_stds" in each for each in answers} == {True, False}
    assert len({(each["weight_version"], "reward_stds" in each, "columns" in each) for each in answers}) == 2
    for each in answers:
        assert each["rewards"] == close(rewards if "reward_stds" in each else single)
        assert each.get("reward_stds", stds) == close(stds)


def test_the_client_follows_a_swap_between_two_calls(swapping, local):
    url, swap = swapping
    client, careful = remote(url), RewardFunction(url, aggregate="min")
    expected = local.score([PROMPT] * 4, RESPONSES, aggregate="min")
    assert careful([PROMPT] * 4, RESPONSES) == close(expected)
    swap("single")
    with pytest.raises(ConfigError, match="is a single model"):
        careful([PROMPT] * 4, RESPONSES)
    assert client.score(TEXTS, return_details=True).columns.shape == (len(TEXTS), 1)
    swap("ensemble")
    assert careful([PROMPT] * 4, RESPONSES) == close(expected)
    assert client.score(TEXTS, return_members=True).shape == (len(TEXTS), 3)


def test_the_client_mixes_no_columns_of_two_models_in_a_call(swapping):
    url, swap = swapping
    client = remote(url)

    def texts():
        yield from TEXTS[:4]
        swap("single")
        yield from TEXTS[4:]

    client.chunk_size = 4
    with pytest.raises(ServerError, match="changed during a call, .* constants that compare members. Call again"):
        client.score(texts(), return_details=True)
    swap("ensemble")
    assert client.score(texts()).shape == (len(TEXTS),)  # rewards alone are mixed with a warning, as of single models
    swap("ensemble")
    client.chunk_size = 4096
    with pytest.raises(ServerError, match="the weights at .* changed during a call"):
        client.score((text for n, text in enumerate(TEXTS) if n or not swap("single")), aggregate="min")
