"""The parts of `make proof`, their sizes, and the goals beside which their figures are shown."""

from dataclasses import dataclass, field
from operator import ge, le


@dataclass(frozen=True)
class Part:
    """One benchmark of the proof.

    Attributes:
        name: Name of the part, of its files and for `--only`.
        command: Script of this folder with its arguments; `{data}` stands for the folder of public preference data.
        proves: What the part shows, in a line.
        seconds: Time that the part takes on two idle cores. A part that takes three times as long, and two minutes
            more, is ended.
        short: Arguments that follow the others in the short form, which shows that the part runs.
        environment: Variables for the part alone.
    """

    name: str
    command: str
    proves: str
    seconds: int
    short: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """A bound for the values in a column of those rows of a part that hold `where`.

    With `share_of`, the bound is for the values as shares of those in another column.
    """

    part: str
    figure: str
    where: dict[str, object]
    column: str
    bound: float
    at_least: bool = True
    share_of: str | None = None

    def judge(self, rows):
        """Return the figure that is furthest from the bound's good side, beside the bound."""
        rows = [row for row in rows if self.where.items() <= row.items() and self.column in row]
        rows = [row for row in rows if not self.share_of or row.get(self.share_of) is not None]  # those with a goal
        is_measured = all(row[self.column] is not None for row in rows)
        found = [row[self.column] / (row[self.share_of] if self.share_of else 1) for row in rows if is_measured]
        value = (min if self.at_least else max)(found, default=None)
        held = value is not None and (ge if self.at_least else le)(value, self.bound)
        return {
            "part": self.part,
            "figure": self.figure,
            "value": value,
            "goal": f"{'at least' if self.at_least else 'at most'} {self.bound:g}",
            "held": "not measured" if value is None else "held" if held else "missed",
        }


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SMALL_TRAINING = "--hidden 64 --layers 1 --steps 2 --warmup 1 --repeats 1"
SMALL_SERVER = "--hidden 64 --layers 1"

PARTS = [
    Part(
        "start_up",
        "start_up.py",
        "the commands print their first words soon, and a missing name is an error soon",
        60,
    ),
    Part(
        "host_time",
        "host_time.py",
        "the host's share of a step beside plain transformers and TRL, and what makes it wait for a device",
        150,
        "--short",
        ONE_THREAD,
    ),
    Part(
        "tokenising",
        "tokenize_speed.py {data}/hh_harmless_transcripts.jsonl.gz",
        "rows to token ids are faster than TRL's, with equal ids",
        30,
        "--rounds 1",
    ),
    Part(
        "training_pairs",
        "train_speed.py --data {data} --files hh_harmless_transcripts tara truthfulqa --steps 15 --warmup 20 "
        "--repeats 1",
        "training on pairs is faster than TRL's and takes less memory, with equal losses",
        330,
        SMALL_TRAINING + " --files truthfulqa",
    ),
    Part(
        "training_documents",
        "train_speed.py --data {data} --files summedits --steps 8 --warmup 2 --repeats 1",
        "the same on pairs that share long documents",
        110,
        SMALL_TRAINING,
    ),
    Part(
        "training_by_prompt",
        "train_speed.py --data {data} --files summedits --group_by_prompt --steps 8 --warmup 2 --repeats 1",
        "the same with the rows of one prompt in one batch",
        75,
        SMALL_TRAINING,
    ),
    Part(
        "training_groups",
        "train_speed.py --data {data} --files oasst_ranked --steps 8 --warmup 2 --repeats 1",
        "the same on ranked groups of responses",
        150,
        SMALL_TRAINING,
    ),
    Part(
        "training_float32",
        "train_speed.py --data {data} --files hh_harmless_transcripts summedits --dtype float32 --steps 10 --warmup 1 "
        "--repeats 1",
        "training in float32 gains more over TRL than it saves in tokens",
        380,
        SMALL_TRAINING,
    ),
    Part(
        "training_checkpointed",
        "train_speed.py --data {data} --files hh_harmless_transcripts --checkpointing --steps 4 --warmup 1 --repeats 1",
        "training with gradient checkpointing is faster than TRL's and takes less memory, with equal losses",
        50,
        SMALL_TRAINING + " --files truthfulqa",
    ),
    Part(
        "training_growth",
        "train_speed.py --data {data} --growth --checkpointing --budgets 1024 4096 16384 32768 --steps 3 --warmup 1",
        "the time per token stays the same as batches grow, in optimiser steps of as many tokens",
        280,
        SMALL_TRAINING + " --budgets 1024 2048",
    ),
    Part(
        "scoring",
        "score_speed.py --data {data} --rows 20 --groups 8 --repeats 2",
        "scoring is faster than by TRL's path and by transformers' pipeline, with equal rewards",
        270,
        SMALL_SERVER + " --rows 2 --groups 1 --repeats 1",
    ),
    Part(
        "serving",
        "serve_speed.py --data {data} --passes 2 --groups 4 --rows 16 --prompts 16 --batch 400 --light_seconds 10",
        "the server is about as fast as scoring in process, and fair, with equal rewards",
        220,
        SMALL_SERVER + " --passes 1 --groups 1 --rows 4 --prompts 2 --batch 300 --light_seconds 2",
    ),
    Part(
        "overload",
        "serve_overload.py --seconds 45",
        "four times the load that the server can carry gives no wrong, lost or late answer",
        140,
        SMALL_SERVER + " --seconds 2 --capacity_seconds 1",
    ),
    Part(
        "quickstart",
        "quickstart_seeds.py --seeds 3",
        "the quickstart keeps its promise for any seed, and its time",
        190,
        "--seeds 1",
    ),
    Part(
        "parity",
        "parity_trl.py {data}/hh_harmless_transcripts.jsonl.gz",
        "the loss of every step is TRL's",
        75,
        "--steps 2",
    ),
    Part(
        "evaluation",
        "evaluation_trl.py",
        "evaluation counts every row once, and equal rewards one half",
        15,
    ),
    Part(
        "checkpoints",
        "checkpoint_parity.py {data}/hh_harmless.jsonl.gz --rows 20 --steps 5",
        "a saved model gives the rewards of training in plain transformers and in TRL",
        170,
        "--rows 4 --steps 1",
    ),
    Part(
        "killed_training",
        "faults.py --kills 20",
        "trainings that were killed and resumed end as the uninterrupted one, byte for byte",
        170,
        "--kills 1",
        ONE_THREAD,
    ),
    Part(
        "killed_scoring",
        "score_kills.py --rows 100000",
        "scoring that was killed and resumed writes the same bytes, in constant memory",
        120,
        "--rows 4000",
        ONE_THREAD,
    ),
    Part(
        "launched",
        "launched_exits.py --runs 3",
        "runs on two processes end with exit code 0",
        55,
        "--runs 1",
    ),
    Part(
        "sharing",
        "sharing_cost.py --rounds 2 --layers 4",
        "the cost of a prefix that two rows share",
        45,
        "--rounds 1 --layers 1",
    ),
    Part("batch_fill", "batch_fill.py --data {data}", "batches by tokens are nearly full", 25, "--budgets 4096"),
    Part(
        "first_cosine",
        "first_cosine.py --processes 100",
        "how often the first cosine of a process is coarse in torch itself",
        5,
        "--processes 5",
    ),
    Part(
        "first_forward",
        "first_forward.py --processes 20",
        "the first forward of a process equals the second",
        30,
        "--processes 2 --rows 500",
    ),
    Part(
        "audit_speed",
        "audit_speed.py --data {data}",
        "the speed and memory of an audit",
        50,
        "--rows 1000",
    ),
    Part(
        "audit_planted",
        "audit_planted.py --data {data}",
        "the share of planted problems that an audit finds, its false alarms, and its estimate of label noise",
        70,
        "--files llmbar",
    ),
    Part(
        "comparison",
        "compare_simulations.py",
        "comparisons of models are right as often as they say",
        130,
        "--simulations 20",
        ONE_THREAD,
    ),
    Part(
        "learning_curve",
        "learning_curve_coverage.py --simulations 60",
        "intervals of the learning curve hold the truth as often as they say",
        50,
        "--simulations 2",
        ONE_THREAD,
    ),
    Part("score_file", "score_file_speed.py", "a file of scores is judged in seconds, without torch", 10),
    Part(
        "uncertainty_cost",
        "uncertainty_cost.py --rounds 4",
        "what an uncertainty costs in scoring",
        35,
        "--rounds 1",
        ONE_THREAD,
    ),
    Part(
        "best_of_n",
        "ensembles.py --parts choice --groups 2",
        "the true reward of the best of n by a single model and by ensembles, on 2 draws of the data (`make ensembles` "
        "takes 20)",
        250,
        "--short",
        ONE_THREAD,
    ),
]

GOALS = [
    Goal("start_up", "the slowest of the starts and of the missing names, as a share of its own goal", {}, "seconds", 1,
         at_least=False, share_of="goal in seconds"),
    Goal("quickstart", "seconds of the quickstart", {}, "seconds", 60, at_least=False),
    Goal("host_time", "synchronisations of a training step, with a log every ten steps",
         {"workload": "training", "layout": "forest", "part": "the step"}, "synchronisations", 1, at_least=False),
    Goal("host_time", "host time of a training step, of transformers' on one sequence",
         {"workload": "training, one sequence"}, "ratio", 1.15, at_least=False),
    Goal("host_time", "host time of a scoring step, of transformers' on one sequence",
         {"workload": "scoring, one sequence"}, "ratio", 1.15, at_least=False),
    Goal("tokenising", "rows a second, times TRL's", {}, "times", 2.5),
    Goal("training_pairs", "transcripts: share of the rate of bare products",
         {"file": "hh_harmless_transcripts", "precision": "bf16"}, "reached", 0.55),
    Goal("training_float32", "float32, transcripts: times TRL over the ratio of tokens",
         {"file": "hh_harmless_transcripts"}, "times to positions", 1.3),
    Goal("training_float32", "float32, long documents: times TRL over the ratio of tokens",
         {"file": "summedits"}, "times to positions", 1.3),
    Goal("training_growth", "time per token from 1k to 32k tokens: flat within",
         {"time per token": "with checkpointing"}, "flat within", 0.2, at_least=False),
    Goal("scoring", "best of 16, times TRL's path",
         {"workload": "best of 16, hh_harmless", "scorer": "trl"}, "seconds, of Plaudit's", 5),
    Goal("scoring", "pairs, times TRL's path",
         {"workload": "pairs, hh_harmless", "scorer": "trl"}, "seconds, of Plaudit's", 5),
    Goal("scoring", "long documents, times TRL's path",
         {"workload": "pairs, summedits", "scorer": "trl"}, "seconds, of Plaudit's", 9),
    Goal("parity", "loss, largest difference from TRL's at any step", {"figure": "loss"},
         "largest difference at any step", 1e-4, at_least=False),
]  # fmt: skip
