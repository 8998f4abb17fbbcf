"""Scores of nodes against the formula, written out node by node; trees that are asked with the codes read once."""

import math

import torch

from embeddings.semantic_ids import ResidualQuantizer
from recsys.modules.path_scorer import PathScorer

SIZES, WIDTH, USERS, STEPS = (3, 4, 2), 6, 2, 5
LENGTHS = [5, 2]


def test_a_nodes_score_is_what_it_finds_in_the_history_held_against_it():
    torch.manual_seed(0)
    codes, scorer = ResidualQuantizer(SIZES, WIDTH), PathScorer(SIZES, WIDTH, width=4)
    for level in range(len(SIZES)):
        codes.nodes(level).normal_()
    for bias in scorer.code_bias:
        torch.nn.init.normal_(bias)
    history_BTD, user_BD = torch.randn(USERS, STEPS, WIDTH), torch.randn(USERS, WIDTH)
    real_BT = torch.arange(STEPS) < torch.tensor(LENGTHS).unsqueeze(1)
    path_BPl = torch.tensor([[[0, 3], [2, 1]], [[1, 1], [1, 0]]])
    found_BPK = scorer(scorer.asker(history_BTD, real_BT, user_BD), scorer.levels(codes), path_BPl)
    assert found_BPK.shape == (USERS, 2, SIZES[2])
    for user in range(USERS):
        steps_TD = history_BTD[user, : LENGTHS[user]]
        for place in range(2):
            for child in range(SIZES[2]):
                path = [*path_BPl[user, place].tolist(), child]
                nodes_LD = torch.stack([codes.nodes(level)[code] for level, code in enumerate(path)])
                learned_LA = torch.stack([scorer.code_KA[level][code] for level, code in enumerate(path)])
                query_A = scorer.query(nodes_LD).sum(0)
                against_A = (scorer.against(nodes_LD) + learned_LA).sum(0)
                direct_A = (scorer.direct(nodes_LD) + learned_LA).sum(0)
                weight_T = torch.softmax(scorer.key(steps_TD) @ query_A / math.sqrt(4), dim=0)
                expected = weight_T @ (scorer.value(steps_TD) @ against_A) / math.sqrt(4)
                expected = expected + scorer.user(user_BD[user]) @ direct_A / math.sqrt(4) + scorer.code_bias[2][child]
                torch.testing.assert_close(found_BPK[user, place, child], expected)
