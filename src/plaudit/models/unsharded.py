"""Loading a model whole, in a process in which another one is in shards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed

__all__ = ["loaded_whole"]

_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def loaded_whole() -> Iterator[None]:
    """What transformers loads in this context has all its weights, on every process.

    A trainer that shards a policy (FSDP, ZeRO-3) says so to the whole process, and transformers then loads every model
    for it: in DeepSpeed's pieces, or, on all processes but the first of a machine, with nothing in place of what its
    checkpoint lacks (a head that an adapter brings). Nobody would ever put a reward model beside the policy together.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    efficient = os.environ.pop(_EFFICIENT, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
        if efficient is not None:
            os.environ[_EFFICIENT] = efficient
