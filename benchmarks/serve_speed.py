"""Speed of `plaudit serve` beside scoring in process, TRL's reward-model path and a plain FastAPI server, in one run.

    python benchmarks/serve_speed.py [--data FOLDER] [--passes 3] [--only throughput,idle,...]

All score the same conversations with the same model, about 23M parameters in float32 with a random head. Rewards must
agree to 1e-4, which proves that the work was equal. The parts:

- `throughput`: conversations a second. `RewardModel.score` on all rows at once, TRL's path in process (padded batches
  of 16), `plaudit serve` and the FastAPI server (benchmarks/fastapi_pipeline.py) under 4 clients with batches of 64, 1
  client with all rows in one request, and 64 clients with single conversations. The 16 siblings of a prompt follow each
  other. The passes take turns; medians are printed, and the least and greatest share of the in-process speed within
  one pass. The FastAPI server gets rendered texts, and so does not pay for the chat template.
- `siblings`: 100 prompts with 16 replies each as 1,600 single requests by 64 clients: speed, and the distinct tokens
  that the server ran as a multiple of those of one forest a prompt.
- `idle`: latency of a single item on an idle server minus the median in-process time of the same item; also with a
  model of 0.6M parameters.
- `beside_batch`: latency of a short request every 100 ms while a batch of 2,000 items runs.
- `fairness`: ten clients that send a single item every 2 s each, alone and beside a client of another key that keeps 4
  batches of 256 items waiting.

A step is the in-process time for the server's `max_tokens_per_batch` distinct tokens. Server, load generator and this
process share the cores of the machine; this process is idle while the server is measured. An otherwise idle machine is
needed. Exits with 1 if a reward is wrong; a figure that misses its goal is marked, and changes no exit code.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from load_generator import Load, Request, generate, percentile
from results import add_output, write_results
from score_speed import best_of_groups, pairs_of, trl_scorer
from served import fastapi_server, plaudit_server, rewards_of, rewards_request
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
from workload import read_rows, write_reward_model

from plaudit import RewardModel
from plaudit.data.render import render
from plaudit.forest.trie import TokenForest

CLIENTS = 64
SIBLINGS = 16
TOLERANCE = 1e-4
PARTS = ("throughput", "siblings", "idle", "beside_batch", "fairness")
KEYS = [f"key-{number:02}-of-the-benchmark-of-the-server" for number in range(11)]

wrong = []  # what was scored differently
measured = []  # the figures, as rows


def key(number=0):
    return {"Authorization": f"Bearer {KEYS[number]}"}


def keep(what, figure, value, goal=None):
    """Keep a figure for the file of results."""
    measured.append({"what": what, "figure": figure, "value": value, "goal": goal})


def verdict(figure, goal, *, at_least=False):
    held = figure >= goal if at_least else figure <= goal
    return f"goal {'>=' if at_least else '<='} {goal:.2f}: {'held' if held else 'MISSED'}"


def check(name, rewards, expected):
    """Return the largest difference, and remember one that is too large."""
    apart = float(np.abs(np.asarray(rewards) - np.asarray(expected)).max())
    if not apart <= TOLERANCE:
        wrong.append(f"{name}: {apart:.1e}")
    return apart


def timed(run, *arguments):
    start = time.perf_counter()
    result = run(*arguments)
    return time.perf_counter() - start, result


def loaded(server, requests, clients):
    """Send requests in a closed loop; return the seconds from the first sending to the last answer, and the answers."""
    answers = generate(server.address, [Load("load", requests, clients=clients)])["load"]
    return max(each.ended for each in answers) - min(each.sent for each in answers), answers


def in_batches(conversations, size):
    return [conversations[start:][:size] for start in range(0, len(conversations), size)]


def over_http(server, make, rows, size, clients):
    """Return a scorer of all rows in requests of `size` rows."""
    requests = [make(batch) for batch in in_batches(rows, size)]

    def score():
        seconds, answers = loaded(server, requests, clients)
        return seconds, rewards_of(answers, len(requests))

    return score


def throughput(name, conversations, model, own, plaudit, peer, passes):
    """Print a line for each scorer, with its speed and its share of the in-process speed of the same pass."""
    trl = trl_scorer(model, "cpu")
    texts = [own.tokenizer.apply_chat_template(each, tokenize=False) for each in conversations]
    shapes = {
        "4 clients, batches of 64": (64, 4), "1 client, one batch": (len(texts), 1), "64 clients, single": (1, CLIENTS)
    }  # fmt: skip
    scorers = {
        "Plaudit in process": lambda: timed(own.score, conversations),
        "TRL's path in process": lambda: timed(trl, conversations),
    }
    for shape, (size, clients) in shapes.items():
        served = over_http(plaudit, lambda batch: rewards_request(batch, **key()), conversations, size, clients)
        scorers[f"plaudit serve, {shape}"] = served
        pipeline = over_http(peer, lambda batch: Request("/score", {"texts": batch}), texts, size, clients)
        scorers[f"FastAPI and pipeline, {shape}"] = pipeline
    expected = own.score(conversations)
    trl(conversations[:SIBLINGS])
    seconds = {scorer: [] for scorer in scorers}
    apart = {}
    for _ in range(passes):
        for scorer, run in scorers.items():
            took, rewards = run()
            seconds[scorer].append(took)
            apart[scorer] = max(apart.get(scorer, 0), check(f"{name}, {scorer}", rewards, expected))
    print_speeds(name, len(conversations), seconds, apart)


def print_speeds(name, count, seconds, apart):
    base = seconds["Plaudit in process"]
    for scorer, took in seconds.items():
        shares = sorted(reference / each for reference, each in zip(base, took, strict=True))
        goal = ""
        if scorer.startswith("plaudit serve"):
            goal = verdict(statistics.median(shares), 0.85 if "single" in scorer else 0.95, at_least=True)
        print(
            f"| {name} | {scorer} | {count / statistics.median(took):.1f} | {statistics.median(shares):.2f} "
            f"({shares[0]:.2f} to {shares[-1]:.2f}) | {apart[scorer]:.0e} | {goal} |",
            flush=True,
        )
        keep(f"{name}: {scorer}", "conversations/s", count / statistics.median(took))
        keep(f"{name}: {scorer}", "share of in-process", statistics.median(shares), goal)


def siblings(conversations, own, plaudit, passes):
    """Print the speed of 1,600 single requests, and the distinct tokens that they ran."""
    ids = render(own.tokenizer, conversations)
    ideal = sum(len(TokenForest.from_sequences(group)) for group in in_batches(ids, SIBLINGS))
    requests = [rewards_request([each], **key()) for each in conversations]
    shares, ratios, speeds = [], [], []
    for _ in range(passes):
        alone, expected = timed(own.score, conversations)
        seconds, answers = loaded(plaudit, requests, CLIENTS)
        check("siblings", rewards_of(answers, len(requests)), expected)
        tokens = sum(each.json()["usage"]["distinct_tokens"] for each in answers)
        shares.append(alone / seconds)
        ratios.append(tokens / ideal)
        speeds.append(len(conversations) / seconds)
    share, ratio = statistics.median(shares), statistics.median(ratios)
    together = sum(map(len, ids))
    keep("siblings as single requests", "share of in-process", share, verdict(share, 0.85, at_least=True))
    keep("siblings as single requests", "distinct tokens of the ideal", ratio, verdict(ratio, 1.15))
    print(f"{len(requests):,} single requests by {CLIENTS} clients: {statistics.median(speeds):.1f} conversations/s")
    print(f"  share of in-process: {share:.2f} ({verdict(share, 0.85, at_least=True)})")
    print(
        f"  distinct tokens: {ratio:.3f} of the ideal {ideal:,} ({verdict(ratio, 1.15)}; without sharing: "
        f"{together / ideal:.2f})",
        flush=True,
    )


def idle(name, conversations, own, plaudit, passes):
    """Print what a server adds to the time of one item, with one request at a time on a kept-alive connection."""
    requests = [rewards_request([each], **key()) for each in conversations]
    expected = own.score(conversations)
    alone, served = [], []
    loaded(plaudit, requests[:20], 1)
    for _ in range(passes):
        alone.append([timed(own.score, [each])[0] for each in conversations])
        _, answers = loaded(plaudit, requests, 1)
        check(f"idle, {name}", rewards_of(answers, len(requests)), expected)
        served.append([each.latency for each in sorted(answers, key=lambda each: each.index)])
    base = np.median(alone, axis=0)
    overhead = (1e3 * (np.array(served) - base)).ravel().tolist()
    own_spread = (1e3 * (np.array(alone) - base)).ravel().tolist()
    half, most = statistics.median(overhead), percentile(overhead, 0.99)
    keep(f"idle, {name}", "ms that the server adds, p50", half, verdict(half, 3))
    keep(f"idle, {name}", "ms that the server adds, p99", most, verdict(most, 10))
    print(f"{name}: in process {1e3 * np.median(base):.1f} ms an item; the server adds")
    print(f"  p50 {half:.2f} ms ({verdict(half, 3)}), p99 {most:.2f} ms ({verdict(most, 10)});", end=" ")
    print(f"in-process times vary by {percentile(own_spread, 0.99):.2f} ms at p99 themselves", flush=True)


def step_seconds(own, conversations, tokens):
    """Median in-process time for the first conversations that have this many distinct tokens together."""
    ids = render(own.tokenizer, conversations)
    count = 1
    while count < len(ids) and len(TokenForest.from_sequences(ids[: count + 1], range(count + 1))) <= tokens:
        count += 1
    return statistics.median(timed(own.engine.score, ids[:count])[0] for _ in range(5))


def beside_batch(conversations, own, plaudit, step):
    """Print the latency of a short request while a large batch runs."""
    short = min(conversations, key=lambda each: len(json.dumps(each)))
    batch = rewards_request(conversations, **key())
    loads = [
        Load("batch", [batch], clients=1),
        Load("short", [rewards_request([short], **key(1))], rate=10, repeats=True, background=True, delay=0.5),
    ]
    expected = own.score([short])
    answers = generate(plaudit.address, loads)
    check("beside a batch", rewards_of(answers["batch"], 1), own.score(conversations))
    answered = [each for each in answers["short"] if each.status == 200]
    for each in answered:
        check("short requests", rewards_of([each], 1), expected)
    (batch,) = answers["batch"]
    beside = [each for each in answers["short"] if each.sent < batch.ended]
    latencies = [each.latency for each in beside if each.status == 200]
    waits = [each.json()["timing"]["queued_ms"] for each in answered if each in beside]
    most, goal = percentile(latencies, 0.99), 2 * step + 0.05
    keep("a short request beside a batch", "p99, ms", 1e3 * most, verdict(1e3 * most, 1e3 * goal))
    print(
        f"a batch of {len(conversations):,} items took {batch.latency:.1f} s; {len(beside)} short requests, "
        f"{len(beside) - len(latencies)} of them refused:"
    )
    print(f"  latency p50 {1e3 * statistics.median(latencies):.0f} ms, p99 {1e3 * most:.0f} ms;", end=" ")
    print(f"two steps and 50 ms: {1e3 * goal:.0f} ms ({'held' if most <= goal else 'MISSED'});", end=" ")
    print(f"of it before the request's own step p99 {percentile(waits, 0.99):.0f} ms", flush=True)


def fairness(conversations, own, plaudit, step, seconds):
    """Print the latency of ten light clients alone, and beside a greedy one."""
    single = conversations[:10]
    light = [
        Load(
            f"light {n}",
            [rewards_request([each], **key(n))],
            rate=0.5,
            seconds=seconds,
            repeats=True,
            delay=0.2 * n + 1,
        )
        for n, each in enumerate(single)
    ]
    greedy = [rewards_request(batch, **key(10)) for batch in in_batches(conversations, 256)]
    figures = {}
    expected = own.score(single)
    for name, loads in (
        ("alone", light),
        ("beside a greedy client", [*light, Load("greedy", greedy, clients=4, repeats=True, background=True)]),
    ):
        answers = generate(plaudit.address, loads)
        for n in range(len(light)):
            check("light clients", rewards_of(answers[f"light {n}"][:1], 1), expected[n : n + 1])
        latencies = [each.latency for load in light for each in answers[load.name] if each.status == 200]
        refused = sum(each.status != 200 for load in light for each in answers[load.name])
        figures[name] = percentile(latencies, 0.99)
        print(f"ten light clients {name}: p50 {1e3 * statistics.median(latencies):.0f} ms,", end=" ")
        print(f"p99 {1e3 * figures[name]:.0f} ms of {len(latencies)} requests, {refused} refused", flush=True)
    goal = 2 * figures["alone"] + 2 * step
    held = figures["beside a greedy client"] <= goal
    keep("light clients alone", "p99, ms", 1e3 * figures["alone"])
    greedy = 1e3 * figures["beside a greedy client"]
    keep("light clients beside a greedy one", "p99, ms", greedy, verdict(greedy, 1e3 * goal))
    print(f"  twice the p99 alone and two steps: {1e3 * goal:.0f} ms ({'held' if held else 'MISSED'})", flush=True)


def measure(parts, model, harmless, options, server_options):
    own = RewardModel.from_pretrained(model, device="cpu")
    groups = best_of_groups(harmless, options.groups)
    with plaudit_server(model, *server_options) as plaudit:
        tokens = json.loads(plaudit.get("/info", KEYS[0]))["limits"]["max_tokens_per_batch"]
        batch = pairs_of(harmless, options.batch // 2)
        step = step_seconds(own, batch, tokens)
        print(f"a step of {tokens:,} distinct tokens takes {1e3 * step:.0f} ms\n", flush=True)
        if "throughput" in parts:
            print("| workload | scorer | conversations/s | share of in-process (range) | apart | |")
            print("| --- | --- | --- | --- | --- | --- |")
            with fastapi_server(model) as peer:
                loaded(peer, [Request("/score", {"texts": ["warm", "up"]})], 1)
                for name, rows in (("best of 16", groups), ("pairs", pairs_of(harmless, options.rows))):
                    throughput(name, rows, model, own, plaudit, peer, options.passes)
            print()
        if "siblings" in parts:
            siblings(best_of_groups(harmless, options.prompts), own, plaudit, options.passes)
        if "idle" in parts:
            idle("23M parameters", pairs_of(harmless, 50), own, plaudit, options.passes)
        if "beside_batch" in parts:
            beside_batch(batch, own, plaudit, step)
        if "fairness" in parts:
            fairness(batch, own, plaudit, step, options.light_seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--groups", type=int, default=24, help="prompts of the throughput, with 16 replies each")
    parser.add_argument("--rows", type=int, default=100, help="pairs of the throughput")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of the siblings, with 16 replies each")
    parser.add_argument("--batch", type=int, default=2000, help="items of the batch beside which short requests run")
    parser.add_argument("--light_seconds", type=float, default=30)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    add_output(parser)
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts).difference(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    disable_progress_bar()
    set_verbosity_error()
    harmless = read_rows(options.data / "hh_harmless.jsonl.gz")
    random.Random(0).shuffle(harmless)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys")
        keys.write_text("\n".join(KEYS) + "\n")
        keys.chmod(0o600)
        server_options = ("--api_keys", keys)
        size = write_reward_model(f"{folder}/model", harmless, hidden=options.hidden, layers=options.layers)
        print(f"{size / 1e6:.0f}M parameters, float32, CPU with {torch.get_num_threads()} threads, {torch.__version__}")
        measure(parts, f"{folder}/model", harmless, options, server_options)
        if "idle" in parts:
            size = write_reward_model(f"{folder}/tiny", harmless, hidden=64, layers=1)
            own = RewardModel.from_pretrained(f"{folder}/tiny", device="cpu")
            with plaudit_server(f"{folder}/tiny", *server_options) as plaudit:
                idle(f"{size / 1e6:.1f}M parameters", pairs_of(harmless, 100), own, plaudit, options.passes)
    write_results(options.output, measured)
    for each in wrong:
        print(f"WRONG REWARDS: {each}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
