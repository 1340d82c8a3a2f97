"""Members side by side for the same videos: from arrays, frames or caches, aligned by id, views reduced."""
