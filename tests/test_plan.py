"""Plans: which steps go where, and moving rows there and back."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from torchrnn import plan


@pytest.mark.parametrize("batch_first", [False, True])
def test_every_valid_step_has_its_place(batch_first: bool) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        B, T = torch.randint(1, 9, (2,)).tolist()
        mask, reset = torch.rand(B, T) < 0.6, torch.rand(B, T) < 0.3
        made = plan.of_resets(reset, True, 2, batch_first, mask=mask)
        valid = mask.flatten() if batch_first else mask.t().flatten()
        assert torch.equal(made.steps.sort()[0], valid.nonzero().squeeze(1))
        assert torch.equal(made.places[made.steps], torch.arange(len(made.steps)))
        assert bool((made.places[~valid] == len(made.steps)).all())
        assert int(made.batch_sizes.sum()) == len(made.steps)
        assert bool((made.batch_sizes.diff() <= 0).all())
        assert bool((made.batch_sizes > 0).all())
        assert made.S == (int(made.batch_sizes[0]) if len(made.steps) else 0)


def test_the_longest_comes_first_and_equals_keep_their_order() -> None:
    made = plan.of_rows(torch.tensor([1, 3, 0, 3]), torch.tensor([0, 1, 4, 4]), 1, 7)
    assert made.batch_sizes.tolist() == [3, 2, 2]
    assert made.steps.tolist() == [1, 4, 0, 2, 5, 3, 6]
    assert made.begin[0].tolist() == [1, 3, 0]
    assert made.end[0].tolist() == [2, 0, 3 + 2, 1]  # the empty row keeps its own state


@pytest.mark.parametrize("M", [4, 7])
def test_moving_there_and_back(M: int) -> None:
    steps = torch.randperm(M)[:4]
    places = torch.full((M,), 4)
    places[steps] = torch.arange(4)
    x, y = torch.randn(M, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(plan.move(x, steps, places), x[steps])
    assert torch.equal(plan.move(plan.move(y, places, steps), steps, places), y)
    for rows, to, back in ((x, steps, places), (y, places, steps)):
        rows = rows.clone().requires_grad_()
        assert gradcheck(lambda r, to=to, back=back: plan.move(r, to, back), (rows,), check_forward_ad=True)
        assert gradgradcheck(lambda r, to=to, back=back: plan.move(r, to, back).square(), (rows,))
        copies = torch.func.vmap(lambda r, to=to, back=back: plan.move(r, to, back))(torch.stack((rows, 3 * rows)))
        assert torch.equal(copies[1], plan.move(3 * rows, to, back))
