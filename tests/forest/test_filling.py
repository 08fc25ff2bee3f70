import pytest
import torch

from plaudit.forest.attention import ForestAttention
from plaudit.forest.filling import fill_for_kernels, fill_forest, filled_size
from plaudit.forest.trie import TokenForest, chains_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("tokens", [1, 127, 128, 200, 256, 257, 384])
def test_on_cuda_a_forest_has_whole_blocks_and_at_least_two(tokens):
    size = filled_size(tokens, CUDA, torch.float32)
    assert size % 128 == 0
    assert 256 <= size < max(257, tokens + 128)


def test_on_a_cpu_forests_of_narrow_products_have_few_sizes():
    sizes = [filled_size(tokens, CPU, torch.bfloat16) for tokens in range(1, 1 << 13)]
    assert all(0 <= size - tokens < max(16, tokens / 16) for tokens, size in enumerate(sizes, start=1))
    assert len({size for size in sizes if 1024 < size <= 2048}) == 16
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_cpu_in_wide_precisions_a_forest_stays_as_it_is(dtype):
    assert filled_size(1801, CPU, dtype) == 1801


@pytest.mark.parametrize("more", [0, 1, 57])
def test_a_forest_is_filled_with_roots_that_see_themselves_alone(more):
    forest = TokenForest.from_sequences([list(range(200)), [*range(100), 999]])
    columns = [torch.tensor(column) for column in (forest.input_ids, forest.position_ids, forest.subtree_end)]
    given, total = len(forest), len(forest) + more
    filled = [column[0] for column in fill_forest(*(column[None] for column in columns), total)]
    assert all(len(column) == total for column in filled)
    assert all(torch.equal(column[:given], before) for column, before in zip(filled, columns, strict=True))
    expected = torch.eye(total, dtype=torch.bool)
    expected[:given, :given] = ForestAttention(*columns[1:]).mask(None)[0, 0]
    assert torch.equal(ForestAttention(*filled[1:]).mask(None)[0, 0], expected)
    chains = chains_of(*(column.numpy() for column in filled[1:]))  # of which the parts of attention are made
    assert [chain.start for chain in chains if chain.start >= given] == list(range(given, total))
    assert {chain.parent for chain in chains if chain.start >= given} <= {-1}


def test_for_its_kernels_a_forest_is_filled_up_to_its_size():
    forest = TokenForest.from_sequences([list(range(1801))])
    columns = [torch.tensor(column)[None] for column in (forest.input_ids, forest.position_ids, forest.subtree_end)]
    assert [column.shape[1] for column in fill_for_kernels(*columns, torch.bfloat16)] == [1856] * 3
    assert [column.shape[1] for column in fill_for_kernels(*columns, torch.float32)] == [1801] * 3
