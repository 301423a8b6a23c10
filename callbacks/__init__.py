"""What happens beside training: previews, results, records, measurements, averaged weights."""

from callbacks.checkpoints import Checkpoints
from callbacks.ema import EMA
from callbacks.export import Export
from callbacks.image_writer import ImageWriter
from callbacks.previews import Previews
from callbacks.run_record import RunRecord
from callbacks.skip_nonfinite import SkipNonFinite
from callbacks.throughput import Throughput

__all__ = ["EMA", "Checkpoints", "Export", "ImageWriter", "Previews", "RunRecord", "SkipNonFinite", "Throughput"]
