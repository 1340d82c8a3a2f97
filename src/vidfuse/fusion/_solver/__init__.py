"""The convex fits behind learned weights: passes over blocks, second-order steps, certified gaps."""
