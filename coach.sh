#!/usr/bin/env bash
# The coaching loop (Algorithm 1 of the paper) on the built-in starter. If it is interrupted, run it again: it continues
# where it stopped.
# For your own agent, copy this file beside this one, and start the copy with RUN=runs/NAME. Change `agent`, --model, the
# task files and `mistakes`. The limits in `agent` are the starter's: a real model needs the default --max-new-tokens and
# a smaller --batch. The line 2-combined has a --batch of its own: lower it, or delete the line if all your hints together
# exceed --max-length. Of the options of distill.py keep only --model, --verified, --data, --balance, $adapters and
# --out: the others suit the starter (README, "With a real model"). In later rounds, --data is the corrected actions
# alone, and --balance the trajectories of round 1 (docs/coaching.md). Where the folder of `mistakes` is missing, the run stops: read seen2.jsonl, write the hints, run
# it again.
set -euo pipefail
cd "$(dirname "$0")"

[[ ${RUN:-} != *[[:space:]]* ]] || { echo "RUN=$RUN: a path with spaces does not work here" >&2; exit 2; }
python=${PYTHON:-python} run=${RUN:-runs/demo} tasks=data/starter        # everything is written to $run
agent="--model starter --tools tools/toolqa.py --data $tasks/world --hint-dir hints/starter/round1
       --temperature 0.1 --batch 128 --max-steps 4 --max-new-tokens 160"
learn="--model starter --rank 128 --alpha 2048 --lora-dropout 0 --targets gate_proj up_proj down_proj
       --kl-temperature 1 --hint-dropout 0.9 --decay --warmup 30 --verified"
later=([2]="--lr 1e-3 --epochs 2" [3]="--lr 5e-4 --epochs 1 --weight 0.5")     # how rounds 2 and 3 learn

[ $tasks != data/starter ] || [ -f $tasks/train3.jsonl ] || $python tools/starter_world.py --out $tasks
evaluate() { $python evaluate.py $agent --tasks $tasks/test.jsonl --trials 3 --seed 1 --out $run/test/$1.jsonl "${@:2}"; }
evaluate 0-none --hints none
evaluate 1-task --hints task
evaluate 2-combined --hints combined --batch 64            # long prompts: half the batch takes half the memory

# Round 1: the agent plays with the hints, and what it does goes into the weights.
$python collect.py $agent --tasks $tasks/train.jsonl --hints task --trials 1 --out $run/hinted1.jsonl
$python distill.py $learn --data $run/hinted1.jsonl --lr 1e-3 --epochs 5 --batch 8 --out $run/round1
adapters="--adapter $run/round1" earlier=$run/hinted1.jsonl
evaluate 3-round1 $adapters

# Later rounds: play without hints, find the mistakes, repeat those steps with a hint against the mistake. Distil these
# corrections, all trajectories of the same tasks with round 1's hints, and some of earlier rounds. (The paper plays the
# same tasks again, three times, and takes only as many trajectories as balance the corrections. The starter knows its
# tasks by heart, so it plays new ones. Two seeds make different copying errors, so their adapters are averaged;
# --weight 0.5 halves round 3's.)
for round in 2 3; do
    new="--tasks $tasks/train$round.jsonl --trials 1 --seed $round" mistakes="--hint-dir hints/starter/round$round"
    again="--resample $run/flagged$round.jsonl --samples 2 --rollout --temperature 0.3"
    $python collect.py $agent $adapters $new --hints none --temperature 0.7 --out $run/seen$round.jsonl
    $python review.py $run/seen$round.jsonl $mistakes --out $run/flagged$round.jsonl
    [ -s $run/flagged$round.jsonl ] || continue            # none of these mistakes was made: nothing to learn
    $python collect.py $agent $adapters $again --out $run/corrected$round.jsonl
    $python review.py $run/seen$round.jsonl $mistakes --corrected $run/corrected$round.jsonl \
        --html $run/review$round.html > /dev/null
    $python collect.py $agent $adapters $new --hints task --out $run/hinted$round.jsonl
    $python distill.py $learn ${later[$round]:-} $adapters --data $run/corrected$round.jsonl $run/hinted$round.jsonl \
        --balance $earlier --batch 16 --row 2730 --seed 0 1 --out $run/round$round
    adapters="$adapters --adapter $run/round$round" earlier="$earlier $run/hinted$round.jsonl"
    evaluate $((round + 2))-round$round $adapters
done
$python evaluate.py --table $run/test/*.jsonl --html $run/run.html
