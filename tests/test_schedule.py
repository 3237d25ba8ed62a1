"""The settings of a training: defaults, the learning rate's schedule, warnings about what does not fit the data."""

from argparse import Namespace

import pytest
import torch

from training.defaults import LARGE, fill_in
from training.schedule import enough_epochs, factor, outcome, passes, unfit_settings

PAPER = {"adapter": [], "lr": 1e-5, "warmup": 30, "decay": False, "rank": 128, "alpha": 256}
SMALL = {"adapter": [], "lr": 2e-4, "warmup": 3, "decay": False, "rank": 32, "alpha": 64}


@pytest.mark.parametrize("warmup, decay, expected", [
    (0, False, [1, 1, 1, 1]), (2, False, [0.5, 1, 1, 1]), (0, True, [1, 0.75, 0.5, 0.25]),
    (8, True, [0.125, 0.1875, 0.1875, 0.125]),
])
def test_warm_up_and_decay(warmup, decay, expected):
    args = Namespace(warmup=warmup, decay=decay)
    assert [factor(t, 4, args) for t in range(4)] == expected


@pytest.mark.parametrize("settings, updates", [
    (PAPER, 1250), (PAPER | {"adapter": ["round1"]}, 138),
    (SMALL, 21), (SMALL | {"decay": True}, 114), (SMALL | {"lr": 3e-4, "decay": True}, 18)])
def test_no_warning_about_settings_that_have_worked_or_many_updates_of_the_papers(settings, updates):
    assert unfit_settings(Namespace(**settings), updates) == []


def test_the_papers_settings_are_too_slow_for_ten_updates():
    warmup, rate = unfit_settings(Namespace(**PAPER), 10)
    assert "--warmup 30 is long for 10 updates; try --warmup 1" == warmup
    assert "they reach 4e-05" in rate and "--lr" in rate


@pytest.mark.parametrize("records, epochs, seen", [
    ([("a", {}), ("a", {}), ("b", {})], 4, 6.0), ([("a", {}), ("b", {})], 10, 10.0),
    ([("a", {}), ("b", {"targets": [1]})], 1, None),
])
def test_few_passes_over_each_type_of_task_are_too_few_unless_they_correct_actions(records, epochs, seen):
    records = [{"task": {"template": template}, **more} for template, more in records]
    records *= epochs
    assert passes(records) == seen
    warned = unfit_settings(Namespace(**SMALL), 100, passes(records))
    assert [line[:45] for line in warned] == (["the model will see each type of task 6.0 time"] if seen == 6 else [])
    assert passes([*records, {"messages": []}]) == seen and passes([{"messages": []}]) is None


@pytest.mark.parametrize("each, epochs", [(1, 10), (2, 8), (5, 3), (8, 2), (24, 2)])
def test_a_small_model_sees_each_type_of_task_about_fifteen_times_or_if_corrected_ten(each, epochs):
    records = [{"task": {"template": template}} for template in "abc" for _ in range(each)]
    assert enough_epochs(records) == epochs
    assert enough_epochs([*records, {"task": {"template": "d"}, "targets": [1], "kept": True}]) == epochs
    corrected = [{"task": {"template": template}, "targets": [1]} for template in "abbb"]
    assert enough_epochs(records + corrected) == 5              # two of each type, each ten times
    assert enough_epochs(records + corrected[:1]) == 10 and enough_epochs(records + 5 * corrected) == 2
    assert enough_epochs([{"messages": []}]) == 2


@pytest.mark.parametrize("losses, sizes, fell", [
    ([0.5, 0.4, 0.2, 0.1, 0.1], [2, 2, 1], True), ([0.01, 0.02, 0.01, 0.03], [2, 2], False),
    ([0.1, 0.1], [1, 1], False)])
def test_a_loss_that_is_no_lower_in_the_last_epoch_than_in_the_first_gets_a_warning(losses, sizes, fell):
    figures, *warning = outcome(losses, sizes)
    first, last = sum(losses[:sizes[0]]) / sizes[0], sum(losses[-sizes[-1]:]) / sizes[-1]
    assert figures == f"loss {first:.4f} in the first epoch, {last:.4f} in the last"
    assert bool(warning) is not fell
    assert outcome(losses, [len(losses)]) == []                 # with one epoch there is nothing to compare


def test_adam_reaches_as_far_as_the_warning_says():
    """With gradients of one sign, a parameter moves by the sum of the learning rates."""
    args, updates = Namespace(**SMALL | {"decay": True, "lr": 1e-6}), 40
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([p], weight_decay=0.0)
    for t in range(updates):
        optimizer.param_groups[0]["lr"] = args.lr * factor(t, updates, args)
        p.grad = torch.tensor(0.3)
        optimizer.step()
    reach = args.alpha / args.rank * -p.item()
    assert f"they reach {reach:.1g}," in unfit_settings(args, updates)[0]


def settings(args):
    return {name: value for name, value in vars(args).items() if name != "adapter"}


def test_settings_that_are_left_out_are_the_papers_for_a_large_model_and_others_for_a_small_one():
    """docs/coaching.md and the README name these settings."""
    left_out = {"adapter": [], "alpha": None, **dict.fromkeys(LARGE)}
    large, small, given, later = (Namespace(**left_out | changes) for changes in (
        {"adapter": ["round1"]}, {}, {"rank": 8, "decay": False}, {"adapter": ["round1"]}))
    for args, parameters in ((large, 8.03e9), (small, 1.54e9), (given, 1.54e9), (later, 1.54e9)):
        fill_in(args, parameters)
    large, small, given, later = map(settings, (large, small, given, later))
    assert large == {"rank": 128, "alpha": 256, "lora_dropout": 0.05, "lr": 1e-5, "decay": False, "warmup": 30,
                     "batch": 8, "kl_temperature": 2, "epochs": 2}
    assert small == {"rank": 32, "alpha": 64, "lora_dropout": 0, "lr": 3e-4, "decay": True, "warmup": 3,
                     "batch": 4, "kl_temperature": 1, "epochs": None}
    assert given == small | {"rank": 8, "alpha": 16, "decay": False}
    assert later == small | {"lr": 1e-4}
