#!/usr/bin/env bash
# The coaching loop (Algorithm 1 of the paper) on the built-in starter. Run again after an interruption, it goes on where it stopped.
# For your own agent copy this file and change the settings; README, "Bring your own", says how.
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python}                       # make coach sets the virtual environment's
run=${RUN:-runs/demo}                          # everything is written below
tasks=data/starter
agent="--model starter --tools tools/toolqa.py --data $tasks/world --hint-dir hints/starter/round1 --temperature 0.1 --batch 128 --max-steps 4 --max-new-tokens 160"
learn="--model starter --rank 64 --alpha 128 --lora-dropout 0 --kl-temperature 1 --hint-dropout 0.9 --decay --verified --targets gate_proj up_proj down_proj"

[ -f $tasks/train3.jsonl ] || $python tools/starter_world.py --out $tasks

evaluate() {                                   # evaluate NAME [ADAPTERS AND HINTS …]: on tasks that no stage has trained on
    name=$1; shift
    $python evaluate.py $agent --tasks $tasks/test.jsonl --trials 3 --seed 1 "$@" --out "$run/test/$name.jsonl"
}

# Some of it runs beside the coaching: two processes of one thread do more than one of two.
export OMP_NUM_THREADS=1
trap 'kill 0' INT                              # Ctrl-C is for both
log=$run/test/log.txt background=
mkdir -p $run/test
joined() { wait $background || { cat $log; exit 1; }; }                     # what runs beside has ended well
beside() { joined; "$@" &> $log & background=$!; }                          # beside COMMAND …: after the one before it

# Before coaching: the agent without hints, with those for its type of task, with everybody's hints at once.
before() {
    evaluate 0-none       --hints none
    evaluate 1-task       --hints task
    evaluate 2-combined   --hints combined --batch 32    # long prompts: a quarter of the memory
}
beside before

# Round 1: what the hints make the agent do goes into the weights.
round=1
$python collect.py $agent --tasks $tasks/train.jsonl --hints task --trials 1 --out $run/hinted1.jsonl
$python distill.py $learn --data $run/hinted1.jsonl --lr 8e-3 --epochs 10 --batch 8 --out $run/round1
adapters="--adapter $run/round1" earlier=$run/hinted1.jsonl

# Later rounds, on new tasks: see where the agent goes wrong without hints, give the hint against just that mistake, distil it, together
# with what the hints of round 1 make the agent do there, and balanced with trajectories of the rounds before.
meanwhile() {                                  # the agent so far on the test tasks, and with hints on the new ones
    evaluate $((round + 1))-round$((round - 1)) $adapters
    $python collect.py $agent $adapters $new --hints task --out $run/candidates$round.jsonl
}
rates=([2]=8e-3 [3]=2e-3) epochs=([2]=4 [3]=2)      # the fewer mistakes are left, the less should be changed
for hints in hints/starter/round[23]; do
    [ -n "$(ls "$hints"/*.md 2> /dev/null)" ] || continue                  # as many as somebody has written hints for
    round=${hints##*round}
    new="--tasks $tasks/train$round.jsonl --trials 1 --seed $round"
    beside meanwhile
    $python collect.py $agent $adapters $new --hints none --temperature 0.7 --out $run/seen$round.jsonl
    $python review.py $run/seen$round.jsonl --hint-dir $hints --out $run/flagged$round.jsonl
    $python collect.py $agent $adapters --resample $run/flagged$round.jsonl --samples 4 --rollout --temperature 0.3 --out $run/corrected$round.jsonl
    $python collect.py $agent $adapters --resample $run/flagged$round.jsonl --samples 4 --rollout --temperature 0.3 --control --out $run/control$round.jsonl       # without the hints
    $python review.py $run/seen$round.jsonl --hint-dir $hints --corrected $run/corrected$round.jsonl --control $run/control$round.jsonl --html $run/review$round.html > /dev/null     # to be looked at: which hint helps
    joined
    OMP_NUM_THREADS=2 $python distill.py $learn --row 2730 $adapters --data $run/corrected$round.jsonl $run/candidates$round.jsonl --balance $earlier --lr ${rates[$round]} --epochs ${epochs[$round]} --batch 16 --out $run/round$round
    adapters="$adapters --adapter $run/round$round" earlier="$earlier $run/candidates$round.jsonl"
done
joined
evaluate $((round + 2))-round$round $adapters

$python evaluate.py --table $run/test/*.jsonl --html $run/run.html
