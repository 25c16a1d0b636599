"""Two ranks share one vLLM engine, and ask it for different things: `torchrun -m tests.out_of_step_rank`."""

from cs336_alignment.ranks import Ranks, leave_peers
from cs336_alignment.rollout.engine import GroupOutOfStepError, Sampling
from cs336_alignment.rollout.vllm_engine import VLLMEngine
from tests.common import REPOSITORY


def main() -> None:
    ranks = Ranks(tensor_parallel_size=2)
    with VLLMEngine(REPOSITORY / "data/policy", tensor_parallel_size=2, cpu_kv_cache_gib=0.25) as engine:
        engine.generate(["the same"], Sampling(max_tokens=2))
        for prompt, sampling in (
            (f"rank {ranks.index}", Sampling(max_tokens=2)),
            ("the same", Sampling(max_tokens=2, seed=ranks.index)),
        ):
            try:
                engine.generate([prompt], sampling)
            except GroupOutOfStepError:
                continue
            raise AssertionError(f"{prompt!r} with {sampling} went unnoticed")
    leave_peers()


if __name__ == "__main__":
    main()
