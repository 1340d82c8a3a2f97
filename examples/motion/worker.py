"""What a worker process of `motion.render_motion` runs: `python -m motion.worker FOLDER PLAN WORKER WORKERS`."""

import sys

from motion.dataset import render_share

if __name__ == "__main__":
    render_share(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
