"""The dialects by name, as `--dialect` and the prefixes of the routes call them."""

from plaudit.serving.dialects.cohere import COHERE, JINA
from plaudit.serving.dialects.dialect import Dialect
from plaudit.serving.dialects.huggingface import HUGGINGFACE
from plaudit.serving.dialects.infinity import INFINITY
from plaudit.serving.dialects.llama_factory import LLAMA_FACTORY
from plaudit.serving.dialects.openrlhf import OPENRLHF
from plaudit.serving.dialects.sglang import SGLANG
from plaudit.serving.dialects.slime import SLIME
from plaudit.serving.dialects.tei import TEI
from plaudit.serving.dialects.vllm import VLLM

__all__ = ["DIALECTS"]

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (VLLM, SGLANG, TEI, INFINITY, COHERE, JINA, OPENRLHF, SLIME, LLAMA_FACTORY, HUGGINGFACE)
}
