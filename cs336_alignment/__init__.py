"""Stanford CS336 Assignment 5 (Alignment) as a library. An independent reference implementation.

Four floors; imports only point down (tests/test_architecture.py holds them to it). To read it, start at the top of a
floor:

1.  numerics/       the handout's equations, tensors in, tensors out:
                    tokenization, log_probs, masking, aggregation, advantages, policy_gradient, preference
    grading/        text in, verdict out; drgrpo_grader.py holds the handout's two reward functions
    tasks/          data sets in, records out: gsm8k, arithmetic (the embedded set), mmlu, sft_examples, traces
    prompts/        the templates
    environment.py  the machine; run_folder.py: the files a run leaves; command_line.py: options, recipes, exit statuses
    ranks.py        this process among its peers; peer_watch.py: one that fails ends all
2.  rollout/        policy to text: engine (the protocol), transformers_engine, decoding, vllm_engine, selection, proof
    evaluation.py   problems through an engine and the grader, to figures; evaluation_report.py: the page
3.  training/       the algorithms: sft, expert_iteration, grpo, the DPO loss; under them
                    policy, packing, varlen, batching, microbatch, learner, distributed   examples to an optimiser step
                    session, rollouts, sampler_guard, checkpoint, interruption       around the loops
                    metrics, run_record                                              what they leave written
                    memory, memory_phases, memory_plan, memory_check, disk_space     before a run
                    alarms, curves                                                   during and after it
4.  math_baseline.py, and scripts/ in the repository: one verb a file
    node_check/     proves a machine before the first job
"""
