"""The texts of `ivgr --help` and `ivgr fit --help`."""

HELP = """\
ivgr: train vision-language models to reason in plain text with the localization skill of
explicit boxes (iVGR, arXiv 2605.31096).

  ivgr fit --config FILE        train; try configs/tiny.yaml, which needs no GPU and no data
  ivgr fit --config FILE --ckpt_path last
                                continue a run that was stopped
                                (auto: if there is one; SIGTERM saves before it stops the run)
  ivgr plan --config FILE       what it needs, before any GPU is rented
  ivgr rehearse --config FILE   one iteration on a GPU that does nothing: memory and kernels by phase
  ivgr validate --config FILE   held-out figures of a policy, both streams, greedy
  ivgr ask IMAGE... "QUESTION"  ask a policy: answer, reasoning and, with --mode grounded, boxes; with
                                --mode tool a closer look at what they hold
  ivgr synth DIR --split train --count N
                                draw shards of the tiny world
  ivgr pack SRC DST             turn parquet, JSON, JSONL, COCO or CSV rows and their images into shards
  ivgr inspect SHARDS           count them, and draw their boxes and questions on a contact sheet
  ivgr scratch FAMILY SIZE DST  write a random-weight checkpoint of a family's true shape
  ivgr archive show CKPT        print the rollout archive of a checkpoint
  ivgr export CKPT DIR          write a checkpoint's policy, adapters merged, as a Hugging Face directory
  ivgr distill RUN SHARDS DST   cold-start shards from a run's good grounded rollouts: as they are, and
                                rewritten without boxes
  ivgr filter SHARDS DST        keep the samples that a policy answers neither always nor never
  ivgr evaluate --benchmark NAME --data DIR --model MODEL --mode text tool
                                score models on V*, HRBench, POPE, … from files you have, with intervals
  ivgr compare RUN_A RUN_B      is the difference real? paired, with McNemar's test
  ivgr analyse OUT/MODEL        what the modes differ in, cost, and accuracy by IoU of the boxes
  ivgr study                    the paper's ablation on the tiny world: arms, seeds, tests, one figure
  ivgr bench update             time a phase with the prefix shared and without; also rollout, step
  ivgr bench kernels            time log-prob and KL against this machine's copy and GEMM speed
  ivgr bench decoding           time the kernels of a decoding step beside the stock modules
  ivgr bench gpu                everything that needs a GPU, into one file; --null tries it out without
  ivgr bench rehearsed          is the memory of a rehearsal a real GPU's?
  ivgr bench data               time decoding and processing beside plain PIL and the HF processor
  ivgr bench evaluate           time answering rows of a benchmark beside stock `generate`

Any setting of the config can be overridden on the command line, for example
  ivgr fit --config configs/tiny.yaml --model.update.optimizer.lr 5e-5 --seed_everything 1
and `--print_config` prints the outcome. `ivgr COMMAND --help` lists every setting.
"""

FIT = """\
usage: ivgr {command} --config FILE [--ckpt_path FILE|last|best|auto] [--SETTING VALUE]...

A config (configs/*.yaml) names two classes and sets the rest; each setting can be given here, too.

  model.*            what is trained and how: ivgr.IVGR (the method) or ivgr.SFT (cold start)
  data.*             on what: ivgr.ShardDataModule or, for a cold start, ivgr.ColdStart (your shards);
                     ivgr.toy.TinyWorld, ivgr.toy.Curriculum (the tiny world)
  trainer.*          devices, strategy (ddp, fsdp2), precision, callbacks, default_root_dir: what the run
                     writes lies there
  checkpoint_every, checkpoint_keep, checkpoint_best
                     when last.ckpt is written, how many are kept, and by which figure best.ckpt is chosen
  seed_everything    seed of all that is drawn at random
  rank_timeout       seconds for which another rank may be out of reach
  ckpt_path          go on from a checkpoint: a file, last, best, or auto (last, if there is one)

  ivgr {command} --help CLASS                   every setting of a class, such as ivgr.IVGR or
                                          ivgr.launch.trainer_settings.Trainer
  ivgr {command} --config FILE --print_config   every setting with its value
"""
