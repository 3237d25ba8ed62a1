#!/usr/bin/env bash
# The coaching loop (Algorithm 1 of the paper) on the built-in starter. Run again after an interruption, it goes on where it stopped.
# For your own agent copy this file and change the settings; README, "Bring your own", says how.
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python}                       # make coach sets the virtual environment's
run=${RUN:-runs/demo}                          # everything is written below
tasks=data/starter
agent="--model starter --tools tools/toolqa.py --data $tasks/world --hint-dir hints/starter/round1 --temperature 0.1 --batch 128 --max-steps 4 --max-new-tokens 160"
learn="--model starter --rank 128 --alpha 2048 --lora-dropout 0 --kl-temperature 1 --hint-dropout 0.9 --decay --verified --targets gate_proj up_proj down_proj"

[ -f $tasks/train3.jsonl ] || $python tools/starter_world.py --out $tasks

evaluate() {                                   # evaluate NAME [ADAPTERS AND HINTS …]: on tasks that no stage has trained on
    name=$1; shift
    $python evaluate.py $agent --tasks $tasks/test.jsonl --trials 3 --seed 1 "$@" --out "$run/test/$name.jsonl"
}

# Two things at a time, each on a core: that does more than one of them on both.
export OMP_NUM_THREADS=1
trap 'kill 0' INT                              # Ctrl-C is for both
log=$run/test/log.txt background=
mkdir -p $run/test
joined() { wait $background || { cat $log; exit 1; }; }                     # what runs beside has ended well
beside() { joined; "$@" &> $log & background=$!; }                          # beside COMMAND …: after the one before it

# Round 1: what the hints make the agent do goes into the weights. Beside it the agent before coaching: without hints, with those for its type of task.
before() {
    evaluate 0-none       --hints none
    evaluate 1-task       --hints task
}
beside before
round=1
$python collect.py $agent --tasks $tasks/train.jsonl --hints task --trials 1 --out $run/hinted1.jsonl
$python distill.py $learn --data $run/hinted1.jsonl --lr 1e-3 --epochs 5 --batch 8 --out $run/round1
adapters="--adapter $run/round1" earlier=$run/hinted1.jsonl

# Later rounds, on new tasks: see where the agent goes wrong without hints, give the hint against just that mistake, distil it, together
# with what the hints of round 1 make the agent do there, and balanced with trajectories of the rounds before.
after() {                                      # beside the training: the agent so far on the test tasks, and which hint helps, to be looked at
    [ $round != 2 ] || evaluate 2-combined --hints combined --batch 32      # everybody's hints at once: long prompts, a quarter of the memory
    evaluate $((round + 1))-round$((round - 1)) $adapters
    $python collect.py $agent $adapters --resample $run/flagged$round.jsonl --samples 4 --rollout --temperature 0.3 --control --out $run/control$round.jsonl       # without the hints
    $python review.py $run/seen$round.jsonl --hint-dir $hints --corrected $run/corrected$round.jsonl --control $run/control$round.jsonl --html $run/review$round.html
}
rates=([2]=1e-3 [3]=2.5e-4) epochs=([2]=2 [3]=1)    # the fewer mistakes are left, the less should be changed
for hints in hints/starter/round[23]; do
    [ -n "$(ls "$hints"/*.md 2> /dev/null)" ] || continue                  # as many as somebody has written hints for
    round=${hints##*round}
    new="--tasks $tasks/train$round.jsonl --trials 1 --seed $round"
    beside $python collect.py $agent $adapters $new --hints task --out $run/candidates$round.jsonl
    $python collect.py $agent $adapters $new --hints none --temperature 0.7 --out $run/seen$round.jsonl
    $python review.py $run/seen$round.jsonl --hint-dir $hints --out $run/flagged$round.jsonl
    $python collect.py $agent $adapters --resample $run/flagged$round.jsonl --samples 4 --rollout --temperature 0.3 --out $run/corrected$round.jsonl
    beside after
    $python distill.py $learn --row 2730 $adapters --data $run/corrected$round.jsonl $run/candidates$round.jsonl --balance $earlier --lr ${rates[$round]} --epochs ${epochs[$round]} --batch 16 --out $run/round$round
    adapters="$adapters --adapter $run/round$round" earlier="$earlier $run/candidates$round.jsonl"
done
joined
evaluate $((round + 2))-round$round $adapters

$python evaluate.py --table $run/test/*.jsonl --html $run/run.html
