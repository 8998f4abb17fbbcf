"""The peer of `bench_training.py`: torchrec's own DLRM, sharder and fused optimizer, driven in memory by a plain loop.

Started by it in processes of its own, so that nothing of Feedline is in them:

    torchrun --nproc-per-node 2 benchmarks/_peer_dlrm.py '{"batch": 1024, …}'
"""

import json
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad


def main() -> None:
    """Train for the seconds asked for; the first rank prints samples a second."""
    size = json.loads(sys.argv[1])
    torch.set_num_threads(size["threads"])
    dist.init_process_group("gloo")
    tables, rows, dim, batch, ids = (size[name] for name in ("tables", "rows", "dim", "batch", "ids"))
    names = [f"c{i}" for i in range(tables)]
    device = torch.device("cpu")
    sparse = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=[name])
            for name in names
        ],
        device=torch.device("meta"),
    )
    _apply_optimizer_in_backward(RowWiseAdagrad, sparse.parameters(), {"lr": 0.05, "eps": 1e-8})
    model = DistributedModelParallel(
        DLRMTrain(DLRM(sparse, size["dense"], [*size["bottom"], dim], [*size["top"], 1], dense_device=device)),
        device=device,
    )
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda part: torch.optim.AdamW(part, lr=1e-3)
    )
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    generator = torch.Generator().manual_seed(dist.get_rank())
    batches = [
        Batch(
            dense_features=torch.rand(batch, size["dense"], generator=generator),
            sparse_features=KeyedJaggedTensor(
                keys=names,
                values=torch.randint(0, rows, (tables * batch * ids,), generator=generator),
                lengths=torch.full((tables * batch,), ids),
            ),
            labels=torch.randint(0, 2, (batch,), generator=generator).float(),
        )
        for _ in range(size["batches"])
    ]

    def epoch() -> None:
        for one in batches:
            optimizer.zero_grad()
            loss, _ = model(one)
            loss.backward()
            optimizer.step()

    epoch()
    rates = []
    for _ in range(size["rounds"]):
        dist.barrier()
        started = time.perf_counter()
        epoch()
        dist.barrier()
        rates.append(len(batches) * batch * dist.get_world_size() / (time.perf_counter() - started))
    if dist.get_rank() == 0:
        print(json.dumps(rates))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
