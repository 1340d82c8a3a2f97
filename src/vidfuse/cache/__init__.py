"""Logit caches and the stacks that they are fused from: the seam between whatever predicts and what is fused.

Modules: `stack` (members aligned by id), `store` (folders of immutable parts), `format` (one part's bytes),
`importers` and `export` (what other tools dump and read).
"""
