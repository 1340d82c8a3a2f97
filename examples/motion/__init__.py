"""The demo's videos: recorded human motion, performed by bodies of our own and rendered with NumPy.

It stands beside the examples and is no part of the package that is installed.

    recordings    the 15 recordings, as `recordings.npz` holds them
    body          performers: proportions, bearing, and where their limbs are in a pose
    drawing       limbs as shaded round cones
    filming       one video: performer, clothes, camera, background
    dataset       all videos of a plan, in the challenge's layout
"""

from motion.dataset import MotionSet, performers, render_motion
from motion.filming import render_clip
from motion.plan import ACTIONS, MotionPlan

__all__ = ["ACTIONS", "MotionPlan", "MotionSet", "performers", "render_clip", "render_motion"]
