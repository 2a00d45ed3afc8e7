"""The tokens of one forward, by hand."""

from __future__ import annotations

import pytest
import torch

from facttune_ray.errors import UserError
from facttune_ray.training.attention import what_is_seen
from facttune_ray.training.passes import Part, Size, lay_out, plan, tokens

SIZES = [Size(4, (6, 2)), Size(3, (5, 5, 5)), Size(4, (1,))]


def test_tokens_count_a_shared_prompt_once():
    assert tokens(SIZES[0], (0, 1), share_prefix=True) == 12
    assert tokens(SIZES[0], (0, 1), share_prefix=False) == 16


def test_groups_stay_whole_where_they_fit():
    assert plan(SIZES, 100, share_prefix=True) == [
        [Part(2, (0,)), Part(1, (0, 1, 2)), Part(0, (0, 1))]
    ]
    assert plan(SIZES, 23, share_prefix=True) == [
        [Part(2, (0,)), Part(1, (0, 1, 2))],
        [Part(0, (0, 1))],
    ]


def test_a_larger_group_is_cut_at_responses():
    found = plan(SIZES, 13, share_prefix=True)
    assert found == [[Part(2, (0,))], [Part(1, (0, 1))], [Part(1, (2,))], [Part(0, (0, 1))]]
    for parts in found:
        assert sum(tokens(SIZES[p.group], p.responses, True) for p in parts) <= 13


def test_a_response_that_fits_nowhere_is_one_clear_line():
    with pytest.raises(UserError, match="train.pass_tokens=9: a response of 6 tokens and its prom"):
        plan(SIZES, 9, share_prefix=True)


def test_a_shared_prompt_is_a_root_with_branches():
    found = lay_out([([1, 2], [[3], [4, 5]]), ([6], [[7, 8]])], share_prefix=True)
    assert found.ids_N.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.position_N.tolist() == [0, 1, 2, 2, 3, 0, 1, 2]
    assert found.root_AL.tolist() == [[0, 1, 0], [5, 6, 7]]  # one response shares with nobody
    assert found.branch_RT.tolist() == [[2, 0], [3, 4]] and found.root_of_R.tolist() == [0, 0]
    assert what_is_seen(found, torch.float32)[1, 0].tolist() == [[1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert found.place_N.tolist() == [0, 1, 6, 8, 9, 3, 4, 5]
    # 3 and 4 follow the prompt's last token
    assert found.at_M.tolist() == [1, 1, 3, 5, 6] and found.token_M.tolist() == [3, 4, 5, 7, 8]
    assert found.owner_M.tolist() == [0, 1, 1, 2, 2]
    assert found.sequences == ((1, 2, 3), (1, 2, 4, 5), (6, 7, 8)) and found.prompts == (2, 2, 1)


def test_packed_sequences_are_roots():
    found = lay_out([([1, 2], [[3], [4, 5]])], share_prefix=False)
    assert found.ids_N.tolist() == [1, 2, 3, 1, 2, 4, 5]
    assert found.position_N.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert found.root_AL.tolist() == [[0, 1, 2, 0], [3, 4, 5, 6]]
    assert found.branch_RT.shape == (0, 0)
    assert found.at_M.tolist() == [1, 4, 5]
