"""Load `plaudit serve` with four times what it can do, and compare every answer with the reward in process.

    python benchmarks/serve_overload.py [--seconds 60] [--deadline 4] [--hidden 512] [--layers 6] [--items 1]

The capacity is measured first, and again at the end, by 64 clients in a closed loop; the greater one counts. Then
requests arrive at four times that rate for `--seconds`, each with the header X-Plaudit-Deadline. What the figures are:

- goodput: items a second answered rightly and within the deadline while the load lasted, as a share of the capacity;
- refusals: their latency from the sending of the request;
- accepted: every request that was not refused at once; the share answered within the deadline, from the sending;
- memory: most resident memory of the server above that of the idle server, beside the limit of its queue and 200 MiB;
- recovery: time from the end of the load until single requests, sent every 100 ms, are answered within the unloaded
  p99 three times in a row;
- counters: /metrics before and after the load, beside what the load generator counted.

The rows are made on the spot, about 25 to 500 tokens, and no two that may wait together share a prompt, so nothing is
gained by sharing. Server and load generator share the cores of the machine. Exits with 1 if an answer is wrong, a
request is lost, memory is above its bound or a counter is off. Timings that miss their goals are marked, and change no
exit code.
"""

import argparse
import random
import statistics
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from load_generator import LOST, NOT_SENT, Load, generate, percentile
from results import add_output, write_results
from served import plaudit_server, rewards_request, total
from transformers.utils.logging import disable_progress_bar, set_verbosity_error
from workload import write_reward_model

from plaudit import RewardModel
from plaudit.serving.server_limits import ServerLimits

CLIENTS = 64
OVERLOAD = 4
TOLERANCE = 1e-4
MIB = 2**20
SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu")


def made_rows(count):
    """Conversations of one turn, with prompts and responses of 10 to 250 words."""
    draw = random.Random(0)

    def text():
        words = int(min(250, max(10, draw.lognormvariate(4, 0.8))))
        return " ".join("".join(draw.choices(SYLLABLES, k=2)) for _ in range(words))

    return [[{"role": "user", "content": text()}, {"role": "assistant", "content": text()}] for _ in range(count)]


class MemoryWatch:
    """The most memory of a server, sampled four times a second within a context."""

    def __init__(self, server):
        self.server, self.most, self.ended = server, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.ended.wait(0.25):
            self.most = max(self.most, self.server.memory())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def singles(name, request, **options):
    """A single request every 100 ms."""
    return Load(name, [request], rate=10, seconds=10, repeats=True, **options)


def capacity(server, requests, seconds, items):
    """Items a second by clients in a closed loop, from the first request to the last answer."""
    load = Load("capacity", requests, clients=CLIENTS, seconds=seconds, repeats=True)
    answers = generate(server.address, [load])["capacity"]
    return items * sum(each.status == 200 for each in answers) / max(each.ended for each in answers)


def failure(answer):
    """The type of an error; the status where there is none."""
    found = answer.json()
    error = found.get("error") if isinstance(found, dict) else None
    return error["type"] if isinstance(error, dict) else str(answer.status)


class Report:
    """Prints figures beside their bounds, keeps them, and remembers whether all bounds that gate were held."""

    def __init__(self):
        self.good, self.rows = True, []

    def timing(self, text, *, held):
        """Print a timing, which gates nothing."""
        print(f"{text}: {'held' if held else 'MISSED'}", flush=True)
        self.rows.append({"figure": text, "held": bool(held)})

    def gate(self, text, *, held):
        """Print what must hold on any machine."""
        self.good &= held
        print(f"{text}: {'held' if held else 'BROKEN'}", flush=True)
        self.rows.append({"figure": text, "held": bool(held)})


def judge_answers(report, answers, expected, most, options):
    """Print goodput, refusals, the deadline and wrong answers."""
    refused, answered, others = [], [], []
    for each in answers:
        kind = answered if each.status == 200 else refused if failure(each) == "overloaded" else others
        kind.append(each)
    apart = [float(np.abs(np.array(each.json()["rewards"]) - expected[each.index]).max()) for each in answered]
    in_time = [each.latency - each.lag <= options.deadline for each in answered]
    good = sum(
        timely and difference <= TOLERANCE and each.ended <= options.seconds
        for each, difference, timely in zip(answered, apart, in_time, strict=True)
    )
    share = good * options.items / options.seconds / most
    kinds = Counter(failure(each) for each in others)
    accepted = len(answered) + len(others)
    print(f"{len(answers):,} requests: {len(answered):,} answered, {len(refused):,} refused, {dict(kinds)} otherwise;")
    print(f"  generator's own lag: p99 {1e3 * percentile([each.lag for each in answers], 0.99):.0f} ms")
    report.timing(f"goodput {share:.2f} of the capacity, at least 0.90", held=share >= 0.9)
    wait = percentile([each.latency - each.lag for each in refused], 0.99)
    half = percentile([each.latency - each.lag for each in refused], 0.5)
    report.timing(f"refused within p50 {1e3 * half:.0f} ms, p99 {1e3 * wait:.0f} ms, at most 50", held=not wait > 0.05)
    share = sum(in_time) / max(accepted, 1)
    latency = percentile([each.latency - each.lag for each in answered], 0.99)
    report.timing(
        f"{100 * share:.2f}% of {accepted:,} accepted answered within {options.deadline:g} s (p99 {latency:.2f} s), "
        "at least 99%", held=share >= 0.99,
    )  # fmt: skip
    most_apart = max(apart, default=0.0)
    report.gate(f"wrong answers: {sum(each > TOLERANCE for each in apart)}, largest difference {most_apart:.0e}",
                held=most_apart <= TOLERANCE)  # fmt: skip
    lost = sum(each.status in (LOST, NOT_SENT) for each in answers)
    report.gate(f"lost or unsent requests: {lost}", held=not lost)
    report.gate(f"errors that are neither a refusal nor late: {sum(kinds.values()) - kinds['late'] - lost}",
                held=not set(kinds) - {"late", str(LOST), str(NOT_SENT)})  # fmt: skip


def reconcile(report, before, after, answers, afterwards, items):
    """Compare the counters of the server with the answers that the generator got, of `items` items and of one."""

    def grown(name, **labels):
        return int(total(after, name, **labels) - total(before, name, **labels))

    every = [*answers, *afterwards]
    for status, count in sorted(Counter(each.status for each in every if each.status > 0).items()):
        counted = grown("plaudit_requests_total", status=str(status))
        report.gate(f"requests with status {status}: /metrics {counted:,}, generator {count:,}", held=counted == count)
    usages = [each.json()["usage"] for each in every if each.status == 200]
    singles = sum(each.status == 200 for each in afterwards)
    for name, count in (
        ("plaudit_items_total", items * (len(usages) - singles) + singles),
        ("plaudit_tokens_total", sum(usage["tokens"] for usage in usages)),
    ):
        report.gate(f"{name}: /metrics {grown(name):,}, generator {count:,}", held=grown(name) == count)
    name, count = "plaudit_distinct_tokens_total", sum(usage["distinct_tokens"] for usage in usages)
    text = f"{name}: /metrics {grown(name):,}, generator {count:,}, and what ran for requests that were late"
    report.gate(text, held=grown(name) >= count)
    waiting = int(total(after, "plaudit_queued_items"))
    report.gate(f"items that wait after the load: {waiting}", held=not waiting)


def recovered(answers, bound):
    """When the first of three requests in a row was sent that were answered within the bound; infinity if none was."""
    fast = [each.status == 200 and each.latency <= bound for each in answers]
    starts = (n for n in range(len(fast) - 2) if all(fast[n : n + 3]))
    return next((answers[n].sent for n in starts), float("inf"))


def run(own, server, options):
    """Print the figures; return whether everything held that must hold."""
    report = Report()
    rows = made_rows(1000 * options.items)
    unhurried = [rewards_request(rows[n :: len(rows) // options.items]) for n in range(1000)]
    first = rewards_request(rows[:1])
    generate(server.address, [Load("warm-up", [first] * 20, clients=1)])
    idle_memory = server.memory()
    unloaded = [each.latency for each in generate(server.address, [singles("unloaded", first)])["unloaded"]]
    bound = percentile(unloaded, 0.99)
    before = capacity(server, unhurried, options.capacity_seconds, options.items)
    print(f"unloaded: p50 {1e3 * statistics.median(unloaded):.1f} ms, p99 {1e3 * bound:.1f} ms", flush=True)

    # Twice as many requests as arrive within a deadline, so that no two equal ones wait together.
    rate = OVERLOAD * before / options.items
    rows = made_rows(int(max(500, 2 * rate * options.deadline)) * options.items)
    batches = [rows[start:][: options.items] for start in range(0, len(rows), options.items)]
    expected = own.score(rows).reshape(-1, options.items)
    deadline = {"X-Plaudit-Deadline": f"{options.deadline:g}"}
    requests = [rewards_request(batch, **deadline) for batch in batches]
    counters = server.counters()
    loads = [
        Load("overload", requests, rate=rate, seconds=options.seconds, repeats=True),
        singles("afterwards", first, delay=options.seconds),
    ]
    with MemoryWatch(server) as memory:
        answers, afterwards = generate(server.address, loads).values()
    afterwards.sort(key=lambda each: each.sent)
    took = recovered(afterwards, bound) - options.seconds
    settled = statistics.median(each.latency for each in afterwards[-50:])
    after = server.counters()
    again = capacity(server, unhurried, options.capacity_seconds, options.items)
    print(f"capacity: {before:.0f} items/s before, {again:.0f} after; load: {rate:.0f} requests/s", flush=True)
    judge_answers(report, answers, expected, max(before, again), options)
    reconcile(report, counters, after, answers, afterwards, options.items)
    limit = ServerLimits().max_queued_bytes
    grown = memory.most - idle_memory
    report.gate(f"memory: idle {idle_memory / MIB:.0f} MiB, most {grown / MIB:.0f} MiB above it, at most "
                f"{limit / MIB:.0f} (the queue's limit) + 200", held=grown <= limit + 200 * MIB)  # fmt: skip
    report.timing(
        f"recovered within {took:.1f} s of the end of the load (p50 {1e3 * settled:.1f} ms after 5 s), at most 5",
        held=took <= 5,
    )
    write_results(options.output, report.rows)
    return report.good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--capacity_seconds", type=float, default=10)
    parser.add_argument("--deadline", type=float, default=4)
    parser.add_argument("--items", type=int, default=1, help="items of a request")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    add_output(parser)
    options = parser.parse_args()
    disable_progress_bar()
    set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        size = write_reward_model(f"{folder}/model", made_rows(1000), hidden=options.hidden, layers=options.layers)
        threads = torch.get_num_threads()
        print(f"{size / 1e6:.1f}M parameters, float32, CPU with {threads} threads, {torch.__version__}", flush=True)
        own = RewardModel.from_pretrained(f"{folder}/model", device="cpu")
        with plaudit_server(Path(folder, "model")) as server:
            return int(not run(own, server, options))


if __name__ == "__main__":
    sys.exit(main())
