"""One model a file, composed of modules: `ROLE`, `Config`, `build(config, schema, device)`.

A retriever's forward takes a batch with `sequences` and returns `user_ND`, a vector for every step of every history,
and `candidates_CD`; its `item_vectors` gives the vectors of the whole catalogue once tables are local. A ranker's
takes `sparse` and `dense` and returns `logits_BT`, a column a task, and `gates_BTE` where it has experts: see
`recsys.modules.over_arch`.
"""
