"""What each of two processes runs in `test_leaving.py`: many times over, all that a launched run does last.

Usage: torchrun leaving.py TIMES FILE, which the processes meet in
"""

import faulthandler
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from plaudit import RewardTrainer


class Ending(RewardTrainer):
    """Nothing but a trainer's end: its accelerator, and the model in its wrapper."""

    def __init__(self):
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=True)
        self.model_wrapped = DistributedDataParallel(torch.nn.Linear(4, 4))


def gloo_threads():
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def leave_once(rank):
    trainer = Ending()
    trainer.model_wrapped(torch.ones(1, 4)).sum().backward()
    distributed.all_gather_object([None, None], {"rank": rank})
    assert gloo_threads()
    trainer.end()
    assert not distributed.is_initialized()
    assert not gloo_threads()  # although the trainer is still there


def main(times, store):
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    store = distributed.FileStore(store, 2)
    for number in range(times):
        faulthandler.dump_traceback_later(20, exit=True)  # a hang fails, and says where
        group = distributed.PrefixStore(str(number), store)
        distributed.init_process_group("gloo", store=group, rank=rank, world_size=2)
        leave_once(rank)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
