"""Logit caches on disk: folders of immutable parts, one folder a member; the seam between what predicts and what fuses.

Modules: `format` (one part's bytes), `reader`, `writer`, `upkeep` (verify, consolidate), `meta` (what a cache says of
itself), `publish` (how a file gets its name).
"""
