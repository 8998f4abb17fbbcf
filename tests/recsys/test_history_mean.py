import torch

from embeddings.batch import Share
from recsys.modules.history_mean import HistoryMean

X_ND = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
LENGTHS_B = torch.tensor([5, 1, 7])


def test_each_step_is_the_mean_of_its_history_so_far():
    found_ND = HistoryMean(0.5).eval()(X_ND, LENGTHS_B, None)
    expected = [x_TD[: step + 1].mean(0) for x_TD in X_ND.split(LENGTHS_B.tolist()) for step in range(len(x_TD))]
    torch.testing.assert_close(found_ND, torch.stack(expected))


def test_a_history_is_the_same_to_the_last_bit_whatever_stands_beside_it():
    mean = HistoryMean(0.0)
    assert torch.equal(mean(X_ND[6:], LENGTHS_B[2:], None), mean(X_ND, LENGTHS_B, None)[6:])


def test_ranks_drop_what_one_process_would():
    mean = HistoryMean(0.5).train()
    whole_ND = mean(X_ND, LENGTHS_B, Share(step=3, rows=3, targets=13, tokens_before=0, tokens=13))
    parts = [
        mean(X_ND[:6], LENGTHS_B[:2], Share(step=3, rows=3, targets=13, tokens_before=0, tokens=13)),
        mean(X_ND[6:], LENGTHS_B[2:], Share(step=3, rows=3, targets=13, tokens_before=6, tokens=13)),
    ]
    assert (whole_ND == 0).any()
    assert torch.equal(torch.cat(parts), whole_ND)
