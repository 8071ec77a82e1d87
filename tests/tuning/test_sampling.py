import torch
from torch import Generator

from handful.tuning.sampling import BalancedSampler, integer


def batches(sampler: BalancedSampler, count: int = 30) -> torch.Tensor:
    generator = Generator().manual_seed(0)
    return torch.stack([sampler.sample(generator) for _ in range(count)])


def test_half_of_each_batch_holds_a_label_and_the_rest_are_any() -> None:
    holds = torch.zeros(5, 2, dtype=torch.bool)
    holds[0] = True
    rows = batches(BalancedSampler(holds, batch=6))
    assert (rows[:, :3] == 0).all()
    assert len(rows[:, 3:].unique()) == 5


def test_a_rare_label_comes_as_often_as_a_common_one() -> None:
    holds = torch.tensor([[True, False]] * 9 + [[False, True]])
    rows = batches(BalancedSampler(holds, batch=1), 400)
    assert 150 < int((rows == 9).sum()) < 250


def test_only_the_given_rows_are_used_also_where_none_of_them_holds_a_label() -> None:
    holds = torch.tensor([[True], [False], [False]])
    assert batches(BalancedSampler(holds, 4, torch.tensor([1, 2]))).unique().tolist() == [1, 2]


def test_integers_lie_below_the_bound() -> None:
    generator = Generator().manual_seed(0)
    assert {integer(3, generator) for _ in range(50)} == {0, 1, 2}
