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
resample="--samples 2 --rollout --temperature 0.3 --resample"

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

# Round 1: what the hints make the agent do goes into the weights. Beside it the agent before that, with the hints for its type of task, and with everybody's.
before() {
    evaluate 1-task --hints task
    evaluate 2-combined --hints combined --batch 32         # long prompts: a quarter of the memory
}
beside before
$python collect.py $agent --tasks $tasks/train.jsonl --hints task --trials 1 --out $run/hinted1.jsonl
$python distill.py $learn --data $run/hinted1.jsonl --lr 1e-3 --epochs 5 --batch 8 --out $run/round1
adapters=([1]="--adapter $run/round1") earlier=$run/hinted1.jsonl

# Later rounds, on new tasks: see where the agent goes wrong without hints, give the hint against just that mistake, distil it, together
# with what the hints of round 1 make the agent do there, and balanced with trajectories of the rounds before. Both cores train, from
# different seeds, and the agent gets the mean of what they learned, or half of it: each alone copies other values wrongly.
rates=([2]=1e-3 [3]=5e-4) epochs=([2]=2 [3]=1) weights=([2]=0.5 [3]=0.25)      # the fewer mistakes are left, the less should be changed
for hints in hints/starter/round[23]; do
    [ -n "$(ls "$hints"/*.md 2> /dev/null)" ] || continue                  # as many as somebody has written hints for
    round=${hints##*round} so_far=${adapters[-1]}
    new="--tasks $tasks/train$round.jsonl --trials 1 --seed $round"
    beside $python collect.py $agent $so_far $new --hints task --out $run/candidates$round.jsonl
    $python collect.py $agent $so_far $new --hints none --temperature 0.7 --out $run/seen$round.jsonl
    $python review.py $run/seen$round.jsonl --hint-dir $hints --out $run/flagged$round.jsonl
    $python collect.py $agent $so_far $resample $run/flagged$round.jsonl --out $run/corrected$round.jsonl

    data="--data $run/corrected$round.jsonl $run/candidates$round.jsonl --balance $earlier --lr ${rates[$round]} --epochs ${epochs[$round]} --batch 16 --row 2730"
    beside $python distill.py $learn $so_far $data --seed 1 --out $run/round$round-seed1
    $python distill.py $learn $so_far $data --seed 0 --out $run/round$round-seed0
    joined
    $python lora.py stack --weight ${weights[$round]} $run/round$round-seed[01] --out $run/round$round
    cp $run/round$round-seed0/{arguments.json,log.jsonl} $run/round$round/                       # for the run's page
    adapters[$round]="$so_far --adapter $run/round$round" earlier="$earlier $run/candidates$round.jsonl"
done

# What it came to, on tasks that no stage has trained on; and what each corrective hint did, to be looked at.
effect() {                                     # effect ROUND: the same states without the hint
    [ -f $run/flagged$1.jsonl ] || return 0
    $python collect.py $agent ${adapters[$1 - 1]} $resample $run/flagged$1.jsonl --control --out $run/control$1.jsonl
    $python review.py $run/seen$1.jsonl --hint-dir hints/starter/round$1 --corrected $run/corrected$1.jsonl --control $run/control$1.jsonl --html $run/review$1.html > /dev/null
}
others() {
    evaluate 0-none --hints none
    effect 2
}
beside others
for round in ${!adapters[@]}; do
    evaluate $((round + 2))-round$round ${adapters[$round]}
done
effect 3
joined

$python evaluate.py --table $run/test/*.jsonl --html $run/run.html
